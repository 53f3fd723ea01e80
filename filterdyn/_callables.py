"""User code held inside models: arrays stay leaves of the pytree, everything else becomes static.

A model must be a valid argument of `jax.jit` and `jax.vmap`. A plain function, the activation of an
`eqx.nn.MLP` or the `norm` of a step size controller is not an array, so it is moved into the tree
structure here, whatever module it sits in.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np


def _is_leaf_array(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, (np.ndarray, np.generic))


class _Identity:
    """An unhashable static value, compared by identity and kept alive while it is compared."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Identity) and self.value is other.value


def _hashable(x: Any) -> Any:
    try:
        hash(x)
    except TypeError:
        return _Identity(x)
    return x


class Held(eqx.Module):
    """Any user object; its arrays are leaves (trainable), the rest is static. `.value` gives it back."""

    arrays: tuple[Any, ...]
    static: tuple[Any, ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    def __init__(self, value: Any):
        leaves, self.structure = jax.tree.flatten(value)
        self.arrays = tuple(x if _is_leaf_array(x) else None for x in leaves)
        self.static = tuple(None if _is_leaf_array(x) else _hashable(x) for x in leaves)

    @property
    def value(self) -> Any:
        static = (s.value if isinstance(s, _Identity) else s for s in self.static)
        leaves = [s if a is None else a for a, s in zip(self.arrays, static, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)

    def __call__(self, *args: Any) -> Any:
        return self.value(*args)


def hold_function(owner: str, name: str, function: Any) -> Held:
    if isinstance(function, Held):
        return function
    if not callable(function):
        raise TypeError(
            f"{owner}: `{name}` is {type(function).__name__}; expected a function of (t, x, u)"
        )
    return Held(function)


Function = Callable[..., Any]
