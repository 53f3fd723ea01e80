"""Sensors read at one instant, in one row or in several with the same time."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("compared in float64", allow_module_level=True)

TIMES = np.array([0.0, 0.7, 1.0, 2.5])
Y = np.random.default_rng(2).normal(size=(4, 3))
Y[2, 1] = np.nan
MODEL = fd.StateSpaceModel(
    dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.3], [0.3, 2.0]])),
    fd.LinearSDE([[0.0, 1.0], [-1.0, -0.2]], [0.1, 0.4]),
    fd.LinearObservation([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.1, 0.2, 0.3]),
)


def apart(order):
    """Every sensor in a row of its own, in this order."""
    rows = np.full((len(TIMES), len(order), 3), np.nan)
    for k, sensor in enumerate(order):
        rows[:, k, sensor] = Y[:, sensor]
    return fd.Series(np.repeat(TIMES, len(order)), rows.reshape(-1, 3))


@pytest.mark.parametrize(
    "verb, order",
    [(fd.filter, (2, 0, 1)), pytest.param(fd.smooth, (0, 1, 2), marks=pytest.mark.slow)],
)
def test_rows_with_one_sensor_each_at_the_same_time_are_the_joint_update(verb, order):
    """Their noises are independent. The belief after the last of them, and the log-likelihood."""
    joint = verb(MODEL, fd.Series(TIMES, Y), fd.KalmanFilter())
    split = verb(MODEL, apart(order), fd.KalmanFilter())
    np.testing.assert_allclose(split.log_likelihood, joint.log_likelihood, rtol=1e-13)
    for name in ("mean", "cov"):
        one, other = getattr(joint, name), getattr(split, name)
        np.testing.assert_allclose(other[2::3], one, rtol=1e-11, atol=1e-13)
