"""simdkalman: NumPy, vectorised over series."""

import numpy as np
import simdkalman

from contestants import Runs

PACKAGE = "simdkalman"


def _runs(problem, batch):
    filter = simdkalman.KalmanFilter(
        state_transition=problem.F,
        process_noise=problem.Q,
        observation_model=problem.H,
        observation_noise=problem.R,
    )

    def moments():
        found = filter.compute(
            batch,
            0,
            initial_value=problem.m0,
            initial_covariance=problem.P0,
            smoothed=False,
            filtered=True,
            log_likelihood=True,
        )
        constant = 0.5 * np.log(2 * np.pi) * batch[0].size
        value = found.log_likelihood - constant
        return value, found.filtered.states.mean, found.filtered.states.cov

    return moments


def linear(problem):
    moments = _runs(problem, problem.ys[None])

    def first():
        value, means, covs = moments()
        return value[0], means[0], covs[0]

    return Runs(lambda: first()[0], None, first)


def fleet(problem):
    moments = _runs(problem, problem.ys)
    return Runs(lambda: moments()[0])
