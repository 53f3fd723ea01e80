"""Copies that move as the mean and covariance of the weighted particles do."""

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from filterdyn.linalg import with_derivative_of
from filterdyn.resampling.base import equal_log_weights, normalized


def affine_flow(
    positions: Float[Array, "N dx"], log_weights: Float[Array, " N"], ancestors: Int[Array, " N"]
) -> tuple[Float[Array, "N dx"], Float[Array, " N"]]:
    """Copies x_a with the derivative of an affine map that moves with the first two weighted moments:

    dx = dm + D (x_a - m), with D the symmetric solution of D C + C D = dC.

    It is the velocity of optimal transport between Gaussians of these moments (Takatsu 2011), and exact
    where the particles are Gaussian. O(N dx^2 + dx^3), of first order. Directions in which the
    particles do not spread do not move apart.
    """
    copied = stop_gradient(positions)[ancestors]
    w = normalized(log_weights)[:, None]
    mean = (w * positions).sum(0)
    from_mean = positions - mean
    cov = (w * from_mean).T @ from_mean
    fixed, centre = stop_gradient(cov), stop_gradient(mean)
    values, vectors = _eigen(fixed)
    sums = values[:, None] + values
    tiny = jnp.finfo(sums.dtype).eps * values.max()
    inverse = jnp.where(sums > tiny, 1 / jnp.where(sums > tiny, sums, 1.0), 0.0)
    change = vectors.T @ (cov - fixed) @ vectors
    rate = vectors @ (inverse * change) @ vectors.T
    moved = mean + (copied - centre) @ rate
    return with_derivative_of(copied, moved), equal_log_weights(positions)


def _eigen(c: Float[Array, "n n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    if len(c) == 1:
        return c[0], jnp.ones_like(c)
    safe = jnp.where(jnp.isfinite(c).all(), c, jnp.eye(len(c), dtype=c.dtype))
    return jnp.linalg.eigh(safe)
