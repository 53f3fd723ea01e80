"""Gradients of several series at once through the paths of an SDE."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

TIMES = np.arange(4.0)
Y = np.random.default_rng(0).normal(size=(2, 4, 1))


def log_likelihood(rate, y, filter):
    initial = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    dynamics = fd.SDE(lambda t, x, u: -rate * x, 0.3, substeps=2)
    seen = fd.GaussianObservation(lambda t, x, u: x[:1], 0.1 * jnp.eye(1))
    model = fd.StateSpaceModel(initial, dynamics, seen)
    return fd.log_likelihood(model, fd.Series(TIMES, y), filter, key=jax.random.key(0))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "filter", [fd.EnsembleKalmanFilter(8), fd.ParticleFilter(8)], ids=["ensemble", "particles"]
)
def test_the_gradient_of_several_series_is_the_sum_of_those_of_each(filter):
    several = lambda rate: jax.vmap(lambda y: log_likelihood(rate, y, filter))(jnp.asarray(Y)).sum()
    one = jax.grad(lambda rate, y: log_likelihood(rate, y, filter))
    expected = sum(one(0.5, jnp.asarray(y)) for y in Y)
    np.testing.assert_allclose(jax.grad(several)(0.5), expected, rtol=1e-4)
