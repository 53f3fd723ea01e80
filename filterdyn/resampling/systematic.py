"""Systematic resampling."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.resampling.base import AbstractCopying, relative_weights
from filterdyn.resampling.counts import cumulative_excess, from_cumulative_counts


class Systematic(AbstractCopying):
    """One uniform number for all (Carpenter, Clifford, Fearnhead 1999): the cumulative weights are
    crossed by the N points j + u, and particle i gets n_i = ceil(N W_i - u) - ceil(N W_{i-1} - u)
    copies, which is N w_i rounded up or down.

    The fastest scheme, and mostly the one of least variance; new particles keep the order of the old.
    """

    def ancestors(self, key: Array, log_weights: Float[Array, " N"]) -> Int[Array, " N"]:
        weights = relative_weights(log_weights)
        n = len(weights)
        u = jax.random.uniform(key, (), weights.dtype)
        crossed = jnp.ceil(cumulative_excess(weights) - u).astype(jnp.int32)
        counts = crossed + jnp.arange(1, n + 1, dtype=jnp.int32)
        return from_cumulative_counts(counts, weights > 0)
