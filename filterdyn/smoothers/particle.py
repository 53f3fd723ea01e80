"""Smoothing with a particle filter: backward from the last row to the first."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jax.random import categorical, fold_in
from jaxtyping import Array, Float, Int

from filterdyn._compile import compiled
from filterdyn.beliefs import Particles
from filterdyn.dynamics import Interval, Plan
from filterdyn.filters.particle import ParticleFilter
from filterdyn.filters.path_methods import BackwardChain, FixedLag
from filterdyn.filters.rows import Row
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series
from filterdyn.smoothers.genealogy import Forward, filter_forward
from filterdyn.smoothers.results import SmootherResult
from filterdyn.smoothers.sampling import sample_paths_by_sampling, smooth_by_sampling
from filterdyn.status import Status


def _later(tree: Any) -> Any:
    """Rows 1 .. T - 1."""
    return jax.tree.map(lambda x: x[1:], tree)


def _earlier(tree: Any) -> Any:
    """Rows 0 .. T - 2."""
    return jax.tree.map(lambda x: x[:-1], tree)


def _density(model: StateSpaceModel, row: Row, table: Any) -> Any:
    """log p(x_to | x_from) over the gap before `row`, for one pair."""
    # Over a gap of 0 nothing moves and the answer is not used.
    gap = jnp.where(row.gap > 0, row.gap, 1)
    interval = Interval(row.time_from, gap, row.input_from, row.plan, table)
    return lambda x_to, x_from: model.dynamics.log_density(x_to, x_from, interval)


def smoothed_log_weights(
    model: StateSpaceModel, forward: Forward, rows: Row, table: Any
) -> Float[Array, "T N"]:
    """Normalised log-weights of the filtered particles given the whole series:

    w_{k|T}^i = w_k^i sum_j w_{k+1|T}^j p(x_{k+1}^j | x_k^i) / sum_l w_k^l p(x_{k+1}^j | x_k^l).
    """

    def one(after: Array, at: Any) -> tuple[Array, Array]:
        x, log_w, x_next, row = at
        density = _density(model, row, table)
        pairs = jax.vmap(lambda b: jax.vmap(lambda a: density(b, a))(x))(x_next)  # (j, i)
        joint = pairs + log_w
        reached = logsumexp(joint, axis=1)
        # A particle that nothing leads to (its weight is zero) is left out.
        share = jnp.where(jnp.isfinite(reached), after - reached, -jnp.inf)
        new = logsumexp(joint + share[:, None], axis=0)
        new = jnp.where(row.gap > 0, new - logsumexp(new), after)
        return new, new

    last = forward.log_weights[-1]
    beliefs = (forward.positions, forward.log_weights)
    at = (*_earlier(beliefs), forward.positions[1:], _later(rows))
    _, earlier = jax.lax.scan(one, last, at, reverse=True)
    return jnp.concatenate([earlier, last[None]])


def draw_backward(
    model: StateSpaceModel,
    forward: Forward,
    rows: Row,
    table: Any,
    key: Array,
    count: int,
    steps: int | None,
) -> Float[Array, "S T dx"]:
    """Paths drawn from the last row to the first, by exact draws or by `steps` Metropolis moves each."""
    number = forward.positions.shape[0]
    index = categorical(fold_in(key, number), forward.log_weights[-1], shape=(count,))
    last = forward.positions[-1][index]

    def one(carry: tuple[Array, Array], at: Any) -> tuple[Any, Array]:
        index, state = carry
        x, log_w, ancestors, row, k = at
        density = _density(model, row, table)
        key_row = fold_in(key, k)
        if steps is None:
            pairs = jax.vmap(lambda b: jax.vmap(lambda a: density(b, a))(x))(state)
            new = categorical(key_row, pairs + log_w, axis=-1)
        else:
            new = _metropolis(jax.vmap(density), x, log_w, state, ancestors[index], key_row, steps)
        new = jnp.where(row.gap > 0, new, index).astype(index.dtype)
        state = x[new]
        return (new, state), state

    at = (
        *_earlier((forward.positions, forward.log_weights)),
        forward.ancestors[1:],
        _later(rows),
        jnp.arange(number - 1),
    )
    _, earlier = jax.lax.scan(one, (index.astype(jnp.int32), last), at, reverse=True)
    return jnp.swapaxes(jnp.concatenate([earlier, last[None]]), 0, 1)


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

    def move(carry: tuple[Array, Array], k: Array) -> tuple[Any, None]:
        index, now = carry
        key_draw, key_accept = jax.random.split(fold_in(key, k))
        other = categorical(key_draw, log_w, shape=index.shape).astype(index.dtype)
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
        jax.eval_shape(lambda x, row: _density(model, row, table)(x, x), x, row)
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
    method = filter.paths
    if isinstance(method, FixedLag):
        positions, log_weights = lagged(forward, method.lag)
    elif isinstance(method, BackwardChain):
        paths = draw_backward(model, forward, rows, table, key_back, filter.size, method.steps)
        positions = jnp.swapaxes(paths, 0, 1)
        log_weights = jnp.full_like(forward.log_weights, -jnp.log(filter.size))
    else:
        positions = forward.positions
        log_weights = smoothed_log_weights(model, forward, rows, table)
    fine = forward.statuses[-1] == Status.OK
    positions, log_weights = jax.tree.map(
        lambda x: jnp.where(fine, x, jnp.nan), (positions, log_weights)
    )
    return positions, log_weights, forward.log_likelihood, forward.statuses


def _sample_paths(
    filter: ParticleFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    key: Array,
    num_samples: int,
) -> Float[Array, "S T dx"]:
    key_forward, key_back = jax.random.split(key)
    forward, table = _forward(filter, model, rows, plan, key_forward)
    method = filter.paths
    if isinstance(method, FixedLag):
        paths = lineages(forward, key_back, num_samples)
    else:
        steps = method.steps if isinstance(method, BackwardChain) else None
        paths = draw_backward(model, forward, rows, table, key_back, num_samples, steps)
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
