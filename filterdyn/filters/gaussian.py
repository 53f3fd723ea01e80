"""Prediction and update of a Gaussian belief, in square-root form: shared by all Gaussian filters."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.base import Prediction, Update
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.linalg import (
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


def start(model: StateSpaceModel, dtype: jnp.dtype, square_root: bool) -> Gaussian:
    """The belief before any measurement, in square-root or in covariance form."""
    belief = model.start(dtype)
    if square_root:
        return belief
    return Gaussian(belief.mean, spread=belief.spread.without_factor())


def predict(
    model: StateSpaceModel, belief: Gaussian, interval: Interval, rule: AbstractLinearization
) -> Prediction:
    """x' = f(m) + slope (x - m) + noise, with the moments that the dynamics give under `rule`."""
    move, status = model.dynamics.moments(rule, belief, interval)
    move = cast(move, belief.mean.dtype)
    spread = congruence(move.slope, belief.spread, move.noise)
    # Where nobody keeps the move this is dead code.
    move = move._replace(noise=squared(move.noise))
    return Prediction(Gaussian(move.value, spread=spread), move, status)


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
        return cast(model.observation.linearize(rule, at, t, u, y), dtype)

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
        Gaussian(prior.mean + found.shift, spread=found.cov),
        jnp.where(first.observed, first.z - first.value, jnp.nan),
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
    view = model.observation.view(t, belief.mean, u)
    noise = lin.noise * jnp.eye(len(nothing), dtype=dtype) if lin.noise.ndim == 1 else lin.noise
    cov = belief.spread.seen_through(lin.slope) + noise
    return PredictedObservation(lin.value, cov, () if view is None else view.transforms)
