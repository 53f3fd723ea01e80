"""`smooth` and `sample_paths`: the states given the whole series."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import check_count, check_key, is_traced
from filterdyn._compile import compiled
from filterdyn.dynamics import Plan
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.learned import changes_its_noise
from filterdyn.filters.parallel import ParallelKalmanFilter
from filterdyn.filters.parallel_gaussian import ParallelGaussianFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.running import run
from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.filters.sampling_verbs import require_key
from filterdyn.filters.verbs import check_model, moments_are_matched, prepare
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series
from filterdyn.smoothers.iterated import Smoothed, smooth_again, with_start
from filterdyn.smoothers.parallel import smooth_in_parallel
from filterdyn.smoothers.rauch_tung_striebel import keep, sample_backward, smooth_backward
from filterdyn.smoothers.results import SmootherResult
from filterdyn.smoothers.sampling import sample_paths_by_sampling, smooth_by_sampling
from filterdyn.status import Status


def _pass(
    filter: AbstractFilter, model: StateSpaceModel, rows: Row, plan: Plan, from_start: bool
) -> Smoothed:
    """One pass forwards and back, over the rows and, if asked to, the instant `t0` before them."""
    _, log_likelihood, kept = run(filter, model, rows, plan, lambda r: (keep(r), r.status))
    forward, statuses = kept
    dtype = rows.observation.dtype
    if from_start:
        forward = with_start(forward, filter.init(model, dtype))
    if not isinstance(filter, (ParallelKalmanFilter, ParallelGaussianFilter)):
        return Smoothed(*smooth_backward(forward), log_likelihood, statuses)
    smoothed, lag_one, fine = smooth_in_parallel(forward, filter.tolerance_in(dtype))
    log_likelihood = jnp.where(fine, log_likelihood, -jnp.inf)
    inaccurate = ~fine & (statuses[-1] == Status.OK)
    statuses = jnp.where(inaccurate, Status.PARALLEL_INACCURATE, statuses).astype(statuses.dtype)
    return Smoothed(smoothed, lag_one, log_likelihood, statuses)


def _smooth(
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: AbstractFilter,
    iterations: int,
    damping: float,
) -> tuple[Smoothed, Float[Array, " iterations_minus_1"], bool]:
    check_model("smooth", model, rows)
    matched = moments_are_matched(model, rows)
    if iterations == 1:
        changes = jnp.zeros(0, rows.observation.dtype)
        return _pass(filter, model, rows, plan, False), changes, matched
    first = _pass(filter, model, rows, plan, True)
    again = functools.partial(_pass, from_start=True)
    found, changes = smooth_again(filter, model, rows, plan, first, iterations - 1, damping, again)
    in_rows = jax.tree.map(lambda x: x[1:], found.beliefs)
    found = found._replace(beliefs=in_rows, lag_one_covs=found.lag_one_covs[1:])
    return found, changes, matched


def _sample_paths(
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: AbstractFilter,
    key: Array,
    num_samples: int,
) -> Float[Array, "S T dx"]:
    check_model("sample_paths", model, rows)
    _, _, forward = run(filter, model, rows, plan, keep)
    return sample_backward(forward, key, num_samples)


def _check_remembers(owner: str, filter: Any) -> None:
    if filter.learns:
        raise TypeError(
            f"{owner}: {type(filter).__name__} learns on the way, and what it believed of earlier rows it "
            "does not take up again; smooth `fd.augmented(model)` with a filter that does not learn, or the "
            "model at the parameters that were found"
        )


_compiled_smooth = compiled("smooth", _smooth)
_compiled_sample_paths = compiled("sample_paths", _sample_paths)


def smooth(
    model: StateSpaceModel,
    series: Series,
    filter: AbstractFilter | AbstractSamplingFilter,
    *,
    key: Array | None = None,
    t0: Any = None,
    u0: Any = None,
    iterations: int = 1,
    damping: float = 0.0,
) -> SmootherResult:
    """The state in every row given the whole series (Rauch, Tung, Striebel 1965).

    Exact for a linear Gaussian model. For other models the filter's own linearisation is reversed:
    the extended Rauch-Tung-Striebel smoother, or that of its sigma points.

    With `iterations` > 1 the model is then linearised again, by the rule of the filter, about the
    smoothed states (at `t0` too, if it lies before the first row), and smoothed anew from the start;
    the data count once. With sigma points that is the iterated posterior linearisation smoother
    (García-Fernández, Svensson, Särkkä 2017). With an `ExtendedKalmanFilter` it is the iterated extended
    Kalman smoother, whose steps are those of Gauss and Newton: where they converge the mean is the most
    probable path (Bell 1994). Where a model bends much within its uncertainty they may not converge,
    which `changes` in the result shows; `damping` then helps. An outlier rule judges measurements anew
    in every iteration, by the affine model of that iteration.

    The log-likelihood is then that of the affine model of the last iteration. With Taylor expansion, at
    the most probable path and with noise that does not depend on the state, it is Laplace's
    approximation of log p(y) with the Hessian of Gauss and Newton. It is not what `log_likelihood` gives.

    **Arguments** and errors as for `filter`, and

    - `iterations`: how often the series is smoothed;
    - `damping` in [0, 1): how much of the way from where an iteration was linearised to what it found the
      next one does not go. It changes how the iterations converge, not to what.

    **Returns:** a `SmootherResult`.

    **Raises:** `ValueError` also for `iterations` > 1 with a filter that adapts its noise or samples.
    """
    iterations = check_count("smooth", "iterations", iterations)
    if is_traced(damping) or not 0 <= damping < 1:
        raise ValueError(f"smooth: `damping` is {damping!r}; expected a number 0 <= d < 1")
    rows, plan = prepare("smooth", model, series, filter, t0, u0)
    _check_remembers("smooth", filter)
    if isinstance(filter, AbstractSamplingFilter):
        if iterations > 1:
            name = type(filter).__name__
            raise ValueError(f"smooth: `iterations` is {iterations}, and {name} linearises nothing")
        key = require_key("smooth", filter, key)
        return smooth_by_sampling(filter, model, series, rows, plan, key)
    if iterations > 1 and changes_its_noise(filter):
        raise ValueError(
            "smooth: `iterations` is more than 1, and `filter` learns: it has AdaptiveNoise or a network; "
            "noise that changes while filtering belongs to one pass only"
        )
    found, changes, matched = _compiled_smooth(
        model, rows, plan, filter, iterations, float(damping)
    )
    return SmootherResult(
        series.times,
        found.beliefs,
        found.lag_one_covs,
        found.log_likelihood,
        changes,
        found.statuses,
        matched,
        series.observation_names,
    )


def sample_paths(
    model: StateSpaceModel,
    series: Series,
    filter: AbstractFilter | AbstractSamplingFilter,
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
    _check_remembers("sample_paths", filter)
    if isinstance(filter, AbstractSamplingFilter):
        return sample_paths_by_sampling(filter, model, rows, plan, key, num_samples)
    return _compiled_sample_paths(model, rows, plan, filter, key, num_samples)
