"""The verbs `filter` and `log_likelihood` for filters that sample."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import check_key
from filterdyn._compile import compiled
from filterdyn.dynamics import Plan
from filterdyn.filters.results import FilterResult, SampledMoments, SampledRows
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.filters.sampling_scan import FULL, SamplingRecord, run
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series


def require_key(owner: str, filter: Any, key: Any) -> Any:
    """The key.

    **Raises:** `ValueError` if a filter that samples gets no key, `TypeError` for what is none.
    """
    if isinstance(filter, AbstractSamplingFilter) and key is None:
        raise ValueError(
            f"{owner}: `key` is missing; {type(filter).__name__} draws random numbers (give "
            "key=jax.random.key(0))"
        )
    if key is not None:
        check_key(owner, key)
    return key


def matches_moments(filter: AbstractSamplingFilter, model: StateSpaceModel, rows: Row) -> bool:
    """Does an observation enter this filter by its moments only?"""
    if not filter.matches_moments:
        return False
    found = []

    def look(x: Array, t: Array, u: Any) -> Array:
        found.append(model.observation.view(t, x, u) is None)
        return x

    dtype = rows.observation.dtype
    u = None if rows.input is None else rows.input[0]
    jax.eval_shape(look, jnp.zeros(model.dx, dtype), jnp.zeros((), dtype), u)
    return found[0]


def _check(model: StateSpaceModel, rows: Row) -> None:
    u = None if rows.input is None else rows.input[0]
    model.check("filter", None, u, rows.observation.shape[1], rows.observation.dtype)


def _of_each(one: Callable[[Row, Any], Any], rows: Row, key: Array) -> Any:
    """`one(rows, key)`; of a batch of series, that of each with a key of its own."""
    lead = rows.time.shape[:-1]
    if not lead:
        return one(rows, key)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(lead) :]), rows)
    keys = jax.random.split(key, flat.time.shape[0])
    # (One after the other: side by side a threshold for resampling would compute both of its branches.)
    found = jax.lax.map(lambda at: one(*at), (flat, keys))
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), found)


def _first(rows: Row) -> Row:
    """Those of the first series of a batch."""
    axes = rows.time.ndim - 1
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[axes:])[0], rows) if axes else rows


def _filter(
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: AbstractSamplingFilter,
    key: Array,
    beliefs: bool,
) -> tuple[Any, ...]:
    first = _first(rows)
    _check(model, first)
    dy = rows.observation.shape[-1]

    def keep(r: SamplingRecord) -> Any:
        moments = []
        for belief in (r.predicted, r.filtered):
            cov = belief.cov if model.dx <= FULL else None
            moments.append(SampledMoments(belief.mean, belief.variances, cov))
        whole = (r.predicted, r.filtered) if beliefs else (None, None)
        cov = r.innovation_cov if dy <= FULL else None
        row = (r.innovation, cov, r.standardized, r.log_likelihood, r.status)
        return whole, row, moments, r.diagnostics

    def one(rows: Row, key: Array) -> Any:
        return run(filter, model, rows, plan, key, keep)

    last, log_likelihood, kept = _of_each(one, rows, key)
    return kept, last, log_likelihood, matches_moments(filter, model, first)


def _log_likelihood(
    model: StateSpaceModel, rows: Row, plan: Plan, filter: AbstractSamplingFilter, key: Array
) -> Float[Array, "*B"]:
    _check(model, _first(rows))

    def one(rows: Row, key: Array) -> Array:
        return run(filter, model, rows, plan, key, lambda record: None)[1]

    return _of_each(one, rows, key)


_compiled_filter = compiled("filter", _filter)
compiled_log_likelihood = compiled("log_likelihood", _log_likelihood)


def filter_by_sampling(
    model: StateSpaceModel,
    series: Series,
    rows: Row,
    plan: Plan,
    filter: AbstractSamplingFilter,
    key: Array,
    history: str,
) -> FilterResult:
    """`filter` for a series, or each of a batch, laid out as rows."""
    kept, last, log_likelihood, matched = _compiled_filter(
        model, rows, plan, filter, key, history == "beliefs"
    )
    (predicted, filtered), row, (before, after), diagnostics = kept
    innovations, covs, standardized, log_likelihoods, statuses = row
    return FilterResult(
        series.times,
        predicted,
        filtered,
        innovations,
        covs,
        standardized,
        None,
        log_likelihoods,
        log_likelihood,
        statuses,
        None if rows.input is None else rows.input[..., -1, :],
        filter,
        matched,
        series.observation_names,
        SampledRows(before, after, diagnostics, last),
    )
