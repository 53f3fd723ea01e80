"""The Gauss-Hermite Kalman filter: regression on a product grid of quadrature nodes."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import check_count
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters import gaussian
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.filters.spread import check_spread_rule
from filterdyn.linearization import GaussHermite
from filterdyn.model import StateSpaceModel
from filterdyn.outliers import AbstractOutlierRule, check_outliers


class GaussHermiteKalmanFilter(AbstractFilter):
    """The Gauss-Hermite Kalman filter (Ito, Xiong 2000), in square-root form, for any dynamics and
    observation of a few states: it takes order^dx points.

    Points are drawn anew before every prediction and every update; no weight is negative. Exact on
    linear Gaussian models. An observation that is not Gaussian enters by the mean of its conditional
    means, and the mean of its conditional covariances plus the spread of the means.
    """

    rule: GaussHermite
    iterations: int = eqx.field(static=True)
    outliers: AbstractOutlierRule | None

    def __init__(
        self, order: int = 3, *, iterations: int = 1, outliers: AbstractOutlierRule | None = None
    ):
        """**Arguments:**

        - `order` >= 2: nodes per state. Polynomials of degree up to 2 order - 1 in each state have
          exact means;
        - `iterations`: how often the observation is linearised; more than 1 is posterior linearisation
          (Garcia-Fernandez et al. 2015), which places the points under the belief *after* the
          measurement. The measurement counts once;
        - `outliers`: as for `KalmanFilter`.

        **Raises:** `ValueError` for anything else.
        """
        self.rule = GaussHermite(order)
        self.iterations = check_count("GaussHermiteKalmanFilter", "iterations", iterations)
        self.outliers = check_outliers("GaussHermiteKalmanFilter", outliers)

    def check(self, model: StateSpaceModel) -> None:
        check_spread_rule("GaussHermiteKalmanFilter", model, self.rule)

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
