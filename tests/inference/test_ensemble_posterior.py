"""NUTS through the likelihood of an ensemble filter under a fixed key, against the exact posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

import filterdyn as fd

F = jnp.array([[0.9, 0.2], [-0.1, 0.8]])
PUSH = jnp.array([0.5, -0.3])
TIMES = jnp.arange(20.0)
ENSEMBLE = fd.EnsembleKalmanFilter(100)


def pushed(theta):
    """A linear Gaussian system that is pushed by theta, so that the likelihood is Gaussian in theta."""
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        fd.LinearTransition(F, 0.1 * jnp.eye(2), b=theta * PUSH),
        fd.LinearObservation(jnp.array([[1.0, 0.5]]), jnp.array([0.3])),
    )


def posterior(log_likelihood):
    """Mean and standard deviation given the prior N(0, 1) and a quadratic log-likelihood."""
    low, middle, high = (log_likelihood(theta) for theta in (-1.0, 0.0, 1.0))
    precision = 1.0 - (low - 2 * middle + high)
    return 0.5 * (high - low) / precision, precision**-0.5


@pytest.mark.slow
def test_nuts_through_an_ensemble_finds_the_posterior_of_a_linear_gaussian_model():
    y = fd.simulate(pushed(0.7), TIMES, key=jax.random.key(1)).observations
    series = fd.Series(TIMES, y)
    exact, width = posterior(lambda t: fd.log_likelihood(pushed(t), series, fd.KalmanFilter()))

    def program():
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        seen = fd.ObservedSeries(pushed(theta), TIMES, filter=ENSEMBLE, key=jax.random.key(2))
        numpyro.sample("y", seen, obs=y)

    mcmc = MCMC(NUTS(program), num_warmup=200, num_samples=600, progress_bar=False)
    mcmc.run(jax.random.key(3))
    draws = np.asarray(mcmc.get_samples()["theta"], np.float64)
    of_draws = draws.std() / effective_sample_size(draws[None]) ** 0.5

    # What other keys of the ensemble would have given.
    by_key = jax.jit(
        jax.vmap(
            lambda key: posterior(
                lambda t: fd.log_likelihood(pushed(t), series, ENSEMBLE, key=key)
            )[0]
        )
    )
    means = by_key(jax.random.split(jax.random.key(4), 40))
    of_keys = means.std(ddof=1)
    assert abs(means.mean() - exact) < 4 * of_keys / 40**0.5 + 0.02 * width
    assert of_draws < 0.1 * width and of_keys < 0.3 * width
    # (Two normal errors: four standard deviations are missed once in 16,000.)
    assert abs(draws.mean() - exact) < 4 * np.hypot(of_draws, of_keys)
    np.testing.assert_allclose(draws.std(), width, rtol=0.25)
    # Under its own key the ensemble's posterior is known to the error of the draws alone.
    own, _ = posterior(
        lambda t: fd.log_likelihood(pushed(t), series, ENSEMBLE, key=jax.random.key(2))
    )
    assert abs(draws.mean() - own) < 4 * of_draws
