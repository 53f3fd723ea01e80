"""filterpy: NumPy, one Python call per step."""

import numpy as np
from filterpy.kalman import KalmanFilter

from contestants import Runs

PACKAGE = "filterpy"


def make(problem):
    dx, dy = len(problem.F), len(problem.H)
    filter = KalmanFilter(dim_x=dx, dim_z=dy)
    filter.F, filter.H, filter.Q, filter.R = problem.F, problem.H, problem.Q, problem.R
    filter.x, filter.P = problem.m0.copy(), problem.P0.copy()
    return filter


def linear(problem):
    def moments():
        filter = make(problem)
        total, means, covs = 0.0, [], []
        for row, y in enumerate(problem.ys):
            if row:
                filter.predict()
            filter.update(y)
            total += filter.log_likelihood
            means.append(filter.x)
            covs.append(filter.P)
        return total, np.stack(means), np.stack(covs)

    return Runs(lambda: moments()[0], None, moments)
