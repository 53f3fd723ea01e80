"""Learning while it runs: parameters that are not known, and move."""

from filterdyn.learning.augmented import AugmentedFilter
from filterdyn.learning.evolution import Forgetting, RandomWalk, Shrinkage
from filterdyn.learning.joint import augmented
from filterdyn.learning.model import ParametricModel
from filterdyn.learning.parameters import ParameterEstimate, ParameterSpace

__all__ = [
    "AugmentedFilter",
    "Forgetting",
    "ParameterEstimate",
    "ParameterSpace",
    "ParametricModel",
    "RandomWalk",
    "Shrinkage",
    "augmented",
]
