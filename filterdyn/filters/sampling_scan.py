"""One row of a sampling filter, and the scan over all of them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from filterdyn.dynamics import Interval, Plan
from filterdyn.filters.results import PARAMETERS, parameters_of
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling import (
    AbstractSamplingFilter,
    Measurement,
    SamplingStep,
    finite_status,
)
from filterdyn.filters.scan import add, first_failure, is_finite, select
from filterdyn.linalg.gate import gated
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status

#: Beliefs of all rows that take more bytes than this are made again in a reverse pass, block by block.
_MOST_BYTES = 2**26
#: Up to this many states (or measurements) a result holds covariances of every row, above it variances.
FULL = 64


class SamplingState(NamedTuple):
    """What a sampling filter carries from row to row: all randomness of a row is in `key` and `done`."""

    belief: Any
    status: Int[Array, ""]
    key: Any
    #: Rows so far.
    done: Int[Array, ""]


class SamplingRecord(NamedTuple):
    """What became of one row."""

    predicted: Any
    filtered: Any
    innovation: Float[Array, " dy"]
    innovation_cov: Float[Array, "dy dy"]
    standardized: Float[Array, " dy"]
    log_likelihood: Float[Array, ""]
    diagnostics: dict[str, Array]
    status: Int[Array, ""]
    #: Is the status `OK`?
    fine: Bool[Array, ""]


def start(
    filter: AbstractSamplingFilter, model: StateSpaceModel, dtype: jnp.dtype, key: Array
) -> SamplingState:
    """The state before any row."""
    belief = filter.init(model, dtype, jax.random.fold_in(key, 0))
    return SamplingState(belief, jnp.int32(Status.OK), key, jnp.int32(0))


def step(
    filter: AbstractSamplingFilter,
    model: StateSpaceModel,
    table: Any,
    state: SamplingState,
    row: Row,
) -> tuple[SamplingState, SamplingRecord]:
    """One row with random numbers of its own. After a failure the belief stays at its last good value."""
    done = state.done + 1
    key = jax.random.fold_in(state.key, done)
    belief = state.belief
    if filter.truncation is not None:
        cut = state.done % filter.truncation == 0
        belief = select(cut, jax.lax.stop_gradient(belief), belief)
    interval = Interval(row.time_from, row.gap, row.input_from, row.plan, table)
    measurement = Measurement(row.time, row.input, row.observation)
    new: SamplingStep = filter.step(model, belief, interval, measurement, key)
    missing = jnp.isnan(row.observation).all()
    log_likelihood = jnp.where(missing, 0.0, new.log_likelihood)
    failure = jnp.where(is_finite(log_likelihood), Status.OK, Status.MODEL_NOT_FINITE)
    status = first_failure(state.status, row.status, new.status, finite_status(new.belief), failure)
    fine = status == Status.OK
    diagnostics = new.diagnostics
    learned = parameters_of(new.belief)
    if learned is not None:
        diagnostics = {**diagnostics, PARAMETERS: learned.without_draws()}
    record = SamplingRecord(
        _visible(fine, new.predicted),
        _visible(fine, new.belief),
        _visible(fine, new.innovation),
        _visible(fine, new.innovation_cov),
        _visible(fine, new.standardized),
        jnp.where(fine, log_likelihood, -jnp.inf),
        _visible(fine, diagnostics),
        status,
        fine,
    )
    return SamplingState(select(fine, new.belief, belief), status, state.key, done), record


def _visible(fine: Bool[Array, ""], tree: Any) -> Any:
    """NaN after a failure (integers and booleans as they are)."""
    return jax.tree.map(
        lambda x: jnp.where(fine, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree
    )


def run(
    filter: AbstractSamplingFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    key: Array,
    keep: Callable[[SamplingRecord], Any],
) -> tuple[SamplingState, Float[Array, ""], Any]:
    """Scan over the rows. Returns the last state, the log-likelihood and what `keep` keeps of every row.

    The step is rematerialised. A gradient stores one belief per row or, where those are large, one
    per block of sqrt(T) rows and per row of one block, for one more pass forward. The log-likelihood
    is summed with compensation.
    """
    dtype = rows.observation.dtype
    table = model.dynamics.tabulate(plan)
    begin = start(filter, model, dtype, key)

    # (The key stays outside of what is differentiated.)
    def one(state: SamplingState, row: Row) -> tuple[SamplingState, Any]:
        new, record = step(filter, model, table, state._replace(key=key), row)
        term = jnp.where(record.fine, record.log_likelihood, 0.0)
        return new._replace(key=None), (term, keep(record))

    blank = begin._replace(key=None)
    first = jax.tree.map(lambda x: x[0], rows)
    guarded = gated(one, lambda out: out[0].status == Status.OK, blank, first)

    def body(carry: Any, row: Row) -> tuple[Any, Any]:
        state, total, lost = carry
        state, (term, kept) = guarded(state, row)
        return (state, *add(total, lost, term)), kept

    body = jax.checkpoint(body, prevent_cse=False)
    zero = jnp.zeros((), dtype)
    carry = (blank, zero, zero)
    count = rows.time.shape[0]
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(blank.belief))
    if count * size <= _MOST_BYTES:
        carry, kept = jax.lax.scan(body, carry, rows)
    else:
        carry, kept = _scan_in_blocks(body, carry, rows, count)
    state, total, lost = carry
    log_likelihood = jnp.where(state.status == Status.OK, total + lost, -jnp.inf)
    return state._replace(key=key), log_likelihood, kept


def _scan_in_blocks(
    body: Callable[[Any, Any], Any], carry: Any, rows: Row, count: int
) -> tuple[Any, Any]:
    """`lax.scan(body, carry, rows)` of which a reverse pass stores the carry once per block."""
    length = math.isqrt(count - 1) + 1
    blocks = -(-count // length)

    def padded(x: Array) -> Array:
        more = blocks * length - count
        x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (more, *x.shape[1:]))])
        return x.reshape(blocks, length, *x.shape[1:])

    def guarded(carry: Any, at: tuple[Row, Array]) -> tuple[Any, Any]:
        row, real = at
        new, kept = body(carry, row)
        return select(real, new, carry), kept

    def block(carry: Any, rows: Any) -> tuple[Any, Any]:
        return jax.lax.scan(guarded, carry, rows)

    real = (jnp.arange(blocks * length) < count).reshape(blocks, length)
    carry, kept = jax.lax.scan(
        jax.checkpoint(block, prevent_cse=False), carry, (jax.tree.map(padded, rows), real)
    )
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], kept)
