"""How a state is seen: observation models and what a Gaussian filter needs of them."""

from filterdyn.observations.additive import affine_offset, matrix
from filterdyn.observations.base import AbstractObservation, LinearizedObservation
from filterdyn.observations.gaussian import GaussianObservation
from filterdyn.observations.general import Observation, conditional_is_joint, masked_log_prob
from filterdyn.observations.linear import LinearObservation

__all__ = [
    "AbstractObservation",
    "GaussianObservation",
    "LinearObservation",
    "LinearizedObservation",
    "Observation",
    "affine_offset",
    "conditional_is_joint",
    "masked_log_prob",
    "matrix",
]
