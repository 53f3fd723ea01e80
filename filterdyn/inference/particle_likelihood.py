"""An unbiased estimate of a NumPyro model's likelihood, with a path of the state from the same run."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from filterdyn._checks import is_traced
from filterdyn.dynamics import Plan
from filterdyn.filters import sampling_scan
from filterdyn.filters.kalman import KalmanFilter
from filterdyn.filters.particle import ParticleFilter
from filterdyn.filters.rao_blackwellized import RaoBlackwellizedParticleFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.filters.verbs import check_model
from filterdyn.inference.batch import over_batch
from filterdyn.inference.observed_series import ObservedSeries
from filterdyn.inference.unconstrained import Call, Point, Traced, trace_at
from filterdyn.model import StateSpaceModel
from filterdyn.resampling import AbstractCopying
from filterdyn.smoothers.genealogy import filter_forward
from filterdyn.smoothers.particle import lineages


class Estimate(NamedTuple):
    """What one run of the filters says about one point.

    - `log_prior`: the prior's log-density in the unconstrained space, with what other observed sites say;
    - `log_likelihood`: of the sites whose filter samples, an estimate;
    - `paths`: by site, a path (..., T, dx) drawn from the particles of that run.
    """

    log_prior: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    paths: dict[str, Array]


def _layers(d: Any) -> list[Any]:
    """A distribution and what it is wrapped around, to the innermost."""
    found = [d]
    while isinstance(d, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        d = d.base_dist
        found.append(d)
    return found


def series_of(site: dict[str, Any]) -> ObservedSeries | None:
    """The `ObservedSeries` of a site, without what a plate wraps it in."""
    d = _layers(site["fn"])[-1] if site["type"] == "sample" else None
    return d if isinstance(d, ObservedSeries) else None


def is_sampled(site: dict[str, Any]) -> bool:
    """Is this a series whose filter samples?"""
    series = series_of(site)
    return series is not None and isinstance(series.filter, AbstractSamplingFilter)


def check_estimates(owner: str, call: Call, z: Point) -> None:
    """**Raises:** `TypeError` if no site has a particle filter, or a filter's likelihood is biased;
    `ValueError` if a likelihood is not drawn anew, or counts in part only."""
    first, second = (trace_at(call, z, jax.random.key(seed)).sites for seed in (0, 1))
    observed = {n: s for n, s in first.items() if series_of(s) is not None}
    if not any(is_sampled(site) for site in observed.values()):
        raise TypeError(
            f"{owner}: `model` has no site with fd.ObservedSeries(..., filter=fd.ParticleFilter(N)); "
            "where the likelihood is not an estimate use numpyro.infer.NUTS"
        )
    for name, site in observed.items():
        if not site["is_observed"]:
            raise ValueError(f"{owner}: the site {name!r} is not observed; pass the data (`obs=`)")
        _check_unbiased(owner, name, series_of(site))
        if not is_sampled(site):
            continue
        if site["scale"] is not None or any(
            isinstance(d, dist.MaskedDistribution) for d in _layers(site["fn"])
        ):
            raise ValueError(
                f"{owner}: the likelihood of site {name!r} is scaled or masked, and a power of an "
                "unbiased estimate is biased; mark what is missing by NaN"
            )
        both = [series_of(sites[name]) for sites in (first, second)]
        keys = [jax.random.key_data(s.key) for s in both if s is not None and s.key is not None]
        if not is_traced(keys) and np.array_equal(keys[0], keys[1]):
            raise ValueError(
                f"{owner}: the site {name!r} has a fixed `key`, so that its likelihood is the same "
                "draw at every evaluation; give key=numpyro.prng_key()"
            )


def _check_unbiased(owner: str, name: str, series: ObservedSeries | None) -> None:
    assert series is not None
    filter = series.filter
    if isinstance(filter, KalmanFilter):
        return
    if not isinstance(filter, ParticleFilter | RaoBlackwellizedParticleFilter):
        raise TypeError(
            f"{owner}: the likelihood of {type(filter).__name__} (site {name!r}) is an approximation; "
            "expected an unbiased one, of fd.ParticleFilter or fd.RaoBlackwellizedParticleFilter"
        )
    if not filter.resampling.is_unbiased:
        raise TypeError(
            f"{owner}: {type(filter.resampling).__name__} (site {name!r}) makes the likelihood biased; "
            "expected resampling that copies, such as fd.Systematic()"
        )


def estimate(call: Call, z: Point, key: Array, with_paths: bool = True) -> Estimate:
    """Prior and likelihood at `z`, with all that is random in the filters from `key`."""
    key_model, key_paths = jax.random.split(key)
    traced = trace_at(call, z, key_model)
    log_likelihood = jnp.zeros_like(traced.log_det)
    paths: dict[str, Array] = {}
    sampled = 0
    for i, (name, site) in enumerate(traced.sites.items()):
        if not is_sampled(site):
            continue
        series = series_of(site)
        assert series is not None and series.key is not None
        # Sites may have been given one key; a product of estimates is unbiased if they are independent.
        key_site = jax.random.fold_in(series.key, sampled) if sampled else series.key
        sampled += 1
        key_path = jax.random.fold_in(key_paths, i)
        seen, path = _run_site(series, site["value"], key_site, key_path, with_paths)
        log_likelihood = log_likelihood + seen
        if path is not None:
            paths[name] = path
    log_likelihood = jnp.where(jnp.isnan(log_likelihood), -jnp.inf, log_likelihood)
    return Estimate(log_prior_of(traced), log_likelihood, paths)


def log_prior_of(traced: Traced) -> Float[Array, ""]:
    """The log-density in the unconstrained space of all sites but those whose filter samples."""
    total = traced.log_det
    for site in traced.sites.values():
        if site["type"] == "sample" and not is_sampled(site):
            scale = 1.0 if site["scale"] is None else site["scale"]
            total = total + (scale * site["fn"].log_prob(site["value"])).sum()
    return jnp.where(jnp.isnan(total), -jnp.inf, total)


def _run_site(
    series: ObservedSeries, value: Any, key: Array, key_path: Array, with_path: bool
) -> tuple[Float[Array, ""], Array | None]:
    """The log-likelihood of all series at one site, and a path of each."""
    rows, plan, each, lead = series.flat(value)
    filter = forward_only(series.filter)
    keep = with_path and isinstance(filter, ParticleFilter)

    def one(model: StateSpaceModel, rows: Row, given: tuple[Array, Array, Array]) -> Any:
        y, key, key_path = given
        rows = rows._replace(observation=y.astype(rows.observation.dtype))
        check_model("ObservedSeries", model, rows)
        return _run_one(filter, model, rows, plan, key, key_path if keep else None)

    shape = each.shape[:-2]
    keys = jax.random.split(key, shape)
    key_paths = jax.random.split(key_path, shape)
    total, path = over_batch(one, series.model, rows, series.batch_shape, (each, keys, key_paths))
    return total.sum(), None if path is None else path.reshape(*lead, *path.shape[-2:])


def _run_one(
    filter: AbstractSamplingFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    key: Array,
    key_path: Array | None,
) -> tuple[Float[Array, ""], Float[Array, "T dx"] | None]:
    if key_path is None:
        return sampling_scan.run(filter, model, rows, plan, key, lambda record: None)[1], None
    assert isinstance(filter, ParticleFilter)
    forward = filter_forward(filter, model, rows, plan, key)
    return forward.log_likelihood, lineages(forward, key_path, 1)[0]


def forward_only(filter: Any) -> Any:
    """The same filter without what only its derivative needs."""
    if not isinstance(filter, ParticleFilter) or filter.gradient == "soft":
        return filter
    if not isinstance(filter.resampling, AbstractCopying):
        return filter
    return dataclasses.replace(filter, gradient="none", discount=1.0, truncation=None)
