"""`filter` and `log_likelihood`: a filter applied to a series."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._compile import compiled
from filterdyn.dynamics import Plan, Transition
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.batches import have_one_clock, have_one_pattern, run_batch
from filterdyn.filters.results import FilterResult
from filterdyn.filters.rows import Row, rows_of
from filterdyn.filters.running import run
from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.filters.sampling_verbs import (
    compiled_log_likelihood,
    filter_by_sampling,
    require_key,
)
from filterdyn.filters.scan import Record
from filterdyn.model import StateSpaceModel
from filterdyn.moments import conditional_moments
from filterdyn.series import Series


def check_is_model(owner: str, model: Any) -> None:
    """**Raises:** `TypeError` for anything else."""
    if not isinstance(model, StateSpaceModel):
        raise TypeError(f"{owner}: `model` is {type(model).__name__}; expected a StateSpaceModel")


def check_is_filter(owner: str, filter: Any) -> None:
    """**Raises:** `TypeError` for anything else, a filter's class among them."""
    kinds = (AbstractFilter, AbstractSamplingFilter)
    if not isinstance(filter, kinds):
        if isinstance(filter, type) and issubclass(filter, kinds):
            name = filter.__name__
            raise TypeError(
                f"{owner}: `filter` is the class {name}; expected a filter, such as fd.{name}()"
            )
        raise TypeError(
            f"{owner}: `filter` is {type(filter).__name__}; expected a filter such as "
            "fd.ExtendedKalmanFilter()"
        )


def prepare(
    owner: str,
    model: StateSpaceModel,
    series: Series,
    filter: AbstractFilter | AbstractSamplingFilter,
    t0: Any,
    u0: Any,
    many: bool = False,
) -> tuple[Row, Plan]:
    """Check the arguments of a verb and lay the series out as rows; a batch of series only if the verb
    takes `many`."""
    check_is_model(owner, model)
    if not isinstance(series, Series):
        raise TypeError(
            f"{owner}: `series` is {type(series).__name__}; expected fd.Series(times, observations)"
        )
    check_is_filter(owner, filter)
    if series.times.ndim != 1 and not many:
        raise ValueError(
            f"{owner}: `series` is a batch of shape {series.times.shape[:-1]}; map over it with "
            "jax.vmap(lambda s: ...)(series)"
        )
    filter.check(model)
    return rows_of(owner, model, series, t0, u0, model.dtype(series.observations))


def check_model(owner: str, model: StateSpaceModel, rows: Row, any_dy: bool = False) -> None:
    """Shapes of everything that user functions return, once per compilation. With `any_dy` the
    series has no observations whose number must be met."""
    u = None if rows.input is None else rows.input[0]
    dy = None if any_dy else rows.observation.shape[1]
    model.check(owner, None, u, dy, rows.observation.dtype)


def moments_are_matched(model: StateSpaceModel, rows: Row) -> bool:
    """Does any distribution of this model reach a Gaussian filter by its moments only?"""
    dtype = rows.observation.dtype
    matched = []

    def look(x: Array, t: Array, u: Any) -> Array:
        matched.append(not model.starts_exactly())
        matched.append(model.observation.view(t, x, u) is None)
        if isinstance(model.dynamics, Transition):
            matched.append(not conditional_moments(model.dynamics.distribution(t, x, u)).exact)
        return x

    u = None if rows.input is None else rows.input[0]
    jax.eval_shape(look, jnp.zeros(model.dx, dtype), jnp.zeros((), dtype), u)
    return any(matched)


def _run(
    owner: str,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: AbstractFilter,
    keep: Callable[[Record], Any],
    batch: tuple[bool, bool | None] | None,
) -> tuple[Float[Array, "*B"], Any, bool]:
    """The log-likelihood, what `keep` keeps, and whether moments were matched; of a `batch`, of which
    it is known whether the series have one clock and miss the same entries, all with its axes."""
    if batch is None:
        check_model(owner, model, rows)
        return *run(filter, model, rows, plan, keep)[1:], moments_are_matched(model, rows)
    first = jax.tree.map(lambda x: x.reshape(-1, *x.shape[rows.time.ndim - 1 :])[0], rows)
    check_model(owner, model, first)
    matched = moments_are_matched(model, first)
    return *run_batch(filter, model, rows, plan, keep, *batch), matched


def _filter(
    model: StateSpaceModel, rows: Row, plan: Plan, filter: AbstractFilter, batch: Any
) -> tuple[Any, Float[Array, "*B"], Any, bool]:
    keep = lambda r: (
        r.predicted,
        r.filtered,
        r.innovation,
        r.innovation_cov,
        r.standardized,
        r.weights,
        r.log_likelihood,
        r.status,
    )
    log_likelihood, kept, matched = _run("filter", model, rows, plan, filter, keep, batch)
    last_input = None if rows.input is None else rows.input[..., -1, :]
    return kept, log_likelihood, last_input, matched


def _log_likelihood(
    model: StateSpaceModel, rows: Row, plan: Plan, filter: AbstractFilter, batch: Any
) -> Float[Array, "*B"]:
    return _run("log_likelihood", model, rows, plan, filter, lambda record: None, batch)[0]


def _batch(series: Series, t0: Any) -> tuple[bool, bool | None] | None:
    """What is known on the host about a batch of series."""
    if series.times.ndim == 1:
        return None
    return have_one_clock(series, t0), have_one_pattern(series.observations)


_compiled_filter = compiled("filter", _filter)
_compiled_log_likelihood = compiled("log_likelihood", _log_likelihood)


def filter(
    model: StateSpaceModel,
    series: Series,
    filter: AbstractFilter | AbstractSamplingFilter,
    *,
    key: Array | None = None,
    t0: Any = None,
    u0: Any = None,
    history: str = "moments",
) -> FilterResult:
    """Follow the state through a series, or through each of a batch of them (`fd.stack`).

    **Arguments:**

    - `model`, `series`, `filter`: what, along which record, and how;
    - `key`: a JAX random key, needed by filters that sample (ensemble and particle filters) only; the
      series of a batch have keys of their own, split from it;
    - `t0`: when `initial` holds, by default at the first row (no prediction comes before it);
    - `u0` (du,): the input between `t0` and the first row, if `t0` lies before it;
    - `history`: `"moments"`, or `"beliefs"` to keep the members or particles of every row too;
      Gaussian filters always keep their beliefs.

    **Returns:** a `FilterResult`; for a batch its arrays have the batch's axes in front. Series of one
    linear Gaussian model that have the same times and miss the same entries share their covariances,
    which are computed once.

    **Raises:** `TypeError` if the filter cannot treat the model, `ValueError` for shapes that disagree
    and for a `key` that is missing. What fails in compiled code is in `result.status`.
    """
    if history not in ("moments", "beliefs"):
        raise ValueError(f"filter: `history` is {history!r}; expected 'moments' or 'beliefs'")
    rows, plan = prepare("filter", model, series, filter, t0, u0, many=True)
    key = require_key("filter", filter, key)
    if isinstance(filter, AbstractSamplingFilter):
        return filter_by_sampling(model, series, rows, plan, filter, key, history)
    batch = _batch(series, t0)
    kept, log_likelihood, last_input, matched = _compiled_filter(model, rows, plan, filter, batch)
    predicted, filtered, innovations, covs, standardized, weights, log_likelihoods, statuses = kept
    return FilterResult(
        series.times,
        predicted,
        filtered,
        innovations,
        covs,
        standardized,
        weights,
        log_likelihoods,
        log_likelihood,
        statuses,
        last_input,
        filter,
        matched,
        series.observation_names,
    )


def log_likelihood(
    model: StateSpaceModel,
    series: Series,
    filter: AbstractFilter | AbstractSamplingFilter,
    *,
    key: Array | None = None,
    t0: Any = None,
    u0: Any = None,
) -> Float[Array, "*B"]:
    """log p(y) of a series, a scalar, or of each of a batch of them (`fd.stack`); `-inf` if anything
    failed on the way.

    Keeps nothing per step, so that a gradient stores one belief per row. Arguments and errors as for
    `filter`. Differentiable in everything the model holds or closes over, in both modes and twice.
    """
    rows, plan = prepare("log_likelihood", model, series, filter, t0, u0, many=True)
    key = require_key("log_likelihood", filter, key)
    if isinstance(filter, AbstractSamplingFilter):
        return compiled_log_likelihood(model, rows, plan, filter, key)
    return _compiled_log_likelihood(model, rows, plan, filter, _batch(series, t0))
