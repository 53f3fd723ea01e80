"""One row of a filter, and the scan over all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval, Plan
from filterdyn.filters.base import AbstractFilter, Prediction
from filterdyn.filters.rows import Row
from filterdyn.linalg import ACCURATE, FUSED, PSD
from filterdyn.linalg.gate import gated
from filterdyn.linearization import Affine
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status


class State(NamedTuple):
    """What a filter carries from row to row."""

    belief: Gaussian
    status: Int[Array, ""]


class Record(NamedTuple):
    """What became of one row."""

    predicted: Gaussian
    filtered: Gaussian
    move: Affine
    innovation: Float[Array, " dy"]
    innovation_cov: Float[Array, "dy dy"]
    standardized: Float[Array, " dy"]
    weights: Float[Array, " dy"] | None
    log_likelihood: Float[Array, ""]
    status: Int[Array, ""]
    #: Is the status `OK`?
    fine: Bool[Array, ""]


def first_failure(*statuses: Any) -> Int[Array, ""]:
    """The first of these that is not `OK`."""
    found = jnp.asarray(statuses[0], jnp.int32)
    for status in statuses[1:]:
        found = jnp.where(found == Status.OK, status, found).astype(jnp.int32)
    return found


def select(condition: Any, yes: Any, no: Any) -> Any:
    """`jnp.where` over all leaves."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def is_finite(*arrays: Array) -> Array:
    """Is every entry of all of these finite?"""
    return jnp.stack([jnp.isfinite(a).all() for a in arrays]).all()


def advance(
    filter: AbstractFilter, model: StateSpaceModel, table: Any, state: State, row: Row
) -> tuple[Gaussian, Affine, Int[Array, ""]]:
    """Predict over the gap before `row`; a gap of 0 leaves the belief as it is, to the bit."""

    def predict(belief: Gaussian, row: Row) -> tuple[Prediction, Array]:
        interval = Interval(row.time_from, row.gap, row.input_from, row.plan, table)
        return filter.predict(model, belief, interval), row.gap > 0

    # Where nothing moves the prediction is not used, and its derivative may be NaN all the same.
    guarded = gated(predict, lambda out: out[1], state.belief, row)
    (predicted, move, status), moved = guarded(state.belief, row)
    n, dtype = model.dx, state.belief.mean.dtype
    still = Affine(state.belief.mean, jnp.eye(n, dtype=dtype), PSD.zeros(n, dtype))
    move = select(moved, move, still)
    predicted = select(moved, predicted, state.belief)
    # (A covariance that is not finite shows in what is made of it.)
    finite = is_finite(predicted.mean)
    failure = jnp.where(finite, Status.OK, Status.MODEL_NOT_FINITE)
    status = first_failure(state.status, row.status, jnp.where(moved, status, Status.OK), failure)
    return predicted, move, status


def step(
    filter: AbstractFilter, model: StateSpaceModel, table: Any, state: State, row: Row
) -> tuple[State, Record]:
    """Predict, then update. After a failure the belief stays at its last good value."""
    predicted, move, status = advance(filter, model, table, state, row)
    new = filter.update(model, predicted, row.time, row.input, row.observation)
    finite = is_finite(new.belief.mean, new.belief.spread.carrier, new.log_likelihood)
    failure = jnp.where(finite, Status.OK, Status.MODEL_NOT_FINITE)
    status = first_failure(status, new.status, failure)
    fine = checkpoint_name(status == Status.OK, ACCURATE)
    belief = select(fine, new.belief, state.belief)
    visible = lambda tree: jax.tree.map(lambda x: jnp.where(fine, x, jnp.nan), tree)
    record = Record(
        visible(predicted),
        visible(new.belief),
        move,
        visible(new.innovation),
        visible(new.innovation_cov),
        visible(new.standardized),
        visible(new.weights),
        jnp.where(fine, new.log_likelihood, -jnp.inf),
        status,
        fine,
    )
    return State(belief, status), record


def add(total: Array, lost: Array, term: Array) -> tuple[Array, Array]:
    """`total + term`, and what rounding took from the sum so far (Neumaier 1974)."""
    new = total + term
    big = jnp.abs(total) >= jnp.abs(term)
    error = jnp.where(big, (total - new) + term, (term - new) + total)
    return new, lost + jax.lax.stop_gradient(error)


def finite_term(record: Record) -> Float[Array, ""]:
    """The log-likelihood of a row, 0 after a failure."""
    return jnp.where(record.fine, record.log_likelihood, 0.0)


def is_accurate(primitive: Any, /, *_: Any, **params: Any) -> bool:
    """The values that a gradient keeps. (JAX's own `save_only_these_names` has a parameter `prim`,
    which is also a parameter of Equinox's primitives, so it fails where Diffrax steps.)"""
    return primitive.name == "name" and params["name"] == ACCURATE


def run(
    filter: AbstractFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    keep: Callable[[Record], Any],
) -> tuple[State, Float[Array, ""], Any]:
    """Scan over the rows. Returns the last state, the log-likelihood and what `keep` keeps of every row.

    The step is rematerialised: a gradient stores one belief per row. The log-likelihood is summed with
    compensation, so that float32 loses nothing over long series.
    """
    dtype = rows.observation.dtype
    table = model.dynamics.tabulate(plan)
    start = State(filter.init(model, dtype), jnp.int32(Status.OK))

    def one(state: State, row: Row) -> tuple[State, Any]:
        new, record = step(filter, model, table, state, row)
        return new, (finite_term(record), keep(record))

    first = jax.tree.map(lambda x: x[0], rows)
    guarded = gated(one, lambda out: out[0].status == Status.OK, start, first)

    def body(carry: Any, row: Row) -> tuple[Any, Any]:
        state, total, lost = carry
        state, (term, kept) = guarded(state, row)
        return (state, *add(total, lost, term)), kept

    zero = jnp.zeros((), dtype)
    small = model.dx <= FUSED
    policy = is_accurate if small else None
    (state, total, lost), kept = jax.lax.scan(
        jax.checkpoint(body, prevent_cse=False, policy=policy), (start, zero, zero), rows
    )
    log_likelihood = jnp.where(state.status == Status.OK, total + lost, -jnp.inf)
    return state, log_likelihood, kept
