"""Named parameters as one vector and back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from filterdyn._checks import float_array


class Parameters(NamedTuple):
    """A tree of numbers, flattened: `names[i]` is where `vector[i]` stood, such as `a` or `rates[0]`."""

    vector: Float[Array, " P"]
    names: tuple[str, ...]
    unravel: Callable[[Array], Any]


def flatten(owner: str, parameters: Any) -> Parameters:
    """**Raises:** `ValueError` if there is nothing in `parameters`, or nothing finite."""
    tree = jax.tree.map(lambda leaf: float_array(owner, "parameters", leaf), parameters)
    vector, unravel = ravel_pytree(tree)
    if not vector.size:
        raise ValueError(f"{owner}: `parameters` is empty; expected a dict of names and numbers")
    if not np.isfinite(np.asarray(vector)).all():
        raise ValueError(
            f"{owner}: `parameters` has NaN or infinite entries; expected finite numbers"
        )
    names: list[str] = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = ".".join(_key(part) for part in path) or "parameter"
        if jnp.ndim(leaf) == 0:
            names.append(name)
        else:
            names += [
                f"{name}[{', '.join(str(i) for i in index)}]" for index in np.ndindex(leaf.shape)
            ]
    return Parameters(vector, tuple(names), unravel)


def _key(part: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(part, attribute):
            return str(getattr(part, attribute))
    return str(part)
