"""statsmodels: compiled Cython. It stops updating covariances when they have converged."""

import numpy as np
from statsmodels.tsa.statespace.kalman_filter import KalmanFilter

from contestants import Runs

PACKAGE = "statsmodels"


def linear(problem):
    dx, dy = len(problem.F), len(problem.H)
    filter = KalmanFilter(
        k_endog=dy,
        k_states=dx,
        initialization="known",
        initial_state=problem.m0,
        initial_state_cov=problem.P0,
        design=problem.H,
        obs_cov=problem.R,
        transition=problem.F,
        selection=np.eye(dx),
        state_cov=problem.Q,
    )
    filter.bind(problem.ys)

    def moments():
        found = filter.filter()
        return found.llf, found.filtered_state.T, np.moveaxis(found.filtered_state_cov, -1, 0)

    return Runs(filter.loglike, None, moments)
