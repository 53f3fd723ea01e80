"""Rules that turn a nonlinear map and a Gaussian into moments."""

from filterdyn.linearization.base import (
    AbstractLinearization,
    AbstractSpreadRule,
    Affine,
    Linearized,
    beside,
    squared,
)
from filterdyn.linearization.cubature import Cubature
from filterdyn.linearization.gauss_hermite import GaussHermite
from filterdyn.linearization.second_order import SecondOrderTaylor
from filterdyn.linearization.sigma_points import AbstractSigmaPointRule
from filterdyn.linearization.taylor import Taylor
from filterdyn.linearization.unscented import Unscented

__all__ = [
    "AbstractLinearization",
    "AbstractSigmaPointRule",
    "AbstractSpreadRule",
    "Affine",
    "Cubature",
    "GaussHermite",
    "Linearized",
    "SecondOrderTaylor",
    "Taylor",
    "Unscented",
    "beside",
    "squared",
]
