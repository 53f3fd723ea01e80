"""Many series of one model, or of a batch of models, in one call."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from filterdyn._checks import float_array, is_traced
from filterdyn.filters.rows import Row
from filterdyn.model import StateSpaceModel


def check_batch(
    owner: str, model: StateSpaceModel, times: Any, batch_shape: tuple[int, ...]
) -> None:
    """**Raises:** `ValueError` for a batch of models or of timelines that `batch_shape` does not say."""
    if model.batch_shape not in ((), batch_shape):
        raise ValueError(
            f"{owner}: `model` is a batch of shape {model.batch_shape} but `batch_shape` is "
            f"{batch_shape}; give batch_shape={model.batch_shape}"
        )
    many = np.ndim(times) > 1
    if many and (not batch_shape or np.shape(times)[:-1] != batch_shape):
        raise ValueError(
            f"{owner}: `times` has shape {np.shape(times)} but `batch_shape` is {batch_shape}; "
            f"expected times (T,), or batch_shape={np.shape(times)[:-1]} for a batch"
        )


def series_value(
    owner: str, value: Any, batch_shape: tuple[int, ...], event_shape: tuple[int, ...]
) -> Float[Array, "*n T dy"]:
    """Measurements to be given a density, one or more series of them, as broadcast to the batch.

    **Raises:** `ValueError` for a shape that does not fit, and for infinite entries.
    """
    value = float_array(owner, "value", value)
    shape = (*batch_shape, *event_shape)
    try:
        whole = jnp.broadcast_shapes(value.shape, shape)
    except ValueError:
        whole = ()
    if value.shape[-2:] != event_shape or not whole:
        raise ValueError(
            f"{owner}: the value has shape {value.shape}; expected (..., "
            f"{', '.join(str(n) for n in shape)})"
        )
    if not is_traced(value) and np.isinf(np.asarray(value)).any():
        raise ValueError(
            f"{owner}: the value has infinite entries; expected finite numbers, or NaN for a "
            "missing entry"
        )
    return jnp.broadcast_to(value, whole)


def over_batch(
    function: Callable[..., Any],
    model: StateSpaceModel,
    rows: Row,
    batch_shape: tuple[int, ...],
    each: Any,
) -> Any:
    """`function(model, rows, one)`, an array or a tree of them, for all of `each`, arrays
    (n, *batch_shape, ...)."""
    axes = (
        eqx.if_array(0) if model.batch_shape else None,
        eqx.if_array(0) if rows.time.ndim > 1 else None,
        0,
    )
    for _ in batch_shape:
        function = eqx.filter_vmap(function, in_axes=axes)
    if len(jax.tree.leaves(each)[0]) == 1:
        found = function(model, rows, jax.tree.map(lambda x: x[0], each))
        return jax.tree.map(lambda x: x[None], found)
    return eqx.filter_vmap(function, in_axes=(None, None, 0))(model, rows, each)
