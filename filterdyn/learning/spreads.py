"""How uncertain many weights are: all of a covariance, or a diagonal and a few columns of its inverse."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.linalg import PSD, condition, factor_of


class Images(NamedTuple):
    """What A theta is, of uncertain theta with covariance C."""

    cross: Float[Array, "m k"]  # A C
    cov: PSD  # A C A^T


class Moved(NamedTuple):
    """After theta' = slope theta + N(0, diag(noise)): A theta is `slopes` theta' plus something that is
    independent of theta', of covariance `left`."""

    spread: "AbstractWeightSpread"
    slopes: Float[Array, "m k"]
    left: PSD


class AbstractWeightSpread(eqx.Module):
    """The covariance of k weights."""

    @property
    @abc.abstractmethod
    def variances(self) -> Float[Array, "*T k"]:
        """Its diagonal."""

    @abc.abstractmethod
    def images(self, a: Float[Array, "m k"]) -> Images:
        """Of A theta."""

    @abc.abstractmethod
    def of_normals(self, normals: Float[Array, " k"]) -> Float[Array, " k"]:
        """A draw of N(0, C), made of standard normal numbers."""

    @abc.abstractmethod
    def moved(
        self, slope: Float[Array, ""], noise: Float[Array, " k"], a: Float[Array, "m k"]
    ) -> Moved:
        """After theta' = slope theta + N(0, diag(noise)), with `slope` > 0."""

    @abc.abstractmethod
    def inflated(self, factor: float, a: Float[Array, "m k"]) -> Moved:
        """After theta' = theta + N(0, C / factor - C), 0 < factor <= 1."""

    @abc.abstractmethod
    def learned(
        self, slopes: Float[Array, "m k"], noise: Float[Array, "m m"]
    ) -> "AbstractWeightSpread":
        """After a measurement of slopes theta + N(0, noise), with a regular `noise`."""


class DenseSpread(AbstractWeightSpread):
    """The covariance itself, (k, k)."""

    matrix: Float[Array, "*T k k"]

    @property
    def variances(self) -> Float[Array, "*T k"]:
        return jnp.diagonal(self.matrix, axis1=-2, axis2=-1)

    def images(self, a: Float[Array, "m k"]) -> Images:
        cross = a @ self.matrix
        return Images(cross, nearest(cross @ a.T))

    def of_normals(self, normals: Float[Array, " k"]) -> Float[Array, " k"]:
        return factor_of(self.matrix) @ normals

    def moved(
        self, slope: Float[Array, ""], noise: Float[Array, " k"], a: Float[Array, "m k"]
    ) -> Moved:
        # Of theta given theta' the covariance is B = (C^-1 + slope^2 Q^-1)^-1 = (Q - Q C'^-1 Q) / slope^2.
        new = slope**2 * self.matrix + jnp.diag(noise)
        slopes = slope * jnp.linalg.solve(new, self.matrix @ a.T).T
        image = noise * a
        left = (image @ a.T - image @ jnp.linalg.solve(new, image.T)) / slope**2
        return Moved(DenseSpread(new), slopes, nearest(left))

    def inflated(self, factor: float, a: Float[Array, "m k"]) -> Moved:
        left = (1.0 - factor) * self.images(a).cov.matrix
        return Moved(DenseSpread(self.matrix / factor), factor * a, nearest(left))

    def learned(self, slopes: Float[Array, "m k"], noise: Float[Array, "m m"]) -> "DenseSpread":
        m = len(slopes)
        all_seen = jnp.ones(m, bool)
        nothing = jnp.zeros(m, slopes.dtype)
        found = condition(PSD(None, self.matrix), slopes, nothing, noise, all_seen)
        return DenseSpread(0.5 * (found.cov.matrix + found.cov.matrix.T))


class LowRankSpread(AbstractWeightSpread):
    """C = (diag(precisions) + W W^T)^-1 with W (k, rank): O(k rank) numbers (Chang, Duran-Martin,
    Shestopaloff, Jones, Murphy 2023)."""

    precisions: Float[Array, "*T k"]
    columns: Float[Array, "*T k rank"]

    @property
    def variances(self) -> Float[Array, "*T k"]:
        root = 1.0 / jnp.sqrt(self.precisions)
        scaled = root[..., :, None] * self.columns
        values, vectors = _spectrum(scaled)
        along = scaled @ vectors
        share = (along * along / (1.0 + values[..., None, :])).sum(-1)
        return root**2 * jnp.maximum(1.0 - share, 0.0)

    def images(self, a: Float[Array, "m k"]) -> Images:
        return _images(a, 1.0 / self.precisions, self.columns)

    def of_normals(self, normals: Float[Array, " k"]) -> Float[Array, " k"]:
        root, half = _root(1.0 / self.precisions, self.columns)
        return root * half(normals)

    def moved(
        self, slope: Float[Array, ""], noise: Float[Array, " k"], a: Float[Array, "m k"]
    ) -> Moved:
        # With U the precisions, theta given theta' has the covariance B = (diag(1 / b) + W W^T)^-1,
        # b = Q / (slope^2 + Q U), and slopes = slope A B Q^-1. (The prediction of the paper, with a symmetric
        # square root for its Cholesky factor; b = 0 where nothing moves.)
        share = 1.0 / (slope**2 + noise * self.precisions)
        b = noise * share
        scaled = jnp.sqrt(b)[:, None] * self.columns
        values, vectors = _spectrum(scaled)
        inner = (vectors / (1.0 + values)) @ vectors.T
        root = (vectors / jnp.sqrt(1.0 + values)) @ vectors.T
        slopes = slope * share * (a - ((b * a) @ self.columns) @ inner @ self.columns.T)
        new = LowRankSpread(self.precisions * share, slope * share[:, None] * (self.columns @ root))
        return Moved(new, slopes, _images(a, b, self.columns).cov)

    def inflated(self, factor: float, a: Float[Array, "m k"]) -> Moved:
        new = LowRankSpread(factor * self.precisions, factor**0.5 * self.columns)
        cov = self.images(a).cov
        assert cov.factor is not None
        return Moved(new, factor * a, PSD.from_factor((1.0 - factor) ** 0.5 * cov.factor))

    def learned(self, slopes: Float[Array, "m k"], noise: Float[Array, "m m"]) -> "LowRankSpread":
        # W gets the columns slopes^T A^T with A^T A the inverse of the noise; of its singular vectors the
        # `rank` largest stay, the others add their diagonal to the precisions. Turning the columns by the
        # eigenvectors of their products loses no digits, as dividing by singular values would.
        root = jnp.linalg.cholesky(noise)
        whitened = jnp.linalg.solve(root, slopes)
        wide = jnp.concatenate([self.columns, whitened.T], axis=1)
        _, vectors = jnp.linalg.eigh(wide.T @ wide)
        turned = wide @ vectors
        rest, kept = turned[:, : len(slopes)], turned[:, len(slopes) :]
        return LowRankSpread(self.precisions + (rest * rest).sum(1), kept)


def start_of(variances: Float[Array, " k"], rank: int | None) -> AbstractWeightSpread:
    """Independent weights."""
    if rank is None:
        return DenseSpread(jnp.diag(variances))
    return LowRankSpread(1.0 / variances, jnp.zeros((len(variances), rank), variances.dtype))


def nearest(matrix: Float[Array, "m m"]) -> PSD:
    """A small covariance that rounding may have made indefinite."""
    values, vectors = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
    return PSD.from_factor(vectors * jnp.sqrt(jnp.maximum(values, 0.0)))


def _spectrum(scaled: Float[Array, "*T k rank"]) -> tuple[Array, Array]:
    """Squares of singular values, and the right singular vectors."""
    values, vectors = jnp.linalg.eigh(jnp.swapaxes(scaled, -1, -2) @ scaled)
    return jnp.maximum(values, 0.0), vectors


def _root(variances: Array, columns: Float[Array, "k rank"]) -> tuple[Array, Any]:
    """Of C = (diag(1 / variances) + W W^T)^-1 a vector d and a symmetric map M with C = d M M d: with the
    eigenvectors v and eigenvalues s^2 - 1 of X^T X, X = d W, M is 1 - X v diag(1 / (s (1 + s))) v^T X^T."""
    root = jnp.sqrt(variances)
    scaled = root[:, None] * columns
    values, vectors = _spectrum(scaled)
    s = jnp.sqrt(1.0 + values)
    inner = (vectors / (s * (1.0 + s))) @ vectors.T
    return root, lambda b: b - (b @ scaled) @ inner @ scaled.T


def _images(a: Float[Array, "m k"], variances: Array, columns: Float[Array, "k rank"]) -> Images:
    """Of C = (diag(1 / variances) + W W^T)^-1. A C A^T is a square, and so positive whatever rounding
    does."""
    root, half = _root(variances, columns)
    factor = half(root * a)
    return Images(root * half(factor), PSD.from_factor(factor))
