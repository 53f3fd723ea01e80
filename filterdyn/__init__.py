"""filterdyn: probabilistic filtering and system identification in JAX and NumPyro."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

# First, before anything can start a back end of JAX.
from filterdyn._fusion import FusedLoops, fused_loops  # isort: skip

# It notes what JAX's state is while nothing is being traced.
from filterdyn import _compile as _compile
from filterdyn._lazy import lazily

if TYPE_CHECKING:
    from filterdyn import datasets, diagnostics, engines, fields, inference, plots, streams
    from filterdyn.angles import wrap_angle
    from filterdyn.beliefs import Ensemble, Gaussian, Particles
    from filterdyn.dynamics import (
        ODE,
        SDE,
        ConditionallyLinear,
        LinearSDE,
        LinearTransition,
        Transition,
    )
    from filterdyn.ensembles import AdaptiveInflation, GaspariCohn
    from filterdyn.filters import (
        AdaptiveNoise,
        BackwardChain,
        BackwardRejection,
        BackwardSmoothing,
        CubatureKalmanFilter,
        EnsembleKalmanFilter,
        ExtendedKalmanFilter,
        FilterResult,
        FixedLag,
        GaussHermiteKalmanFilter,
        GaussianMixture,
        KalmanFilter,
        LearnedGainFilter,
        LearnedNoiseFilter,
        ParallelGaussianFilter,
        ParallelKalmanFilter,
        ParticleFilter,
        PredictedObservation,
        RaoBlackwellizedParticleFilter,
        TwoFilter,
        UnscentedKalmanFilter,
        filter,
        log_likelihood,
    )
    from filterdyn.fitting import FitResult, fit
    from filterdyn.forecasting import Forecast, forecast
    from filterdyn.inference import LatentPath, ObservedSeries, PathObservations, to_datatree
    from filterdyn.initial import Diffuse, stationary
    from filterdyn.learning import (
        AbstractStatistics,
        Alarm,
        AugmentedFilter,
        Autoregression,
        BetaStatistics,
        ChangeKind,
        DualFilter,
        Forgetting,
        GammaStatistics,
        InverseGammaStatistics,
        Jitter,
        LowRankWeightFilter,
        MatrixNormalInverseWishartStatistics,
        NestedParticleFilter,
        NormalInverseGammaStatistics,
        NormalStatistics,
        OnlineVariationalFilter,
        ParameterEstimate,
        ParameterSpace,
        ParametricModel,
        ParticleLearning,
        Passage,
        RandomWalk,
        RecursiveLeastSquares,
        RecursiveMaximumLikelihood,
        RecursivePredictionError,
        Regression,
        Shrinkage,
        WatchedFilter,
        WeightEstimate,
        augmented,
    )
    from filterdyn.model import StateSpaceModel
    from filterdyn.moments import conditional_moments
    from filterdyn.observations import GaussianObservation, LinearObservation, Observation
    from filterdyn.online import (
        Arrival,
        BankResult,
        BankState,
        DropLate,
        EventStream,
        ExportedFilter,
        ExportedState,
        FilterBank,
        OnlineFilter,
        OnlineState,
        RejectLate,
        ReplayLate,
        StepResult,
        export,
        load_exported,
    )
    from filterdyn.outliers import Gate, HuberNoise, StudentTNoise
    from filterdyn.predictions import Predictions, free_run, predict
    from filterdyn.resampling import (
        Killing,
        Multinomial,
        OptimalTransport,
        Residual,
        SortedTransport,
        Stratified,
        Systematic,
    )
    from filterdyn.series import Series, stack
    from filterdyn.simulation import Simulation, simulate
    from filterdyn.smoothers import SmootherResult, conditional_path, sample_paths, smooth
    from filterdyn.status import Status

__version__ = _version("filterdyn")

__all__ = [
    # a record of measurements
    "Series",
    "stack",
    # a model
    "StateSpaceModel",
    "Diffuse",
    "stationary",
    # dynamics
    "Transition",
    "LinearTransition",
    "ODE",
    "SDE",
    "LinearSDE",
    "ConditionallyLinear",
    # observations
    "Observation",
    "GaussianObservation",
    "LinearObservation",
    "conditional_moments",
    "wrap_angle",
    # beliefs
    "Gaussian",
    "Ensemble",
    "Particles",
    "GaussianMixture",
    # filters
    "KalmanFilter",
    "ParallelKalmanFilter",
    "ParallelGaussianFilter",
    "ExtendedKalmanFilter",
    "UnscentedKalmanFilter",
    "CubatureKalmanFilter",
    "GaussHermiteKalmanFilter",
    "EnsembleKalmanFilter",
    "ParticleFilter",
    "RaoBlackwellizedParticleFilter",
    "LearnedNoiseFilter",
    "LearnedGainFilter",
    # what keeps an ensemble apart
    "GaspariCohn",
    "AdaptiveInflation",
    # how particles are resampled
    "Systematic",
    "Stratified",
    "Multinomial",
    "Residual",
    "Killing",
    "OptimalTransport",
    "SortedTransport",
    # how a particle filter looks back
    "BackwardSmoothing",
    "BackwardChain",
    "BackwardRejection",
    "TwoFilter",
    "FixedLag",
    # what a filter does about outliers, and about noise that nobody knows
    "Gate",
    "HuberNoise",
    "StudentTNoise",
    "AdaptiveNoise",
    # verbs
    "filter",
    "log_likelihood",
    "smooth",
    "sample_paths",
    "conditional_path",
    "forecast",
    "simulate",
    "predict",
    "free_run",
    "fit",
    # what they return
    "FilterResult",
    "FitResult",
    "SmootherResult",
    "Forecast",
    "Predictions",
    "PredictedObservation",
    "Simulation",
    "Status",
    # NumPyro
    "LatentPath",
    "ObservedSeries",
    "PathObservations",
    "to_datatree",
    # online
    "OnlineFilter",
    "OnlineState",
    "StepResult",
    "FilterBank",
    "BankState",
    "BankResult",
    "EventStream",
    "Arrival",
    "DropLate",
    "RejectLate",
    "ReplayLate",
    "export",
    "load_exported",
    "ExportedFilter",
    "ExportedState",
    # learning while it runs
    "ParametricModel",
    "ParameterEstimate",
    "ParameterSpace",
    "RandomWalk",
    "Forgetting",
    "Shrinkage",
    "AugmentedFilter",
    "NestedParticleFilter",
    "Jitter",
    "WatchedFilter",
    "Alarm",
    "ChangeKind",
    "ParticleLearning",
    "AbstractStatistics",
    "Passage",
    "InverseGammaStatistics",
    "GammaStatistics",
    "BetaStatistics",
    "NormalStatistics",
    "NormalInverseGammaStatistics",
    "MatrixNormalInverseWishartStatistics",
    "augmented",
    "RecursiveLeastSquares",
    "Regression",
    "Autoregression",
    "RecursivePredictionError",
    "RecursiveMaximumLikelihood",
    "OnlineVariationalFilter",
    "DualFilter",
    "LowRankWeightFilter",
    "WeightEstimate",
    # how it runs
    "fused_loops",
    "FusedLoops",
    # modules
    "datasets",
    "diagnostics",
    "fields",
    "inference",
    "plots",
    "streams",
    "engines",
]

lazily(__name__)
