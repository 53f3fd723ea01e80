"""Learned filters with weights that nobody trained."""

import equinox as eqx
import jax
import jax.random as jr


def shaken(filter, size, seed=1):
    """The filter with random numbers of this size added to its weights."""
    arrays, rest = eqx.partition(filter, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    keys = jr.split(jr.key(seed), len(leaves))
    moved = [x + size * jr.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return eqx.combine(jax.tree.unflatten(structure, moved), rest)
