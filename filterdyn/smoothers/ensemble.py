"""The ensemble Rauch-Tung-Striebel smoother."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn._compile import compiled
from filterdyn.beliefs import Ensemble
from filterdyn.dynamics import Plan
from filterdyn.ensembles import GaspariCohn
from filterdyn.ensembles.inverse_root import product
from filterdyn.filters.ensemble import EnsembleKalmanFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling_scan import run
from filterdyn.filters.sampling_verbs import matches_moments
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series
from filterdyn.smoothers.near_regression import near_regression
from filterdyn.smoothers.results import SmootherResult
from filterdyn.smoothers.sampling import sample_paths_by_sampling, smooth_by_sampling
from filterdyn.status import Status


def smooth_members(
    filtered: Float[Array, "T N dx"],
    predicted: Float[Array, "T N dx"],
    localization: GaspariCohn | None = None,
) -> Float[Array, "T N dx"]:
    """Members given the whole series, from the filtered ones and what they were predicted to be in the
    next row, member by member:

        x_k^s = x_k^a + G (x_{k+1}^s - x_{k+1}^f),    G = C(x_k^a, x_{k+1}^f) C(x_{k+1}^f)^+,

    covariances and regression being those of the sample (Raanes 2016, section 3), or tapered ones of
    the sample. A member's states over all rows are one path.
    """
    regression = _regression if localization is None else near_regression(localization)

    def back(after: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        x, ahead = at
        return (x + regression(x, ahead, after - ahead),) * 2

    last = filtered[-1]
    _, smoothed = jax.lax.scan(back, last, (filtered[:-1], predicted[1:]), reverse=True)
    return jnp.concatenate([smoothed, last[None]])


def _regression(x: Array, ahead: Array, missed: Array) -> Array:
    inverse = jnp.linalg.pinv(ahead - ahead.mean(0))
    anomalies = x - x.mean(0)
    n, dx = x.shape
    if n <= dx:
        return product(product(missed, inverse), anomalies)
    return product(missed, product(inverse, anomalies))


def _smooth(
    owner: str,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: EnsembleKalmanFilter,
    key: Array,
) -> tuple[Float[Array, "T N dx"], Float[Array, ""], Int[Array, " T"]]:
    u = None if rows.input is None else rows.input[0]
    model.check(owner, None, u, rows.observation.shape[1], rows.observation.dtype)
    keep = lambda r: (r.filtered.members, r.predicted.members, r.status)
    _, log_likelihood, (filtered, predicted, statuses) = run(filter, model, rows, plan, key, keep)
    # (A pseudo-inverse of NaN may not return.)
    fine = statuses[-1] == Status.OK
    safe = lambda x: jnp.where(fine, x, 0.0)
    members = smooth_members(safe(filtered), safe(predicted), filter.localization)
    return jnp.where(fine, members, jnp.nan), log_likelihood, statuses


_compiled_smooth = compiled("smooth", _smooth)


@smooth_by_sampling.register
def _(
    filter: EnsembleKalmanFilter,
    model: StateSpaceModel,
    series: Series,
    rows: Row,
    plan: Plan,
    key: Array,
) -> SmootherResult:
    members, log_likelihood, statuses = _compiled_smooth("smooth", model, rows, plan, filter, key)
    return SmootherResult(
        series.times,
        Ensemble(members),
        None,
        log_likelihood,
        jnp.zeros(0, log_likelihood.dtype),
        statuses,
        matches_moments(filter, model, rows),
        series.observation_names,
    )


@sample_paths_by_sampling.register
def _(
    filter: EnsembleKalmanFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    key: Array,
    num_samples: int,
) -> Float[Array, "num_samples T dx"]:
    """Each path is that of one smoothed member."""
    key_filter, key_choice = jax.random.split(key)
    found: Any = _compiled_smooth("sample_paths", model, rows, plan, filter, key_filter)
    members = found[0]
    which = jax.random.randint(key_choice, (num_samples,), 0, members.shape[1])
    return jnp.moveaxis(members[:, which], 1, 0)
