"""The Gaussian likelihood of an innovation under an ensemble, and the gain, in the smaller space."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from filterdyn.ensembles.inverse_root import inverse_root, product
from filterdyn.ensembles.lower import inverse_lower
from filterdyn.ensembles.observed import ObservedEnsemble
from filterdyn.linalg import factor_of, with_derivative_of
from filterdyn.linalg.cholesky import only_derivative

#: Up to this many measurements their covariance is formed however small the ensemble is.
_FEW = 64


class Weighing(NamedTuple):
    """What an innovation says, and what its gain is made of.

    With Y (N, dy) the anomalies in measurement space and R the noise, S = Y^T Y + R is the covariance
    of the innovation.
    """

    log_likelihood: Float[Array, ""]
    standardized: Float[Array, " dy"]
    singular: Bool[Array, ""]
    anomalies: Float[Array, "N dy"]
    #: L^-1 with L L^T = S, which carries no derivative, and L^-1 S L^-T - I, which is zero and carries
    #: it. `None` where dy is large.
    inverse: Float[Array, "dy dy"] | None
    error: Float[Array, "dy dy"] | None
    #: Else the root of the noise and C^-1/2, C = I + Y R^-1 Y^T.
    noise_root: Float[Array, " dy"] | Float[Array, "dy dy"] | None
    inner_root: Float[Array, "N N"] | None

    def solved(
        self, innovations: Float[Array, "k dy"], cross: Float[Array, "dy m"]
    ) -> Float[Array, "k m"]:
        """e^T S^-1 `cross` for every row e (where S was formed)."""
        assert self.inverse is not None and self.error is not None
        white = product(innovations, self.inverse.T)
        root = product(self.inverse, cross)
        # (I + E)^-1 = I - E + E^2 to second order.
        bent = white - product(white - product(white, self.error), self.error)
        return with_derivative_of(product(white, root), product(bent, root))

    def weights(self, innovations: Float[Array, "k dy"]) -> Float[Array, "k N"]:
        """Y S^-1 e of every row e: what the gain makes of it in the weights of the anomalies."""
        if self.inner_root is None:
            return self.solved(innovations, self.anomalies.T)
        z = whitened(self.noise_root, self.anomalies)
        white = whitened(self.noise_root, innovations)
        return product(white, z.T, self.inner_root, self.inner_root)


def whitened(root: Array | None, rows: Float[Array, "k dy"]) -> Float[Array, "k dy"]:
    """R^-1/2 of every row."""
    assert root is not None
    if root.ndim == 1:
        return rows / root
    return solve_triangular(root, rows.T, lower=True).T


def noise_root(noise: Array) -> Array:
    """R^1/2: square roots of variances, or a Cholesky factor."""
    return jnp.sqrt(noise) if noise.ndim == 1 else jnp.linalg.cholesky(noise)


def weigh(seen: ObservedEnsemble, taper: Float[Array, "dy dy"] | None = None) -> Weighing:
    """The likelihood of the innovation and what the gain needs. Missing entries add exactly 0.

    `taper` localises Y^T Y. S is formed for few measurements (and under a taper); for many the
    Woodbury identity works with N x N matrices, which needs noise in every measurement.
    """
    d, y, r = seen.masked
    n, dy = y.shape
    # A predictive variance of zero: there is no density.
    variances = (y * y).sum(0) + (r if r.ndim == 1 else jnp.diagonal(r))
    zero = seen.observed & (variances == 0)
    if taper is None and dy > max(n, _FEW):
        return _in_weights(seen, d, y, r, zero)
    cov = product(y.T, y)
    if taper is not None:
        cov = cov * taper
    eye = jnp.eye(dy, dtype=y.dtype)
    cov = cov + (r * eye if r.ndim == 1 else r) + eye * jnp.where(zero, 1.0, 0.0)
    fixed = stop_gradient(cov)
    found = jnp.linalg.cholesky(fixed)
    singular = zero.any() | (jnp.isnan(found).any() & jnp.isfinite(fixed).all())
    root = jnp.where(singular, eye, found)
    inverse = inverse_lower(root)
    error = jnp.where(singular, 0.0, only_derivative(product(inverse, cov, inverse.T)))
    white = product(inverse, d)
    bent = white - product(error, white - product(error, white))
    quadratic = with_derivative_of((white * white).sum(), (white * bent).sum())
    log_det = 2 * jnp.log(jnp.diagonal(root)).sum()
    log_det = with_derivative_of(log_det, jnp.trace(error) - 0.5 * (error * error.T).sum())
    moved = solve_triangular(jnp.linalg.cholesky(eye + error), white, lower=True)
    ll = _log_likelihood(seen, quadratic, log_det)
    standardized = with_derivative_of(white, moved)
    return Weighing(ll, standardized, singular, y, inverse, error, None, None)


def _in_weights(seen: ObservedEnsemble, d: Array, y: Array, r: Array, zero: Array) -> Weighing:
    """By the N x N matrix C = I + Z Z^T, Z = Y R^-1/2. The whitened innovation w leaves the residual
    w - Z^T c, c = C^-1 Z w, and d^T S^-1 d is the sum of squares of it and of c: nothing is
    subtracted. `standardized` is (I + Z^T Z)^-1/2 w."""
    root = noise_root(r)
    exact = seen.observed & ((root if root.ndim == 1 else jnp.diagonal(root)) <= 0)
    singular = zero.any() | exact.any() | jnp.isnan(root).any()
    safe = jnp.where(singular, 1.0, root) if root.ndim == 1 else root
    z = whitened(safe, y)
    w = whitened(safe, d[None])[0]
    eye = jnp.eye(len(y), dtype=y.dtype)
    c = eye + product(z, z.T)
    inner = inverse_root(z)
    weights = product(product(inner, inner), product(z, w))
    residual = w - product(z.T, weights)
    log_c = 2 * jnp.log(jnp.diagonal(jnp.linalg.cholesky(c))).sum()
    log_r = 2 * jnp.log(safe if safe.ndim == 1 else jnp.diagonal(safe)).sum()
    ll = _log_likelihood(seen, (residual**2).sum() + (weights**2).sum(), log_c + log_r)
    # (I + Z^T Z)^-1/2 = I - Z^T [T^2 (I + T)^-1] Z with T = C^-1/2.
    bent = jnp.linalg.solve(eye + inner, product(inner, product(inner, product(z, w))))
    return Weighing(ll, w - product(z.T, bent), singular, y, None, None, safe, inner)


def _log_likelihood(seen: ObservedEnsemble, quadratic: Array, log_det: Array) -> Array:
    count = seen.observed.sum()
    ll = -0.5 * (quadratic + log_det + count * math.log(2 * math.pi)) + seen.log_jacobian
    return jnp.where(count > 0, ll, 0.0)


def innovation_cov(seen: ObservedEnsemble, taper: Float[Array, "dy dy"] | None) -> Array:
    """Y^T Y + R with all entries, missing ones too."""
    cov = product(seen.anomalies.T, seen.anomalies)
    cov = cov if taper is None else cov * taper
    r = seen.noise
    return cov + (r * jnp.eye(len(cov), dtype=cov.dtype) if r.ndim == 1 else r)


def noise_draws(key: Array, noise: Array, n: int) -> Float[Array, "n dy"]:
    """Draws of N(0, R) whose mean is zero."""
    dy = noise.shape[0]
    # Single precision is as random, and takes half of the time that is most of a filter's.
    e = jax.random.normal(key, (n, dy), jnp.float32).astype(noise.dtype)
    e = e - e.mean(0)
    if noise.ndim == 1:
        root = jnp.where(noise > 0, jnp.sqrt(jnp.where(noise > 0, noise, 1.0)), 0.0)
        return e * root
    return product(e, factor_of(noise).T)
