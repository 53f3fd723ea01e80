"""Angles on the real line."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def wrap_angle(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The angle x (radians) in (-pi, pi], its derivative 1 everywhere. NaN stays NaN.

    `lambda y, z: fd.wrap_angle(y - z)` is the `residual` of bearings for `GaussianObservation`.
    """
    x = jnp.asarray(x)
    turn = 2 * jnp.pi
    turns = jnp.ceil((x - jnp.pi) / turn)
    # Rounding of the quotient may be one turn off at the cut.
    wrapped = x - turn * turns
    return jnp.where(
        wrapped > jnp.pi, wrapped - turn, jnp.where(wrapped <= -jnp.pi, wrapped + turn, wrapped)
    )
