"""What a field may state about itself, and what all fields share."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Field = Callable[[Any, Array, Any], Array]


class Invariant(eqx.Module):
    """What a field keeps at one state: `residual` is 0 where `exact`, else it is at most 0.

    `scale` is the size of the terms that make up the residual, by which rounding is judged.
    """

    residual: Float[Array, ""]
    scale: Float[Array, ""]
    name: str = eqx.field(static=True)
    exact: bool = eqx.field(static=True)


class Normalization(eqx.Module):
    """Centre and scale of a vector, carried beside the weights that were trained with them.

    They are data: `fd.fit` does not train them and no derivative passes into them.
    """

    center: Float[Array, " n"]
    scale: Float[Array, " n"]

    def __init__(self, owner: str, name: str, size: int, center: Any = 0.0, scale: Any = 1.0):
        """**Arguments:** `center` and `scale` > 0, numbers or (size,).

        **Raises:** `ValueError` for other shapes, and for a scale that is not positive.
        """
        parts = {"center": center, "scale": scale}
        arrays = {key: jnp.asarray(value, jnp.result_type(float)) for key, value in parts.items()}
        for key, array in arrays.items():
            if array.shape not in ((), (size,)):
                raise ValueError(
                    f"{owner}: `{name}_{key}` has shape {array.shape}; expected () or ({size},)"
                )
        if not isinstance(arrays["scale"], jax.core.Tracer) and not (arrays["scale"] > 0).all():
            raise ValueError(f"{owner}: `{name}_scale` is {scale!r}; expected positive numbers")
        self.center = jnp.broadcast_to(arrays["center"], (size,))
        self.scale = jnp.broadcast_to(arrays["scale"], (size,))

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        center, scale = jax.lax.stop_gradient((self.center, self.scale))
        return (x - center.astype(x.dtype)) / scale.astype(x.dtype)

    def inverse(self, z: Float[Array, " n"]) -> Float[Array, " n"]:
        """The vector whose normalised value is `z`."""
        center, scale = jax.lax.stop_gradient((self.center, self.scale))
        return center.astype(z.dtype) + scale.astype(z.dtype) * z


def slope_of(energy: Callable[[Array], Array], x: Float[Array, " dx"]) -> tuple[Array, Array]:
    """A scalar function of the state, and its gradient."""
    return jax.value_and_grad(lambda x: jnp.asarray(energy(x), x.dtype).reshape(()))(x)


def check_callable(owner: str, name: str, value: Any, signature: str = "(t, x, u)") -> Any:
    """**Raises:** `TypeError` for anything that cannot be called."""
    if not callable(value):
        raise TypeError(
            f"{owner}: `{name}` is {type(value).__name__}; expected a function of {signature}"
        )
    return value
