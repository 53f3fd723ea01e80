"""A pytree as one vector per data type: few arrays cross into a compiled step, each of which costs.

Beside numbers of 64 bits the integers of 32 bits and the truth values are numbers of that kind, which they
are exactly: then there is one vector.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_EXACT = frozenset({"bool", "int8", "uint8", "int16", "uint16", "int32", "uint32"})


@dataclass(frozen=True)
class _Leaf:
    """Where a leaf lies: in which vector, from where, and what it is."""

    group: int
    start: int
    shape: tuple[int, ...]
    dtype: str
    #: Of a random key of the new style, the name of its generator.
    generator: str | None

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """How a pytree lies in its vectors, of these `dtypes` and `sizes`."""

    structure: Any
    leaves: tuple[_Leaf, ...]
    dtypes: tuple[str, ...]
    sizes: tuple[int, ...]

    @staticmethod
    def of(tree: Any) -> "Layout":
        found, structure = jax.tree.flatten(tree)
        wide = any(str(leaf.dtype) == "float64" for leaf in found)
        sizes: dict[str, int] = {}
        places = []
        for leaf in found:
            data, generator = _data(leaf)
            dtype = str(data.dtype)
            name = "float64" if wide and dtype in _EXACT else dtype
            start = sizes.setdefault(name, 0)
            places.append((name, _Leaf(0, start, tuple(data.shape), dtype, generator)))
            sizes[name] = start + math.prod(data.shape)
        names = tuple(sizes)
        leaves = tuple(replace(leaf, group=names.index(name)) for name, leaf in places)
        return Layout(structure, leaves, names, tuple(sizes.values()))

    @functools.cached_property
    def named(self) -> dict[str, _Leaf]:
        """Of a tree that is a dictionary, the entries that are one array."""
        tree = jax.tree.unflatten(self.structure, self.leaves)
        return {name: leaf for name, leaf in tree.items() if isinstance(leaf, _Leaf)}

    @property
    def generator(self) -> str | None:
        """Of the random key in it, if there is one of the new style."""
        return next((leaf.generator for leaf in self.leaves if leaf.generator), None)

    def pack(self, tree: Any) -> tuple[Array, ...]:
        """The vectors of a tree of this layout."""
        parts: list[list[Array]] = [[] for _ in self.dtypes]
        for leaf, place in zip(jax.tree.leaves(tree), self.leaves, strict=True):
            data, _ = _data(leaf)
            parts[place.group].append(data.astype(self.dtypes[place.group]).reshape(-1))
        return tuple(jnp.concatenate(part) for part in parts)

    def unpack(self, vectors: Any) -> Any:
        """The tree, of vectors on the host or traced; leading axes stay."""
        return jax.tree.unflatten(self.structure, [self.leaf(vectors, i) for i in self.leaves])

    def leaf(self, vectors: Any, place: _Leaf) -> Any:
        vector = vectors[place.group]
        if not place.shape:
            part = vector[..., place.start] if vector.ndim > 1 else vector[place.start]
        else:
            part = vector[..., place.start : place.stop]
            part = part.reshape((*vector.shape[:-1], *place.shape))
        if place.dtype != self.dtypes[place.group]:
            part = part.astype(place.dtype)
        if place.generator is None:
            return part
        return jax.random.wrap_key_data(jnp.asarray(part), impl=place.generator)


def _data(leaf: Any) -> tuple[Array, str | None]:
    """A leaf as numbers."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf), str(jax.random.key_impl(leaf))
    return jnp.asarray(leaf), None


def on_host(vectors: Any) -> Any:
    """Vectors as NumPy arrays (no copy on a CPU), traced ones as they are."""
    if isinstance(vectors[0], jax.core.Tracer):
        return vectors
    return [np.asarray(v) for v in vectors]
