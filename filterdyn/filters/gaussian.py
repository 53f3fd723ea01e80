"""Prediction and update of a Gaussian belief, in square-root form: shared by all Gaussian filters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.adaptive import AdaptiveNoise, NoiseFactors
from filterdyn.filters.base import Prediction, Update
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.linalg import (
    PSD,
    Conditioned,
    condition,
    condition_robustly,
    congruence,
    mv,
)
from filterdyn.linearization import AbstractLinearization, squared
from filterdyn.model import StateSpaceModel
from filterdyn.observations import LinearizedObservation
from filterdyn.outliers import AbstractOutlierRule
from filterdyn.status import Status


def cast(tree: Any, dtype: jnp.dtype) -> Any:
    """Every floating leaf in the filter's own precision, whatever user code returned."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def start(
    model: StateSpaceModel,
    dtype: jnp.dtype,
    square_root: bool,
    adaptive: AdaptiveNoise | None = None,
) -> Gaussian:
    """The belief before any measurement, in square-root or in covariance form."""
    belief = model.start(dtype)
    spread = belief.spread if square_root else belief.spread.without_factor()
    if adaptive is None:
        return Gaussian(belief.mean, spread=spread)
    if spread.diffuse is not None:
        raise ValueError(
            "a filter that adapts its noise needs a proper initial distribution, not fd.Diffuse"
        )
    dy = model.dy(jnp.zeros((), dtype), None)
    factors = NoiseFactors.start(adaptive, model.dx, dy, dtype)
    return Gaussian(belief.mean, spread=spread, memory=factors)


def predict(
    model: StateSpaceModel, belief: Gaussian, interval: Interval, rule: AbstractLinearization
) -> Prediction:
    """x' = f(m) + slope (x - m) + noise, with the moments that the dynamics give under `rule`."""
    move, status = model.dynamics.moments(rule, belief, interval)
    move = cast(move, belief.mean.dtype)
    if belief.memory is not None:
        move = move._replace(noise=belief.memory.of_process(move.noise))
    spread = congruence(move.slope, belief.spread, move.noise)
    # Where nobody keeps the move this is dead code.
    move = move._replace(noise=squared(move.noise))
    return Prediction(Gaussian(move.value, spread=spread, memory=belief.memory), move, status)


def predict_adaptively(
    model: StateSpaceModel, belief: Gaussian, interval: Interval, rule: AbstractLinearization
) -> Prediction:
    """`predict`, and how the predicted belief depends on the factors that are being learnt."""
    prediction = predict(model, belief, interval, rule)
    memory: NoiseFactors = belief.memory

    def moments(mean: Array, matrix: Array, logs: Array) -> tuple[Array, Array]:
        start = _varied(belief, mean, matrix, logs)
        end = predict(model, start, interval, rule).belief
        return end.mean, end.spread.matrix

    slopes = memory.slopes(moments, belief.mean, belief.spread.matrix)
    end = prediction.belief
    moved = Gaussian(end.mean, spread=end.spread, memory=memory.with_slopes(*slopes))
    return prediction._replace(belief=moved)


def update_adaptively(
    model: StateSpaceModel,
    belief: Gaussian,
    t: Any,
    u: Any,
    y: Float[Array, " dy"],
    *options: Any,
) -> Update:
    """`update`, and a step of the factors along the score of the measurement."""
    new = update(model, belief, t, u, y, *options)
    memory: NoiseFactors = belief.memory

    def moments(mean: Array, matrix: Array, logs: Array) -> tuple[Array, Array, Array]:
        varied = update(model, _varied(belief, mean, matrix, logs), t, u, y, *options)
        return varied.belief.mean, varied.belief.spread.matrix, varied.log_likelihood

    *slopes, scores = memory.slopes(moments, belief.mean, belief.spread.matrix)
    learned = memory.with_slopes(*slopes).learned(scores)
    after = Gaussian(new.belief.mean, spread=new.belief.spread, memory=learned)
    return new._replace(belief=after)


def _varied(belief: Gaussian, mean: Array, matrix: Array, logs: Array) -> Gaussian:
    memory = eqx.tree_at(lambda m: m.logs, belief.memory, logs)
    return Gaussian(mean, spread=PSD(belief.spread.factor, matrix), memory=memory)


def update(
    model: StateSpaceModel,
    belief: Gaussian,
    t: Any,
    u: Any,
    y: Float[Array, " dy"],
    rule: AbstractLinearization,
    iterations: int = 1,
    outliers: AbstractOutlierRule | None = None,
) -> Update:
    """Condition on a measurement; with `iterations` > 1 the observation is linearised again at the
    posterior (by Taylor expansion Gauss-Newton steps, Bell, Cathey 1993; by sigma points posterior
    linearisation, Garcia-Fernandez et al. 2015). Each round starts from the prior, so the measurement
    counts once. `outliers` says what becomes of a measurement that does not fit."""
    prior, dtype = belief, belief.mean.dtype

    def linearized(at: Gaussian) -> LinearizedObservation:
        lin = cast(model.observation.linearize(rule, at, t, u, y), dtype)
        if prior.memory is None:
            return lin
        return lin._replace(noise=prior.memory.of_sensors(lin.noise))

    def conditioned(
        lin: LinearizedObservation, at: Float[Array, " dx"]
    ) -> tuple[Conditioned, Array | None]:
        residual = lin.z - lin.value - mv(lin.slope, prior.mean - at)
        parts = (prior.spread, lin.slope, residual, lin.noise, lin.observed)
        if outliers is None:
            return condition(*parts), None
        return condition_robustly(*parts, outliers)

    first = lin = linearized(prior)
    at = prior.mean
    found, weights = conditioned(lin, at)
    standardized = jnp.where(first.observed, found.standardized, jnp.nan)
    for _ in range(iterations - 1):
        at = prior.mean + found.shift
        lin = linearized(Gaussian(at, spread=found.cov))
        found, weights = conditioned(lin, at)

    innovation = first.z - first.value
    noise = first.noise * jnp.eye(len(y), dtype=dtype) if first.noise.ndim == 1 else first.noise
    innovation_cov = prior.spread.seen_through(first.slope) + noise
    log_likelihood, singular = found.log_likelihood, found.singular
    if lin.exact_log_prob is not None:
        known = (prior.spread.carrier == 0).all() & (prior.spread.diffuse is None)
        log_likelihood = jnp.where(known, lin.exact_log_prob, log_likelihood)
        singular = singular & ~known
    status = jnp.where(singular, Status.SINGULAR_INNOVATION, Status.OK)
    status = jnp.where(lin.status != Status.OK, lin.status, status).astype(jnp.int32)
    return Update(
        Gaussian(prior.mean + found.shift, spread=found.cov, memory=prior.memory),
        jnp.where(first.observed, innovation, jnp.nan),
        innovation_cov,
        standardized,
        log_likelihood + lin.log_jacobian,
        status,
        weights,
    )


def predict_observation(
    model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, rule: AbstractLinearization
) -> PredictedObservation:
    """Moments of a measurement under the belief, in the space where it is Gaussian."""
    dtype = belief.mean.dtype
    nothing = jnp.full((model.dy(t, u),), jnp.nan, dtype)
    lin = cast(model.observation.linearize(rule, belief, t, u, nothing), dtype)
    if belief.memory is not None:
        lin = lin._replace(noise=belief.memory.of_sensors(lin.noise))
    view = model.observation.view(t, belief.mean, u)
    noise = lin.noise * jnp.eye(len(nothing), dtype=dtype) if lin.noise.ndim == 1 else lin.noise
    cov = belief.spread.seen_through(lin.slope) + noise
    return PredictedObservation(lin.value, cov, () if view is None else view.transforms)
