"""The protocol of resampling: N weighted particles become N particles of equal weight."""

import abc
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int


class AbstractResampling(eqx.Module):
    """How N weighted particles become N particles of equal weight."""

    #: Does the particle filter's likelihood stay unbiased?
    is_unbiased: ClassVar[bool]


class AbstractCopying(AbstractResampling):
    """Resampling that copies: particle i gets n_i copies, with sum n_i = N and E[n_i] = N w_i."""

    is_unbiased: ClassVar[bool] = True

    @abc.abstractmethod
    def ancestors(self, key: Array, log_weights: Float[Array, " N"]) -> Int[Array, " N"]:
        """Whom each new particle is a copy of. `log_weights` need not be normalised; weights of zero
        (`-inf`) are never copied, unless all are zero: then every particle is its own ancestor. No
        derivative passes."""


def check_copying(owner: str, resampling: Any) -> AbstractCopying:
    """**Raises:** `TypeError` for what does not copy."""
    if not isinstance(resampling, AbstractCopying):
        raise TypeError(
            f"{owner}: `resampling` is {resampling!r}; expected a scheme that copies, such as "
            "fd.Systematic()"
        )
    return resampling


class AbstractTransport(AbstractResampling):
    """Resampling that moves: new particles are averages of the old ones, and differentiable."""

    is_unbiased: ClassVar[bool] = False

    @abc.abstractmethod
    def transport(
        self, positions: Float[Array, "N dx"], log_weights: Float[Array, " N"]
    ) -> Float[Array, "N dx"]:
        """The new positions, of equal weight."""

    @abc.abstractmethod
    def check(self, owner: str, dx: int) -> None:
        """**Raises:** `ValueError` if particles of `dx` states cannot be moved."""


def relative_weights(log_weights: Float[Array, " N"]) -> Float[Array, " N"]:
    """Weights up to a factor, the largest 1; all 1 where none is positive. Without a derivative."""
    log_weights = stop_gradient(log_weights)
    log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
    most = log_weights.max()
    alive = most > -jnp.inf
    return jnp.where(alive, jnp.exp(log_weights - jnp.where(alive, most, 0.0)), 1.0)


def normalized(log_weights: Float[Array, " N"]) -> Float[Array, " N"]:
    """Weights that sum to one, differentiable; equal where none is positive."""
    dead = ~(stop_gradient(log_weights) > -jnp.inf)
    safe = jnp.where(dead, -jnp.inf, log_weights)
    return jax.nn.softmax(jnp.where(dead.all(), 0.0, safe))


def equal_log_weights(positions: Float[Array, "N dx"]) -> Float[Array, " N"]:
    """- log N for each particle."""
    n = len(positions)
    return jnp.full(n, -math.log(n), positions.dtype)
