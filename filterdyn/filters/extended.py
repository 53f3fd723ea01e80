"""The extended Kalman filter: linearisation by Taylor expansion, of first or second order."""

from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters import gaussian
from filterdyn.filters.adaptive import AdaptiveNoise, check_adaptive
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.filters.spread import check_spread_rule
from filterdyn.linearization import AbstractLinearization, SecondOrderTaylor, Taylor
from filterdyn.model import StateSpaceModel
from filterdyn.outliers import AbstractOutlierRule, check_outliers


class ExtendedKalmanFilter(AbstractFilter):
    """The extended Kalman filter (Jazwinski 1970), in square-root form, for any dynamics and
    observation.

    Exact on linear Gaussian models. An observation that is not Gaussian enters by its conditional
    mean and covariance.

    Of second order (`order=2`) it sees that a function bends over the spread of the belief: with H_i
    the second derivatives of entry i, tr(H_i P) / 2 is added to its mean and tr(H_i P H_j P) / 2 to the
    covariance, in prediction, update and smoothing alike (Jazwinski 1970; Roth, Gustafsson 2011; Särkkä,
    Svensson 2023, algorithm 7.8). It is exact for the moments of quadratic functions. An `ODE` is
    expanded from row to row, an `SDE` has its moment equations expanded, in fixed steps; conditional
    covariances are averaged over the belief. In d states it needs d (d + 1) / 2 columns of error and
    d^2 second derivatives.
    """

    iterations: int = eqx.field(static=True)
    order: int = eqx.field(static=True)
    square_root: bool = eqx.field(static=True)
    outliers: AbstractOutlierRule | None
    adaptive: AdaptiveNoise | None

    def __init__(
        self,
        iterations: int = 1,
        *,
        order: Literal[1, 2] = 1,
        square_root: bool = True,
        outliers: AbstractOutlierRule | None = None,
        adaptive: AdaptiveNoise | None = None,
    ):
        """**Arguments:**

        - `iterations`: how often the observation is linearised; 1 is the extended Kalman filter, more
          is the iterated one (Gauss-Newton steps towards the posterior mode). With `order=2` terms of
          second order are then those under the belief after the measurement;
        - `order`: 1 or 2, the degree of the expansion;
        - `square_root`, `outliers`, `adaptive`: as for `KalmanFilter`.

        **Raises:** `ValueError` unless `iterations` is an integer >= 1 and `order` 1 or 2.
        """
        if not isinstance(iterations, int) or iterations < 1:
            raise ValueError(
                f"ExtendedKalmanFilter: `iterations` is {iterations!r}; expected an integer >= 1"
            )
        if isinstance(order, bool) or order not in (1, 2):
            raise ValueError(f"ExtendedKalmanFilter: `order` is {order!r}; expected 1 or 2")
        self.iterations = iterations
        self.order = int(order)
        self.square_root = square_root
        self.outliers = check_outliers("ExtendedKalmanFilter", outliers)
        self.adaptive = check_adaptive("ExtendedKalmanFilter", adaptive)

    @property
    def rule(self) -> AbstractLinearization:
        """How it linearises."""
        return Taylor() if self.order == 1 else SecondOrderTaylor()

    def check(self, model: StateSpaceModel) -> None:
        """Every model is accepted, with `order=2` every one that does not start diffuse or is linear."""
        if self.order == 2:
            check_spread_rule("ExtendedKalmanFilter(order=2)", model, SecondOrderTaylor())

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        return gaussian.start(model, dtype, self.square_root, self.adaptive)

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        predict = gaussian.predict if self.adaptive is None else gaussian.predict_adaptively
        return predict(model, belief, interval, self.rule)

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        update = gaussian.update if self.adaptive is None else gaussian.update_adaptively
        return update(model, belief, t, u, y, self.rule, self.iterations, self.outliers)

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        return gaussian.predict_observation(model, belief, t, u, self.rule)
