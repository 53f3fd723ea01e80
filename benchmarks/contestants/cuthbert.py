"""cuthbert: square-root form. It predicts before it updates, so the first row is taken off by hand."""

import jax.numpy as jnp
from cuthbert import filtering
from cuthbert.gaussian import kalman, moments
from problems import update

from contestants import jitted

PACKAGE = "cuthbert"


def _start(problem, H, p, y):
    m, P, first = update(problem.m0, problem.P0, y, H, p["R"], jnp)
    return m, jnp.linalg.cholesky(0.5 * (P + P.T)), first


def _run(filter, ys, first):
    states = filtering.filter(filter, ys[1:], filter.init_prepare())
    factors = states.chol_cov
    covs = factors @ factors.swapaxes(-1, -2)
    return states.log_normalizing_constant[-1] + first, states.mean, covs


def linear(problem):
    def whole(p, ys):
        m, factor, first = _start(problem, p["H"], p, ys[0])
        chol_q, chol_r = jnp.linalg.cholesky(p["Q"]), jnp.linalg.cholesky(p["R"])
        filter = kalman.build_filter(
            m,
            factor,
            lambda y: (p["F"], jnp.zeros(len(m)), chol_q),
            lambda y: (p["H"], jnp.zeros(len(chol_r)), chol_r, y),
        )
        return _run(filter, ys, first)

    return jitted(lambda p, ys: whole(p, ys)[0], problem.parameters, problem.ys, whole)


def extended(problem):
    def whole(p, ys):
        slope = jnp.cos(problem.m0[0]) * jnp.array([[1.0, 0.0]])
        shifted = ys[0] - problem.see(jnp, problem.m0) + slope @ problem.m0
        m, factor, first = _start(problem, slope, p, shifted)
        chol_q, chol_r = jnp.linalg.cholesky(p["Q"]), jnp.linalg.cholesky(p["R"])
        move = lambda x: (problem.move(jnp, x, p["gravity"]), chol_q)
        see = lambda x: (problem.see(jnp, x), chol_r)
        filter = moments.build_filter(
            m,
            factor,
            lambda state, y: (move, state.mean),
            lambda state, y: (see, state.mean, y),
        )
        return _run(filter, ys, first)

    return jitted(lambda p, ys: whole(p, ys)[0], problem.parameters, problem.ys, whole)
