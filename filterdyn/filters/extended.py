"""The extended Kalman filter: linearisation by first-order Taylor expansion."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters import gaussian
from filterdyn.filters.adaptive import AdaptiveNoise, check_adaptive
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.linearization import Taylor
from filterdyn.model import StateSpaceModel
from filterdyn.outliers import AbstractOutlierRule, check_outliers


class ExtendedKalmanFilter(AbstractFilter):
    """The extended Kalman filter (Jazwinski 1970), in square-root form, for any dynamics and
    observation.

    Exact on linear Gaussian models. An observation that is not Gaussian enters by its conditional
    mean and covariance.
    """

    iterations: int = eqx.field(static=True)
    square_root: bool = eqx.field(static=True)
    outliers: AbstractOutlierRule | None
    adaptive: AdaptiveNoise | None

    def __init__(
        self,
        iterations: int = 1,
        *,
        square_root: bool = True,
        outliers: AbstractOutlierRule | None = None,
        adaptive: AdaptiveNoise | None = None,
    ):
        """**Arguments:**

        - `iterations`: how often the observation is linearised; 1 is the extended Kalman filter, more
          is the iterated one (Gauss-Newton steps towards the posterior mode);
        - `square_root`, `outliers`, `adaptive`: as for `KalmanFilter`.

        **Raises:** `ValueError` unless it is an integer >= 1.
        """
        if not isinstance(iterations, int) or iterations < 1:
            raise ValueError(
                f"ExtendedKalmanFilter: `iterations` is {iterations!r}; expected an integer >= 1"
            )
        self.iterations = iterations
        self.square_root = square_root
        self.outliers = check_outliers("ExtendedKalmanFilter", outliers)
        self.adaptive = check_adaptive("ExtendedKalmanFilter", adaptive)

    def check(self, model: StateSpaceModel) -> None:
        """Every model is accepted."""

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        return gaussian.start(model, dtype, self.square_root, self.adaptive)

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        predict = gaussian.predict if self.adaptive is None else gaussian.predict_adaptively
        return predict(model, belief, interval, Taylor())

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        update = gaussian.update if self.adaptive is None else gaussian.update_adaptively
        return update(model, belief, t, u, y, Taylor(), self.iterations, self.outliers)

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        return gaussian.predict_observation(model, belief, t, u, Taylor())
