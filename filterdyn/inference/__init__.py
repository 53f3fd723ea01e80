"""Inference with NumPyro: a state-space model as a distribution over series."""

from filterdyn.inference.datatree import to_datatree
from filterdyn.inference.observed_series import ObservedSeries

__all__ = ["ObservedSeries", "to_datatree"]
