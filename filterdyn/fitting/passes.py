"""Ways through the rows of a record: with a filter, and freely."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval, Plan
from filterdyn.filters import ExtendedKalmanFilter, KalmanFilter, running, sampling_scan
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.filters.scan import State, select, step
from filterdyn.filters.stepping import AnyFilter
from filterdyn.linalg import PSD
from filterdyn.linalg.gate import gated
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status


def follow(
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: AnyFilter,
    key: Array | None,
    truncation: int | None,
    keep: Callable[[Any], Any],
) -> tuple[Float[Array, ""], Any]:
    """The log-likelihood, and what `keep` keeps of the record of every row."""
    if isinstance(filter, AbstractSamplingFilter):
        assert key is not None
        return sampling_scan.run(filter, model, rows, plan, key, keep)[1:]
    if truncation is None:
        return running.run(filter, model, rows, plan, keep)[1:]
    table = model.dynamics.tabulate(plan)
    start = State(filter.init(model, rows.observation.dtype), jnp.int32(Status.OK))

    def one(state: State, at: tuple[Row, Array]) -> tuple[State, Any]:
        row, cut = at
        belief = select(cut, jax.lax.stop_gradient(state.belief), state.belief)
        new, record = step(filter, model, table, State(belief, state.status), row)
        return new, (record.log_likelihood, keep(record))

    cuts = jnp.arange(len(rows.time)) % truncation == 0
    first = jax.tree.map(lambda x: x[0], (rows, cuts))
    guarded = gated(one, lambda out: out[0].status == Status.OK, start, first)
    _, (terms, kept) = jax.lax.scan(jax.checkpoint(guarded, prevent_cse=False), start, (rows, cuts))
    return terms.sum(), kept


def _moves_its_mean_alone(filter: AnyFilter) -> bool:
    """Does the mean of a prediction not depend on the covariance?"""
    if isinstance(filter, ExtendedKalmanFilter) and filter.order > 1:
        return False
    kinds = (KalmanFilter, ExtendedKalmanFilter)
    return isinstance(filter, kinds) and filter.adaptive is None


def _path(
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: AbstractFilter,
    start: Float[Array, " dx"],
    truncation: int | None,
) -> tuple[Float[Array, "T dx"], Bool[Array, ""]]:
    """The mean in all rows after the one in which it is `start`, and whether nothing failed."""
    table = model.dynamics.tabulate(plan)

    def one(mean: Array, at: tuple[Row, Array]) -> tuple[Array, Array]:
        row, cut = at
        mean = jnp.where(cut, jax.lax.stop_gradient(mean), mean)
        interval = Interval(row.time_from, row.gap, row.input_from, row.plan, table)
        point = Gaussian(mean, spread=PSD.zeros(len(mean), mean.dtype))
        moved = filter.predict(model, point, interval)
        after = jnp.where(row.gap > 0, moved.belief.mean, mean)
        failed = (row.gap > 0) & (moved.status != Status.OK)
        return after, jnp.isfinite(after).all() & ~failed

    cuts = jnp.zeros(len(rows.time), bool)
    if truncation is not None:
        cuts = jnp.arange(len(rows.time)) % truncation == 0
    first = jax.tree.map(lambda x: x[0], (rows, cuts))
    guarded = gated(one, lambda out: out[1], start, first)

    def body(mean: Array, at: Any) -> tuple[Array, tuple[Array, Array]]:
        after, fine = guarded(mean, at)
        return after, (after, fine)

    _, (path, fine) = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), start, (rows, cuts))
    return path, fine.all()


def free_path(
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: AnyFilter,
    key: Array | None,
    burn_in: int,
    truncation: int | None,
) -> tuple[Float[Array, "T dx"], Bool[Array, ""]]:
    """The mean in every row of a run that sees the measurements of the burn-in only, and whether nothing
    failed."""
    blind = Plan(plan.rows, plan.gaps, plan.most)
    keep = lambda r: (r.filtered.mean, r.status)
    if not _moves_its_mean_alone(filter):
        y = rows.observation.at[burn_in:].set(jnp.nan)
        hidden = rows._replace(observation=y)
        mean, statuses = follow(model, hidden, blind, filter, key, truncation, keep)[1]
        return mean, (statuses == Status.OK).all()
    # Of what nobody sees only the mean is of interest: without covariances it is several times faster.
    count = max(burn_in, 1)
    seen = jax.tree.map(lambda x: x[:count], rows)
    if burn_in == 0:
        seen = seen._replace(observation=jnp.full_like(seen.observation, jnp.nan))
    mean, statuses = follow(model, seen, blind, filter, key, truncation, keep)[1]
    later = jax.tree.map(lambda x: x[count:], rows)
    fine = (statuses == Status.OK).all()
    if len(later.time) == 0:
        return mean, fine
    assert isinstance(filter, AbstractFilter)
    path, sound = _path(model, later, plan, filter, mean[-1], truncation)
    return jnp.concatenate([mean, path]), fine & sound
