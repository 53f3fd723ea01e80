"""Inference: a state-space model as a distribution over series, for NumPyro; and parameters of a forward
map without derivatives."""

from typing import TYPE_CHECKING

from filterdyn._lazy import lazily

if TYPE_CHECKING:
    from filterdyn.inference.anchored_ensemble import Ensemble, ensemble
    from filterdyn.inference.datatree import to_datatree as to_datatree
    from filterdyn.inference.ensemble_inversion import Inversion, ensemble_kalman_inversion
    from filterdyn.inference.evidence import LogEvidence, log_evidence
    from filterdyn.inference.forecast_paths import forecast_paths
    from filterdyn.inference.found_terms import FoundTerms
    from filterdyn.inference.gaussian_path import GaussianPath
    from filterdyn.inference.horseshoe import horseshoe_regression
    from filterdyn.inference.iterated_filtering import IteratedFiltering, iterated_filtering
    from filterdyn.inference.iterative_smoother import iterative_ensemble_smoother
    from filterdyn.inference.laplace_approximation import Laplace, laplace
    from filterdyn.inference.latent_path import LatentPath as LatentPath
    from filterdyn.inference.likelihood_noise import log_likelihood_sd
    from filterdyn.inference.observed_series import ObservedSeries as ObservedSeries
    from filterdyn.inference.orthogonality import orthogonality
    from filterdyn.inference.particle_metropolis import ParticleMetropolis
    from filterdyn.inference.path_bound import PathBound, path_elbo
    from filterdyn.inference.path_encoder import PathEncoder, SeriesContext
    from filterdyn.inference.path_observations import PathObservations as PathObservations
    from filterdyn.inference.path_reparam import PathReparam
    from filterdyn.inference.path_update import path_update
    from filterdyn.inference.posterior_sde import PosteriorSDE
    from filterdyn.inference.predictive import posterior_predictive, prior_predictive
    from filterdyn.inference.random_weights import random_weights, weights_of, with_weights
    from filterdyn.inference.sequential_posterior import SequentialPosterior, sequential_posterior
    from filterdyn.inference.sparse_regression import thresholded_least_squares
    from filterdyn.inference.term_regression import TermRegression, pointwise_regression
    from filterdyn.inference.terms import TermField, TermLibrary
    from filterdyn.inference.total_moments import (
        PredictiveMoments,
        TotalMoments,
        predictive_moments,
        total_moments,
    )
    from filterdyn.inference.variational_series import VariationalSeries
    from filterdyn.inference.weak_form import weak_regression

# What is called `fd.ObservedSeries` has that one name only.
__all__ = [
    "Ensemble",
    "FoundTerms",
    "GaussianPath",
    "Inversion",
    "IteratedFiltering",
    "Laplace",
    "LogEvidence",
    "ParticleMetropolis",
    "PathBound",
    "PathEncoder",
    "PathReparam",
    "PosteriorSDE",
    "PredictiveMoments",
    "SequentialPosterior",
    "SeriesContext",
    "TermField",
    "TermLibrary",
    "TermRegression",
    "TotalMoments",
    "VariationalSeries",
    "ensemble",
    "ensemble_kalman_inversion",
    "forecast_paths",
    "horseshoe_regression",
    "iterated_filtering",
    "iterative_ensemble_smoother",
    "laplace",
    "log_evidence",
    "log_likelihood_sd",
    "orthogonality",
    "path_elbo",
    "path_update",
    "pointwise_regression",
    "posterior_predictive",
    "predictive_moments",
    "prior_predictive",
    "random_weights",
    "sequential_posterior",
    "thresholded_least_squares",
    "total_moments",
    "weak_regression",
    "weights_of",
    "with_weights",
]

lazily(__name__)
