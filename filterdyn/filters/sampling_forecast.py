"""Forecasts of filters that sample: the draws move on, and measurements are drawn from them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from filterdyn._compile import compiled
from filterdyn.dynamics import Interval, Plan
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling import (
    AbstractSamplingFilter,
    finite_status,
    observation_moments,
)
from filterdyn.filters.sampling_scan import FULL
from filterdyn.filters.scan import first_failure
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status


def has_moments(model: StateSpaceModel, rows: Row) -> bool:
    """Are the conditional moments of a measurement known?"""
    dtype = rows.observation.dtype
    u = None if rows.input is None else rows.input[0]
    x, weight = jnp.zeros((1, model.dx), dtype), jnp.ones(1, dtype)
    t = jnp.zeros((), dtype)
    try:
        jax.eval_shape(lambda x, t, u: observation_moments(model, x, weight, t, u), x, t, u)
    except (TypeError, ValueError):
        return False
    return True


def _forecast(
    model: StateSpaceModel,
    state: Any,
    rows: Row,
    plan: Plan,
    filter: AbstractSamplingFilter,
    key: Array,
) -> tuple[Any, ...]:
    """Moments of state and measurement in every row, the last status and whether moments are known."""
    table = model.dynamics.tabulate(plan)
    dy = model.dy(jnp.zeros((), rows.time.dtype), None if rows.input is None else rows.input[0])
    known = dy <= FULL and has_moments(model, rows)

    def one(carry: Any, at: tuple[Row, Array]) -> tuple[Any, Any]:
        (belief, status), (row, key) = carry, at
        interval = Interval(row.time_from, row.gap, row.input_from, row.plan, table)
        belief, moved = filter.advance(model, belief, interval, key)
        status = first_failure(status, row.status, moved, finite_status(belief))
        cov = belief.cov if model.dx <= FULL else None
        seen = None
        if known:
            of_moments = jax.random.fold_in(key, 1)
            seen = filter.observation_moments(model, belief, row.time, row.input, of_moments)
        return (belief, status), (belief.mean, cov, seen)

    keys = jax.random.split(key, rows.time.shape[0])
    (_, status), (mean, cov, seen) = jax.lax.scan(one, (state.belief, state.status), (rows, keys))
    fine = status == Status.OK
    visible = lambda tree: jax.tree.map(lambda x: jnp.where(fine, x, jnp.nan), tree)
    return visible(mean), visible(cov), visible(seen), status


forecast_moments = compiled("forecast", _forecast)
