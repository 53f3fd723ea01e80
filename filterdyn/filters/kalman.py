"""The Kalman filter: exact for linear Gaussian models."""

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


class KalmanFilter(AbstractFilter):
    """The exact filter of a linear Gaussian model (Kalman 1960).

    Accepts `LinearTransition` or `LinearSDE` dynamics, `LinearObservation`, and a Gaussian or `Delta`
    `initial`; refuses everything else with the name of a filter that takes it.
    """

    square_root: bool = eqx.field(static=True)
    outliers: AbstractOutlierRule | None
    adaptive: AdaptiveNoise | None

    def __init__(
        self,
        *,
        square_root: bool = True,
        outliers: AbstractOutlierRule | None = None,
        adaptive: AdaptiveNoise | None = None,
    ):
        """**Arguments:**

        - `square_root`: carry a factor of the covariance (the default: right on ill-conditioned
          problems and in float32), or with `False` the covariance itself, in Joseph's form: somewhat
          faster, for well-conditioned problems in float64;
        - `outliers`: what becomes of measurements that do not fit: `Gate`, `StudentTNoise` or
          `HuberNoise` (the filter is then no longer the exact one of Gaussian noise); `None` takes
          every measurement at its word;
        - `adaptive`: `AdaptiveNoise` learns factors on the noise covariances while filtering.
        """
        self.square_root = square_root
        self.outliers = check_outliers("KalmanFilter", outliers)
        self.adaptive = check_adaptive("KalmanFilter", adaptive)

    def check(self, model: StateSpaceModel) -> None:
        instead = "use fd.ExtendedKalmanFilter()"
        if not model.dynamics.is_linear:
            raise TypeError(
                f"KalmanFilter: `dynamics` is {type(model.dynamics).__name__}, which may be nonlinear; "
                f"KalmanFilter is exact and takes LinearTransition or LinearSDE ({instead})"
            )
        if not model.observation.is_linear:
            raise TypeError(
                f"KalmanFilter: `observation` is {type(model.observation).__name__}, which may be "
                f"nonlinear; KalmanFilter is exact and takes LinearObservation ({instead})"
            )
        if not model.starts_exactly():
            raise TypeError(
                f"KalmanFilter: `initial` is {type(model.initial).__name__}; KalmanFilter is exact and "
                f"takes a Gaussian, Delta or diffuse start ({instead}, which matches its moments)"
            )

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        return gaussian.start(model, dtype, self.square_root, self.adaptive)

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        predict = gaussian.predict if self.adaptive is None else gaussian.predict_adaptively
        return predict(model, belief, interval, Taylor())

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        update = gaussian.update if self.adaptive is None else gaussian.update_adaptively
        return update(model, belief, t, u, y, Taylor(), 1, self.outliers)

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        return gaussian.predict_observation(model, belief, t, u, Taylor())
