"""The Kalman filter parallel in time."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import is_traced
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters import gaussian
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.initial import Diffuse
from filterdyn.linearization import Taylor
from filterdyn.model import StateSpaceModel

_NAME = "ParallelKalmanFilter"


class ParallelKalmanFilter(AbstractFilter):
    """The exact filter of a linear Gaussian model, computed for all rows at once.

    An associative scan (Särkkä, García-Fernández 2021) with square-root elements (Yaghoobi, Corenflos,
    Hassan, Särkkä 2022) takes about log2 T rounds where `KalmanFilter` takes T steps. It does many
    times the work, so it is for accelerators: on a CPU it is the slower one.

    On ill-conditioned problems such a scan can be finite and wrong. So one ordinary step is made in
    every row, from the scan's belief in the row before: results, the log-likelihood among them, are
    those of these steps. Where they contradict the scan its means are corrected once, and where that
    is not enough the series fails from that row on with `Status.PARALLEL_INACCURATE`. `KalmanFilter`
    is right there.

    `smooth` is parallel and checked in the same way; `sample_paths` draws row by row.
    """

    tolerance: float | None = eqx.field(static=True)

    def __init__(self, tolerance: float | None = None):
        """**Arguments:** `tolerance`: how far a reported number may be from that of the sequential
        filter: means in standard deviations, covariances relative to the standard deviations,
        log-likelihoods of a row relative to themselves or, if these are below one, in nats. `None` is
        1e-6 in float64 and 1e-2 in float32.

        **Raises:** `ValueError` unless it is a positive number below 1.
        """
        self.tolerance = check_tolerance(_NAME, tolerance)

    def tolerance_in(self, dtype: jnp.dtype) -> float:
        """The tolerance, or the default of a precision."""
        return default_tolerance(dtype) if self.tolerance is None else self.tolerance

    def check(self, model: StateSpaceModel) -> None:
        """**Raises:** also `ValueError` for a diffuse start, which needs the rows in order."""
        for part, what in ((model.dynamics, "dynamics"), (model.observation, "observation")):
            if not part.is_linear:
                raise TypeError(
                    f"{_NAME}: `{what}` is {type(part).__name__}, which may be nonlinear; takes "
                    "LinearTransition or LinearSDE dynamics and LinearObservation (use "
                    "fd.ExtendedKalmanFilter())"
                )
        if not model.starts_exactly():
            raise TypeError(
                f"{_NAME}: `initial` is {type(model.initial).__name__}; takes a Gaussian or Delta start "
                "(use fd.ExtendedKalmanFilter(), which matches its moments)"
            )
        if isinstance(model.initial, Diffuse):
            raise ValueError(
                f"{_NAME}: `initial` is Diffuse, which is resolved row by row; use fd.KalmanFilter()"
            )

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        return model.start(dtype)

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        return gaussian.predict(model, belief, interval, Taylor())

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        return gaussian.update(model, belief, t, u, y, Taylor())

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        return gaussian.predict_observation(model, belief, t, u, Taylor())


def check_tolerance(owner: str, tolerance: float | None) -> float | None:
    """**Raises:** `ValueError` unless it is a positive number below 1, or `None`."""
    if tolerance is None:
        return None
    if is_traced(tolerance) or not 0 < tolerance < 1:
        raise ValueError(
            f"{owner}: `tolerance` is {tolerance!r}; expected a number between 0 and 1"
        )
    return float(tolerance)


def default_tolerance(dtype: jnp.dtype) -> float:
    """What a parallel filter may be off by, in a precision."""
    return 1e-6 if dtype == jnp.float64 else 1e-2
