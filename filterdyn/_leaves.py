"""Which leaves of a model a function of it picks."""

from typing import Any

import jax


class _Marker:
    """Stands for a leaf of the model, so that a function that picks leaves says which."""

    def __init__(self, index: int):
        self.index = index


def markers(tree: Any) -> list[int]:
    """Which leaves of what was `marked` this holds."""
    return [leaf.index for leaf in jax.tree.leaves(tree) if isinstance(leaf, _Marker)]


def marked(tree: Any) -> Any:
    """The same tree, in which every leaf says where it was."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [_Marker(i) for i in range(len(leaves))])
