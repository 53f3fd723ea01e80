"""Weights of a network that adapt while a filter runs: joint filtering in two stages, with few columns."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from filterdyn._checks import check_count, float_array, is_traced
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.anchored import rule_of
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.gaussian import cast
from filterdyn.filters.learned import check_base, started
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.learning.spreads import AbstractWeightSpread, start_of
from filterdyn.learning.weights import WeightEstimate, WeightSpace
from filterdyn.linalg import PSD, condition, mm, mv
from filterdyn.linearization import beside, squared
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status

_NAME = "LowRankWeightFilter"


class WeightMemory(eqx.Module):
    """What is known of the weights theta, and of the state given them: x = mean + slopes (theta -
    location) + e, with e independent of theta and of covariance `known`."""

    location: Float[Array, "*T k"]
    spread: AbstractWeightSpread
    slopes: Float[Array, "*T dx k"]
    known: PSD
    unmeasured: Float[Array, "*T k"]
    space: WeightSpace

    @property
    def parameters(self) -> WeightEstimate:
        return WeightEstimate(self.location, self.spread.variances, self.unmeasured, self.space)


class LowRankWeightFilter(AbstractFilter):
    """A filter that goes on learning weights of the model, so that a trained network adapts to a system
    that has changed:

        learner = fd.LowRankWeightFilter(
            fd.ExtendedKalmanFilter(), lambda m: m.dynamics.drift.value.residual, prior_sd=0.1, drift_sd=0.01
        )
        online = fd.OnlineFilter(trained_model, learner)

    State and weights are filtered jointly, in two stages (Friedland 1969). Given the weights theta, `filter`
    follows the state x and its covariance P; beside it goes the slope D of x in theta (dx, k), which the
    model's derivatives carry along. A measurement with innovation r, slope H in the state and noise R then
    says of the weights what one of H D theta with noise H P H^T + R says, and the state moves by K r +
    (I - K H) D (change of theta). With an `ExtendedKalmanFilter` this is the extended Kalman filter of
    state and weights together (`AugmentedFilter`), but no (k, k) matrix is formed: of the weights the
    inverse covariance is kept as a diagonal and `rank` columns (LO-FI: Chang, Duran-Martin, Shestopaloff,
    Jones, Murphy 2023), of which after every row the largest singular vectors stay while the diagonal of
    the others is added to the diagonal. Memory is O(k (rank + dx)) and a row costs O(k (rank + dx + dy)^2)
    beside dx derivatives of the model by reverse mode. With `rank=None` the covariance is kept whole.

    A network is far from linear in its weights: with a large `prior_sd` or `drift_sd` the steps are too long
    for a linearisation, and the filter may lose the system for good. Take small ones, or the last layer only,
    in which the network is linear, and try them on a record. The batch verb keeps what the filter knew in
    every row; a long series with a large network is better followed by `OnlineFilter`.

    Derivatives are those of predicted means: how the weights change covariances and gain is left out. What
    is learnt is at `.parameters`, a `WeightEstimate`; `adapted` is the model with it. `mean` and `cov` of
    the state, predictions and log-likelihoods take the uncertainty of the weights into account.
    """

    filter: AbstractFilter
    prior_sd: Any
    drift_sd: Any
    where: Callable[[Any], Any] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True)
    decay_time: float | None = eqx.field(static=True)
    forgetting: float = eqx.field(static=True)

    learns: ClassVar[bool] = True

    def __init__(
        self,
        filter: AbstractFilter,
        where: Callable[[Any], Any],
        *,
        prior_sd: Any = 0.1,
        drift_sd: Any = None,
        decay_time: float | None = None,
        forgetting: float = 1.0,
        rank: int | None = 10,
    ):
        """**Arguments:**

        - `filter`: of the state: `ExtendedKalmanFilter()` or another Gaussian filter, with one iteration,
          without an outlier rule and without `AdaptiveNoise`;
        - `where(model)`: the part of the model that is learnt, such as a network, an array or a list of
          them, of the dynamics or the observation; what a network is normalised by is not learnt;
        - `prior_sd` > 0: how far the weights may be from those of the model; one number, or a list with a
          number or an array for each array that is picked;
        - `drift_sd` >= 0, of the same kind: how far they wander per square root of the unit of time (in
          discrete time: per row); `None`: they stand still, and the filter learns ever less;
        - `decay_time` > 0: without measurements their distance from those of the model decays within this
          time by e; `None`: it does not;
        - `forgetting` in (0, 1]: with every row covariances grow by its inverse;
        - `rank` >= 1: number of columns; `None`: all of the covariance, for small networks.

        **Raises:** `TypeError` or `ValueError` for anything else.
        """
        self.filter = check_base(_NAME, filter, "filter")
        for name, value in {"iterations": 1, "outliers": None}.items():
            if getattr(filter, name, value) != value:
                raise ValueError(
                    f"{_NAME}: `filter` has {name}={getattr(filter, name)!r}; expected {value!r}"
                )
        if not callable(where):
            raise TypeError(
                f"{_NAME}: `where` is {type(where).__name__}; expected a function that picks weights of a "
                "model, such as lambda m: m.dynamics.drift.value.residual"
            )
        self.where = where
        self.prior_sd = _numbers("prior_sd", prior_sd, least=None)
        self.drift_sd = None if drift_sd is None else _numbers("drift_sd", drift_sd, least=0.0)
        if decay_time is not None and (is_traced(decay_time) or not 0 < decay_time < float("inf")):
            raise ValueError(f"{_NAME}: `decay_time` is {decay_time!r}; expected a positive number")
        self.decay_time = None if decay_time is None else float(decay_time)
        if is_traced(forgetting) or not 0 < forgetting <= 1:
            raise ValueError(f"{_NAME}: `forgetting` is {forgetting!r}; expected 0 < f <= 1")
        self.forgetting = float(forgetting)
        self.rank = None if rank is None else check_count(_NAME, "rank", rank)

    def space(self, model: StateSpaceModel) -> WeightSpace:
        """Which weights of the model are learnt."""
        return WeightSpace.of(_NAME, model, self.where)

    def adapted(self, model: StateSpaceModel, parameters: WeightEstimate) -> StateSpaceModel:
        """The model with the weights that were learnt (the mean of an estimate of one row)."""
        space = self.space(model)
        return space.model(model, parameters.unconstrained_mean)

    def check(self, model: StateSpaceModel) -> None:
        """**Raises:** also `ValueError` for a `rank` above the number of weights, a diffuse start, and
        numbers for the weights that do not fit them."""
        space = self.space(model)
        if self.rank is not None and self.rank > space.size:
            raise ValueError(
                f"{_NAME}: `rank` is {self.rank} but `where` picked {space.size} weights; expected at "
                "most as many, or None"
            )
        for name in ("prior_sd", "drift_sd"):
            if getattr(self, name) is not None:
                space.spread_out(_NAME, name, getattr(self, name))
        self.filter.check(model)

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        belief = started(_NAME, self.filter, model, dtype)
        space = self.space(model)
        variances = space.spread_out(_NAME, "prior_sd", self.prior_sd).astype(dtype) ** 2
        memory = WeightMemory(
            space.vector(model, dtype),
            start_of(variances, self.rank),
            jnp.zeros((model.dx, space.size), dtype),
            belief.spread,
            variances,
            space,
        )
        return Gaussian(belief.mean, spread=belief.spread, memory=memory)

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        memory: WeightMemory = belief.memory
        start = Gaussian(belief.mean, spread=memory.known)
        within = interval.for_others()

        def moved(location: Array) -> tuple[Array, Prediction]:
            found = self.filter.predict(memory.space.model(model, location), start, within)
            return found.belief.mean, found

        mean, pull, found = jax.vjp(moved, memory.location, has_aux=True)
        (direct,) = jax.vmap(pull)(jnp.eye(len(mean), dtype=mean.dtype))
        slopes = found.move.slope @ memory.slopes + direct
        parts = lambda m: (m.slopes, m.known)
        after = eqx.tree_at(parts, memory, (slopes, found.belief.spread))
        return found._replace(belief=_of_state(mean, self._moved(model, after, interval)))

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        memory: WeightMemory = belief.memory
        seen = self._seen(model, belief, t, u, y)
        r, slopes, noise = seen.residual, seen.slopes, seen.noise
        given = condition(memory.known, seen.slope, r, noise, seen.observed)

        # Of a missing entry: a measurement of nothing, with noise 1.
        image = memory.spread.images(slopes)
        total = seen.cov + image.cov.matrix
        root = jnp.linalg.cholesky(total)
        standardized = jnp.linalg.solve(root, r)
        change = image.cross.T @ jnp.linalg.solve(root.T, standardized)
        gain = jnp.linalg.solve(seen.cov, mm(seen.slope_seen, memory.known.matrix)).T
        after_slopes = memory.slopes - mm(gain, slopes)
        some = seen.observed.any()
        learned = jax.tree.map(
            lambda a, b: jnp.where(some, a, b),
            memory.spread.learned(slopes, seen.cov),
            memory.spread,
        )
        mean = belief.mean + given.shift + mv(after_slopes, change)
        parts = lambda m: (m.location, m.spread, m.slopes, m.known)
        values = (memory.location + change, learned, after_slopes, given.cov)
        after = _of_state(mean, eqx.tree_at(parts, memory, values))

        count = seen.observed.sum()
        size = 2.0 * jnp.log(jnp.diagonal(root)).sum() + count * jnp.log(2.0 * jnp.pi)
        log_likelihood = -0.5 * ((standardized**2).sum() + size)
        status = jnp.where(given.singular, Status.SINGULAR_INNOVATION, Status.OK)
        finite = jnp.isfinite(change).all()
        status = jnp.where(finite | given.singular, status, Status.MODEL_NOT_FINITE)
        status = jnp.where(seen.status != Status.OK, seen.status, status).astype(jnp.int32)
        full = jnp.diag(noise) if noise.ndim == 1 else noise
        direct = memory.known.seen_through(seen.slope) + full
        all_slopes = memory.spread.images(seen.all_slopes).cov.matrix
        return Update(
            after,
            jnp.where(seen.observed, r, jnp.nan),
            direct + all_slopes,
            jnp.where(seen.observed, standardized, jnp.nan),
            log_likelihood + seen.log_jacobian,
            status,
        )

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        memory: WeightMemory = belief.memory
        at = memory.space.model(model, memory.location)
        known = Gaussian(belief.mean, spread=memory.known)
        found = self.filter.predict_observation(at, known, t, u)
        nothing = jnp.full(found.loc.shape, jnp.nan, found.loc.dtype)
        slopes = self._seen(model, belief, t, u, nothing).all_slopes
        more = memory.spread.images(slopes).cov.matrix
        return PredictedObservation(found.loc, found.cov + more, found.transforms)

    def draw(
        self, model: StateSpaceModel, belief: Gaussian, key: Array
    ) -> tuple[StateSpaceModel, Float[Array, " dx"]]:
        """A state with the model of the weights that it goes with."""
        memory: WeightMemory = belief.memory
        of_weights, of_state = jax.random.split(key)
        normals = jax.random.normal(of_weights, memory.location.shape, memory.location.dtype)
        change = memory.spread.of_normals(normals)
        state = Gaussian(belief.mean, spread=memory.known).sample(of_state)
        here = memory.space.model(model, memory.location + change)
        return here, state + mv(memory.slopes, change)

    def _moved(
        self, model: StateSpaceModel, memory: WeightMemory, interval: Interval
    ) -> WeightMemory:
        """The weights at the end of an interval, and the state as a function of these."""
        if self.forgetting < 1:
            moved = memory.spread.inflated(self.forgetting, memory.slopes)
            memory = _replaced(memory, moved, memory.location, memory.unmeasured / self.forgetting)
        if self.drift_sd is None and self.decay_time is None:
            return memory
        dtype = memory.location.dtype
        length = interval.gap if model.dynamics.is_continuous else jnp.ones_like(interval.gap)
        slope, effective = jnp.ones((), dtype), length
        if self.decay_time is not None:
            slope = jnp.exp(-length / self.decay_time)
            effective = 0.5 * self.decay_time * -jnp.expm1(-2.0 * length / self.decay_time)
        noise = jnp.zeros(memory.space.size, dtype)
        if self.drift_sd is not None:
            sd = memory.space.spread_out(_NAME, "drift_sd", self.drift_sd).astype(dtype)
            noise = sd**2 * effective
        trained = memory.space.vector(model, dtype)
        location = trained + slope * (memory.location - trained)
        moved = memory.spread.moved(slope, noise, memory.slopes)
        return _replaced(memory, moved, location, slope**2 * memory.unmeasured + noise)

    def _seen(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> "_Seen":
        """A measurement, linearised in state and weights."""
        memory: WeightMemory = belief.memory
        known, rule = Gaussian(belief.mean, spread=memory.known), rule_of(self.filter)

        def expected(location: Array) -> tuple[Array, Any]:
            at = memory.space.model(model, location)
            lin = cast(at.observation.linearize(rule, known, t, u, y), y.dtype)
            return lin.value, lin

        value, pull, lin = jax.vjp(expected, memory.location, has_aux=True)
        (direct,) = jax.vmap(pull)(jnp.eye(len(value), dtype=value.dtype))
        all_slopes = lin.slope @ memory.slopes + direct
        there, eye = lin.observed, jnp.eye(len(value), dtype=value.dtype)
        only = lambda a: jnp.where(there[:, None], a, 0.0)
        noise = jnp.diag(lin.noise) if lin.noise.ndim == 1 else lin.noise
        cov = memory.known.seen_through(lin.slope) + noise
        return _Seen(
            jnp.where(there, lin.z - value, 0.0),
            there,
            lin.slope,
            only(lin.slope),
            lin.noise,
            jnp.where(there[:, None] & there[None, :], cov, eye),
            only(all_slopes),
            all_slopes,
            lin.log_jacobian,
            lin.status,
        )


class _Seen(NamedTuple):
    """residual = slope e + slopes (theta - location) + N(0, noise); `cov` is what the first and the last
    come to. Of a missing entry `slope_seen` and `slopes` are 0, and `cov` is that of the identity."""

    residual: Float[Array, " dy"]
    observed: Bool[Array, " dy"]
    slope: Float[Array, "dy dx"]
    slope_seen: Float[Array, "dy dx"]
    noise: Array
    cov: Float[Array, "dy dy"]
    slopes: Float[Array, "dy k"]
    all_slopes: Float[Array, "dy k"]
    log_jacobian: Float[Array, ""]
    status: Array


def _of_state(mean: Float[Array, " dx"], memory: WeightMemory) -> Gaussian:
    """The belief of the state, whatever the weights are."""
    more = memory.spread.images(memory.slopes).cov
    return Gaussian(mean, spread=_sum(memory.known, more), memory=memory)


def _replaced(
    memory: WeightMemory, moved: Any, location: Float[Array, " k"], unmeasured: Float[Array, " k"]
) -> WeightMemory:
    return WeightMemory(
        location,
        moved.spread,
        moved.slopes,
        _sum(memory.known, moved.left),
        unmeasured,
        memory.space,
    )


def _sum(p: PSD, q: PSD) -> PSD:
    """P + Q in the form of P."""
    return PSD(None, p.matrix + q.matrix) if p.factor is None else squared(beside(p, q))


def _numbers(name: str, value: Any, least: float | None) -> Any:
    """A number or a list of numbers and arrays, >= `least` or > 0."""
    if isinstance(value, (list, tuple)):
        return tuple(_numbers(f"{name}[{i}]", one, least) for i, one in enumerate(value))
    array = float_array(_NAME, name, value)
    if not is_traced(array):
        fine = jnp.isfinite(array) & (array > 0 if least is None else array >= least)
        if not fine.all():
            raise ValueError(
                f"{_NAME}: `{name}` is {value!r}; expected numbers {'> 0' if least is None else '>= 0'}"
            )
    return array
