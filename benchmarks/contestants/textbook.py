"""What one writes in an afternoon: `lax.scan` over the textbook's recursion with a Cholesky factor."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from contestants import jitted

PACKAGE = "jax"


def _scan(move, see, Q, R, m0, P0, ys):
    """`move(m)` and `see(m)` return a value and its Jacobian."""

    def step(carry, y):
        m, P, total = carry
        expected, H = see(m)
        factor = jnp.linalg.cholesky(H @ P @ H.T + R)
        half_gain = solve_triangular(factor, H @ P, lower=True)
        white = solve_triangular(factor, y - expected, lower=True)
        m, P = m + half_gain.T @ white, P - half_gain.T @ half_gain
        log_det = jnp.log(jnp.diag(factor)).sum()
        total += -0.5 * white @ white - log_det - 0.5 * len(y) * np.log(2 * np.pi)
        ahead, F = move(m)
        return (ahead, F @ P @ F.T + Q, total), (m, P)

    start = (jnp.asarray(m0), jnp.asarray(P0), jnp.zeros(()))
    (_, _, total), beliefs = jax.lax.scan(step, start, ys)
    return total, *beliefs


def _linear(problem, p, ys):
    move = lambda m: (p["F"] @ m, p["F"])
    see = lambda m: (p["H"] @ m, p["H"])
    return _scan(move, see, p["Q"], p["R"], problem.m0, problem.P0, ys)


def linear(problem):
    whole = lambda p, ys: _linear(problem, p, ys)
    return jitted(lambda p, ys: whole(p, ys)[0], problem.parameters, problem.ys, whole)


def fleet(problem):
    value = lambda p, ys: jax.vmap(lambda y: _linear(problem, p, y)[0])(ys)
    return jitted(value, problem.parameters, problem.ys)


def extended(problem):
    def whole(p, ys):
        f = lambda x: problem.move(jnp, x, p["gravity"])
        h = lambda x: problem.see(jnp, x)
        move = lambda m: (f(m), jax.jacfwd(f)(m))
        see = lambda m: (h(m), jax.jacfwd(h)(m))
        return _scan(move, see, p["Q"], p["R"], problem.m0, problem.P0, ys)

    return jitted(lambda p, ys: whole(p, ys)[0], problem.parameters, problem.ys, whole)
