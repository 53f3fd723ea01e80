"""Resampling by killing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.resampling.base import AbstractCopying, relative_weights
from filterdyn.resampling.multinomial import independent_draws


class Killing(AbstractCopying):
    """Particle i survives with probability w_i / max w; one that does not is replaced by an independent
    draw (Del Moral 2004, section 5.2). Survivors stay in their places: with nearly equal weights almost
    nothing moves, which suits rows that say little, and many of them."""

    def ancestors(self, key: Array, log_weights: Float[Array, " N"]) -> Int[Array, " N"]:
        weights = relative_weights(log_weights)
        n = len(weights)
        key_fate, key_draw = jax.random.split(key)
        survives = jax.random.uniform(key_fate, (n,), weights.dtype) < weights
        drawn = independent_draws(key_draw, weights, (n,))
        return jnp.where(survives, jnp.arange(n, dtype=jnp.int32), drawn)
