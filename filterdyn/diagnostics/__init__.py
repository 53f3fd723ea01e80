"""Diagnostics of filters and models."""

from filterdyn.diagnostics.calibration import PIT, Coverage, coverage, pit
from filterdyn.diagnostics.confounding import Confounding, confounding
from filterdyn.diagnostics.consistency import ConsistencyReport, Fault, consistency_report
from filterdyn.diagnostics.gradient_check import (
    GradientCheck,
    GradientOfMode,
    gradient_check,
)
from filterdyn.diagnostics.identifiability import Identifiability, identifiability
from filterdyn.diagnostics.input_correlation import InputCorrelation, input_correlation
from filterdyn.diagnostics.invariants import InvariantCheck, check_invariant
from filterdyn.diagnostics.leave_future_out import leave_future_out
from filterdyn.diagnostics.mean_bias import MeanBias, mean_bias
from filterdyn.diagnostics.nees import NEES, nees
from filterdyn.diagnostics.nis import NIS, nis
from filterdyn.diagnostics.predictive_density import (
    ModelComparison,
    PredictiveDensity,
    compare,
    one_step_elpd,
)
from filterdyn.diagnostics.profile_likelihood import Profile, profile_likelihood
from filterdyn.diagnostics.rank_histogram import RankHistogram, rank_histogram
from filterdyn.diagnostics.scores import Scores, scores
from filterdyn.diagnostics.simulation_based_calibration import (
    SimulationBasedCalibration,
    simulation_based_calibration,
)
from filterdyn.diagnostics.spread_skill import SpreadSkill, spread_skill
from filterdyn.diagnostics.verdict import SamplingCheck, Verdict, verdict
from filterdyn.diagnostics.whiteness import Whiteness, whiteness

__all__ = [
    # are the innovations what the filter says?
    "nis",
    "NIS",
    "whiteness",
    "Whiteness",
    "mean_bias",
    "MeanBias",
    "input_correlation",
    "InputCorrelation",
    # are predictions and estimates calibrated?
    "pit",
    "PIT",
    "coverage",
    "Coverage",
    "nees",
    "NEES",
    # how good is a prediction?
    "scores",
    "Scores",
    # is an ensemble as wide as it is wrong?
    "spread_skill",
    "SpreadSkill",
    "rank_histogram",
    "RankHistogram",
    # what is wrong?
    "confounding",
    "consistency_report",
    "Confounding",
    "ConsistencyReport",
    "Fault",
    # can the data tell?
    "identifiability",
    "Identifiability",
    "profile_likelihood",
    "Profile",
    # may these draws of a posterior be used?
    "verdict",
    "Verdict",
    "SamplingCheck",
    # does inference give back what it was told?
    "simulation_based_calibration",
    "SimulationBasedCalibration",
    # which of several models predicts best?
    "leave_future_out",
    "one_step_elpd",
    "PredictiveDensity",
    "compare",
    "ModelComparison",
    # does a field keep what it states?
    "check_invariant",
    "InvariantCheck",
    # is the gradient of a particle filter worth following?
    "gradient_check",
    "GradientCheck",
    "GradientOfMode",
]
