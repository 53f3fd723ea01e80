"""A network for an energy or a potential."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.fields.mlp import MLP


class Energy(eqx.Module):
    """A scalar function of the state: |x|^2 / 2 in normalised units, and a network."""

    network: MLP

    def __init__(self, dx: int, *, key: Array, **options: Any):
        """**Arguments:** as of `MLP`, which has one output here."""
        self.network = MLP(dx, key=key, out=1, **options)

    def __call__(self, x: Float[Array, " dx"]) -> Float[Array, ""]:
        z = self.network.state(x)
        return 0.5 * jnp.sum(z * z) + self.network(None, x, None)[0]
