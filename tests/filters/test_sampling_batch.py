"""A batch of series for filters that sample."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

RNG = np.random.default_rng(0)
SERIES = [
    fd.Series(np.cumsum(RNG.uniform(0.1, 1.0, n)), RNG.normal(size=(n, 1))) for n in (8, 8, 6)
]


def model(scale=1.0):
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        fd.LinearSDE([[0.0, 1.0], [-1.0, -0.3]], scale * jnp.array([0.1, 0.5])),
        fd.LinearObservation([[1.0, 0.0]], [[0.1]]),
    )


@pytest.mark.parametrize("filter", [fd.ParticleFilter(20), fd.EnsembleKalmanFilter(10)])
def test_a_batch_is_its_series_with_keys_split_from_one(filter):
    """The last series is padded: its own rows, and nothing after them."""
    key = jr.key(1)
    batch = fd.filter(model(), fd.stack(SERIES), filter, key=key)
    for k, (series, own) in enumerate(zip(SERIES, jr.split(key, 3), strict=True)):
        one = fd.filter(model(), series, filter, key=own)
        rows = len(series)
        np.testing.assert_allclose(batch.mean[k, :rows], one.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(batch.log_likelihood[k], one.log_likelihood, rtol=1e-5)
    assert batch.status.tolist() == [fd.Status.OK] * 3
    found = fd.log_likelihood(model(), fd.stack(SERIES), filter, key=key)
    np.testing.assert_allclose(found, batch.log_likelihood, rtol=1e-5)


@pytest.mark.slow
def test_the_gradient_of_a_batch_is_the_sum_of_those_of_its_series():
    filter, key = fd.ParticleFilter(20), jr.key(1)
    value = lambda scale, series, key: fd.log_likelihood(model(scale), series, filter, key=key)
    whole = jax.grad(lambda scale: value(scale, fd.stack(SERIES), key).sum())(1.0)
    each = [
        jax.grad(value)(1.0, series, own)
        for series, own in zip(SERIES, jr.split(key, 3), strict=True)
    ]
    np.testing.assert_allclose(whole, sum(each), rtol=1e-4)
