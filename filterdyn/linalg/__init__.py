"""Small dense kernels. A covariance is carried as a `PSD`: its factor holds the value, its matrix
the derivative."""

from filterdyn.linalg.condition import (
    Known,
    condition,
    condition_given,
    known_part,
    without_correlation,
)
from filterdyn.linalg.conditioned import Conditioned
from filterdyn.linalg.discretize import Discretized, discretize
from filterdyn.linalg.products import FUSED, by_columns, mm, mv, times
from filterdyn.linalg.psd import PSD, DiffusePart, congruence, factor_of
from filterdyn.linalg.regression import Regression, regress
from filterdyn.linalg.robust import condition_robustly
from filterdyn.linalg.sampling import sampling_factor
from filterdyn.linalg.surrogate import ACCURATE, accurately, with_derivative_of
from filterdyn.linalg.triangularize import triangularize

__all__ = [
    "ACCURATE",
    "FUSED",
    "PSD",
    "Conditioned",
    "DiffusePart",
    "Discretized",
    "Known",
    "Regression",
    "accurately",
    "by_columns",
    "condition",
    "condition_given",
    "condition_robustly",
    "congruence",
    "discretize",
    "factor_of",
    "known_part",
    "mm",
    "mv",
    "regress",
    "sampling_factor",
    "times",
    "triangularize",
    "with_derivative_of",
    "without_correlation",
]
