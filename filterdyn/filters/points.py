"""What filters share that put points under the belief."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters import gaussian
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.filters.spread import check_spread_rule
from filterdyn.linearization import AbstractSpreadRule
from filterdyn.model import StateSpaceModel
from filterdyn.outliers import AbstractOutlierRule


class AbstractPointFilter(AbstractFilter):
    """A Gaussian filter whose moments are sums over points, in square-root form."""

    rule: eqx.AbstractVar[AbstractSpreadRule]
    iterations: eqx.AbstractVar[int]
    outliers: eqx.AbstractVar[AbstractOutlierRule | None]

    def check(self, model: StateSpaceModel) -> None:
        check_spread_rule(type(self).__name__, model, self.rule)

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        return model.start(dtype)

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        return gaussian.predict(model, belief, interval, self.rule)

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        return gaussian.update(model, belief, t, u, y, self.rule, self.iterations, self.outliers)

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        return gaussian.predict_observation(model, belief, t, u, self.rule)
