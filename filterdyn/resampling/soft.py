"""Soft resampling: copies drawn from a mixture that includes equal weights."""

import math

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from filterdyn.resampling.base import normalized

#: How much of the mixture are the weights.
SHARE = 0.5


def softened(log_weights: Float[Array, " N"]) -> Float[Array, " N"]:
    """log(a w + (1 - a) / N), a = 1/2: what the ancestors of `soft_copies` are drawn with."""
    n = len(log_weights)
    return jnp.log(SHARE * normalized(log_weights) + (1 - SHARE) / n)


def soft_copies(
    positions: Float[Array, "N dx"], log_weights: Float[Array, " N"], ancestors: Int[Array, " N"]
) -> tuple[Float[Array, "N dx"], Float[Array, " N"]]:
    """Copies with weights w_a / (a w_a + (1 - a) / N) / N, through which the derivative of w passes
    (Karkus, Hsu, Lee 2018). The likelihood stays unbiased, its gradient is not."""
    n = len(log_weights)
    w = normalized(log_weights)[ancestors]
    dead = stop_gradient(w) <= 0
    ratio = jnp.where(dead, 1.0, w) / (SHARE * w + (1 - SHARE) / n)
    log_ratio = jnp.where(dead, -jnp.inf, jnp.log(ratio))
    return positions[ancestors], log_ratio - math.log(n)
