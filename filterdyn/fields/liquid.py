"""Liquid time-constant networks."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.fields.base import Field, Invariant, check_callable


class LiquidTimeConstant(eqx.Module):
    """x' = -(1 / tau + g) x + g A with g = sigmoid(network(t, x, u)) (Hasani et al. 2021).

    Each state relaxes at a rate between 1 / tau and 1 / tau + 1 that the network sets, and stays between
    0 and its A once it is there, whatever the weights are.
    """

    network: Field
    log_tau: Float[Array, " dx"]
    targets: Float[Array, " dx"]

    def __init__(self, network: Field, tau: Any, targets: Any):
        """**Arguments:** `network(t, x, u) -> (dx,)`; `tau` (dx,), time constants > 0; `targets` (dx,): A.

        **Raises:** `TypeError` for what cannot be called, `ValueError` for a `tau` that is not positive
        and for shapes that disagree.
        """
        owner = "fields.LiquidTimeConstant"
        self.network = check_callable(owner, "network", network)
        tau, self.targets = (jnp.asarray(v, jnp.result_type(float)) for v in (tau, targets))
        if tau.ndim != 1 or self.targets.shape != tau.shape:
            raise ValueError(
                f"{owner}: `tau` has shape {tau.shape} and `targets` {self.targets.shape}; "
                "expected (dx,) for both"
            )
        if not isinstance(tau, jax.core.Tracer) and not (tau > 0).all():
            raise ValueError(f"{owner}: `tau` is {tau}; expected positive numbers")
        self.log_tau = jnp.log(tau)

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " dx"]:
        gate = jax.nn.sigmoid(jnp.asarray(self.network(t, x, u), x.dtype))
        leak = jnp.exp(-self.log_tau.astype(x.dtype))
        return gate * self.targets.astype(x.dtype) - (leak + gate) * x

    def invariant(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Invariant:
        """No state leaves the interval between 0 and its target: at the ends it points inwards.

        The state is moved to each of the 2 dx faces of the box, the other entries staying where they are.
        """
        targets = self.targets.astype(x.dtype)
        low, high = jnp.minimum(targets, 0.0), jnp.maximum(targets, 0.0)

        def outwards(i: Array) -> Array:
            above = self(t, x.at[i].set(high[i]), u)[i]
            below = -self(t, x.at[i].set(low[i]), u)[i]
            return jnp.maximum(above, below)

        worst = jax.vmap(outwards)(jnp.arange(len(x))).max()
        return Invariant(worst, jnp.abs(targets).max(), "stays in its box", False)
