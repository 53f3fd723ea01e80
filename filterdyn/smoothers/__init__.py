"""Smoothers: the states given the whole series."""

from filterdyn.smoothers import ensemble as _ensemble  # noqa: F401  (registers what it can do)
from filterdyn.smoothers import particle as _particle  # noqa: F401  (registers what it can do)
from filterdyn.smoothers.conditional import conditional_path
from filterdyn.smoothers.results import SmootherResult
from filterdyn.smoothers.verbs import sample_paths, smooth

__all__ = ["SmootherResult", "conditional_path", "sample_paths", "smooth"]
