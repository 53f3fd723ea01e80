"""Which way a filter goes through the rows."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from filterdyn.dynamics import Plan
from filterdyn.filters import linear, scan
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.parallel import ParallelKalmanFilter
from filterdyn.filters.parallel_gaussian import ParallelGaussianFilter
from filterdyn.filters.parallel_scan import run_parallel
from filterdyn.filters.rows import Row
from filterdyn.filters.scan import Record, State
from filterdyn.model import StateSpaceModel


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
    if linear.treats(filter, model) and linear.repeats(model, plan):
        return linear.run_linear(filter, model, rows, plan, keep)
    return scan.run(filter, model, rows, plan, keep)
