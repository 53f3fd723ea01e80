"""All rows of a Kalman filter at once: an associative scan, and a step in every row that checks it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Plan
from filterdyn.filters.cross_check import cross_check
from filterdyn.filters.elements import Element, element, known, scan_elements
from filterdyn.filters.fixed_point import with_derivative_of_fixed_point
from filterdyn.filters.gate import gated
from filterdyn.filters.parallel import ParallelKalmanFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.scan import Record, State, add, finite_term, select, step
from filterdyn.linalg import PSD, mm
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status


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

    checked = cross_check(
        lambda held: steps(held, rows), before, beliefs, filter.tolerance_in(dtype)
    )
    statuses = checked.statuses
    good = statuses == Status.OK
    rest = stop_gradient(start)
    safe = jax.vmap(lambda ok, belief: select(ok, belief, rest))(good, checked.beliefs)
    beliefs = with_derivative_of_fixed_point(
        safe, lambda beliefs: steps(before(beliefs), rows).filtered, checked.response, good
    )
    records = steps(before(beliefs), rows)
    records = jax.vmap(_with_status)(records, statuses)
    total = _sum(jax.vmap(finite_term)(records))
    log_likelihood = jnp.where(statuses[-1] == Status.OK, total, -jnp.inf)
    last = jax.tree.map(lambda x: x[-1], records.filtered)
    return State(last, statuses[-1]), log_likelihood, jax.vmap(keep)(records)


def _beliefs(whole: Element, origin: Array) -> Gaussian:
    return Gaussian(origin + whole.b, spread=PSD(whole.u, jax.vmap(lambda u: mm(u, u.T))(whole.u)))


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
