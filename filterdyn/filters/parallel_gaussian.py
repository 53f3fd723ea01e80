"""Extended and sigma-point filters parallel in time."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import check_count
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.cubature import CubatureKalmanFilter
from filterdyn.filters.extended import ExtendedKalmanFilter
from filterdyn.filters.gauss_hermite import GaussHermiteKalmanFilter
from filterdyn.filters.parallel import check_tolerance, default_tolerance
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.filters.unscented import UnscentedKalmanFilter
from filterdyn.initial import Diffuse
from filterdyn.linearization import AbstractLinearization, Taylor
from filterdyn.model import StateSpaceModel

_NAME = "ParallelGaussianFilter"
_FILTERS = (
    ExtendedKalmanFilter,
    UnscentedKalmanFilter,
    CubatureKalmanFilter,
    GaussHermiteKalmanFilter,
)


class ParallelGaussianFilter(AbstractFilter):
    """What an extended or a sigma-point filter computes, for all rows at once.

    The model is made affine in all rows and filtered by the associative scan of `ParallelKalmanFilter`,
    which gives better beliefs to make it affine at (Yaghoobi, Corenflos, Hassan, Särkkä 2021, 2022, who
    do so for the smoother). Moves are linearised at the filtered beliefs and measurements at the
    predicted ones, so what this converges to is the sequential `filter` itself, with its likelihood. A
    first guess comes from stretches of rows that are filtered side by side. Where a filter forgets its
    errors within a hundred rows that leaves 1 to 10 iterations; what it never forgets (how often a
    pendulum has gone round) may take too many.

    Then one ordinary step of `filter` is made in every row, as in `ParallelKalmanFilter`: results are
    those of these steps, and a series fails from the first row on where they say that it is off by more
    than `tolerance`, with `Status.ITERATIONS_NOT_CONVERGED` if `max_iterations` were not enough and
    `Status.PARALLEL_INACCURATE` otherwise. Derivatives are those of the sequential filter too, whatever
    the number of iterations.

    `smooth` is parallel and checked in the same way, in all of its `iterations`.
    The check takes the Jacobian of a step in mean and covariance, (dx (dx + 3) / 2)^2 numbers in every
    row, so this is for a few states.
    """

    filter: AbstractFilter
    max_iterations: int = eqx.field(static=True)
    tolerance: float | None = eqx.field(static=True)

    def __init__(
        self,
        filter: AbstractFilter | None = None,
        *,
        max_iterations: int = 30,
        tolerance: float | None = None,
    ):
        """**Arguments:**

        - `filter`: `ExtendedKalmanFilter()` (the default), `UnscentedKalmanFilter()`,
          `CubatureKalmanFilter()` or `GaussHermiteKalmanFilter()`, with one iteration, in square-root
          form, without an outlier rule and without `AdaptiveNoise`;
        - `max_iterations`: of the scan, at most;
        - `tolerance`: as for `ParallelKalmanFilter`.

        **Raises:** `TypeError` for another filter, `ValueError` for other values and for a filter with
        one of these settings.
        """
        filter = ExtendedKalmanFilter() if filter is None else filter
        if not isinstance(filter, _FILTERS):
            name = getattr(filter, "__name__", type(filter).__name__)
            raise TypeError(
                f"{_NAME}: `filter` is {name}; expected an extended or a sigma-point filter, such as "
                "fd.ExtendedKalmanFilter() (for a linear model use fd.ParallelKalmanFilter())"
            )
        plain = {"iterations": 1, "square_root": True, "outliers": None, "adaptive": None}
        for name, value in plain.items():
            if getattr(filter, name, value) != value:
                raise ValueError(
                    f"{_NAME}: `filter` has {name}={getattr(filter, name)!r}; expected {value!r} (with "
                    f"other values it goes row by row: use the {type(filter).__name__} itself)"
                )
        self.filter = filter
        self.max_iterations = check_count(_NAME, "max_iterations", max_iterations)
        self.tolerance = check_tolerance(_NAME, tolerance)

    @property
    def rule(self) -> AbstractLinearization:
        """How the filter linearises."""
        return getattr(self.filter, "rule", Taylor())

    def tolerance_in(self, dtype: jnp.dtype) -> float:
        """The tolerance, or the default of a precision."""
        return default_tolerance(dtype) if self.tolerance is None else self.tolerance

    def check(self, model: StateSpaceModel) -> None:
        """**Raises:** also `ValueError` for a diffuse start, which needs the rows in order."""
        self.filter.check(model)
        if isinstance(model.initial, Diffuse):
            raise ValueError(
                f"{_NAME}: `initial` is Diffuse, which is resolved row by row; use "
                f"fd.{type(self.filter).__name__}()"
            )

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        return self.filter.init(model, dtype)

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        return self.filter.predict(model, belief, interval)

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        return self.filter.update(model, belief, t, u, y)

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        return self.filter.predict_observation(model, belief, t, u)
