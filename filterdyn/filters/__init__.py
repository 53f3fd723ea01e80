"""Filters move a belief; the verbs apply them to a series."""

from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.extended import ExtendedKalmanFilter
from filterdyn.filters.kalman import KalmanFilter
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.filters.results import FilterResult
from filterdyn.filters.verbs import filter, log_likelihood

__all__ = [
    "AbstractFilter",
    "ExtendedKalmanFilter",
    "FilterResult",
    "KalmanFilter",
    "PredictedObservation",
    "filter",
    "log_likelihood",
]
