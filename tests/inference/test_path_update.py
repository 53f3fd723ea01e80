"""Particle Gibbs against a posterior on a grid and the exact smoother averaged over it.

A mean is held to 4 Monte Carlo standard errors: a right sampler fails with probability 6e-5 for each.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, HMCGibbs

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("the references are float64", allow_module_level=True)
TIMES = np.arange(10.0)
Y = np.array([0.3, 1.1, 0.2, np.nan, 2.0, 2.9, 1.7, 3.1, 4.4, 3.6])[:, None]
FEW = fd.ParticleFilter(10)
PRIOR = dist.InverseGamma(2.0, 0.5)


def level_model(variance):
    one = jnp.eye(1)
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition(one, variance * one),
        fd.LinearObservation(one, 0.49 * one),
    )


def model(times, y=None):
    level = level_model(numpyro.sample("variance", PRIOR))
    x = numpyro.sample("x", fd.LatentPath(level, times))
    numpyro.sample("y", fd.PathObservations(level, times, x), obs=y)


UPDATE = fd.inference.path_update(model, TIMES, Y, filter=FEW)


@pytest.fixture(scope="module")
def known():
    """Mean of the logarithm of the variance, and of the states, on a grid."""
    grid = np.linspace(-6.0, 4.0, 1000)

    @jax.jit
    @jax.vmap
    def at(log_variance):
        found = fd.smooth(
            level_model(jnp.exp(log_variance)), fd.Series(TIMES, Y), fd.KalmanFilter()
        )
        return found.log_likelihood, found.mean[:, 0]

    likelihood, means = (np.asarray(a) for a in at(grid))
    joint = likelihood + np.asarray(PRIOR.log_prob(np.exp(grid))) + grid
    w = np.exp(joint - joint.max())
    w /= w.sum()
    return w @ grid, w @ means


@pytest.fixture(scope="module")
def mcmc():
    mcmc = MCMC(
        HMCGibbs(NUTS(model), UPDATE, ["x"]),
        num_warmup=300,
        num_samples=3000,
        progress_bar=False,
    )
    mcmc.run(jr.key(0), TIMES, Y, extra_fields=("hmc_state.diverging",))
    return mcmc


@pytest.mark.slow
def test_parameters_and_paths_are_those_of_the_exact_posterior(mcmc, known):
    draws = mcmc.get_samples()
    for x, exact in (
        (np.log(draws["variance"]), known[0]),
        *((draws["x"][:, t, 0], known[1][t]) for t in (0, 3, 9)),
    ):
        x = np.asarray(x)
        error = x.std() / np.sqrt(effective_sample_size(x[None]))
        assert abs(x.mean() - exact) < 4 * error


@pytest.mark.slow
def test_a_run_becomes_a_datatree(mcmc):
    """Rows given the path of their draw: log N(y | x, 0.49)."""
    tree = fd.to_datatree(mcmc, model, TIMES, Y)
    assert tree["posterior"]["x"].shape == (1, 3000, 10, 1)
    assert tree["posterior_predictive"]["y"].shape == (1, 3000, 10, 1)
    assert "diverging" in tree["sample_stats"]
    seen = ~np.isnan(Y[:, 0])
    error = Y[seen, 0] - tree["posterior"]["x"].values[..., seen, 0]
    expected = -0.5 * error**2 / 0.49 - 0.5 * np.log(2 * np.pi * 0.49)
    np.testing.assert_allclose(tree["log_likelihood"]["y"], expected, atol=1e-8)


def test_other_sites_are_refused_by_name():
    given = {"variance": jnp.array(1.0)}, {"x": jnp.zeros((10, 1))}

    def refused(error, match, *args, **settings):
        update = fd.inference.path_update(model, *args, filter=FEW, **settings)
        with pytest.raises(error, match=match):
            update(jr.key(0), given[1], given[0])

    refused(KeyError, "no site 'z'", TIMES, Y, site="z")
    refused(
        TypeError, "'variance' is InverseGamma, not observed; expected", TIMES, Y, site="variance"
    )
    refused(TypeError, "'y' is PathObservations, not observed", TIMES)
