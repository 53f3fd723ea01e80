"""Filters move a belief; the verbs apply them to a series."""

from typing import TYPE_CHECKING

from filterdyn._lazy import lazily

if TYPE_CHECKING:
    from filterdyn.filters.adaptive import AdaptiveNoise, NoiseFactors
    from filterdyn.filters.base import AbstractFilter
    from filterdyn.filters.cubature import CubatureKalmanFilter
    from filterdyn.filters.ensemble import EnsembleKalmanFilter
    from filterdyn.filters.extended import ExtendedKalmanFilter
    from filterdyn.filters.gauss_hermite import GaussHermiteKalmanFilter
    from filterdyn.filters.kalman import KalmanFilter
    from filterdyn.filters.learned import AbstractLearnedFilter
    from filterdyn.filters.learned_gain import LearnedGainFilter
    from filterdyn.filters.learned_noise import LearnedNoiseFilter
    from filterdyn.filters.parallel import ParallelKalmanFilter
    from filterdyn.filters.parallel_gaussian import ParallelGaussianFilter
    from filterdyn.filters.particle import ParticleFilter
    from filterdyn.filters.path_methods import (
        BackwardChain,
        BackwardRejection,
        BackwardSmoothing,
        FixedLag,
        TwoFilter,
    )
    from filterdyn.filters.predicted import PredictedObservation
    from filterdyn.filters.rao_blackwellized import GaussianMixture, RaoBlackwellizedParticleFilter
    from filterdyn.filters.results import FilterResult
    from filterdyn.filters.sampling import AbstractSamplingFilter
    from filterdyn.filters.unscented import UnscentedKalmanFilter
    from filterdyn.filters.verbs import filter, log_likelihood

__all__ = [
    "AbstractFilter",
    "AbstractLearnedFilter",
    "AbstractSamplingFilter",
    "AdaptiveNoise",
    "BackwardChain",
    "BackwardRejection",
    "BackwardSmoothing",
    "CubatureKalmanFilter",
    "EnsembleKalmanFilter",
    "ExtendedKalmanFilter",
    "FilterResult",
    "FixedLag",
    "GaussHermiteKalmanFilter",
    "GaussianMixture",
    "KalmanFilter",
    "LearnedGainFilter",
    "LearnedNoiseFilter",
    "NoiseFactors",
    "ParallelGaussianFilter",
    "ParallelKalmanFilter",
    "ParticleFilter",
    "PredictedObservation",
    "RaoBlackwellizedParticleFilter",
    "TwoFilter",
    "UnscentedKalmanFilter",
    "filter",
    "log_likelihood",
]

lazily(__name__)
