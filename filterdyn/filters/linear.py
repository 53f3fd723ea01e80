"""The rows of a linear Gaussian model, covariances apart from means.

No covariance of such a model depends on the data. So series that share their gaps and what is missing
share them, and where rows are alike a covariance tends to a fixed point: once it is there to rounding,
only the means are computed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval, Plan
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.gaussian import cast
from filterdyn.filters.kalman import KalmanFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.scan import (
    Record,
    State,
    add,
    finite_term,
    first_failure,
    is_accurate,
    select,
)
from filterdyn.linalg import (
    ACCURATE,
    PSD,
    Known,
    accurately,
    condition_given,
    known_part,
    mm,
    times,
    triangularize,
    without_correlation,
)
from filterdyn.linalg.gate import gated
from filterdyn.linearization import Affine, Taylor, squared
from filterdyn.model import StateSpaceModel
from filterdyn.observations import LinearizedObservation
from filterdyn.status import Status

#: A covariance that is compared with an earlier one and not found at rest is compared again when the
#: series since it began to repeat itself is this much longer.
_LONGER = 4
_FIRST = 8


class Sensors(NamedTuple):
    """Measurements made independent: of mix (residual), with these slopes and variances (large states
    take them as they are)."""

    h: Float[Array, "dy dx"]
    noise: Float[Array, " dy"] | Float[Array, "dy dy"]
    mix: Float[Array, "dy dy"] | None


class Covariances(NamedTuple):
    """All of a row that is not a mean, as values without a derivative."""

    predicted: Float[Array, "dx dx"]
    sensors: Sensors
    measured: Known
    sound: Bool[Array, ""]


class Memory(NamedTuple):
    """What the row before came to, and whether rows like it would come to the same."""

    known: Covariances
    #: Which row of the plan it was, or -1.
    plan: Int[Array, ""]
    reference: Float[Array, "dx dx"]
    age: Int[Array, ""]
    due: Int[Array, ""]
    at_rest: Bool[Array, ""]


def treats(filter: AbstractFilter, model: StateSpaceModel) -> TypeGuard[KalmanFilter]:
    """Can a series of this model be filtered here?"""
    return (
        isinstance(filter, KalmanFilter)
        and filter.outliers is None
        and filter.adaptive is None
        and not model.starts_diffusely()
    )


def repeats(model: StateSpaceModel, plan: Plan) -> bool:
    """Are rows of one kind in `plan` alike, whatever their time?"""
    return model.dynamics.repeats(plan) and model.observation.is_constant


def run_linear(
    filter: KalmanFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    keep: Callable[[Record], Any],
) -> tuple[State, Float[Array, "*S"], Any]:
    """`scan.run` for the models that this file `treats`.

    The observations (T, dy, S) of several series may share `rows` otherwise (their inputs may be
    (T, du, S)): means, innovations, log-likelihoods and statuses then have a trailing axis S.
    """
    dtype = rows.observation.dtype
    series = rows.observation.shape[2:]
    table = model.dynamics.tabulate(plan)
    belief = filter.init(model, dtype)
    mean = jnp.zeros((model.dx, *series), dtype) + _column(belief.mean, series)
    start = State(Gaussian(mean, spread=belief.spread), jnp.zeros(series, jnp.int32))
    first = jax.tree.map(lambda x: x[0], rows)
    everything = jnp.ones(first.observation.shape[0], bool)
    constant = None
    if plan.complete and model.observation.is_constant:
        constant = _sensors(_parts(model, table, belief.spread, first)[1], everything)
    memory = None
    if repeats(model, plan):
        compute = lambda: _alone(model, table, belief.spread, first, everything, constant)
        memory = _no_memory(compute, belief.spread)

    def body(carry: Any, row: Row) -> tuple[Any, Any]:
        state, memory, total, lost = carry
        seen = everything
        if not plan.complete:
            seen = ~jnp.isnan(row.observation.reshape(len(seen), -1)[:, 0])
        state, memory, record = _step(model, table, seen, constant, state, memory, row)
        return (state, memory, *add(total, lost, finite_term(record))), keep(record)

    body = jax.checkpoint(body, prevent_cse=False, policy=is_accurate)
    zero = jnp.zeros(series, dtype)

    def scan(rows: Row) -> Any:
        return jax.lax.scan(body, (start, memory, zero, zero), rows)

    some_are_fine = lambda out: (out[0][0].status == Status.OK).any()
    (state, _, total, lost), kept = gated(scan, some_are_fine, rows)(rows)
    log_likelihood = jnp.where(state.status == Status.OK, total + lost, -jnp.inf)
    return state, log_likelihood, kept


def _column(x: Array, series: tuple[int, ...]) -> Array:
    return x.reshape(*x.shape, *[1] * len(series))


def _step(
    model: StateSpaceModel,
    table: Any,
    seen: Bool[Array, " dy"],
    constant: Sensors | None,
    state: State,
    memory: Any,
    row: Row,
) -> tuple[State, Any, Record]:
    """One row. After a failure nothing is of use but the status."""
    spread = state.belief.spread
    series = row.observation.shape[1:]
    observed = _column(seen, series)
    move, z = _parts(model, table, spread, row)
    moved = row.gap > 0
    sensors = _sensors(z, seen) if constant is None else constant
    # Stopped outside of the `cond` below, which would otherwise be differentiated.
    fixed = stop_gradient((spread, move, sensors))
    compute = lambda: _covariances(*fixed, moved, seen)
    if memory is None:
        known = compute()
    else:
        ordinary = moved & seen.all()
        memory = _recall(memory, compute, spread.factor is None, ordinary, row.plan)
        memory = stop_gradient(memory)
        known = memory.known
    predicted = _predicted(known.predicted, spread, move, moved)
    if constant is None:
        sensors = jax.tree.map(accurately, known.sensors, sensors)

    still = state.belief.mean
    mean = jnp.where(moved, times(move.slope, still) + move.value, still)
    innovation = row.observation - times(z.slope, mean) - z.value
    residual = jnp.where(observed, innovation, 0.0)
    if sensors.mix is not None:
        residual = times(sensors.mix, residual)
    found = condition_given(known.measured, predicted, sensors.h, residual, sensors.noise, seen)

    failure = jnp.where(found.singular, Status.SINGULAR_INNOVATION, Status.MODEL_NOT_FINITE)
    after = mean + found.shift
    # (What is not finite in the mean shows in one of these.)
    finite = jnp.isfinite(after).all(0) & jnp.isfinite(found.log_likelihood) & known.sound
    status = first_failure(state.status, row.status, jnp.where(finite, Status.OK, failure))
    fine = checkpoint_name(status == Status.OK, ACCURATE)
    belief = Gaussian(after, spread=found.cov)
    visible = lambda x, fine=fine: jnp.where(fine, x, jnp.nan)
    some = fine.any()
    shared = lambda tree: jax.tree.map(lambda x: visible(x, some), tree)
    record = Record(
        Gaussian(visible(mean), spread=shared(predicted)),
        Gaussian(visible(belief.mean), spread=shared(found.cov)),
        _affine(mean, move, moved),
        visible(jnp.where(observed, innovation, jnp.nan)),
        visible(predicted.seen_through(z.slope) + _full(z.noise), some),
        visible(jnp.where(observed, found.standardized, jnp.nan)),
        None,
        jnp.where(fine, found.log_likelihood, -jnp.inf),
        status,
        fine,
    )
    return State(belief, status), memory, record


def _parts(
    model: StateSpaceModel, table: Any, spread: PSD, row: Row
) -> tuple[Affine, LinearizedObservation]:
    """The move and the observation at a state of zero, so that their values are offsets."""
    dtype, series = row.observation.dtype, row.observation.shape[1:]
    rule, zero = Taylor(), Gaussian(jnp.zeros(model.dx, dtype), spread=spread)
    nothing = jnp.full(row.observation.shape[0], jnp.nan, dtype)

    def at(input_from: Any, input: Any) -> tuple[Affine, LinearizedObservation]:
        interval = Interval(row.time_from, row.gap, input_from, row.plan, table)
        move, _ = model.dynamics.moments(rule, zero, interval)
        z = model.observation.linearize(rule, zero, row.time, input, nothing)
        return cast(move, dtype), cast(z, dtype)

    def offsets(input_from: Any, input: Any) -> tuple[Array, Array]:
        move, z = at(input_from, input)
        return move.value, z.value

    inputs: Any = (row.input_from, row.input)
    if row.input is None or row.input.ndim == 1:
        move, z = at(*inputs)
        of_move, of_z = _column(move.value, series), _column(z.value, series)
    else:
        move, z = at(*(u[:, 0] for u in inputs))
        of_move, of_z = jax.vmap(offsets, -1, -1)(*inputs)
    return move._replace(value=of_move), z._replace(value=of_z)


def _sensors(z: LinearizedObservation, seen: Bool[Array, " dy"]) -> Sensors:
    h, mix, noise = without_correlation(z.slope, z.noise, seen)
    return Sensors(h, noise, mix)


def _covariances(
    spread: PSD, move: Affine, sensors: Sensors, moved: Bool[Array, ""], seen: Bool[Array, " dy"]
) -> Covariances:
    slope = move.slope
    if spread.factor is None:
        p = spread.matrix
        after = mm(mm(slope, p), slope.T) + move.noise.matrix
        predicted = jnp.where(moved, 0.5 * (after + after.T), p)
        cov = PSD(None, predicted)
    else:
        wide = jnp.concatenate([mm(slope, spread.factor), move.noise.root], axis=1)
        predicted = jnp.where(moved, triangularize(wide), spread.factor)
        cov = PSD(predicted, mm(predicted, predicted.T))
    measured = known_part(cov, sensors.h, sensors.noise, seen)
    sound = jnp.isfinite(predicted).all() & jnp.isfinite(measured.carrier).all()
    return Covariances(predicted, sensors, measured, sound & ~measured.singular)


def _predicted(value: Array, spread: PSD, move: Affine, moved: Array) -> PSD:
    smooth = mm(mm(move.slope, spread.matrix), move.slope.T) + move.noise.matrix
    smooth = jnp.where(moved, smooth, spread.matrix)
    if spread.factor is None:
        return PSD(None, accurately(value, smooth))
    return PSD(value, accurately(mm(value, value.T), smooth))


def _recall(
    memory: Memory,
    compute: Callable[[], Covariances],
    is_covariance: bool,
    ordinary: Array,
    plan: Any,
) -> Memory:
    """The row's covariances: those of the row before, if they are at rest and this row is like it."""
    plan = jnp.int32(0) if plan is None else plan
    alike = ordinary & (plan == memory.plan)

    def new() -> Memory:
        known = compute()
        carrier = known.measured.carrier
        age = jnp.where(alike, memory.age + 1, 0)
        is_due = alike & (age >= memory.due)
        eps = 4 * jnp.finfo(carrier.dtype).eps
        if is_covariance:
            size = jnp.sqrt(jnp.abs(jnp.diagonal(carrier)))
            near = eps * size[:, None] * size[None, :]
        else:
            near = eps * jnp.sqrt((carrier * carrier).sum(1))[:, None]
        close = (jnp.abs(carrier - memory.reference) <= near).all()
        later = jnp.where(is_due, age + age // _LONGER + _FIRST, memory.due)
        return Memory(
            known,
            jnp.where(ordinary, plan, -1),
            jnp.where(is_due | ~alike, carrier, memory.reference),
            age,
            jnp.where(alike, later, _FIRST),
            is_due & close,
        )

    return jax.lax.cond(alike & memory.at_rest, lambda: memory, new)


def _alone(
    model: StateSpaceModel, table: Any, spread: PSD, row: Row, seen: Array, constant: Any
) -> Covariances:
    move, z = _parts(model, table, spread, row)
    sensors = _sensors(z, seen) if constant is None else constant
    return _covariances(spread, move, sensors, row.gap > 0, seen)


def _no_memory(compute: Callable[[], Covariances], spread: PSD) -> Memory:
    known = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(compute))
    carrier = stop_gradient(spread.carrier)
    nothing = jnp.int32(-1)
    return Memory(known, nothing, carrier, jnp.int32(0), jnp.int32(_FIRST), jnp.bool_(False))


def _affine(mean: Array, move: Affine, moved: Array) -> Affine:
    """The move as smoothing wants it; of several series, that of none."""
    n = move.slope.shape[0]
    noise = squared(move.noise)
    slope = jnp.where(moved, move.slope, jnp.eye(n, dtype=move.slope.dtype))
    return Affine(mean, slope, select(moved, noise, jax.tree.map(jnp.zeros_like, noise)))


def _full(noise: Array) -> Array:
    return jnp.diag(noise) if noise.ndim == 1 else noise
