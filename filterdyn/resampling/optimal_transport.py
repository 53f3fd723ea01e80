"""Entropic optimal transport, as a resampling and as a velocity."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.nn import logsumexp
from jaxtyping import Array, Float, Int

from filterdyn._checks import check_between, check_count
from filterdyn.linalg import with_derivative_of
from filterdyn.resampling.base import (
    AbstractTransport,
    equal_log_weights,
    normalized,
)


class OptimalTransport(AbstractTransport):
    """Entropic optimal transport from the weighted particles to equally weighted ones (Corenflos,
    Thornton, Deligiannidis, Doucet 2021): x'_j = N sum_i P_ij x_i, with P the plan that minimises
    <P, C> + epsilon KL(P | w 1^T / N), and C half the squared distance of particles scaled to a
    diameter of order one.

    New particles are averages: they shrink towards their mean as `epsilon` grows, and the likelihood
    is biased. O(N^2) a round, so for N up to a few hundred. The derivative is that of one Sinkhorn
    round at the potentials found.
    """

    epsilon: float = eqx.field(static=True)
    scaling: float = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    max_iterations: int = eqx.field(static=True)

    def __init__(
        self,
        epsilon: float = 0.5,
        *,
        scaling: float = 0.75,
        threshold: float = 1e-3,
        max_iterations: int = 100,
    ):
        """**Arguments:**

        - `epsilon`: the regularisation, of scaled squared distances;
        - `scaling`: from the squared diameter of the particles the regularisation falls by the square
          of this in each round, until it is `epsilon`;
        - `threshold`: rounds end when no potential changes by more than this;
        - `max_iterations`: and after so many of them.

        **Raises:** `ValueError` for numbers out of range.
        """
        owner = "OptimalTransport"
        self.epsilon = check_between(owner, "epsilon", epsilon, 0.0, math.inf)
        self.scaling = check_between(owner, "scaling", scaling, 0.0, 1.0)
        self.threshold = check_between(owner, "threshold", threshold, 0.0, math.inf)
        self.max_iterations = check_count(owner, "max_iterations", max_iterations)

    def transport(
        self, positions: Float[Array, "N dx"], log_weights: Float[Array, " N"]
    ) -> Float[Array, "N dx"]:
        dx = positions.shape[1]
        fixed = stop_gradient(positions)
        spread = fixed.std(0).max() * math.sqrt(dx)
        scaled = (positions - fixed.mean(0)) / jnp.where(spread > 0, spread, 1.0)
        tiny = jnp.finfo(positions.dtype).tiny
        log_w = jnp.log(jnp.maximum(normalized(log_weights), tiny))
        log_u = equal_log_weights(positions)
        cost = _half_squared_distances(scaled)
        source, target = self._potentials(*stop_gradient((cost, log_w, log_u)))
        # One round that is differentiated. The second line makes every column of the plan sum to 1 / N.
        source = _soft_minimum(cost, self.epsilon, log_u + target / self.epsilon)
        target = _soft_minimum(cost.T, self.epsilon, log_w + source / self.epsilon)
        exponent = (source[:, None] + target - cost) / self.epsilon + log_w[:, None]
        return jnp.exp(exponent).T @ positions

    def _potentials(
        self, cost: Float[Array, "N N"], log_w: Float[Array, " N"], log_u: Float[Array, " N"]
    ) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Sinkhorn's rounds, averaged and annealed, in the domain of logarithms (Feydy et al. 2019)."""

        def improve(pair: Any, epsilon: Array) -> Any:
            f, g = pair
            new = (
                _soft_minimum(cost, epsilon, log_u + g / epsilon),
                _soft_minimum(cost.T, epsilon, log_w + f / epsilon),
            )
            return jax.tree.map(lambda old, new: 0.5 * (old + new), pair, new)

        def body(carry: Any) -> Any:
            pair, epsilon, _, count = carry
            new = improve(pair, epsilon)
            change = jnp.stack([jnp.abs(a - b).max() for a, b in zip(pair, new, strict=True)]).max()
            below = jnp.maximum(epsilon * self.scaling**2, self.epsilon)
            going = (change > self.threshold) | (epsilon > self.epsilon)
            return new, below, going, count + 1

        start = jnp.maximum(2 * cost.max(), self.epsilon)
        first = (
            _soft_minimum(cost, start, log_u),
            _soft_minimum(cost.T, start, log_w),
        )
        keep_going = lambda carry: carry[2] & (carry[3] < self.max_iterations)
        carry = (first, start, jnp.array(True), jnp.int32(0))
        return stop_gradient(jax.lax.while_loop(keep_going, body, carry)[0])

    def check(self, owner: str, dx: int) -> None:
        """Any number of states."""


def _half_squared_distances(x: Float[Array, "N dx"]) -> Float[Array, "N N"]:
    squares = (x * x).sum(1)
    return jnp.maximum(0.5 * (squares[:, None] + squares) - x @ x.T, 0.0)


def _soft_minimum(
    cost: Float[Array, "N N"], epsilon: Any, log_weights: Float[Array, " N"]
) -> Float[Array, " N"]:
    """- epsilon log sum_j exp(log_weights_j - C_ij / epsilon), for each i."""
    return -epsilon * logsumexp(log_weights - cost / epsilon, axis=1)


def entropic_flow(
    positions: Float[Array, "N dx"], log_weights: Float[Array, " N"], ancestors: Int[Array, " N"]
) -> tuple[Float[Array, "N dx"], Float[Array, " N"]]:
    """Copies that move as the particle nearest to them among those of `OptimalTransport()` does: its
    derivative without its bias. O(N^2), of first order."""
    copied = stop_gradient(positions)[ancestors]
    moved = OptimalTransport().transport(positions, log_weights)
    between = ((stop_gradient(moved) - copied[:, None]) ** 2).sum(-1)
    return with_derivative_of(copied, moved[between.argmin(1)]), equal_log_weights(positions)
