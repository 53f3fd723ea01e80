"""Particle learning: parameters drawn anew in every row from the statistics of each particle's path."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from filterdyn._checks import check_count, check_fraction
from filterdyn.dynamics import Interval
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.particle_weights import effective_sample_size, normalize
from filterdyn.filters.proposals import check_gaussian
from filterdyn.filters.sampling import (
    AbstractSamplingFilter,
    Measurement,
    SamplingStep,
    standardize,
)
from filterdyn.filters.scan import first_failure
from filterdyn.initial import Diffuse
from filterdyn.learning.augmented import check_parametric
from filterdyn.learning.evolution import Forgetting
from filterdyn.learning.joint import augmented
from filterdyn.learning.learning_particles import LearningParticles, pooled
from filterdyn.learning.lineages import Lineages
from filterdyn.learning.model import ParametricModel
from filterdyn.learning.particle_moves import (
    expected_likelihoods,
    moved_particles,
    seen_by_each,
)
from filterdyn.learning.seen import innovation_of_each, observation_moments_of_all
from filterdyn.learning.statistics import AbstractStatistics, Passage, check_start, forgotten
from filterdyn.linalg.gate import only_if
from filterdyn.model import StateSpaceModel
from filterdyn.resampling import AbstractCopying, Systematic, check_copying
from filterdyn.status import Status

_NAME = "ParticleLearning"


class ParticleLearning(AbstractSamplingFilter):
    """A particle filter whose particles carry the sufficient statistics of a conjugate posterior of the
    parameters, and draw parameters anew from it in every row (Storvik 2002; with `look_ahead` the order
    of Carvalho, Johannes, Lopes and Polson 2010: resample by what the next measurement says, then move).

    Given a particle's path the posterior is exact, so parameters never run out of distinct values, and
    what is reported averages the moments of the particles' posteriors (Rao-Blackwell). **The paths do
    degenerate**: after some N rows all particles have one ancestor, and what was learnt before that row
    is a draw of one path, which no later data mend. Over T rows the error grows like that of N / T
    particles (Chopin, Iacobucci, Marin, Mengersen, Robert, Ryder 2011): estimates of static parameters
    are sound while T is well below N, and beyond that the spread between runs shows it, not
    `parameters.sd`. The diagnostics `distinct_lineages` (since the ancestor was last one) and
    `rows_to_coalesce` (how long that took, 0: not yet) tell; `Forgetting` with a memory that is short
    next to `rows_to_coalesce` does away with it.

    Parameters stand still, or are forgotten (`evolution=fd.Forgetting(factor)`): in every row that moves,
    statistics return towards the prior by `1 - factor`. To a random walk of standard deviation s a row
    corresponds, in the steady state, (1 - factor)^2 / factor = s^2 i, with i the information of a row about
    the parameter given the path. With forgetting `.parameters` has the estimate only: as intervals of a
    parameter that wanders its covariance is too small (90 % ones cover in 77 to 84 %). `initial` must not
    depend on the parameters.
    """

    size: int = eqx.field(static=True)
    statistics: tuple[AbstractStatistics, ...]
    resampling: AbstractCopying
    ess_threshold: float = eqx.field(static=True)
    look_ahead: AbstractFilter | None
    truncation: int | None = eqx.field(static=True)

    learns: ClassVar[bool] = True

    def __init__(
        self,
        size: int,
        statistics: AbstractStatistics | Sequence[AbstractStatistics],
        resampling: AbstractCopying = Systematic(),
        ess_threshold: float = 0.5,
        *,
        look_ahead: AbstractFilter | None = None,
    ):
        """**Arguments:**

        - `size`: N, how many particles;
        - `statistics`: `InverseGammaStatistics`, `NormalInverseGammaStatistics`, ..., which together name
          every parameter of the model once;
        - `resampling`: a scheme that copies; `ess_threshold`: as of `ParticleFilter`;
        - `look_ahead`: a Gaussian filter such as `fd.ExtendedKalmanFilter()`, started at every particle with
          its parameters: particles are resampled in every row by the likelihood of the next
          measurement that it gives, and move to where it says. Needs dynamics with a transition density.
          Fewer particles are lost, which is what their statistics live on.

        **Raises:** `ValueError` for numbers out of range, `TypeError` for other kinds of objects.
        """
        self.size = check_count(_NAME, "size", size)
        found = (statistics,) if isinstance(statistics, AbstractStatistics) else tuple(statistics)
        for one in found:
            if not isinstance(one, AbstractStatistics):
                raise TypeError(
                    f"{_NAME}: `statistics` has {one!r}; expected such as fd.InverseGammaStatistics(...)"
                )
        names = [name for one in found for name in one.names]
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"{_NAME}: `statistics` name {names}; expected every parameter once")
        self.statistics = found
        self.resampling = check_copying(_NAME, resampling)
        self.ess_threshold = check_fraction(_NAME, "ess_threshold", ess_threshold)
        if look_ahead is not None:
            if not isinstance(look_ahead, AbstractFilter):
                raise TypeError(
                    f"{_NAME}: `look_ahead` is {look_ahead!r}; expected a Gaussian filter such as "
                    "fd.ExtendedKalmanFilter()"
                )
            check_gaussian(_NAME, "look_ahead", look_ahead)
        self.look_ahead = look_ahead
        self.truncation = None

    def check(self, model: StateSpaceModel) -> None:
        model = check_parametric(_NAME, model)
        if isinstance(model.initial, Diffuse):
            raise TypeError(
                f"{_NAME}: `initial` is Diffuse, which cannot be sampled; give the model a proper "
                "distribution"
            )
        named = sorted(name for one in self.statistics for name in one.names)
        if named != sorted(model.space.names):
            raise ValueError(
                f"{_NAME}: `statistics` name {named}, but the model's parameters are "
                f"{sorted(model.space.names)}; expected every one of them"
            )
        if model.evolution is not None and not isinstance(model.evolution, Forgetting):
            raise TypeError(
                f"{_NAME}: `evolution` is {type(model.evolution).__name__}, which statistics of a path "
                "cannot follow; expected None or fd.Forgetting(factor) (fd.NestedParticleFilter takes any)"
            )
        for one in self.statistics:
            one.prior(model)
        if self.look_ahead is not None:
            self.look_ahead.check(model)
        check_start(_NAME, model)

    def init(self, model: StateSpaceModel, dtype: jnp.dtype, key: Array) -> LearningParticles:
        assert isinstance(model, ParametricModel)
        of_state, of_estimate = jax.random.split(key)
        n = self.size
        positions = model.initial.sample(of_state, (n,)).astype(dtype)
        log_weights = jnp.full(n, -math.log(n), dtype)
        statistics = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (n, *x.shape)), self._prior(model, dtype)
        )
        return self._belief(
            model, positions, log_weights, statistics, Lineages.start(n), of_estimate
        )

    def advance(
        self, model: StateSpaceModel, belief: LearningParticles, interval: Interval, key: Array
    ) -> tuple[LearningParticles, Int[Array, ""]]:
        assert isinstance(model, ParametricModel)
        of_draw, of_move, of_estimate = jax.random.split(key, 3)
        nothing = jnp.full(model.dy(interval.time, interval.input), jnp.nan, belief.positions.dtype)
        after = Measurement(interval.time + interval.gap, interval.input, nothing)
        statistics = self._forgotten(model, belief.statistics, interval)
        thetas = self._draw(model, statistics, of_draw)
        x, _ = moved_particles(
            self.look_ahead, model, thetas, belief.positions, interval, after, of_move
        )
        statistics = self._learned(statistics, belief.positions, x, interval, after)
        lineages = belief.lineages.aged(interval.gap > 0)
        moved = self._belief(model, x, belief.log_weights, statistics, lineages, of_estimate)
        return moved, jnp.int32(Status.OK)

    def observation_moments(
        self, model: StateSpaceModel, belief: LearningParticles, t: Any, u: Any, key: Array
    ) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"]]:
        assert isinstance(model, ParametricModel)
        thetas = self._draw(model, belief.statistics, key)
        return observation_moments_of_all(model, thetas, belief.positions, belief.weights, t, u)

    def draw(
        self, model: StateSpaceModel, belief: LearningParticles, key: Array
    ) -> tuple[StateSpaceModel, Float[Array, " n"]]:
        assert isinstance(model, ParametricModel)
        of_which, of_draw = jax.random.split(key)
        i = jax.random.categorical(of_which, belief.log_weights)
        statistics = jax.tree.map(lambda x: x[i], belief.statistics)
        theta = self._draw_one(model, statistics, of_draw)
        return augmented(model), jnp.concatenate([belief.positions[i], theta])

    def step(
        self,
        model: StateSpaceModel,
        belief: LearningParticles,
        interval: Interval,
        measurement: Measurement,
        key: Array,
    ) -> SamplingStep:
        assert isinstance(model, ParametricModel)
        of_resampling, of_draw, of_move, of_estimate = jax.random.split(key, 4)
        statistics = self._forgotten(model, belief.statistics, interval)
        before = (belief.positions, statistics, belief.lineages.labels)
        if self.look_ahead is None:
            chosen, log_weights, resampled = self._resampled(
                before, belief.log_weights, None, interval, of_resampling
            )
            x_from, statistics, labels = chosen
            thetas = self._draw(model, statistics, of_draw)
        else:
            drawn = self._draw(model, statistics, of_draw)
            expected = expected_likelihoods(
                self.look_ahead, model, drawn, belief.positions, interval, measurement
            )
            chosen, log_weights, resampled = self._resampled(
                (*before, drawn), belief.log_weights, expected, interval, of_resampling
            )
            x_from, statistics, labels, thetas = chosen
        x, log_ratio = moved_particles(
            self.look_ahead, model, thetas, x_from, interval, measurement, of_move
        )
        # A particle that has left the real line stays where it was, with weight zero.
        finite = jnp.isfinite(x).all(1)
        x = jnp.where(finite[:, None], x, x_from)
        prior = jnp.where(finite, log_weights + log_ratio, -jnp.inf)
        seen, status = seen_by_each(model, thetas, x, measurement)
        new = normalize(prior + seen, log_weights)
        statistics = self._learned(statistics, x_from, x, interval, measurement)
        lineages = belief.lineages.followed(labels, interval.gap > 0)
        after = self._belief(model, x, new.log_weights, statistics, lineages, of_estimate)
        weights = jax.nn.softmax(prior)
        innovation, cov = innovation_of_each(model, thetas, x, weights, measurement)
        predicted = eqx.tree_at(lambda b: (b.positions, b.log_weights), after, (x, prior))
        return SamplingStep(
            predicted,
            after,
            innovation,
            cov,
            standardize(innovation, cov),
            new.log_sum,
            first_failure(status, new.status),
            {
                "effective_sample_size": effective_sample_size(new.log_weights),
                "resampled": resampled,
                "distinct_lineages": lineages.distinct,
                "rows_to_coalesce": lineages.took,
            },
        )

    def _prior(self, model: ParametricModel, dtype: jnp.dtype) -> tuple[Any, ...]:
        found = tuple(one.prior(model) for one in self.statistics)
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), found)

    def _forgetting(self, model: StateSpaceModel) -> Forgetting | None:
        """How parameters are forgotten, if they are."""
        assert isinstance(model, ParametricModel)
        found = model.evolution
        return found if isinstance(found, Forgetting) and found.factor < 1.0 else None

    def _forgotten(
        self, model: ParametricModel, statistics: tuple[Any, ...], interval: Interval
    ) -> tuple[Any, ...]:
        evolution = self._forgetting(model)
        if evolution is None:
            return statistics
        dtype = jax.tree.leaves(statistics)[0].dtype
        less = forgotten(statistics, self._prior(model, dtype), evolution.factor)
        return jax.tree.map(lambda a, b: jnp.where(interval.gap > 0, a, b), less, statistics)

    def _draw(
        self, model: ParametricModel, statistics: tuple[Any, ...], key: Array
    ) -> Float[Array, "N k"]:
        """Parameters of each particle, as points of the space without limits."""
        one = lambda key, statistics: self._draw_one(model, statistics, key)
        return jax.vmap(one)(jax.random.split(key, self.size), statistics)

    def _draw_one(
        self, model: ParametricModel, statistics: tuple[Any, ...], key: Array
    ) -> Float[Array, " k"]:
        space = model.space
        shapes = dict(zip(space.names, space.shapes, strict=True))
        dtype = jax.tree.leaves(statistics)[0].dtype
        found: dict[str, Array] = {}
        keys = jax.random.split(key, len(self.statistics))
        for family, of_family, own in zip(self.statistics, keys, statistics, strict=True):
            found |= family.sample(of_family, own)
        return space.vector({n: v.reshape(shapes[n]) for n, v in found.items()}).astype(dtype)

    def _resampled(
        self,
        before: tuple[Any, ...],
        log_weights: Float[Array, " N"],
        expected: Float[Array, " N"] | None,
        interval: Interval,
        key: Array,
    ) -> tuple[Any, Float[Array, " N"], Bool[Array, ""]]:
        """What is left of the particles, their log-weights before a move (`expected` is already in them,
        and taken out again), and whether they were resampled."""
        first = log_weights if expected is None else log_weights + expected
        few = effective_sample_size(first) < self.ess_threshold * self.size
        always = self.ess_threshold == 1 or expected is not None
        needed = (interval.gap > 0) & (few | always)

        def yes() -> tuple[Any, Array]:
            ancestors = self.resampling.ancestors(key, first)
            weights = jnp.full(self.size, -math.log(self.size), log_weights.dtype)
            if expected is not None:
                alive = first.max() > -jnp.inf
                total = jax.nn.logsumexp(jnp.where(alive, first, 0.0))
                weights = weights + total - expected[ancestors]
            return jax.tree.map(lambda x: x[ancestors], before), weights

        if self.ess_threshold == 0 and expected is None:
            return before, log_weights, jnp.array(False)
        chosen, weights = only_if(needed, yes, (before, log_weights))
        return chosen, weights, needed

    def _learned(
        self,
        statistics: tuple[Any, ...],
        x_from: Float[Array, "N dx"],
        x_to: Float[Array, "N dx"],
        interval: Interval,
        measurement: Measurement,
    ) -> tuple[Any, ...]:
        moved = interval.gap > 0

        def one(statistics: tuple[Any, ...], x_from: Array, x_to: Array) -> tuple[Any, ...]:
            passage = Passage(
                jnp.where(moved, x_from, jnp.nan),
                x_to,
                measurement.value,
                interval.time,
                measurement.time,
                interval.gap,
                interval.input,
                measurement.input,
            )
            return tuple(
                jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), f.update(s, passage), s)
                for f, s in zip(self.statistics, statistics, strict=True)
            )

        return jax.vmap(one)(statistics, x_from, x_to)

    def _belief(
        self,
        model: ParametricModel,
        positions: Float[Array, "N dx"],
        log_weights: Float[Array, " N"],
        statistics: tuple[Any, ...],
        lineages: Lineages,
        key: Array,
    ) -> LearningParticles:
        """The particles, and what their statistics say together."""
        dtype = positions.dtype
        known = [jax.vmap(f.moments)(s) for f, s in zip(self.statistics, statistics, strict=True)]
        drawn = None
        if any(found is None for found in known):
            drawn = self._draw(model, statistics, key)
        estimate, cov = pooled(model.space, self.statistics, known, drawn, log_weights)
        return LearningParticles(
            positions,
            log_weights,
            statistics,
            lineages,
            estimate,
            cov,
            model.prior_cov.astype(dtype),
            model.space,
            self._forgetting(model) is None,
        )
