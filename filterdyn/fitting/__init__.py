"""Fitting a model by gradient descent on what a filter says of it."""

from filterdyn.fitting.results import FitResult, FitState
from filterdyn.fitting.training import fit

__all__ = ["FitResult", "FitState", "fit"]
