"""Which way a filter goes through the rows."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._hoisting import hoisted
from filterdyn.dynamics import Plan, Transition
from filterdyn.filters import linear, scan
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.parallel import ParallelKalmanFilter
from filterdyn.filters.parallel_gaussian import ParallelGaussianFilter
from filterdyn.filters.parallel_scan import run_parallel
from filterdyn.filters.rows import Row
from filterdyn.filters.scan import Record, State
from filterdyn.model import StateSpaceModel
from filterdyn.observations import Observation


def run(
    filter: AbstractFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    keep: Callable[[Record], Any],
) -> tuple[State, Float[Array, ""], Any]:
    """One after another (`scan.run`), or all at once."""
    if isinstance(filter, (ParallelKalmanFilter, ParallelGaussianFilter)):
        return run_parallel(filter, model, rows, plan, keep)
    if not filter.learns:  # (who learns looks for numbers where the model has them)
        model = _prepared(model, rows)
    if linear.treats(filter, model) and linear.repeats(model, plan):
        return linear.run_linear(filter, model, rows, plan, keep)
    return scan.run(filter, model, rows, plan, keep)


def _prepared(model: StateSpaceModel, rows: Row) -> StateSpaceModel:
    """The model, with what its distributions compute from constants computed before the rows."""
    x = jnp.zeros(model.dx, rows.observation.dtype)
    u = None if rows.input is None else rows.input[0]
    if isinstance(model.dynamics, Transition):
        fn = hoisted(model.dynamics.fn, rows.time[0], x, u)
        model = eqx.tree_at(lambda m: m.dynamics.fn, model, fn)
    if isinstance(model.observation, Observation):
        fn = hoisted(model.observation.fn, rows.time[0], x, u)
        model = eqx.tree_at(lambda m: m.observation.fn, model, fn)
    return model
