"""Positions and velocities."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.fields.base import Field, check_callable


class SecondOrder(eqx.Module):
    """q'' = acceleration(t, x, u) with the state x = (q, q'), half of it positions."""

    acceleration: Field

    def __init__(self, acceleration: Field):
        """**Arguments:** `acceleration(t, x, u) -> (dx / 2,)`, such as `fd.fields.MLP(dx, out=dx // 2)`.

        **Raises:** `TypeError` for what cannot be called.
        """
        self.acceleration = check_callable("fields.SecondOrder", "acceleration", acceleration)

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " dx"]:
        half = len(x) // 2
        found = jnp.asarray(self.acceleration(t, x, u), x.dtype)
        if len(x) % 2 or found.shape != (half,):
            raise ValueError(
                f"fields.SecondOrder: `acceleration` returned shape {found.shape} for a state of shape "
                f"{x.shape}; expected half of an even number of states"
            )
        return jnp.concatenate([x[half:], found])
