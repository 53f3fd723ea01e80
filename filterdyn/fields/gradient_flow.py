"""Motion down a potential."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import float_array
from filterdyn.fields.base import Invariant, check_callable, slope_of
from filterdyn.linalg import mv


class GradientFlow(eqx.Module):
    """x' = -M dV/dx with a mobility M = L L^T (the identity by default): the potential V only falls."""

    potential: Callable[[Array], Array]
    mobility: Float[Array, "dx k"] | None

    def __init__(self, potential: Callable[[Array], Array], mobility: Any = None):
        """**Arguments:** `potential(x)`, a scalar, such as `fd.fields.Energy`; `mobility` (dx, k): L.

        **Raises:** `TypeError` for what cannot be called, `ValueError` unless `mobility` is a matrix.
        """
        owner = "fields.GradientFlow"
        self.potential = check_callable(owner, "potential", potential, "x")
        self.mobility = None if mobility is None else float_array(owner, "mobility", mobility)
        if self.mobility is not None and self.mobility.ndim != 2:
            raise ValueError(
                f"{owner}: `mobility` has shape {self.mobility.shape}; expected (dx, k)"
            )

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " dx"]:
        slope = slope_of(self.potential, x)[1]
        if self.mobility is None:
            return -slope
        mobility = self.mobility.astype(x.dtype)
        return -mv(mobility, mv(mobility.T, slope))

    def invariant(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Invariant:
        """dV/dt <= 0."""
        terms = slope_of(self.potential, x)[1] * self(t, x, u)
        return Invariant(terms.sum(), jnp.abs(terms).sum(), "potential falls", False)
