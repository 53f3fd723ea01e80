"""A NumPyro model that sees one series through a particle filter, row by row."""

import dataclasses
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from filterdyn.dynamics import Plan
from filterdyn.filters import sampling_scan
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling_scan import SamplingState
from filterdyn.filters.verbs import check_model
from filterdyn.inference.particle_likelihood import (
    check_estimates,
    forward_only,
    is_sampled,
    log_prior_of,
    series_of,
)
from filterdyn.inference.unconstrained import Call, Point, is_latent, trace_at
from filterdyn.model import StateSpaceModel


class Scene(NamedTuple):
    """What a filter needs to know at one point."""

    model: StateSpaceModel
    rows: Row
    plan: Plan
    filter: Any
    log_prior: Float[Array, ""]


class OneSeries(NamedTuple):
    """A model, the name of its only observed site, and how many particles follow the state (`None`: as
    the site says)."""

    call: Call
    site: str
    size: int | None = None

    def at(self, z: Point) -> Scene:
        """The state-space model at `z`, and the log-density of the prior there."""
        traced = trace_at(self.call, z, jax.random.key(0))
        site = traced.sites[self.site]
        series = series_of(site)
        assert series is not None
        rows, plan, each, _ = series.flat(site["value"])
        rows = rows._replace(observation=each[0].astype(rows.observation.dtype))
        check_model("ObservedSeries", series.model, rows)
        filter = forward_only(series.filter)
        if self.size is not None:
            filter = dataclasses.replace(filter, size=self.size)
        return Scene(series.model, rows, plan, filter, log_prior_of(traced))

    def start(self, z: Point, key: Array) -> SamplingState:
        """The particles before any row."""
        scene = self.at(z)
        return sampling_scan.start(scene.filter, scene.model, scene.rows.observation.dtype, key)

    def step(
        self, z: Point, state: SamplingState, k: Array
    ) -> tuple[SamplingState, Float[Array, ""]]:
        """The particles after row `k`, and its log-likelihood given those before."""
        scene = self.at(z)
        table = scene.model.dynamics.tabulate(scene.plan)
        row = jax.tree.map(lambda x: x[k], scene.rows)
        state, record = sampling_scan.step(scene.filter, scene.model, table, state, row)
        return state, record.log_likelihood


def one_series(owner: str, call: Call, z: Point) -> tuple[OneSeries, int, int]:
    """The model with its only observed series, the number of rows and that of particles.

    **Raises:** what `check_estimates` raises, and `ValueError` for a model that observes anything else
    or a batch of series.
    """
    check_estimates(owner, call, z)
    sites = trace_at(call, z, jax.random.key(0)).sites
    seen = [n for n, s in sites.items() if s["type"] == "sample" and not is_latent(s)]
    if len(seen) > 1:
        raise ValueError(
            f"{owner}: `model` observes {seen}; expected one fd.ObservedSeries and no more"
        )
    (name,) = seen
    series = series_of(sites[name])
    assert series is not None
    assert is_sampled(sites[name])
    if series.batch_shape or sites[name]["value"].ndim > 2:
        raise ValueError(f"{owner}: the site {name!r} is a batch of series; expected one")
    particles = forward_only(series.filter).size
    return OneSeries(call, name), series.event_shape[0], particles
