"""dynamax: covariance form, `lax.scan`."""

import jax
import jax.numpy as jnp
from dynamax.linear_gaussian_ssm.inference import lgssm_filter, make_lgssm_params
from dynamax.nonlinear_gaussian_ssm import (
    ParamsNLGSSM,
    UKFHyperParams,
    extended_kalman_filter,
    unscented_kalman_filter,
)

from contestants import jitted

PACKAGE = "dynamax"


def _linear(problem, p, ys):
    params = make_lgssm_params(
        jnp.asarray(problem.m0), jnp.asarray(problem.P0), p["F"], p["Q"], p["H"], p["R"]
    )
    found = lgssm_filter(params, ys)
    return found.marginal_loglik, found.filtered_means, found.filtered_covariances


def linear(problem):
    whole = lambda p, ys: _linear(problem, p, ys)
    return jitted(lambda p, ys: whole(p, ys)[0], problem.parameters, problem.ys, whole)


def fleet(problem):
    value = lambda p, ys: jax.vmap(lambda y: _linear(problem, p, y)[0])(ys)
    return jitted(value, problem.parameters, problem.ys)


def _pendulum(problem, filter):
    def whole(p, ys):
        params = ParamsNLGSSM(
            jnp.asarray(problem.m0),
            jnp.asarray(problem.P0),
            lambda x: problem.move(jnp, x, p["gravity"]),
            p["Q"],
            lambda x: problem.see(jnp, x),
            p["R"],
        )
        found = filter(params, ys)
        return found.marginal_loglik, found.filtered_means, found.filtered_covariances

    return jitted(lambda p, ys: whole(p, ys)[0], problem.parameters, problem.ys, whole)


def extended(problem):
    return _pendulum(problem, extended_kalman_filter)


def unscented(problem):
    same_points = UKFHyperParams(alpha=1.0, beta=0.0, kappa=1.0)
    return _pendulum(problem, lambda params, ys: unscented_kalman_filter(params, ys, same_points))
