"""All rows of a filter at once: beliefs found in parallel, and a step in every row that checks them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Plan
from filterdyn.filters.anchored import before
from filterdyn.filters.cross_check import cross_check
from filterdyn.filters.fixed_point import with_derivative_of_fixed_point
from filterdyn.filters.parallel import ParallelKalmanFilter
from filterdyn.filters.parallel_beliefs import iterated, scanned
from filterdyn.filters.parallel_gaussian import ParallelGaussianFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.scan import Record, State, add, finite_term, select, step
from filterdyn.linalg.gate import gated
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status


def run_parallel(
    filter: ParallelKalmanFilter | ParallelGaussianFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    keep: Callable[[Record], Any],
) -> tuple[State, Float[Array, ""], Any]:
    """As `scan.run`. The beliefs that are found are checked, and differentiated, as the fixed point of
    one step in every row; how they were found is never differentiated."""
    dtype = rows.observation.dtype
    linear = isinstance(filter, ParallelKalmanFilter)
    table = model.dynamics.tabulate(plan)
    start = filter.init(model, dtype)

    def one(belief: Gaussian, row: Row) -> Record:
        return step(filter, model, table, State(belief, jnp.int32(Status.OK)), row)[1]

    first = jax.tree.map(lambda x: x[0], rows)
    steps = jax.vmap(gated(one, lambda record: record.fine, start, first))
    if isinstance(filter, ParallelKalmanFilter):
        beliefs, failure = scanned(filter, model, table, start, rows), jnp.int32(Status.OK)
    else:
        beliefs, failure = iterated(filter, model, table, start, rows)

    checked = cross_check(
        lambda held: steps(held, rows),
        lambda beliefs: before(start, beliefs),
        beliefs,
        filter.tolerance_in(dtype),
        linear,
    )
    statuses = checked.statuses
    # Iterations that have not converged are why the beliefs are inaccurate.
    unfinished = (statuses == Status.PARALLEL_INACCURATE) & (failure != Status.OK)
    statuses = jnp.where(unfinished, failure, statuses)
    good = statuses == Status.OK
    rest = stop_gradient(start)
    safe = jax.vmap(lambda ok, belief: select(ok, belief, rest))(good, checked.beliefs)
    beliefs = with_derivative_of_fixed_point(
        safe, lambda beliefs: steps(before(start, beliefs), rows).filtered, checked.response, good
    )
    records = steps(before(start, beliefs), rows)
    records = jax.vmap(_with_status)(records, statuses)
    total = _sum(jax.vmap(finite_term)(records))
    log_likelihood = jnp.where(statuses[-1] == Status.OK, total, -jnp.inf)
    last = jax.tree.map(lambda x: x[-1], records.filtered)
    return State(last, statuses[-1]), log_likelihood, jax.vmap(keep)(records)


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
