"""Fitting a model by gradient descent on what a filter says of it."""

from filterdyn.fitting.training import fit
from filterdyn.fitting.results import FitResult, FitState

__all__ = ["FitResult", "FitState", "fit"]
