"""Learning while it runs: parameters that are not known, and move."""

from filterdyn.learning.alarms import Alarm, ChangeKind
from filterdyn.learning.augmented import AugmentedFilter
from filterdyn.learning.conjugate import (
    BetaStatistics,
    GammaStatistics,
    InverseGammaStatistics,
)
from filterdyn.learning.conjugate_regression import (
    MatrixNormalInverseWishartStatistics,
    NormalInverseGammaStatistics,
    NormalStatistics,
)
from filterdyn.learning.dual import DualFilter
from filterdyn.learning.evolution import Forgetting, RandomWalk, Shrinkage
from filterdyn.learning.jitter import Jitter
from filterdyn.learning.joint import augmented
from filterdyn.learning.low_rank import LowRankWeightFilter
from filterdyn.learning.model import ParametricModel
from filterdyn.learning.nested import NestedParticleFilter
from filterdyn.learning.parameters import ParameterEstimate, ParameterSpace
from filterdyn.learning.particle_learning import ParticleLearning
from filterdyn.learning.recursive_least_squares import RecursiveLeastSquares
from filterdyn.learning.recursive_likelihood import RecursiveMaximumLikelihood
from filterdyn.learning.recursive_prediction_error import RecursivePredictionError
from filterdyn.learning.regression import Autoregression, Regression
from filterdyn.learning.statistics import AbstractStatistics, Passage
from filterdyn.learning.variational import OnlineVariationalFilter
from filterdyn.learning.watched import WatchedFilter
from filterdyn.learning.weights import WeightEstimate

__all__ = [
    "AbstractStatistics",
    "Alarm",
    "AugmentedFilter",
    "Autoregression",
    "BetaStatistics",
    "ChangeKind",
    "DualFilter",
    "Forgetting",
    "GammaStatistics",
    "InverseGammaStatistics",
    "Jitter",
    "LowRankWeightFilter",
    "MatrixNormalInverseWishartStatistics",
    "NestedParticleFilter",
    "NormalInverseGammaStatistics",
    "NormalStatistics",
    "OnlineVariationalFilter",
    "ParameterEstimate",
    "ParameterSpace",
    "ParametricModel",
    "ParticleLearning",
    "Passage",
    "RandomWalk",
    "RecursiveLeastSquares",
    "RecursiveMaximumLikelihood",
    "RecursivePredictionError",
    "Regression",
    "Shrinkage",
    "WatchedFilter",
    "WeightEstimate",
    "augmented",
]
