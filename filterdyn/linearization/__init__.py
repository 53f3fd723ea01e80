"""Rules that turn a nonlinear map and a Gaussian into moments."""

from filterdyn.linearization.base import AbstractLinearization, Affine
from filterdyn.linearization.taylor import Taylor

__all__ = ["AbstractLinearization", "Affine", "Taylor"]
