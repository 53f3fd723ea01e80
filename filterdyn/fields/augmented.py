"""States that stand for something, and further ones that carry memory."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import check_count
from filterdyn.fields.base import Field, check_callable


class Augmented(eqx.Module):
    """x = (z, h): z' = known(t, z, u) + r_z and h' = r_h, where r = network(t, x, u).

    The hidden states h carry what z does not tell (Dupont, Doucet, Teh 2019).
    """

    network: Field
    known: Field | None
    visible: int = eqx.field(static=True)

    def __init__(self, network: Field, visible: int, known: Field | None = None):
        """**Arguments:** `network(t, x, u) -> (dx,)` of the whole state; `visible`, how many of the states
        stand for something; `known(t, z, u) -> (visible,)`, what is known of those.

        **Raises:** `TypeError` for what cannot be called, `ValueError` unless `visible` >= 1.
        """
        self.network = check_callable("fields.Augmented", "network", network)
        self.known = None if known is None else check_callable("fields.Augmented", "known", known)
        self.visible = check_count("fields.Augmented", "visible", visible)

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " dx"]:
        velocity = self.network(t, x, u)
        if self.known is None:
            return velocity
        seen = self.known(t, x[: self.visible], u)
        return velocity + jnp.concatenate([seen, jnp.zeros(len(x) - self.visible, x.dtype)])
