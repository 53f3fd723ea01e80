"""Stratified resampling."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.resampling.base import AbstractCopying, relative_weights
from filterdyn.resampling.counts import cumulative_excess, from_cumulative_counts


class Stratified(AbstractCopying):
    """One uniform number for each new particle, in its own N-th of the cumulative weights (Kitagawa
    1996). Variance is never larger than that of `Multinomial`, whatever the order of the particles
    (Douc, Cappé, Moulines 2005), which does not hold for `Systematic`."""

    def ancestors(self, key: Array, log_weights: Float[Array, " N"]) -> Int[Array, " N"]:
        weights = relative_weights(log_weights)
        n = len(weights)
        u = jax.random.uniform(key, (n,), weights.dtype)
        excess = cumulative_excess(weights)
        whole = jnp.floor(excess)
        stratum = whole.astype(jnp.int32) + jnp.arange(1, n + 1, dtype=jnp.int32)
        # Of the stratum in which W_i ends, the point counts if it lies below W_i.
        point = u[jnp.clip(stratum, 0, n - 1)]
        inside = (stratum < n) & (point < excess - whole)
        return from_cumulative_counts(stratum + inside, weights > 0)
