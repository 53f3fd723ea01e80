"""Known physics and an unknown remainder."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from filterdyn.fields.base import Field, check_callable


class UniversalField(eqx.Module):
    """known(t, x, u) + residual(t, x, u): what is known of a system, and a network for the rest
    (Rackauckas et al. 2020)."""

    known: Field
    residual: Field

    def __init__(self, known: Field, residual: Field):
        """**Arguments:** two fields; `residual=fd.fields.MLP(..., zero=True)` starts at the known one.

        **Raises:** `TypeError` for what cannot be called.
        """
        self.known = check_callable("fields.UniversalField", "known", known)
        self.residual = check_callable("fields.UniversalField", "residual", residual)

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " dx"]:
        return self.known(t, x, u) + self.residual(t, x, u)
