"""A field that keeps an energy."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.fields.base import Invariant, check_callable, slope_of


class Hamiltonian(eqx.Module):
    """q' = dH/dp, p' = -dH/dq with the state x = (q, p) (Greydanus, Dzamba, Yosinski 2019).

    Whatever the energy H is, it does not change along the field.
    """

    energy: Callable[[Array], Array]

    def __init__(self, energy: Callable[[Array], Array]):
        """**Arguments:** `energy(x)`, a scalar, such as `fd.fields.Energy(dx, key=key)`.

        **Raises:** `TypeError` for what cannot be called.
        """
        self.energy = check_callable("fields.Hamiltonian", "energy", energy, "x")

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " dx"]:
        if len(x) % 2:
            raise ValueError(
                f"fields.Hamiltonian: the state has shape {x.shape}; expected an even number"
            )
        slope, half = slope_of(self.energy, x)[1], len(x) // 2
        return jnp.concatenate([slope[half:], -slope[:half]])

    def invariant(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Invariant:
        """dH/dt = 0."""
        terms = slope_of(self.energy, x)[1] * self(t, x, u)
        return Invariant(terms.sum(), jnp.abs(terms).sum(), "energy", True)
