"""Dual estimation: a filter of the state and a filter of the parameters, side by side."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.learning import recursive
from filterdyn.learning.model import ParametricModel
from filterdyn.learning.recursive import Learnt, Taught, check_inner, check_learnable
from filterdyn.learning.tangent import Lesson
from filterdyn.linalg import PSD, condition, mm, mv, sampling_factor
from filterdyn.model import StateSpaceModel

_NAME = "DualFilter"


class DualFilter(AbstractFilter):
    """Two filters of a `ParametricModel` side by side (dual estimation: Wan, Nelson 2001; Plett 2004): one
    follows the state at the parameters as they are believed, the other takes the parameters for a state
    that is seen through the innovations of the first.

    A Kalman filter of the parameters needs the slope of the predicted measurement in them. It is the total
    one: beside the belief goes its derivative by the parameters (the recurrent derivative), gain and
    covariance included, which the papers leave out. The noise of what it sees is the innovation covariance of
    the filter of the state. When the parameters move the state moves along, to first order, so that it stays
    that of the current parameters.

    Where the model is linear in state and parameters together and has no noise but that of the measurement
    this is exact. Elsewhere it is close to `AugmentedFilter`: the two differ in that here the filter of the
    state keeps its own size and form (a sigma-point filter draws points in the states alone), in the
    derivatives of the gain, and in `cov`, which here is that of the state *given* the parameters. Predictions
    and log-likelihoods take the uncertainty of the parameters into account. The posterior of the parameters
    is claimed; a row costs k derivatives of the filter in forward mode.
    """

    filter: AbstractFilter

    learns: ClassVar[bool] = True

    def __init__(self, filter: AbstractFilter):
        """**Arguments:** `filter`: of the state, a Gaussian filter such as `ExtendedKalmanFilter()`, without
        `AdaptiveNoise`.

        **Raises:** `TypeError` for anything else."""
        self.filter = check_inner(_NAME, filter)

    def check(self, model: StateSpaceModel) -> None:
        check_learnable(_NAME, self.filter, model)

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        return recursive.init(self.filter, model, dtype, True)

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        return recursive.predict(self.filter, model, belief, interval)

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        before: Learnt = belief.memory
        observed = ~jnp.isnan(y)

        def teach(spread: PSD, lesson: Lesson) -> Taught:
            given = condition(spread, lesson.slopes, lesson.errors, jnp.ones_like(y), observed)
            return Taught(given.shift, given.cov)

        found, lesson = recursive.update(self.filter, model, belief, t, u, y, teach)
        # The innovations of the state's filter are those of known parameters.
        alone, both = (
            condition(spread, lesson.slopes, lesson.errors, jnp.ones_like(y), observed)
            for spread in (PSD.zeros(len(before.theta), y.dtype), before.spread)
        )
        return found._replace(
            innovation_cov=found.innovation_cov + self._of_parameters(model, belief, t, u),
            standardized=jnp.where(observed, both.standardized, jnp.nan),
            log_likelihood=found.log_likelihood - alone.log_likelihood + both.log_likelihood,
        )

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        found = recursive.predict_observation(self.filter, model, belief, t, u)
        more = self._of_parameters(model, belief, t, u)
        return PredictedObservation(found.loc, found.cov + more, found.transforms)

    def draw(
        self, model: StateSpaceModel, belief: Gaussian, key: Array
    ) -> tuple[StateSpaceModel, Float[Array, " dx"]]:
        """A state with the model at the parameters that it goes with."""
        assert isinstance(model, ParametricModel)
        known: Learnt = belief.memory
        of_theta, of_state = jax.random.split(key)
        normals = jax.random.normal(of_theta, known.theta.shape, known.theta.dtype)
        change = mv(sampling_factor(known.spread), normals)
        state = belief.sample(of_state) + change @ known.slopes.mean
        return model.at(known.theta + change), state

    def _of_parameters(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> Float[Array, "dy dy"]:
        """What the uncertainty of the parameters adds to that of a measurement."""
        assert isinstance(model, ParametricModel)
        before: Learnt = belief.memory

        def expected(theta: Array, mean: Array, cov: Array) -> Array:
            there = Gaussian(mean, spread=PSD(belief.spread.factor, cov))
            return self.filter.predict_observation(model.at(theta), there, t, u).loc

        slopes = before.slopes.along(expected, before.theta, belief)
        return mm(mm(slopes.T, before.spread.matrix), slopes)
