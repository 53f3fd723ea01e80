"""A model that is linear and Gaussian in three parameters, and its exact posterior in plain NumPy."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import filterdyn as fd

ROWS = 15
INPUTS = np.random.default_rng(0).normal(size=(ROWS, 2))
MEAN = np.array([1.0, 0.0, 0.0])
COV = np.array([[1.0, 0.5, 0.0], [0.5, 2.0, 0.0], [0.0, 0.0, 2.0]])
DECAY, NOISE, SENSOR, START = 0.8, 0.3, 0.5, 1.0
MISSING = slice(4, 6)


def model(y=None):
    b = numpyro.sample("b", dist.MultivariateNormal(MEAN[:2], COV[:2, :2]))
    d = numpyro.sample("d", dist.Normal(MEAN[2], COV[2, 2] ** 0.5))
    numpyro.deterministic("sum", b.sum() + d)
    moves = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), START).to_event(1),
        fd.LinearTransition([[DECAY]], [[NOISE]], B=b[None]),
        fd.LinearObservation([[1.0]], [[SENSOR]], d=d[None]),
    )
    series = fd.ObservedSeries(moves, jnp.arange(1.0 * ROWS), INPUTS, filter=fd.KalmanFilter())
    numpyro.sample("y", series, obs=y)


def data():
    """Measurements made in plain NumPy at b = (1.5, -1), d = -2, two of them missing."""
    rng, x, rows = np.random.default_rng(1), 0.5, []
    for u in INPUTS:
        rows.append(x - 2.0 + SENSOR**0.5 * rng.normal())
        x = DECAY * x + u @ [1.5, -1.0] + NOISE**0.5 * rng.normal()
    y = np.array(rows)[:, None]
    y[MISSING] = np.nan
    return jnp.asarray(y)


def posterior(y):
    """Mean, covariance and log-evidence by conditioning of one dense Gaussian."""
    design, responses = np.zeros((ROWS, 3)), np.zeros(2)
    cov = np.zeros((ROWS, ROWS))
    var = START
    for k in range(ROWS):
        design[k] = [*responses, 1.0]
        responses = DECAY * responses + INPUTS[k]
        for later in range(k, ROWS):
            cov[k, later] = cov[later, k] = DECAY ** (later - k) * var
        var = DECAY**2 * var + NOISE
    seen = ~np.isnan(np.asarray(y)[:, 0])
    design, y = design[seen], np.asarray(y)[seen, 0]
    cov = (cov + SENSOR * np.eye(ROWS))[np.ix_(seen, seen)]
    of_data = design @ COV @ design.T + cov
    gain = COV @ design.T @ np.linalg.inv(of_data)
    error = y - design @ MEAN
    evidence = -0.5 * (
        error @ np.linalg.solve(of_data, error)
        + np.linalg.slogdet(of_data)[1]
        + len(y) * np.log(2 * np.pi)
    )
    return MEAN + gain @ error, COV - gain @ design @ COV, evidence


def predictive_mean(parameters):
    """The mean of every row at a mean of (b, d), in which it is linear."""
    x, rows = 0.0, []
    for u in INPUTS:
        rows.append(x + parameters[2])
        x = DECAY * x + u @ parameters[:2]
    return np.array(rows)
