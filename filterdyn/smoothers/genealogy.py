"""A particle filter that remembers whom each particle descends from, and what its rows leave."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.beliefs import Particles
from filterdyn.dynamics import Interval, Plan
from filterdyn.filters.particle import ParticleFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling import AbstractSamplingFilter, Measurement, SamplingStep
from filterdyn.filters.sampling_scan import SamplingRecord, run
from filterdyn.model import StateSpaceModel


class Forward(NamedTuple):
    """The filtered particles of all rows, with a leading axis T, and the ancestors in the row before."""

    positions: Float[Array, "T N dx"]
    log_weights: Float[Array, "T N"]
    ancestors: Int[Array, "T N"]
    statuses: Int[Array, " T"]
    log_likelihood: Float[Array, ""]


class WithGenealogy(AbstractSamplingFilter):
    """A particle filter whose beliefs carry ancestors as `memory`."""

    filter: ParticleFilter
    truncation: int | None = eqx.field(static=True)

    def check(self, model: StateSpaceModel) -> None:
        self.filter.check(model)

    def init(self, model: StateSpaceModel, dtype: jnp.dtype, key: Array) -> Particles:
        belief = self.filter.init(model, dtype, key)
        nobody = jnp.arange(belief.size, dtype=jnp.int32)
        return Particles(belief.positions, belief.log_weights, memory=nobody)

    def advance(
        self, model: StateSpaceModel, belief: Particles, interval: Interval, key: Array
    ) -> tuple[Particles, Int[Array, ""]]:
        return self.filter.advance(model, belief, interval, key)

    def step(
        self,
        model: StateSpaceModel,
        belief: Particles,
        interval: Interval,
        measurement: Measurement,
        key: Array,
    ) -> SamplingStep:
        new, ancestors = self.filter.step_and_ancestors(model, belief, interval, measurement, key)
        with_memory = lambda b: Particles(b.positions, b.log_weights, memory=ancestors)
        return new._replace(predicted=with_memory(new.predicted), belief=with_memory(new.belief))


def filter_forward(
    filter: ParticleFilter, model: StateSpaceModel, rows: Row, plan: Plan, key: Array
) -> Forward:
    """Run the filter and keep the particles of every row: O(T N) memory."""

    def keep(record: SamplingRecord) -> Any:
        belief = record.filtered
        return belief.positions, belief.log_weights, belief.memory, record.status

    _, log_likelihood, kept = run(
        WithGenealogy(filter=filter, truncation=filter.truncation), model, rows, plan, key, keep
    )
    positions, log_weights, ancestors, statuses = kept
    return Forward(positions, log_weights, ancestors, statuses, log_likelihood)
