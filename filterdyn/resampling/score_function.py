"""Gradients in the weights of the copies instead of their positions."""

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from filterdyn.resampling.base import equal_log_weights


def stop_gradient_weights(
    positions: Float[Array, "N dx"], log_weights: Float[Array, " N"], ancestors: Int[Array, " N"]
) -> tuple[Float[Array, "N dx"], Float[Array, " N"]]:
    """Copies as they are, with weights 1 / N whose derivative is that of their ancestor's logarithm:
    w_a / stop_gradient(w_a) (Scibior, Wood 2021).

    Differentiating through both positions and weights gives, in expectation, the gradient of the
    likelihood's estimate.
    """
    log_weights = log_weights[ancestors]
    # Of a weight of zero (when all are) there is no derivative.
    alive = stop_gradient(log_weights) > -jnp.inf
    change = jnp.where(alive, log_weights, 0.0)
    change = change - stop_gradient(change)
    return positions[ancestors], equal_log_weights(positions) + change


def copies(
    positions: Float[Array, "N dx"], log_weights: Float[Array, " N"], ancestors: Int[Array, " N"]
) -> tuple[Float[Array, "N dx"], Float[Array, " N"]]:
    """Copies as they are, of equal weight: who was copied is taken as given, and the derivative lacks
    what that depended on."""
    return positions[ancestors], equal_log_weights(positions)
