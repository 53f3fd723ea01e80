"""kalman-py on its JAX back end. It predicts before it updates, so the first row is taken off by hand.

Its public call returns all moments with the log-likelihood and has no gradient. The compiled function
behind it, which its own `fit_noise` differentiates, is measured beside it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from kalman_py import ExtendedKalmanFilter, KalmanFilter, UnscentedKalmanFilter
from kalman_py.backends import jax_backend
from problems import update

from contestants import Runs, jitted

PACKAGE = "kalman-py"


def linear(problem):
    m, P, first = update(problem.m0, problem.P0, problem.ys[0], problem.H, problem.R)
    filter = KalmanFilter(problem.F, problem.H, problem.Q, problem.R, m, P)
    return _public(problem, lambda ys: filter.filter(ys, backend="jax"), first)


def linear_inside(problem):
    def value(p, ys):
        m, P, first = update(problem.m0, problem.P0, ys[0], p["H"], p["R"], jnp)
        rest = jax_backend._kalman_filter(
            p["F"], p["H"], p["Q"], p["R"], m, P, ys[1:], square_root=False
        )
        return rest.log_likelihood + first

    return jitted(value, problem.parameters, problem.ys)


def _public(problem, filter, first):
    rest = jnp.asarray(problem.ys[1:])

    def moments():
        found = jax.block_until_ready(filter(rest))
        return found.log_likelihood + first, found.means, found.covs

    return Runs(lambda: moments()[0], None, moments)


def _pendulum(problem, kind, m, P, first, **options):
    move = lambda x, dt: problem.move(jnp, x, problem.gravity)
    see = lambda x: problem.see(jnp, x)
    filter = kind(move, see, problem.Q, problem.R, m, P, **options)
    return _public(problem, lambda ys: filter.filter(ys, dt=problem.dt, backend="jax"), first)


def extended(problem):
    slope = np.cos(problem.m0[0]) * np.array([[1.0, 0.0]])
    shifted = problem.ys[0] - problem.see(np, problem.m0) + slope @ problem.m0
    start = update(problem.m0, problem.P0, shifted, slope, problem.R)
    return _pendulum(problem, ExtendedKalmanFilter, *start)


def unscented(problem):
    n = len(problem.m0)
    spread = np.sqrt(n + 1.0) * np.linalg.cholesky(problem.P0).T
    points = problem.m0 + np.concatenate([np.zeros((1, n)), spread, -spread])
    weights = np.array([1.0, *[0.5] * (2 * n)]) / (n + 1.0)
    seen = np.stack([problem.see(np, x) for x in points])
    expected = weights @ seen
    weighted = weights[:, None] * (seen - expected)
    S = (seen - expected).T @ weighted + problem.R
    gain = np.linalg.solve(S, weighted.T @ (points - problem.m0)).T
    innovation = problem.ys[0] - expected
    distance = innovation @ np.linalg.solve(S, innovation)
    first = -0.5 * (distance + np.log(np.linalg.det(2 * np.pi * S)))
    m, P = problem.m0 + gain @ innovation, problem.P0 - gain @ S @ gain.T
    same_points = dict(alpha=1.0, beta=0.0, kappa=1.0)
    return _pendulum(problem, UnscentedKalmanFilter, m, P, first, **same_points)
