"""Ancestors from cumulative counts: what the resampling schemes that keep the order share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def running_sum(x: Float[Array, " N"]) -> Float[Array, " N"]:
    """The cumulative sum as a tree: its error grows like log N instead of N, and it is faster."""
    return jax.lax.associative_scan(jnp.add, x)


def cumulative_excess(weights: Float[Array, " N"]) -> Float[Array, " N"]:
    """N W_i - (i + 1), with W_i the cumulative weights up to i, normalised: 0 at the end.

    The excess over equal weights grows like sqrt(N) where N W_i grows like N, so that in float32 a
    hundred thousand particles are placed to 1e-5 of a particle and not to 1e-2.
    """
    n = len(weights)
    share = weights * (n / weights.sum())
    excess = running_sum(share - 1)
    # The last cumulative weight is one; what rounding made of it is shared out.
    place = jnp.arange(1, n + 1, dtype=weights.dtype)
    return excess - excess[-1] * ((place + excess) / n)


def from_cumulative_counts(counts: Int[Array, " N"], alive: Array) -> Int[Array, " N"]:
    """Ancestors in ascending order; particle i gets the places counts[i - 1] to counts[i] - 1.

    Each particle writes its index where its copies begin, and a running maximum fills them in: all of
    it linear, where a binary search per place is not. Rounding may give a copy to a particle that is
    not `alive`; it goes to the one alive before it.
    """
    n = len(counts)
    counts = jnp.clip(counts, 0, n)
    begin = jnp.concatenate([jnp.zeros(1, counts.dtype), counts[:-1]])
    index = jnp.arange(n, dtype=jnp.int32)
    copied = alive & (counts > begin)
    first = jnp.full(n + 1, jnp.argmax(alive), jnp.int32)
    marks = first.at[begin].max(jnp.where(copied, index, 0), mode="promise_in_bounds")
    return jax.lax.associative_scan(jnp.maximum, marks)[:n]
