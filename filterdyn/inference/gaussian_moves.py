"""Moves whose next state is Gaussian given the one before, as a Gaussian posterior needs them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._callables import Held
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import SDE, Interval, Transition
from filterdyn.dynamics.base import AbstractDynamics
from filterdyn.dynamics.diffusion import as_matrix
from filterdyn.linalg import PSD
from filterdyn.linearization import Taylor
from filterdyn.moments import bare, conditional_moments


def check_gaussian_moves(owner: str, dynamics: AbstractDynamics) -> None:
    """**Raises:** `TypeError` for dynamics whose moves are not Gaussian, or not known to be."""
    if not (isinstance(dynamics, (SDE, Transition)) or dynamics.is_linear):
        raise TypeError(
            f"{owner}: `dynamics` is {type(dynamics).__name__}; expected an SDE, LinearSDE, LinearTransition "
            "or a Transition that returns Gaussians"
        )


def gaussian_move(
    owner: str, dynamics: AbstractDynamics, x: Float[Array, " dx"], interval: Interval
) -> tuple[Float[Array, " dx"], Float[Array, "dx dx"]]:
    """Mean of the next state and the triangular factor of its covariance, given `x`: of an SDE over one
    step of Euler's, else exactly. The factor is NaN where noise does not reach every state.

    **Raises:** `TypeError` for a `Transition` to anything but a Gaussian.
    """
    if isinstance(dynamics, SDE):
        at = interval.time, x, interval.input
        diffusion = dynamics.diffusion
        value = diffusion(*at) if isinstance(diffusion, Held) else diffusion
        noise = as_matrix("SDE", "diffusion", value, len(x)).astype(x.dtype)
        mean = x + jnp.asarray(dynamics.drift(*at), x.dtype) * interval.gap
        return mean, jnp.sqrt(interval.gap) * lower(noise @ noise.T)
    if isinstance(dynamics, Transition):
        d = dynamics.distribution(interval.time, x, interval.input)
        moments = conditional_moments(d)
        if not moments.exact:
            raise TypeError(
                f"{owner}: `fn(t, x, u)` of the Transition returned {type(bare(d)).__name__}; expected a "
                "Gaussian"
            )
        return moments.mean, lower(moments.cov.matrix)
    zero = jnp.zeros((len(x), len(x)), x.dtype)
    moved, _ = dynamics.moments(Taylor(), Gaussian(x, spread=PSD(zero, zero)), interval)
    return moved.value, lower(moved.noise.matrix)


def lower(cov: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The Cholesky factor; NaN for a singular matrix."""
    return jnp.linalg.cholesky(cov)


def solve_lower(factor: Float[Array, "n n"], x: Float[Array, "n *k"]) -> Float[Array, "n *k"]:
    """factor^-1 x."""
    return jax.scipy.linalg.solve_triangular(factor, x, lower=True)
