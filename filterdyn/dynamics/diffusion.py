"""The diffusion of a stochastic differential equation, as a matrix (dx, dw)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import check_finite, float_array


def as_matrix(owner: str, name: str, value: Any, dx: int) -> Float[Array, "dx dw"]:
    """A scalar is a multiple of the identity, a vector (dx,) a diagonal, a matrix (dx, dw) itself."""
    array = float_array(owner, name, value)
    check_finite(owner, name, array)
    if array.ndim == 0:
        return array * jnp.eye(dx, dtype=array.dtype)
    if array.ndim == 1 and array.shape[0] == dx:
        return array[:, None] * jnp.eye(dx, dtype=array.dtype)
    if array.ndim == 2 and array.shape[0] == dx:
        return array
    raise ValueError(
        f"{owner}: `{name}` has shape {array.shape}; expected (), ({dx},) or ({dx}, dw) "
        f"for {dx} states"
    )
