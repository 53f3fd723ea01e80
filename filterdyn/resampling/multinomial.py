"""Multinomial resampling, and independent draws of ancestors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.resampling.base import AbstractCopying, relative_weights
from filterdyn.resampling.counts import running_sum


def independent_draws(
    key: Array, weights: Float[Array, " N"], shape: tuple[int, ...]
) -> Int[Array, "..."]:
    """Indices drawn independently with probabilities proportional to `weights`."""
    ends = running_sum(weights)
    # A tree's rounding may let a sum decrease by its last digit.
    ends = jax.lax.associative_scan(jnp.maximum, ends)
    point = jax.random.uniform(key, shape, weights.dtype) * ends[-1]
    found = jnp.searchsorted(ends, point, side="right")
    # Rounding may hit a weight of zero: the positive weight before it is meant, or the first.
    index = jnp.where(weights > 0, jnp.arange(len(weights)), jnp.argmax(weights > 0))
    nearest = jax.lax.associative_scan(jnp.maximum, index)
    return nearest[jnp.minimum(found, len(weights) - 1)].astype(jnp.int32)


class Multinomial(AbstractCopying):
    """N independent draws (Gordon, Salmond, Smith 1993). The scheme of theory; every other one here
    adds less variance."""

    def ancestors(self, key: Array, log_weights: Float[Array, " N"]) -> Int[Array, " N"]:
        weights = relative_weights(log_weights)
        return independent_draws(key, weights, weights.shape)
