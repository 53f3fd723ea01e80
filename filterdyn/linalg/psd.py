"""Positive semi-definite matrices as a pair: a factor that holds the value, a matrix that holds the
derivative."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.linalg.products import SMALL, mm
from filterdyn.linalg.surrogate import accurately, with_derivative_of
from filterdyn.linalg.triangularize import triangularize


class DiffusePart(eqx.Module):
    """The infinite part of a covariance, kappa S S^T with kappa to infinity: zero columns are gone.

    As in `PSD` the factor holds the value and the matrix S S^T the derivative. `marginal` leaves
    log(2 pi) of the measurements that a diffuse state takes up out of the likelihood.
    """

    factor: Float[Array, "n n"]
    matrix: Float[Array, "n n"]
    marginal: bool = eqx.field(static=True)

    def __init__(self, factor: Array, matrix: Array, marginal: bool):
        self.factor = jax.lax.stop_gradient(factor)
        self.matrix = matrix
        self.marginal = marginal

    def standard_deviations(self) -> Float[Array, " n"]:
        """Square roots of the diagonal of S S^T."""
        return jnp.sqrt((self.factor * self.factor).sum(1))

    def moved(self, phi: Float[Array, "n n"]) -> "DiffusePart":
        """phi S S^T phi^T, column by column, so that a zero column stays exactly zero."""
        factor = mm(jax.lax.stop_gradient(phi), self.factor)
        smooth = mm(mm(phi, self.matrix), phi.T)
        return DiffusePart(factor, accurately(mm(factor, factor.T), smooth), self.marginal)

    def seen_through(self, h: Float[Array, "m n"], cov: Float[Array, "m m"]) -> Float[Array, "m m"]:
        """The covariance `cov` of H x with infinities where H sees the diffuse part."""
        image = mm(mm(h, self.matrix), h.T)
        reach = (jnp.abs(h) * self.standard_deviations()).sum(1)
        floor = (64 * jnp.finfo(h.dtype).eps) ** 2 * reach[:, None] * reach[None, :]
        return jnp.where(jnp.abs(image) > floor, jnp.sign(image) * jnp.inf, cov)


class PSD(eqx.Module):
    """P = S S^T. In square-root form all values are computed from `factor` S (which carries no
    derivative); `matrix` P has the value S S^T and the derivative of the covariance recursion. So
    precision is that of a square-root filter and gradients are those of the covariance form, at
    singular P too. In covariance form `factor` is `None`, and the matrix holds both."""

    factor: Float[Array, "n n"] | None
    matrix: Float[Array, "n n"]
    #: A further part that is infinite.
    diffuse: DiffusePart | None

    def __init__(
        self,
        factor: Float[Array, "n n"] | None,
        matrix: Float[Array, "n n"],
        diffuse: DiffusePart | None = None,
    ):
        self.factor = None if factor is None else jax.lax.stop_gradient(factor)
        self.matrix = matrix
        self.diffuse = diffuse

    @staticmethod
    def from_factor(factor: Float[Array, "n k"]) -> "PSD":
        """From any S (n, k) with P = S S^T; differentiable in S."""
        n, k = factor.shape
        value = jax.lax.stop_gradient(factor)
        square = jnp.pad(value, ((0, 0), (0, n - k))) if k <= n else triangularize(value)
        return PSD(square, mm(factor, factor.T))

    @staticmethod
    def from_matrix(matrix: Float[Array, "n n"]) -> "PSD":
        """From P itself; differentiable in P. An indefinite P gives a NaN factor."""
        symmetric = 0.5 * (matrix + matrix.T)
        return PSD(factor_of(jax.lax.stop_gradient(symmetric)), symmetric)

    @staticmethod
    def zeros(n: int, dtype: jnp.dtype) -> "PSD":
        return PSD(jnp.zeros((n, n), dtype), jnp.zeros((n, n), dtype))

    def astype(self, dtype: jnp.dtype) -> "PSD":
        cast = lambda x: x.astype(dtype)
        return jax.tree.map(cast, self)

    def without_factor(self) -> "PSD":
        """The same in covariance form."""
        return PSD(None, self.matrix, self.diffuse)

    @property
    def full(self) -> Float[Array, "*T n n"]:
        """P as one reports it: infinite where it is diffuse."""
        if self.diffuse is None:
            return self.matrix
        diffuse = self.diffuse
        report = lambda part, matrix: part.seen_through(jnp.eye(matrix.shape[-1]), matrix)
        for _ in range(self.matrix.ndim - 2):
            report = jax.vmap(report)
        return report(diffuse, self.matrix)

    def seen_through(self, h: Float[Array, "m n"]) -> Float[Array, "m m"]:
        """H P H^T."""
        image = mm(mm(h, self.matrix), h.T)
        return image if self.diffuse is None else self.diffuse.seen_through(h, image)

    @property
    def root(self) -> Float[Array, "*T n n"]:
        """A factor S, computed where there is none. It carries no derivative."""
        if self.factor is not None:
            return self.factor
        factors = factor_of
        for _ in range(self.matrix.ndim - 2):
            factors = jax.vmap(factors)
        return factors(jax.lax.stop_gradient(self.matrix))

    @property
    def carrier(self) -> Float[Array, "n n"]:
        """Whichever holds the value: finite if P is, zero if P is."""
        return self.matrix if self.factor is None else self.factor

    def standard_deviations(self) -> Float[Array, " n"]:
        """Square roots of the diagonal of P."""
        if self.factor is None:
            diagonal = jnp.diagonal(self.matrix)
            return jnp.sqrt(jnp.where(diagonal > 0, diagonal, 0.0))
        return jnp.sqrt((self.factor * self.factor).sum(1))


def factor_of(p: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Lower triangular S with S S^T = P for a positive *semi*-definite P (Cholesky that drops a pivot
    at rounding level); NaN where P is indefinite."""
    n = p.shape[0]
    floor = n * jnp.finfo(p.dtype).eps * jnp.diagonal(p)

    def root(pivot: Array, floor: Array) -> tuple[Array, Array]:
        keep = pivot > floor
        broken = (pivot < -1e3 * floor) | (floor < 0)
        return keep, jnp.where(broken, jnp.nan, jnp.sqrt(jnp.where(keep, pivot, 1.0)))

    if n <= SMALL // 2:
        columns, rest = [], p
        for j in range(n):
            keep, size = root(rest[0, 0], floor[j])
            column = jnp.where(keep, rest[:, 0], 0.0) / size
            rest = rest[1:, 1:] - column[1:, None] * column[None, 1:]
            columns.append(jnp.concatenate([jnp.zeros(j, p.dtype), column]))
        return jnp.stack(columns, axis=1)

    index = jnp.arange(n)

    def eliminate(rest: Array, j: Array) -> tuple[Array, Array]:
        is_j = index == j
        column = jnp.where(is_j, rest, 0.0).sum(1)
        keep, size = root(jnp.where(is_j, column, 0.0).sum(), jnp.where(is_j, floor, 0.0).sum())
        column = jnp.where((index >= j) & keep, column, 0.0) / size
        return rest - column[:, None] * column[None, :], column

    return jax.lax.scan(eliminate, p, index)[1].T


def congruence(phi: Float[Array, "m n"], p: PSD, noise: PSD, keep: bool = True) -> PSD:
    """phi P phi^T + noise, in the form that P has. With `keep` a reverse pass may store the value;
    inside a long loop that would be too much."""
    smooth = mm(mm(phi, p.matrix), phi.T) + noise.matrix
    diffuse = _moved_diffuse(phi, p.diffuse, noise.diffuse)
    if p.factor is None:
        return PSD(None, 0.5 * (smooth + smooth.T), diffuse)
    wide = jnp.concatenate([mm(jax.lax.stop_gradient(phi), p.factor), noise.root], axis=1)
    factor = triangularize(jax.lax.stop_gradient(wide))
    with_value = accurately if keep else with_derivative_of
    return PSD(factor, with_value(mm(factor, factor.T), smooth), diffuse)


def _moved_diffuse(
    phi: Float[Array, "m n"], diffuse: DiffusePart | None, added: DiffusePart | None
) -> DiffusePart | None:
    if diffuse is None:
        return added
    moved = diffuse.moved(phi)
    if added is None:
        return moved
    factor = triangularize(jnp.concatenate([moved.factor, added.factor], axis=1))
    return DiffusePart(
        factor, accurately(mm(factor, factor.T), moved.matrix + added.matrix), moved.marginal
    )
