"""The nested particle filter: particles of the parameters, and a filter of the state for each of them."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from filterdyn._checks import check_count, check_fraction
from filterdyn.dynamics import Interval
from filterdyn.filters import sampling_scan, scan
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.particle_weights import effective_sample_size, normalize
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling import (
    AbstractSamplingFilter,
    Measurement,
    SamplingStep,
    standardize,
)
from filterdyn.filters.scan import first_failure, select
from filterdyn.filters.verbs import check_is_filter
from filterdyn.initial import Diffuse
from filterdyn.learning.augmented import check_parametric
from filterdyn.learning.jitter import Jitter
from filterdyn.learning.joint import augmented
from filterdyn.learning.model import ParametricModel
from filterdyn.learning.parameters import ParameterEstimate, ParameterSpace
from filterdyn.learning.seen import innovation_of_filters, mixture_innovation
from filterdyn.linalg import factor_of
from filterdyn.linalg.gate import only_if
from filterdyn.model import StateSpaceModel
from filterdyn.resampling import AbstractCopying, Systematic, check_copying
from filterdyn.status import Status

_NAME = "NestedParticleFilter"


class NestedBelief(eqx.Module):
    """Weighted draws of the parameters, each with a belief about the state. Moments are those of the state,
    over all of them."""

    thetas: Float[Array, "*T M k"]
    log_weights: Float[Array, "*T M"]
    #: Beliefs of the inner filter, with a leading axis M.
    inner: Any
    unmeasured_cov: Float[Array, "*T k k"]
    space: ParameterSpace

    @property
    def parameters(self) -> ParameterEstimate:
        return ParameterEstimate.of_draws(
            self.space, self.thetas, self.weights, self.unmeasured_cov
        )

    @property
    def size(self) -> int:
        return self.thetas.shape[-2]

    @property
    def weights(self) -> Float[Array, "*T M"]:
        return jax.nn.softmax(self.log_weights, axis=-1)

    @property
    def mean(self) -> Float[Array, "*T dx"]:
        return (self.weights[..., None] * self.inner.mean).sum(-2)

    @property
    def cov(self) -> Float[Array, "*T dx dx"]:
        a = self.inner.mean - self.mean[..., None, :]
        w = self.weights
        between = jnp.einsum("...n,...ni,...nj->...ij", w, a, a, precision="highest")
        return between + (w[..., None, None] * self.inner.cov).sum(-3)

    @property
    def variances(self) -> Float[Array, "*T dx"]:
        a = self.inner.mean - self.mean[..., None, :]
        return (self.weights[..., None] * (a * a + self.inner.variances)).sum(-2)

    @property
    def effective_sample_size(self) -> Float[Array, "*T"]:
        """Of the parameters."""
        return 1.0 / (self.weights**2).sum(-1)

    @property
    def is_finite(self) -> Bool[Array, ""]:
        finite = jnp.isfinite(self.thetas).all() & jnp.isfinite(self.inner.mean).all()
        return finite & jnp.isfinite(self.log_weights.max())

    def sample(self, key: Array) -> Float[Array, " dx"]:
        """One state (of a belief without a leading axis)."""
        of_which, of_state = jax.random.split(key)
        i = jax.random.categorical(of_which, self.log_weights)
        return jax.tree.map(lambda x: x[i], self.inner).sample(of_state)


class NestedParticleFilter(AbstractSamplingFilter):
    """Particles of the parameters, each with a filter of the state of its own, whose likelihood weights it
    (Crisan, Miguez 2018): recursive, at the same cost in every row, for any model, any prior and
    parameters that stand still or move (`evolution`).

    With a particle filter inside it is theirs, with an ensemble or a Gaussian filter the nested hybrid
    filter of Perez-Vieites, Marino and Miguez (2018): for a linear Gaussian model with `fd.KalmanFilter()`
    inside nothing is approximated but the posterior of the parameters. All inner filters are one batch.

    Before a move parameters are resampled, with their filters, if the effective sample size has fallen
    below `ess_threshold` times their number. Copies that stand still would stay copies, so they are then
    moved by `jitter`. The diagnostics hold the `effective_sample_size` and how many `distinct_parameters`
    there are.
    """

    size: int = eqx.field(static=True)
    inner: AbstractFilter | AbstractSamplingFilter
    jitter: Jitter | None
    resampling: AbstractCopying
    ess_threshold: float = eqx.field(static=True)
    truncation: int | None = eqx.field(static=True)

    learns: ClassVar[bool] = True

    def __init__(
        self,
        size: int,
        inner: AbstractFilter | AbstractSamplingFilter,
        *,
        jitter: Jitter | None = Jitter(),
        resampling: AbstractCopying = Systematic(),
        ess_threshold: float = 0.5,
    ):
        """**Arguments:**

        - `size`: M, how many particles of the parameters;
        - `inner`: a filter that does not learn: `fd.ParticleFilter(N)` (N of the order of M, as the paper has
          it), `fd.EnsembleKalmanFilter(N)`, `fd.KalmanFilter()`, `fd.ExtendedKalmanFilter()`, ...;
        - `jitter`: how parameters that were resampled are moved; `None`: not, which is right where an
          `evolution` moves all of them anyway;
        - `resampling`: a scheme that copies; `ess_threshold`: 0 never resamples, 1 in every row.

        **Raises:** `ValueError` for numbers out of range, `TypeError` for other kinds of objects.
        """
        self.size = check_count(_NAME, "size", size)
        check_is_filter(_NAME, inner)
        if inner.learns:
            raise TypeError(
                f"{_NAME}: `inner` is {type(inner).__name__}, which learns; expected a filter of the state"
            )
        self.inner = inner
        if jitter is not None and not isinstance(jitter, Jitter):
            raise TypeError(f"{_NAME}: `jitter` is {jitter!r}; expected fd.Jitter(...) or None")
        self.jitter = jitter
        self.resampling = check_copying(_NAME, resampling)
        self.ess_threshold = check_fraction(_NAME, "ess_threshold", ess_threshold)
        self.truncation = None

    @property
    def matches_moments(self) -> bool:  # type: ignore[override]
        return isinstance(self.inner, AbstractFilter) or self.inner.matches_moments

    def check(self, model: StateSpaceModel) -> None:
        model = check_parametric(_NAME, model)
        if isinstance(model.initial, Diffuse):
            raise TypeError(
                f"{_NAME}: `initial` is Diffuse; expected a proper distribution, under which the likelihoods "
                "of parameters can be compared"
            )
        self.inner.check(model)

    def init(self, model: StateSpaceModel, dtype: jnp.dtype, key: Array) -> NestedBelief:
        assert isinstance(model, ParametricModel)
        of_thetas, of_inner = jax.random.split(key)
        thetas = model.sample_prior(of_thetas, self.size).astype(dtype)

        def one(key: Array, theta: Array) -> Any:
            if isinstance(self.inner, AbstractSamplingFilter):
                return self.inner.init(model.at(theta), dtype, key)
            return self.inner.init(model.at(theta), dtype)

        inner = jax.vmap(one)(jax.random.split(of_inner, self.size), thetas)
        log_weights = jnp.full(self.size, -math.log(self.size), dtype)
        return NestedBelief(thetas, log_weights, inner, model.prior_cov.astype(dtype), model.space)

    def advance(
        self, model: StateSpaceModel, belief: NestedBelief, interval: Interval, key: Array
    ) -> tuple[NestedBelief, Int[Array, ""]]:
        assert isinstance(model, ParametricModel)
        of_evolution, of_inner = jax.random.split(key)
        belief = self._evolved(model, belief, interval, of_evolution)
        y = jnp.full(model.dy(interval.time, interval.input), jnp.nan, belief.thetas.dtype)
        after = Measurement(interval.time + interval.gap, interval.input, y)
        inner, _, statuses = self._filtered(model, belief, interval, after, of_inner)
        fine = statuses == Status.OK
        status = jnp.where(fine.any(), Status.OK, statuses.max()).astype(jnp.int32)
        log_weights = jnp.where(fine, belief.log_weights, -jnp.inf)
        log_weights = jnp.where(fine.any(), log_weights, belief.log_weights)
        return self._with(belief, log_weights, inner), status

    def step(
        self,
        model: StateSpaceModel,
        belief: NestedBelief,
        interval: Interval,
        measurement: Measurement,
        key: Array,
    ) -> SamplingStep:
        assert isinstance(model, ParametricModel)
        of_resampling, of_evolution, of_inner = jax.random.split(key, 3)
        belief, resampled = self._resampled(belief, interval, of_resampling)
        belief = self._evolved(model, belief, interval, of_evolution)
        inner, record, statuses = self._filtered(model, belief, interval, measurement, of_inner)
        fine = statuses == Status.OK
        seen = jnp.where(fine, record.log_likelihood, -jnp.inf)
        new = normalize(belief.log_weights + seen, belief.log_weights)
        status = jnp.where(fine.any(), Status.OK, statuses.max()).astype(jnp.int32)
        weights = belief.weights
        innovation, cov = innovation_of_filters(weights, record.innovation, record.innovation_cov)
        after = self._with(belief, new.log_weights, inner)
        predicted = self._with(belief, belief.log_weights, _finite(fine, record.predicted, inner))
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
                "distinct_parameters": _distinct(belief.thetas),
            },
        )

    def moments(self, belief: NestedBelief) -> tuple[Float[Array, "N dx"], Float[Array, " N"]]:
        """States, those of every inner filter in proportion to its weight (of a Gaussian one its mean: a
        forecast of measurements then lacks its spread)."""
        if isinstance(self.inner, AbstractSamplingFilter):
            x, w = jax.vmap(self.inner.moments)(belief.inner)
            return x.reshape(-1, x.shape[-1]), (belief.weights[:, None] * w).ravel()
        return belief.inner.mean, belief.weights

    def observation_moments(
        self, model: StateSpaceModel, belief: NestedBelief, t: Any, u: Any, key: Array
    ) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"]]:
        assert isinstance(model, ParametricModel)

        def one(key: Array, theta: Array, inner: Any) -> tuple[Array, Array]:
            here = model.at(theta)
            if isinstance(self.inner, AbstractSamplingFilter):
                return self.inner.observation_moments(here, inner, t, u, key)
            return self.inner.predict_observation(here, inner, t, u).moments()

        keys = jax.random.split(key, self.size)
        found = jax.vmap(one)(keys, belief.thetas, belief.inner)
        return mixture_innovation(belief.weights, *found)

    def draw(
        self, model: StateSpaceModel, belief: NestedBelief, key: Array
    ) -> tuple[StateSpaceModel, Float[Array, " n"]]:
        assert isinstance(model, ParametricModel)
        of_which, of_state = jax.random.split(key)
        i = jax.random.categorical(of_which, belief.log_weights)
        state = jax.tree.map(lambda x: x[i], belief.inner).sample(of_state)
        return augmented(model), jnp.concatenate([state, belief.thetas[i]])

    def _with(
        self, belief: NestedBelief, log_weights: Float[Array, " M"], inner: Any
    ) -> NestedBelief:
        return NestedBelief(belief.thetas, log_weights, inner, belief.unmeasured_cov, belief.space)

    def _resampled(
        self, belief: NestedBelief, interval: Interval, key: Array
    ) -> tuple[NestedBelief, Bool[Array, ""]]:
        of_ancestors, of_jitter = jax.random.split(key)
        log_weights = belief.log_weights
        few = effective_sample_size(log_weights) < self.ess_threshold * self.size
        needed = (interval.gap > 0) & (few | (self.ess_threshold == 1))

        def yes() -> tuple[Array, Array, Any]:
            ancestors = self.resampling.ancestors(of_ancestors, log_weights)
            equal = jnp.full(self.size, -math.log(self.size), log_weights.dtype)
            inner = jax.tree.map(lambda x: x[ancestors], belief.inner)
            thetas = belief.thetas[ancestors]
            if self.jitter is not None:
                mean, cov = _moments(belief.thetas, belief.weights)
                thetas = self.jitter(of_jitter, thetas, mean, cov)
            return thetas, equal, inner

        if self.ess_threshold == 0:
            return belief, jnp.array(False)
        thetas, log_weights, inner = only_if(
            needed, yes, (belief.thetas, log_weights, belief.inner)
        )
        chosen = NestedBelief(thetas, log_weights, inner, belief.unmeasured_cov, belief.space)
        return chosen, needed

    def _evolved(
        self, model: ParametricModel, belief: NestedBelief, interval: Interval, key: Array
    ) -> NestedBelief:
        if model.evolution is None:
            return belief
        thetas = belief.thetas
        mean, cov = _moments(thetas, belief.weights)
        evolved = model.evolve(cov, interval.gap)
        noise = jax.random.normal(key, thetas.shape, thetas.dtype) @ factor_of(evolved.noise).T
        moved = mean + evolved.slope * (thetas - mean) + noise
        return NestedBelief(
            jnp.where(interval.gap > 0, moved, thetas),
            belief.log_weights,
            belief.inner,
            model.evolved_cov(belief.unmeasured_cov, interval.gap),
            belief.space,
        )

    def _filtered(
        self,
        model: ParametricModel,
        belief: NestedBelief,
        interval: Interval,
        measurement: Measurement,
        key: Array,
    ) -> tuple[Any, Any, Int[Array, " M"]]:
        """A row of every inner filter: beliefs (those before where it failed), records, statuses."""
        inside = model.within(interval)
        row = Row(
            interval.time,
            interval.gap,
            interval.input,
            measurement.time,
            measurement.input,
            measurement.value,
            jnp.int32(Status.OK),
            interval.row,
        )

        def one(key: Array, theta: Array, inner: Any) -> tuple[Any, Any, Array]:
            here, fine, table = model.at(theta), jnp.int32(Status.OK), inside.table
            new: Any
            record: Any
            if isinstance(self.inner, AbstractSamplingFilter):
                state = sampling_scan.SamplingState(inner, fine, key, jnp.int32(0))
                new, record = sampling_scan.step(self.inner, here, table, state, row)
            else:
                new, record = scan.step(self.inner, here, table, scan.State(inner, fine), row)
            return new.belief, record, new.status

        return jax.vmap(one)(jax.random.split(key, self.size), belief.thetas, belief.inner)


def _moments(
    thetas: Float[Array, "M k"], weights: Float[Array, " M"]
) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    mean = weights @ thetas
    a = thetas - mean
    return mean, (weights[:, None] * a).T @ a


def _finite(fine: Bool[Array, " M"], yes: Any, no: Any) -> Any:
    """Beliefs of filters that went on, and for the others something finite."""
    return jax.vmap(select)(fine, yes, no)


def _distinct(thetas: Float[Array, "M k"]) -> Int[Array, ""]:
    """How many parameters differ (in their first entry, as all that were not copied do)."""
    first = jnp.sort(thetas[:, 0])
    return 1 + (jnp.diff(first) != 0).sum().astype(jnp.int32)
