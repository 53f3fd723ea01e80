"""A function of every state, in groups of states that fit into memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_groups(function: Callable[[Any], Any], at: Any, most: int) -> Any:
    """`jax.vmap(function)(at)`, of at most `most` rows at a time.

    Groups are of one size and the last one is filled up with its last row. (`jax.lax.map` calls the
    function for what is left over beside the loop. Two batches of LAPACK calls that run at the same time
    can each take a thread of a small pool and wait for the other's forever.)
    """
    count = len(jax.tree.leaves(at)[0])
    if count <= most:
        return jax.vmap(function)(at)
    groups = -(-count // most)
    size = -(-count // groups)
    rows = jnp.minimum(jnp.arange(groups * size), count - 1).reshape(groups, size)
    grouped = jax.lax.map(lambda i: jax.vmap(function)(jax.tree.map(lambda x: x[i], at)), rows)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], grouped)
