"""Smoothing with a particle filter: backward from the last row to the first."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.random import categorical, fold_in
from jaxtyping import Array, Float, Int

from filterdyn._compile import compiled
from filterdyn.beliefs import Particles
from filterdyn.dynamics import Plan
from filterdyn.filters.particle import ParticleFilter
from filterdyn.filters.path_methods import (
    AbstractPathMethod,
    BackwardChain,
    BackwardRejection,
    FixedLag,
    TwoFilter,
)
from filterdyn.filters.rows import Row
from filterdyn.model import StateSpaceModel
from filterdyn.resampling.base import relative_weights
from filterdyn.resampling.multinomial import independent_draws
from filterdyn.series import Series
from filterdyn.smoothers.backward_weights import (
    density_before,
    earlier,
    interval_before,
    later,
    of_pairs,
    smoothed_log_weights,
)
from filterdyn.smoothers.genealogy import Forward, filter_forward
from filterdyn.smoothers.rejection import draw_by_rejection, highest_log_density
from filterdyn.smoothers.results import SmootherResult
from filterdyn.smoothers.sampling import sample_paths_by_sampling, smooth_by_sampling
from filterdyn.smoothers.two_filter import smoothed_by_two_filters
from filterdyn.status import Status


def draw_backward(
    model: StateSpaceModel,
    forward: Forward,
    rows: Row,
    table: Any,
    key: Array,
    count: int,
    method: AbstractPathMethod,
) -> Float[Array, "S T dx"]:
    """Paths drawn from the last row to the first."""
    number = forward.positions.shape[0]
    index = categorical(fold_in(key, number), forward.log_weights[-1], shape=(count,))
    last = forward.positions[-1][index]

    def one(carry: tuple[Array, Array], at: Any) -> tuple[Any, Array]:
        index, state = carry
        x, log_w, ancestors, row, k = at
        density = density_before(model, row, table)
        key_row = fold_in(key, k)
        if isinstance(method, BackwardChain):
            start = ancestors[index]
            new = _metropolis(jax.vmap(density), x, log_w, state, start, key_row, method.steps)
        elif isinstance(method, BackwardRejection):
            bound = highest_log_density(method, model, x, interval_before(row, table))
            new = draw_by_rejection(density, bound, x, log_w, state, key_row, method.trials)
        else:
            pairs = of_pairs(density, state, x)
            new = categorical(key_row, pairs + log_w, axis=-1)
        new = jnp.where(row.gap > 0, new, index).astype(index.dtype)
        state = x[new]
        return (new, state), state

    at = (
        *earlier((forward.positions, forward.log_weights)),
        forward.ancestors[1:],
        later(rows),
        jnp.arange(number - 1),
    )
    _, before = jax.lax.scan(one, (index.astype(jnp.int32), last), at, reverse=True)
    return jnp.swapaxes(jnp.concatenate([before, last[None]]), 0, 1)


def _metropolis(
    density: Any,
    x: Float[Array, "N dx"],
    log_w: Float[Array, " N"],
    state: Float[Array, "S dx"],
    start: Int[Array, " S"],
    key: Array,
    steps: int,
) -> Int[Array, " S"]:
    """Indices distributed, in the limit of many steps, as w_i p(state | x_i)."""
    weights = relative_weights(log_w)

    def move(carry: tuple[Array, Array], k: Array) -> tuple[Any, None]:
        index, now = carry
        key_draw, key_accept = jax.random.split(fold_in(key, k))
        other = independent_draws(key_draw, weights, index.shape)
        then = density(state, x[other])
        u = jax.random.uniform(key_accept, index.shape, now.dtype)
        accept = jnp.log(u) < then - now
        return (jnp.where(accept, other, index), jnp.where(accept, then, now)), None

    begin = (start, density(state, x[start]))
    return jax.lax.scan(move, begin, jnp.arange(steps))[0][0]


def lagged(forward: Forward, lag: int) -> tuple[Float[Array, "T N dx"], Float[Array, "T N"]]:
    """Ancestors of the particles `lag` rows later, with the weights of those."""
    number, size = forward.log_weights.shape

    def one(k: Array) -> tuple[Array, Array]:
        end = jnp.minimum(k + lag, number - 1)

        def back(s: Array, index: Array) -> Array:
            row = end - s
            found = forward.ancestors[row][index]
            return jnp.where(row > k, found, index)

        index = jax.lax.fori_loop(0, lag, back, jnp.arange(size, dtype=jnp.int32))
        return forward.positions[k][index], forward.log_weights[end]

    return jax.lax.map(one, jnp.arange(number))


def lineages(forward: Forward, key: Array, count: int) -> Float[Array, "S T dx"]:
    """Paths of particles drawn in the last row, back to their first ancestors."""
    index = categorical(key, forward.log_weights[-1], shape=(count,)).astype(jnp.int32)

    def one(index: Array, at: Any) -> tuple[Array, Array]:
        x, ancestors = at
        return ancestors[index], x[index]

    at = (forward.positions, forward.ancestors)
    _, states = jax.lax.scan(one, index, at, reverse=True)
    return jnp.swapaxes(states, 0, 1)


def _forward(
    filter: ParticleFilter, model: StateSpaceModel, rows: Row, plan: Plan, key: Array
) -> tuple[Forward, Any]:
    model.check(
        "smooth",
        None,
        None if rows.input is None else rows.input[0],
        rows.observation.shape[1],
        rows.observation.dtype,
    )
    table = model.dynamics.tabulate(plan)
    if filter.paths.needs_density:
        _check_density(filter, model, jax.tree.map(lambda x: x[0], rows), table)
    return filter_forward(filter, model, rows, plan, key), table


def _check_density(filter: ParticleFilter, model: StateSpaceModel, row: Row, table: Any) -> None:
    x = jnp.zeros(model.dx, row.observation.dtype)
    try:
        jax.eval_shape(lambda x, row: density_before(model, row, table)(x, x), x, row)
    except TypeError as error:
        raise TypeError(
            f"ParticleFilter: {filter.paths.describe()} weighs transitions by their density. {error}. "
            "Without one, give the filter paths=fd.FixedLag(lag)"
        ) from None


def _smooth(
    filter: ParticleFilter, model: StateSpaceModel, rows: Row, plan: Plan, key: Array
) -> tuple[Array, Array, Array, Array]:
    key_forward, key_back = jax.random.split(key)
    forward, table = _forward(filter, model, rows, plan, key_forward)
    method, statuses = filter.paths, forward.statuses
    if isinstance(method, FixedLag):
        positions, log_weights = lagged(forward, method.lag)
    elif isinstance(method, TwoFilter):
        positions, log_weights, went_through = smoothed_by_two_filters(
            filter, model, forward, rows, table, key_back
        )
        collapsed = ~went_through & (statuses[-1] == Status.OK)
        statuses = jnp.where(collapsed, Status.COLLAPSED, statuses).astype(statuses.dtype)
    elif isinstance(method, (BackwardChain, BackwardRejection)):
        paths = draw_backward(model, forward, rows, table, key_back, filter.size, method)
        positions = jnp.swapaxes(paths, 0, 1)
        log_weights = jnp.full_like(forward.log_weights, -jnp.log(filter.size))
    else:
        positions = forward.positions
        log_weights = smoothed_log_weights(model, forward, rows, table)
    fine = statuses[-1] == Status.OK
    positions, log_weights = jax.tree.map(
        lambda x: jnp.where(fine, x, jnp.nan), (positions, log_weights)
    )
    return positions, log_weights, forward.log_likelihood, statuses


def _sample_paths(
    filter: ParticleFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    key: Array,
    num_samples: int,
) -> Float[Array, "S T dx"]:
    if isinstance(filter.paths, TwoFilter):
        raise TypeError(
            "sample_paths: ParticleFilter has paths=fd.TwoFilter(), which weighs single states and makes no "
            "paths; use fd.BackwardSmoothing()"
        )
    key_forward, key_back = jax.random.split(key)
    forward, table = _forward(filter, model, rows, plan, key_forward)
    method = filter.paths
    if isinstance(method, FixedLag):
        paths = lineages(forward, key_back, num_samples)
    else:
        paths = draw_backward(model, forward, rows, table, key_back, num_samples, method)
    return jnp.where(forward.statuses[-1] == Status.OK, paths, jnp.nan)


_compiled_smooth = compiled("smooth", _smooth)
_compiled_sample_paths = compiled("sample_paths", _sample_paths)


@smooth_by_sampling.register
def _(
    filter: ParticleFilter,
    model: StateSpaceModel,
    series: Series,
    rows: Row,
    plan: Plan,
    key: Array,
) -> SmootherResult:
    positions, log_weights, log_likelihood, statuses = _compiled_smooth(
        filter, model, rows, plan, key
    )
    return SmootherResult(
        series.times,
        Particles(positions, log_weights),
        None,
        log_likelihood,
        jnp.zeros(0, log_likelihood.dtype),
        statuses,
        False,
        series.observation_names,
    )


@sample_paths_by_sampling.register
def _(
    filter: ParticleFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    key: Array,
    num_samples: int,
) -> Float[Array, "num_samples T dx"]:
    return _compiled_sample_paths(filter, model, rows, plan, key, num_samples)
