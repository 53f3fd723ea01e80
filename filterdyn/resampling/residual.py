"""Residual resampling."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.resampling.base import AbstractCopying, relative_weights
from filterdyn.resampling.counts import from_cumulative_counts
from filterdyn.resampling.multinomial import independent_draws


class Residual(AbstractCopying):
    """floor(N w_i) copies of each particle, the rest by independent draws in proportion to what was
    rounded off (Liu, Chen 1998)."""

    def ancestors(self, key: Array, log_weights: Float[Array, " N"]) -> Int[Array, " N"]:
        weights = relative_weights(log_weights)
        n = len(weights)
        share = weights * (n / weights.sum())
        whole = jnp.floor(share)
        counts = jnp.cumsum(whole.astype(jnp.int32))
        certain = from_cumulative_counts(counts, weights > 0)
        rest = share - whole
        rest = jnp.where((rest > 0).any(), rest, weights)
        drawn = independent_draws(key, rest, (n,))
        return jnp.where(jnp.arange(n) < counts[-1], certain, drawn)
