"""The cubature Kalman filter: regression on the points of a spherical-radial rule."""

from typing import Any, Literal

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
from filterdyn.linearization import Cubature
from filterdyn.model import StateSpaceModel
from filterdyn.outliers import AbstractOutlierRule, check_outliers


class CubatureKalmanFilter(AbstractFilter):
    """The cubature Kalman filter (Arasaratnam, Haykin 2009), in square-root form, for any dynamics and
    observation.

    Points are drawn anew before every prediction and every update; no weight is negative. Exact on
    linear Gaussian models. An observation that is not Gaussian enters by the mean of its conditional
    means, and the mean of its conditional covariances plus the spread of the means.
    """

    rule: Cubature
    iterations: int = eqx.field(static=True)
    outliers: AbstractOutlierRule | None

    def __init__(
        self,
        degree: Literal[3, 5] = 3,
        *,
        iterations: int = 1,
        outliers: AbstractOutlierRule | None = None,
    ):
        """**Arguments:**

        - `degree`: polynomials of the state up to this degree have exact means. 3 takes 2 dx points;
          5 takes 2 dx^2 + 1 up to 4 states (Jia, Xin, Cheng 2013), 2^dx + 2 dx + 1 above;
        - `iterations`: how often the observation is linearised; more than 1 is posterior linearisation
          (Garcia-Fernandez et al. 2015), which places the points under the belief *after* the
          measurement. The measurement counts once;
        - `outliers`: as for `KalmanFilter`.

        **Raises:** `ValueError` for anything else.
        """
        self.rule = Cubature(degree)
        self.iterations = check_count("CubatureKalmanFilter", "iterations", iterations)
        self.outliers = check_outliers("CubatureKalmanFilter", outliers)

    def check(self, model: StateSpaceModel) -> None:
        check_spread_rule("CubatureKalmanFilter", model, self.rule)

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
