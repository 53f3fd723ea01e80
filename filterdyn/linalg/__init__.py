"""Small dense kernels. A covariance is carried as a `PSD`: its factor holds the value, its matrix
the derivative."""

from filterdyn.linalg.condition import condition
from filterdyn.linalg.conditioned import Conditioned
from filterdyn.linalg.discretize import Discretized, discretize
from filterdyn.linalg.products import FUSED, mm, mv
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
    "Regression",
    "accurately",
    "condition",
    "condition_robustly",
    "congruence",
    "discretize",
    "factor_of",
    "mm",
    "mv",
    "regress",
    "sampling_factor",
    "triangularize",
    "with_derivative_of",
]
