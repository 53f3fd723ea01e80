"""`smooth` and `sample_paths`: the states given the whole series."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import check_count, check_key
from filterdyn._compile import compiled
from filterdyn.dynamics import Plan
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.parallel import ParallelKalmanFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.running import run
from filterdyn.filters.verbs import check_model, moments_are_matched, prepare
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series
from filterdyn.smoothers.parallel import smooth_in_parallel
from filterdyn.smoothers.rauch_tung_striebel import Pass, keep, sample_backward, smooth_backward
from filterdyn.smoothers.results import SmootherResult
from filterdyn.status import Status


def _forward(
    owner: str, model: StateSpaceModel, rows: Row, plan: Plan, filter: AbstractFilter
) -> tuple[Float[Array, ""], Pass, Any]:
    check_model(owner, model, rows)
    _, log_likelihood, kept = run(filter, model, rows, plan, lambda r: (keep(r), r.status))
    return log_likelihood, *kept


def _smooth(
    model: StateSpaceModel, rows: Row, plan: Plan, filter: AbstractFilter
) -> tuple[Any, ...]:
    log_likelihood, forward, statuses = _forward("smooth", model, rows, plan, filter)
    matched = moments_are_matched(model, rows)
    if not isinstance(filter, ParallelKalmanFilter):
        return *smooth_backward(forward), log_likelihood, statuses, matched
    tolerance = filter.tolerance_in(rows.observation.dtype)
    smoothed, lag_one, fine = smooth_in_parallel(forward, tolerance)
    log_likelihood = jnp.where(fine, log_likelihood, -jnp.inf)
    inaccurate = ~fine & (statuses[-1] == Status.OK)
    statuses = jnp.where(inaccurate, Status.PARALLEL_INACCURATE, statuses).astype(statuses.dtype)
    return smoothed, lag_one, log_likelihood, statuses, matched


def _sample_paths(
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: AbstractFilter,
    key: Array,
    num_samples: int,
) -> Float[Array, "S T dx"]:
    _, forward, _ = _forward("sample_paths", model, rows, plan, filter)
    return sample_backward(forward, key, num_samples)


_compiled_smooth = compiled("smooth", _smooth)
_compiled_sample_paths = compiled("sample_paths", _sample_paths)


def smooth(
    model: StateSpaceModel,
    series: Series,
    filter: AbstractFilter,
    *,
    key: Array | None = None,
    t0: Any = None,
    u0: Any = None,
) -> SmootherResult:
    """The state in every row given the whole series (Rauch, Tung, Striebel 1965).

    Exact for a linear Gaussian model. For other models the filter's own linearisation is reversed:
    the extended Rauch-Tung-Striebel smoother.

    **Arguments** and errors as for `filter`.

    **Returns:** a `SmootherResult`.
    """
    rows, plan = prepare("smooth", model, series, filter, t0, u0)
    smoothed, lag_one, log_likelihood, statuses, matched = _compiled_smooth(
        model, rows, plan, filter
    )
    return SmootherResult(
        series.times,
        smoothed,
        lag_one,
        log_likelihood,
        statuses,
        matched,
        series.observation_names,
    )


def sample_paths(
    model: StateSpaceModel,
    series: Series,
    filter: AbstractFilter,
    *,
    key: Array,
    num_samples: int,
    t0: Any = None,
    u0: Any = None,
) -> Float[Array, "num_samples T dx"]:
    """Paths of the state drawn from their joint distribution given the whole series.

    Forward filtering, backward sampling: exact for a linear Gaussian model, with the filter's
    linearisation otherwise. Differentiable once, as a reparameterised sample.

    **Arguments:** `key`, a JAX random key; `num_samples`, how many paths; the others, and errors,
    as for `filter`.

    **Returns:** an array (num_samples, T, dx); NaN if the filter failed.
    """
    num_samples = check_count("sample_paths", "num_samples", num_samples)
    check_key("sample_paths", key)
    rows, plan = prepare("sample_paths", model, series, filter, t0, u0)
    return _compiled_sample_paths(model, rows, plan, filter, key, num_samples)
