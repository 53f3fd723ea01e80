"""filterdyn."""

import filterdyn as fd  # isort: skip  (before JAX starts, so that small loops are fused)

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from contestants import Runs, jitted

PACKAGE = "filterdyn"


def linear_model(problem, p):
    return fd.StateSpaceModel(
        dist.MultivariateNormal(problem.m0, problem.P0),
        fd.LinearTransition(p["F"], p["Q"]),
        fd.LinearObservation(p["H"], p["R"]),
    )


def _runs(problem, times, model, filter) -> Runs:
    def value(p, ys):
        return fd.log_likelihood(model(p), fd.Series(times, ys), filter)

    def moments(p, ys):
        found = fd.filter(model(p), fd.Series(times, ys), filter)
        return found.log_likelihood, found.mean, found.cov

    return jitted(value, problem.parameters, problem.ys, moments)


def linear(problem, square_root=True):
    times = np.arange(len(problem.ys))
    filter = fd.KalmanFilter(square_root=square_root)
    return _runs(problem, times, lambda p: linear_model(problem, p), filter)


def linear_covariance(problem):
    return linear(problem, square_root=False)


def _pendulum(problem, filter, factored=True):
    """The noise of a transition as its Cholesky factor, which is made once and not in every row."""

    def model(p):
        noise = {"covariance_matrix": p["Q"]}
        if factored:
            noise = {"scale_tril": jnp.linalg.cholesky(p["Q"])}
        move = lambda t, x, u: dist.MultivariateNormal(problem.move(jnp, x, p["gravity"]), **noise)
        return fd.StateSpaceModel(
            dist.MultivariateNormal(problem.m0, problem.P0),
            fd.Transition(move),
            fd.GaussianObservation(lambda t, x, u: problem.see(jnp, x), p["R"]),
        )

    return _runs(problem, np.arange(len(problem.ys)), model, filter)


def extended(problem):
    return _pendulum(problem, fd.ExtendedKalmanFilter())


def extended_covariance(problem):
    return _pendulum(problem, fd.ExtendedKalmanFilter(square_root=False))


def extended_with_covariance(problem):
    return _pendulum(problem, fd.ExtendedKalmanFilter(), factored=False)


def unscented(problem):
    return _pendulum(problem, fd.UnscentedKalmanFilter())


def lorenz(problem, **options):
    def model(p):
        drift = lambda t, x, u: problem.drift(jnp, x, p["rates"])
        return fd.StateSpaceModel(
            dist.MultivariateNormal(problem.m0, problem.P0),
            fd.SDE(drift, problem.diffusion, **options),
            fd.LinearObservation(jnp.eye(3), p["R"]),
        )

    return _runs(problem, problem.times, model, fd.ExtendedKalmanFilter())


def lorenz_seven_substeps(problem):
    return lorenz(problem, substeps=7)


def fleet(problem):
    times = np.arange(problem.ys.shape[1])

    def value(p, ys):
        model = linear_model(problem, p)
        return fd.ObservedSeries(model, times, filter=fd.KalmanFilter()).log_prob(ys)

    return jitted(value, problem.parameters, problem.ys)


def fleet_vmap(problem):
    times = np.arange(problem.ys.shape[1])

    def value(p, ys):
        model = linear_model(problem, p)
        one = lambda y: fd.log_likelihood(model, fd.Series(times, y), fd.KalmanFilter())
        return jax.vmap(one)(ys)

    return jitted(value, problem.parameters, problem.ys)
