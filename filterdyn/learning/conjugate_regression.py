"""Conjugate posteriors of linear regressions on features of what a particle went through."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import block_diag, cho_solve, solve_triangular
from jax.scipy.special import digamma, polygamma
from jaxtyping import Array, Float

from filterdyn._callables import Held
from filterdyn._checks import float_array, is_traced
from filterdyn.learning.conjugate import positive
from filterdyn.learning.model import ParametricModel
from filterdyn.learning.statistics import (
    AbstractStatistics,
    Passage,
    held,
    named,
    prior_of,
)
from filterdyn.moments import conditional_moments


class NormalStatistics(AbstractStatistics):
    """Coefficients of a linear regression whose noise is known: target = features . beta + N(0, noise)
    under beta ~ N(m, K^-1). Statistics: (K, K m)."""

    coefficients: str = eqx.field(static=True)
    target: Held
    features: Held
    noise: Held | Array

    def __init__(
        self,
        coefficients: str,
        target: Callable[[Passage], Any],
        features: Callable[[Passage], Any],
        noise: Any,
    ):
        """**Arguments:**

        - `coefficients`: the name, whose prior in the model is `Normal` or `MultivariateNormal`, of event
          shape () or (p,);
        - `target(passage)`: () or (n,), e.g. `lambda p: p.x_to[0]`;
        - `features(passage)`: (p,) or (n, p); of a coefficient of shape () also () or (n,), e.g.
          `lambda p: p.x_from[0]`;
        - `noise` > 0: the variance, a number, n of them, or a function of the passage.

        **Raises:** `TypeError` and `ValueError` for anything else.
        """
        owner = "NormalStatistics"
        self.coefficients = named(owner, "coefficients", coefficients)
        self.target = held(owner, "target", target)
        self.features = held(owner, "features", features)
        if isinstance(noise, Held) or callable(noise):
            self.noise = held(owner, "noise", noise)
        else:
            self.noise = float_array(owner, "noise", noise)
            if not is_traced(self.noise) and not (self.noise > 0).all():
                raise ValueError(f"{owner}: `noise` is {noise!r}; expected variances > 0")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.coefficients,)

    def prior(self, model: ParametricModel) -> tuple[Array, Array]:
        mean, cov = _gaussian_prior("NormalStatistics", model, self.coefficients)
        precision = _inverse(cov)
        return precision, precision @ mean

    def update(self, statistics: Any, passage: Passage) -> tuple[Array, Array]:
        precision, weighted = statistics
        noise = self.noise(passage) if isinstance(self.noise, Held) else self.noise
        y, phi = _rows(self.target(passage), self.features(passage), weighted)
        phi_r = phi / jnp.broadcast_to(jnp.asarray(noise, phi.dtype), y.shape)[:, None]
        return precision + phi_r.T @ phi, weighted + phi_r.T @ y

    def sample(self, key: Array, statistics: Any) -> dict[str, Array]:
        precision, weighted = statistics
        factor = jnp.linalg.cholesky(precision)
        noise = jax.random.normal(key, weighted.shape, weighted.dtype)
        drawn = cho_solve((factor, True), weighted) + _spread(factor, noise)
        return {self.coefficients: drawn}

    def moments(self, statistics: Any) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
        precision, weighted = statistics
        cov = _inverse(precision)
        return cov @ weighted, cov


class NormalInverseGammaStatistics(AbstractStatistics):
    """Coefficients of a linear regression and the variance of its noise: target = features . beta + N(0, v)
    under v ~ InverseGamma(a, b), beta | v ~ N(m, v K^-1). Statistics: (K, K m, a, 2 b + m . K m).

    The model states priors of beta and v on their own: N(m, S) and InverseGamma(a, b). The conjugate prior
    with the same mean and covariance has K^-1 = S / E[v], and is the one that is used.
    """

    coefficients: str = eqx.field(static=True)
    variance: str = eqx.field(static=True)
    target: Held
    features: Held

    def __init__(
        self,
        coefficients: str,
        variance: str,
        target: Callable[[Passage], Any],
        features: Callable[[Passage], Any],
    ):
        """**Arguments:**

        - `coefficients`: the name, whose prior in the model is `Normal` or `MultivariateNormal`, of event
          shape () or (p,);
        - `variance`: the name, whose prior is an `InverseGamma` of shape () with a concentration > 1;
        - `target(passage)`: () or (n,), e.g. `lambda p: p.x_to[0]`, and `features(passage)`: (p,) or (n, p);
          of a coefficient of shape () also () or (n,), e.g. `lambda p: p.x_from[0]`.

        **Raises:** `TypeError` for anything else.
        """
        owner = "NormalInverseGammaStatistics"
        self.coefficients = named(owner, "coefficients", coefficients)
        self.variance = named(owner, "variance", variance)
        self.target = held(owner, "target", target)
        self.features = held(owner, "features", features)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.coefficients, self.variance)

    def prior(self, model: ParametricModel) -> tuple[Array, ...]:
        owner = "NormalInverseGammaStatistics"
        mean, cov = _gaussian_prior(owner, model, self.coefficients)
        found = prior_of(owner, model, self.variance, dist.InverseGamma)
        a, b = (jnp.asarray(x, mean.dtype) for x in (found.concentration, found.rate))
        if model.prior[self.variance].event_shape != ():
            raise ValueError(
                f"{owner}: {self.variance!r} has shape {model.prior[self.variance].event_shape}; expected ()"
            )
        if not is_traced(a) and not a > 1:
            raise ValueError(
                f"{owner}: the prior of {self.variance!r} has concentration {a:g}; expected more than 1, so "
                "that its mean is finite"
            )
        precision = _inverse(cov) * (b / (a - 1))
        weighted = precision @ mean
        return precision, weighted, a, 2 * b + mean @ weighted

    def update(self, statistics: Any, passage: Passage) -> tuple[Array, ...]:
        precision, weighted, a, squares = statistics
        y, phi = _rows(self.target(passage), self.features(passage), weighted)
        count = _number(self.target(passage), self.features(passage), weighted)
        return (
            precision + phi.T @ phi,
            weighted + phi.T @ y,
            a + 0.5 * count,
            squares + (y * y).sum(),
        )

    def _parts(self, statistics: Any) -> tuple[Array, Array, Array, Array]:
        """A factor of K, m, a and b."""
        precision, weighted, a, squares = statistics
        factor = jnp.linalg.cholesky(precision)
        mean = cho_solve((factor, True), weighted)
        return factor, mean, a, positive(0.5 * (squares - mean @ weighted))

    def sample(self, key: Array, statistics: Any) -> dict[str, Array]:
        factor, mean, a, b = self._parts(statistics)
        of_variance, of_mean = jax.random.split(key)
        v = positive(b / positive(jax.random.gamma(of_variance, a, dtype=a.dtype)))
        noise = jax.random.normal(of_mean, mean.shape, mean.dtype)
        return {self.coefficients: mean + jnp.sqrt(v) * _spread(factor, noise), self.variance: v}

    def moments(self, statistics: Any) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
        factor, mean, a, b = self._parts(statistics)
        cov = cho_solve((factor, True), jnp.eye(len(mean), dtype=mean.dtype)) * (b / (a - 1))
        return (
            jnp.append(mean, jnp.log(b) - digamma(a)),
            block_diag(cov, polygamma(1, a)[None, None]),
        )


class MatrixNormalInverseWishartStatistics(AbstractStatistics):
    """Coefficients of a multivariate linear regression and the covariance of its noise: target = A features
    + N(0, V) under V ~ InverseWishart(n, P), A | V ~ N(M, V, K^-1), of rows covariance V. Statistics:
    (K, K M^T, n, P + M K M^T).

    The model states priors of A and V on their own. The conjugate prior with the same means and variances
    has diagonal K^-1 with Var A_ij = E[V_ii] (K^-1)_jj, and is the one that is used. A row of which
    anything is missing teaches nothing here.
    """

    coefficients: str = eqx.field(static=True)
    covariance: str = eqx.field(static=True)
    target: Held
    features: Held

    def __init__(
        self,
        coefficients: str,
        covariance: str,
        target: Callable[[Passage], Any],
        features: Callable[[Passage], Any],
    ):
        """**Arguments:**

        - `coefficients`: the name of A, whose prior in the model is `Normal` of event shape (q, p), with
          variances that are E[V_ii] times a number for each column;
        - `covariance`: the name of V, whose prior is an `InverseWishart` of q rows with a concentration
          of more than q + 1;
        - `target(passage)` (q,), e.g. `lambda p: p.x_to`, and `features(passage)` (p,).

        **Raises:** `TypeError` for anything else.
        """
        owner = "MatrixNormalInverseWishartStatistics"
        self.coefficients = named(owner, "coefficients", coefficients)
        self.covariance = named(owner, "covariance", covariance)
        self.target = held(owner, "target", target)
        self.features = held(owner, "features", features)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.coefficients, self.covariance)

    def prior(self, model: ParametricModel) -> tuple[Array, ...]:
        owner = "MatrixNormalInverseWishartStatistics"
        found = prior_of(owner, model, self.coefficients, dist.Normal)
        noise = prior_of(owner, model, self.covariance, dist.InverseWishart)
        shape = model.prior[self.coefficients].event_shape
        q = noise.event_shape[0]
        if len(shape) != 2 or shape[0] != q:
            raise ValueError(
                f"{owner}: {self.coefficients!r} has shape {shape}; expected ({q}, p), as "
                f"{self.covariance!r} has {q} rows"
            )
        dtype = jnp.result_type(float)
        mean = jnp.broadcast_to(jnp.asarray(found.loc, dtype), shape)
        variances = jnp.broadcast_to(jnp.asarray(found.scale, dtype), shape) ** 2
        count = jnp.asarray(noise.concentration, dtype)
        if not is_traced(count) and not count > q + 1:
            raise ValueError(
                f"{owner}: the prior of {self.covariance!r} has concentration {count:g}; expected more than "
                f"{q + 1}, so that its mean is finite"
            )
        scale = jnp.asarray(noise.scale_matrix, dtype)
        expected = jnp.diagonal(scale) / (count - q - 1)
        columns = (variances / expected[:, None]).mean(0)
        product = expected[:, None] * columns
        if not is_traced(product) and not np.allclose(product, variances, rtol=1e-6, atol=0.0):
            raise ValueError(
                f"{owner}: the variances of {self.coefficients!r} are no products of the noise's expected "
                f"variances {np.asarray(expected).tolist()} and a number for each column; that is what is "
                "conjugate"
            )
        precision = jnp.diag(1 / columns)
        weighted = precision @ mean.T
        return precision, weighted, count, scale + mean @ weighted

    def update(self, statistics: Any, passage: Passage) -> tuple[Array, ...]:
        precision, weighted, count, squares = statistics
        y = jnp.asarray(self.target(passage), weighted.dtype)
        phi = jnp.asarray(self.features(passage), weighted.dtype)
        there = ~(jnp.isnan(y).any() | jnp.isnan(phi).any())
        y, phi = jnp.where(there, y, 0.0), jnp.where(there, phi, 0.0)
        return (
            precision + jnp.outer(phi, phi),
            weighted + jnp.outer(phi, y),
            count + there,
            squares + jnp.outer(y, y),
        )

    def sample(self, key: Array, statistics: Any) -> dict[str, Array]:
        precision, weighted, count, squares = statistics
        factor = jnp.linalg.cholesky(precision)
        mean = cho_solve((factor, True), weighted)
        rest = squares - mean.T @ weighted
        q = rest.shape[0]
        floor = positive(jnp.finfo(rest.dtype).eps * jnp.diagonal(squares))
        root = jnp.linalg.cholesky(0.5 * (rest + rest.T) + jnp.diag(floor))
        # Bartlett: V = (L B^-T) (L B^-T)^T, with B B^T of a standard Wishart distribution.
        of_normal, of_chi, of_mean = jax.random.split(key, 3)
        below = jnp.tril(jax.random.normal(of_normal, (q, q), rest.dtype), -1)
        freedom = count - jnp.arange(q, dtype=rest.dtype)
        chi = jnp.sqrt(2 * positive(jax.random.gamma(of_chi, freedom / 2, dtype=rest.dtype)))
        inverse = solve_triangular(below + jnp.diag(chi), root.T, lower=True)
        noise = jax.random.normal(of_mean, mean.shape, mean.dtype)
        drawn = mean + _spread(factor, noise) @ inverse
        return {self.coefficients: drawn.T, self.covariance: inverse.T @ inverse}

    def moments(self, statistics: Any) -> None:
        """That of the covariance's logarithm is not known: both are taken from draws."""


def _gaussian_prior(owner: str, model: ParametricModel, name: str) -> tuple[Array, Array]:
    prior_of(owner, model, name, dist.Normal, dist.MultivariateNormal)
    prior = model.prior[name]
    if len(prior.event_shape) > 1:
        raise ValueError(f"{owner}: {name!r} has shape {prior.event_shape}; expected () or (p,)")
    found = conditional_moments(prior if prior.event_shape else prior.expand((1,)).to_event(1))
    dtype = jnp.result_type(float)
    return found.mean.astype(dtype), found.cov.matrix.astype(dtype)


def _rows(target: Any, features: Any, like: Float[Array, " p"]) -> tuple[Array, Array]:
    """Targets (n,) and features (n, p), with zeros in a row of which anything is missing."""
    y, phi, there = _known_rows(target, features, like)
    return jnp.where(there, y, 0.0), jnp.where(there[:, None], phi, 0.0)


def _number(target: Any, features: Any, like: Float[Array, " p"]) -> Float[Array, ""]:
    return _known_rows(target, features, like)[2].sum().astype(like.dtype)


def _known_rows(target: Any, features: Any, like: Float[Array, " p"]) -> tuple[Array, Array, Array]:
    y = jnp.atleast_1d(jnp.asarray(target, like.dtype))
    phi = jnp.asarray(features, like.dtype).reshape(len(y), len(like))
    return y, phi, ~(jnp.isnan(y) | jnp.isnan(phi).any(1))


def _spread(factor: Float[Array, "p p"], noise: Array) -> Array:
    """Noise of covariance (L L^T)^-1."""
    return solve_triangular(factor, noise, lower=True, trans=1)


def _inverse(matrix: Float[Array, "p p"]) -> Float[Array, "p p"]:
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return cho_solve((jnp.linalg.cholesky(matrix), True), eye)
