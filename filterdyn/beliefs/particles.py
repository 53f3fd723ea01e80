"""A distribution of the state as weighted draws."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from filterdyn._checks import check_shape, float_array


class AbstractParticles(eqx.Module):
    """N draws of the state with weights, and what they say of it."""

    positions: eqx.AbstractVar[Float[Array, "*T N dx"]]
    log_weights: eqx.AbstractVar[Float[Array, "*T N"]]

    @property
    def size(self) -> int:
        """N, the number of particles."""
        return self.positions.shape[-2]

    @property
    def weights(self) -> Float[Array, "*T N"]:
        """Non-negative, of sum 1; NaN where all log-weights are -inf."""
        return jax.nn.softmax(self.log_weights, axis=-1)

    @property
    def mean(self) -> Float[Array, "*T dx"]:
        return (self.weights[..., None] * self.positions).sum(-2)

    @property
    def cov(self) -> Float[Array, "*T dx dx"]:
        """The covariance of the weighted positions; formed when it is asked for."""
        a = self.positions - self.mean[..., None, :]
        w = self.weights[..., None] * a
        return jnp.einsum("...ni,...nj->...ij", w, a, precision="highest")

    @property
    def variances(self) -> Float[Array, "*T dx"]:
        """The diagonal of `cov`, without forming it."""
        a = self.positions - self.mean[..., None, :]
        return (self.weights[..., None] * a * a).sum(-2)

    @property
    def effective_sample_size(self) -> Float[Array, "*T"]:
        """1 / sum_i w_i^2: N for equal weights, 1 if one particle has all the weight (Kong, Liu, Wong
        1994)."""
        return 1.0 / (self.weights**2).sum(-1)

    def sample(self, key: Array) -> Float[Array, " dx"]:
        """One draw (of a belief without a leading axis)."""
        return self.positions[jax.random.categorical(key, self.log_weights)]


class Particles(AbstractParticles):
    """N draws of the state with weights.

    `positions` is (N, dx); `log_weights` (N,) need not be normalised: `weights` are. In results both
    have a leading axis T.
    """

    positions: Float[Array, "*T N dx"]
    log_weights: Float[Array, "*T N"]
    #: What a filter carries beside the state, particle by particle (the Gaussian of a conditionally
    #: linear part).
    memory: Any

    def __init__(
        self,
        positions: Float[Array, "*T N dx"],
        log_weights: Float[Array, "*T N"] | None = None,
        *,
        memory: Any = None,
    ):
        """**Arguments:** `positions` (N, dx); `log_weights` (N,), by default all equal.

        **Raises:** `ValueError` for shapes that disagree.
        """
        positions = float_array("Particles", "positions", positions)
        if positions.ndim < 2:
            raise ValueError(
                f"Particles: `positions` has shape {positions.shape}; expected (N, dx)"
            )
        shape = positions.shape[:-1]
        if log_weights is None:
            log_weights = jnp.full(shape, -math.log(shape[-1]), positions.dtype)
        log_weights = float_array("Particles", "log_weights", log_weights)
        check_shape("Particles", "log_weights", log_weights, shape, "one for each position")
        self.positions = positions
        self.log_weights = log_weights
        self.memory = memory

    @property
    def is_finite(self) -> Bool[Array, ""]:
        """Are all positions finite, no weight NaN and some weight positive?"""
        heaviest = jnp.isfinite(self.log_weights.max())
        return jnp.isfinite(self.positions).all() & heaviest

    def astype(self, dtype: jnp.dtype) -> "Particles":
        return Particles(
            self.positions.astype(dtype), self.log_weights.astype(dtype), memory=self.memory
        )
