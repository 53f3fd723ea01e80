"""All rows of a Kalman filter at once: an associative scan, and a step in every row that checks it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Plan
from filterdyn.filters.elements import Element, element, known, scan_elements
from filterdyn.filters.fixed_point import (
    Change,
    Response,
    accumulate,
    is_far,
    with_derivative_of_fixed_point,
)
from filterdyn.filters.gate import gated
from filterdyn.filters.parallel import ParallelKalmanFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.scan import Record, State, add, finite_term, first_failure, select, step
from filterdyn.linalg import PSD, mm
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status, failed_at


def run_parallel(
    filter: ParallelKalmanFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    keep: Callable[[Record], Any],
) -> tuple[State, Float[Array, ""], Any]:
    """As `scan.run`. The scan's beliefs are checked, and differentiated, as the fixed point of one
    step in every row; the scan itself is never differentiated."""
    dtype = rows.observation.dtype
    count = rows.observation.shape[0]
    table = model.dynamics.tabulate(plan)
    start = filter.init(model, dtype)

    def one(belief: Gaussian, row: Row) -> Record:
        return step(filter, model, table, State(belief, jnp.int32(Status.OK)), row)[1]

    first = jax.tree.map(lambda x: x[0], rows)
    steps = jax.vmap(gated(one, lambda record: record.fine, start, first))

    def before(beliefs: Gaussian) -> Gaussian:
        """The belief that each row starts from."""
        return jax.tree.map(lambda x0, x: jnp.concatenate([x0[None], x[:-1]]), start, beliefs)

    origin = stop_gradient(start.mean)
    later = jax.tree.map(lambda x: x[1:], rows)
    head = stop_gradient(known(one(start, first).filtered, origin))
    elements = jax.tree.map(lambda x: x[None], head)
    if count > 1:
        tail = jax.vmap(lambda row: element(filter, model, table, origin, row))(later)
        elements = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), elements, tail)
    beliefs = _beliefs(scan_elements(elements), origin)

    # Values first: nothing here carries a derivative.
    held = stop_gradient(before(beliefs))
    records = jax.tree.map(stop_gradient, steps(held, rows))
    response, far = _cross_check(
        lambda belief: steps(belief, rows), held, beliefs, records, filter.tolerance_in(dtype)
    )
    far = jnp.where(far, Status.PARALLEL_INACCURATE, Status.OK)
    statuses = jax.vmap(first_failure)(records.status, far)
    row_failed = failed_at(statuses)
    after = (row_failed >= 0) & (jnp.arange(count) >= row_failed)
    statuses = jnp.where(after, statuses[row_failed], Status.OK).astype(jnp.int32)
    good = statuses == Status.OK

    safe = jax.vmap(lambda ok, belief: select(ok, belief, stop_gradient(start)))(good, beliefs)
    beliefs = with_derivative_of_fixed_point(
        safe, lambda beliefs: steps(before(beliefs), rows).filtered, response, good
    )
    records = steps(before(beliefs), rows)
    records = jax.vmap(_with_status)(records, statuses)
    total = _sum(jax.vmap(finite_term)(records))
    log_likelihood = jnp.where(statuses[-1] == Status.OK, total, -jnp.inf)
    last = jax.tree.map(lambda x: x[-1], records.filtered)
    return State(last, statuses[-1]), log_likelihood, jax.vmap(keep)(records)


def _beliefs(whole: Element, origin: Array) -> Gaussian:
    return Gaussian(origin + whole.b, spread=PSD(whole.u, jax.vmap(lambda u: mm(u, u.T))(whole.u)))


def _cross_check(
    steps: Callable[[Gaussian], Record],
    held: Gaussian,
    beliefs: Gaussian,
    records: Record,
    tolerance: float,
) -> tuple[Response, Array]:
    """How a step answers to the belief before, and which rows of `records` are too far from those of
    the sequential filter.

    A step from the scan's belief should lead to the scan's next one. Where it does not, the difference
    is carried on through all later steps (two errors below the tolerance may add up to one above):
    that is the error of the scan. What it does to the prediction, the update and the log-likelihood of
    the next row is the error of what is reported there; all to first order.
    """

    def reported(mean: Array, matrix: Array) -> tuple[Change, Change, Array]:
        r = steps(Gaussian(mean, spread=PSD(held.spread.factor, matrix)))
        moments = lambda belief: Change(belief.mean, belief.spread.matrix)
        return moments(r.predicted), moments(r.filtered), r.log_likelihood

    _, push = jax.linearize(reported, held.mean, held.spread.matrix)
    still = jnp.zeros_like(held.spread.matrix)
    dx, dtype = held.mean.shape[1], held.mean.dtype
    _, change, tilt = jax.vmap(lambda d: push(jnp.broadcast_to(d, held.mean.shape), still))(
        jnp.eye(dx, dtype=dtype)
    )
    # The score of the mean is Phi^T H^T S^-1 (innovation), which is w.
    response = Response(jnp.moveaxis(change.mean, 0, -1), jnp.moveaxis(tilt, 0, -1))
    response = jax.tree.map(stop_gradient, response)

    filtered, predicted = records.filtered, records.predicted
    defect = Change(filtered.mean - beliefs.mean, filtered.spread.matrix - beliefs.spread.matrix)
    error = accumulate(response, defect)
    shifted = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]), error)
    of_predicted, of_filtered, of_term = push(shifted.mean, shifted.matrix)
    root = predicted.spread.root
    size = jnp.sqrt((root * root).sum(-1))
    far = is_far(defect, filtered, size, tolerance)
    far = far | is_far(of_filtered, filtered, size, tolerance)
    far = far | is_far(of_predicted, predicted, size, tolerance)
    term = jnp.abs(records.log_likelihood)
    far = far | ~(jnp.abs(of_term) <= tolerance * jnp.maximum(1.0, term))
    return response, stop_gradient(far)


def _with_status(record: Record, status: Array) -> Record:
    """A row of a series that has this status."""
    fine = status == Status.OK
    visible = lambda tree: jax.tree.map(lambda x: jnp.where(fine, x, jnp.nan), tree)
    return record._replace(
        predicted=visible(record.predicted),
        filtered=visible(record.filtered),
        innovation=visible(record.innovation),
        innovation_cov=visible(record.innovation_cov),
        standardized=visible(record.standardized),
        log_likelihood=jnp.where(fine, record.log_likelihood, -jnp.inf),
        status=status,
        fine=fine,
    )


def _sum(terms: Float[Array, " T"]) -> Float[Array, ""]:
    """Their sum, in pairs and with compensation."""
    total = jnp.pad(terms, (0, (1 << (len(terms) - 1).bit_length()) - len(terms)))
    lost = jnp.zeros_like(total)
    while len(total) > 1:
        half = len(total) // 2
        total, lost = add(total[:half], lost[:half] + lost[half:], total[half:])
    return total[0] + lost[0]
