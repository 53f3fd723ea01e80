"""Smoothing with filters that sample: each kind of filter registers what it can do."""

from functools import singledispatch
from typing import Any

from jaxtyping import Array, Float

from filterdyn.dynamics import Plan
from filterdyn.filters.rows import Row
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series
from filterdyn.smoothers.results import SmootherResult

_INSTEAD = "a Gaussian filter such as fd.ExtendedKalmanFilter() can"


@singledispatch
def smooth_by_sampling(
    filter: Any, model: StateSpaceModel, series: Series, rows: Row, plan: Plan, key: Array
) -> SmootherResult:
    """`smooth` for a series laid out as rows.

    **Raises:** `TypeError` for a filter that has no smoother.
    """
    raise TypeError(f"smooth: {type(filter).__name__} has no smoother; {_INSTEAD}")


@singledispatch
def sample_paths_by_sampling(
    filter: Any, model: StateSpaceModel, rows: Row, plan: Plan, key: Array, num_samples: int
) -> Float[Array, "num_samples T dx"]:
    """`sample_paths` for a series laid out as rows.

    **Raises:** `TypeError` for a filter that cannot.
    """
    raise TypeError(f"sample_paths: {type(filter).__name__} cannot sample paths; {_INSTEAD}")
