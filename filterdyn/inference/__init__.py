"""Inference with NumPyro: a state-space model as a distribution over series."""

from filterdyn.inference.datatree import to_datatree
from filterdyn.inference.ensemble_inversion import Inversion, ensemble_kalman_inversion
from filterdyn.inference.iterative_smoother import iterative_ensemble_smoother
from filterdyn.inference.observed_series import ObservedSeries

__all__ = [
    "Inversion",
    "ObservedSeries",
    "ensemble_kalman_inversion",
    "iterative_ensemble_smoother",
    "to_datatree",
]
