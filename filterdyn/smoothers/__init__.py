"""Smoothers: the states given the whole series."""

from filterdyn.smoothers.results import SmootherResult
from filterdyn.smoothers.verbs import sample_paths, smooth

__all__ = ["SmootherResult", "sample_paths", "smooth"]
