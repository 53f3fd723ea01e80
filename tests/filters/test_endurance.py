"""A million rows in single precision, of a model whose scales are 1e10 apart."""

import math

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.linalg import solve_discrete_are

import filterdyn as fd

pytestmark = pytest.mark.slow

COUNT, DENSITY, R = 1_000_000, 1e-6, 1e4
F = np.array([[1.0, 1.0], [0.0, 1.0]])
Q = DENSITY * np.array([[1 / 3, 1 / 2], [1 / 2, 1.0]])
P0 = (1e8, 1e2)


def measurements():
    """A target that swings by 1,000 about the sensor, whose noise has a standard deviation of 100."""
    rng = np.random.default_rng(0)
    swing = 1e3 * np.sin(2 * np.pi / 5e4 * np.arange(COUNT))
    return (swing + np.sqrt(R) * rng.normal(size=COUNT)).astype(np.float32)


def in_double_precision(y):
    """The Kalman filter for two states in plain numbers, in Joseph's form: means, covariances (position,
    both, velocity), log-likelihood."""
    x, v, (a, c), b, terms = 0.0, 0.0, P0, 0.0, []
    means, covs = np.empty((COUNT, 2)), np.empty((COUNT, 3))
    for k, seen in enumerate(y.tolist()):
        s = a + R
        gain, other, error = a / s, b / s, seen - x
        terms.append(math.log(2 * math.pi * s) + error * error / s)
        x, v = x + gain * error, v + other * error
        left = 1 - gain
        a, b, c = (
            left * left * a + R * gain * gain,
            left * (b - other * a) + R * gain * other,
            c - 2 * other * b + other * other * s,
        )
        means[k], covs[k] = (x, v), (a, b, c)
        x, a, b = x + v, a + 2 * b + c + Q[0, 0], b + c + Q[0, 1]
        c += Q[1, 1]
    return means, covs, -0.5 * math.fsum(terms)


def steady_state():
    P = solve_discrete_are(F.T, np.array([[1.0], [0.0]]), Q, np.array([[R]]))
    return P - np.outer(P[:, 0], P[0]) / (P[0, 0] + R)


@pytest.fixture(scope="module")
def oracle():
    return in_double_precision(measurements())


@pytest.mark.parametrize("square_root", [True, False], ids=["square root", "covariance form"])
def test_a_million_rows_in_single_precision(square_root, oracle):
    """Limits: covariance 1e-4 (whitened, so in every direction), its steady state 5e-5, mean 1e-3
    standard deviations, log-likelihood 2e-7 of it, which is two roundings of the sum."""
    single = lambda a: jnp.asarray(a, "float32")
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(single([0.0, 0.0]), scale_tril=single(np.diag(np.sqrt(P0)))),
        fd.LinearSDE(single([[0.0, 1.0], [0.0, 0.0]]), single([[0.0], [1e-3]])),
        fd.LinearObservation(single([[1.0, 0.0]]), single(R)),
    )
    series = fd.Series(np.arange(float(COUNT)), measurements()[:, None])
    found = fd.filter(model, series, fd.KalmanFilter(square_root=square_root))
    assert found.mean.dtype == jnp.float32 and found.status == fd.Status.OK
    means, (a, b, c), total = oracle[0], oracle[1].T, oracle[2]
    cov = np.asarray(found.cov, float)
    # Eigenvalues of L^-1 P L^-T, L the Cholesky factor of the true covariance.
    root = np.stack([np.sqrt(a), b / np.sqrt(a), np.sqrt(c - b * b / a)])
    one = cov[:, 0, 0] / root[0] ** 2
    both = (cov[:, 0, 1] / root[0] - root[1] * one) / root[2]
    two = (cov[:, 1, 1] - 2 * root[1] * root[2] * both - root[1] ** 2 * one) / root[2] ** 2
    spread = np.sqrt(0.25 * (one - two) ** 2 + both**2)
    eigenvalues = 0.5 * (one + two) + np.stack([-spread, spread])
    assert np.abs(eigenvalues - 1).max() < 1e-4
    np.testing.assert_allclose(cov[-1], steady_state(), rtol=5e-5)
    assert (
        np.abs(np.asarray(found.mean, float) - means) / np.sqrt(np.stack([a, c], 1))
    ).max() < 1e-3
    assert abs(float(found.log_likelihood) / total - 1) < 2e-7
    assert jnp.isfinite(found.filtered.factor).all()
