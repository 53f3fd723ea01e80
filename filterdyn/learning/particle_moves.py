"""Particles that each have parameters of their own: where they move, and what a measurement says of each."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.dynamics import Interval
from filterdyn.dynamics.gaussian import log_density_of
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.particle_weights import measurement_log_weights
from filterdyn.filters.proposals import look_ahead
from filterdyn.filters.sampling import Measurement
from filterdyn.learning.model import ParametricModel
from filterdyn.linalg import sampling_factor
from filterdyn.status import Status


def expected_likelihoods(
    filter: AbstractFilter,
    model: ParametricModel,
    thetas: Float[Array, "N k"],
    x: Float[Array, "N dx"],
    interval: Interval,
    measurement: Measurement,
) -> Float[Array, " N"]:
    """log p(y | x, theta) of the next measurement as the Gaussian filter sees it."""
    inside = model.within(interval)

    def one(theta: Array, x: Array) -> Array:
        return look_ahead(filter, model.at(theta), x, inside, measurement)[1]

    found = jax.vmap(one)(thetas, x).astype(x.dtype)
    seen = ~jnp.isnan(measurement.value).all() & (interval.gap > 0)
    return jnp.where(seen & ~jnp.isnan(found), found, 0.0)


def moved_particles(
    filter: AbstractFilter | None,
    model: ParametricModel,
    thetas: Float[Array, "N k"],
    x: Float[Array, "N dx"],
    interval: Interval,
    measurement: Measurement,
    key: Array,
) -> tuple[Float[Array, "N dx"], Float[Array, " N"]]:
    """The next states, and log p(x' | x) - log q(x' | x, y) of where they were drawn from."""
    inside = model.within(interval)
    keys = jax.random.split(key, len(x))

    def by_dynamics(key: Array, theta: Array, x: Array) -> tuple[Array, Array]:
        moved = model.at(theta).dynamics.sample(key, x, inside)
        return moved.astype(x.dtype), jnp.zeros((), x.dtype)

    def by_filter(key: Array, theta: Array, x: Array) -> tuple[Array, Array]:
        assert filter is not None
        here = model.at(theta)
        belief, _, _ = look_ahead(filter, here, x, inside, measurement)
        noise = sampling_factor(belief.spread) @ jax.random.normal(key, x.shape, x.dtype)
        moved = belief.mean + noise
        guessed = log_density_of(noise, belief.spread)
        density = here.dynamics.log_density(moved, x, inside)
        return moved.astype(x.dtype), (density - guessed).astype(x.dtype)

    one = by_dynamics if filter is None else by_filter
    found, log_ratio = jax.vmap(one)(keys, thetas, x)
    moves = interval.gap > 0
    return jnp.where(moves, found, x), jnp.where(moves, log_ratio, 0.0)


def seen_by_each(
    model: ParametricModel,
    thetas: Float[Array, "N k"],
    x: Float[Array, "N dx"],
    measurement: Measurement,
) -> tuple[Float[Array, " N"], Int[Array, ""]]:
    """log p(y | x_i, theta_i), and a status."""

    def one(theta: Array, x: Array) -> tuple[Array, Array]:
        seen, status = measurement_log_weights(model.at(theta), x[None], measurement)
        return seen[0], status

    seen, statuses = jax.vmap(one)(thetas, x)
    impossible = statuses == Status.OBSERVATION_OUT_OF_SUPPORT
    others = jnp.where(impossible, Status.OK, statuses).max()
    status = jnp.where(impossible.all(), Status.OBSERVATION_OUT_OF_SUPPORT, others)
    return seen.astype(x.dtype), status.astype(jnp.int32)
