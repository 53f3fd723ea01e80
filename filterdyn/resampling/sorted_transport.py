"""Exact optimal transport in one dimension, as a resampling and as a velocity."""

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from filterdyn.linalg import with_derivative_of
from filterdyn.resampling.base import AbstractTransport, equal_log_weights, normalized
from filterdyn.resampling.counts import running_sum


def _check(owner: str, dx: int) -> None:
    if dx != 1:
        raise ValueError(
            f"{owner}: the state has {dx} entries; sorting transports particles of one state only"
        )


class SortedTransport(AbstractTransport):
    """The optimal transport from the weighted particles to equally weighted ones, on the line:
    x'_j = N times the integral of the quantile function over its j-th N-th (O(N log N)).

    New particles are averages, so tails are cut and the likelihood is biased, by O(1 / N).
    """

    def transport(
        self, positions: Float[Array, "N dx"], log_weights: Float[Array, " N"]
    ) -> Float[Array, "N dx"]:
        n = len(positions)
        x = positions[:, 0]
        centre = stop_gradient(x.mean())
        order = jnp.argsort(stop_gradient(x))
        x, w = x[order] - centre, normalized(log_weights)[order]
        zero = jnp.zeros(1, x.dtype)
        ends = jnp.concatenate([zero, running_sum(w)])
        integral = jnp.concatenate([zero, running_sum(w * x)])
        grid = jnp.arange(n + 1, dtype=x.dtype) / n
        return (n * jnp.diff(jnp.interp(grid, ends, integral)) + centre)[:, None]

    def check(self, owner: str, dx: int) -> None:
        _check(owner, dx)


def _across(v: Float[Array, " N"]) -> Float[Array, " N"]:
    """From the neighbour on the left to that on the right."""
    padded = jnp.pad(v, 1, mode="edge")
    return padded[2:] - padded[:-2]


def sorted_flow(
    positions: Float[Array, "N dx"], log_weights: Float[Array, " N"], ancestors: Int[Array, " N"]
) -> tuple[Float[Array, "N dx"], Float[Array, " N"]]:
    """Copies that move as the quantiles do: dx = - dW / (dW / dx), with W the cumulative weights up to
    the middle of a particle's own and the slope that between its neighbours. First order."""
    _check("gradient='sorted'", positions.shape[1])
    copied = stop_gradient(positions)[ancestors]
    x = positions[:, 0]
    order = jnp.argsort(stop_gradient(x))
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(x)), unique_indices=True)
    w = normalized(log_weights)[order]
    middle = running_sum(w) - 0.5 * w
    rise, run = stop_gradient((_across(middle), _across(x[order])))
    slope = jnp.where(rise > 0, run / jnp.where(rise > 0, rise, 1.0), 0.0)
    moved = x - (slope * (middle - stop_gradient(middle)))[rank]
    return with_derivative_of(copied, moved[ancestors][:, None]), equal_log_weights(positions)
