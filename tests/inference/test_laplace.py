"""Laplace's approximation is the posterior where that is Gaussian, and refuses what is no mode."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from oracles.straight_line import data, model, posterior, predictive_mean

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("modes are found to the precision of float64", allow_module_level=True)
REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="module")
def found():
    return fd.inference.laplace(model, data(), key=jr.key(0), num_samples=4000)


def test_linear_gaussian_posterior_and_evidence_are_exact(found):
    mean, cov, evidence = posterior(data())
    assert found.names == ("b[0]", "b[1]", "d")
    np.testing.assert_allclose(found.location, mean, atol=1e-7)
    np.testing.assert_allclose(found.cov, cov, rtol=1e-7)
    assert abs(found.log_evidence - evidence) < 1e-8
    assert found.decrement < 1e-9


def test_draws_have_the_moments_of_the_posterior(found):
    mean, cov, _ = posterior(data())
    draws = np.column_stack([found.samples["b"], found.samples["d"]])
    # Five standard errors of 4,000 draws: false alarms below 1e-5.
    assert (np.abs(draws.mean(0) - mean) < 5 * np.sqrt(np.diag(cov) / 4000)).all()
    np.testing.assert_allclose(draws.std(0), np.sqrt(np.diag(cov)), rtol=5 / np.sqrt(8000))
    np.testing.assert_allclose(found.samples["sum"], draws.sum(1), rtol=1e-10)
    np.testing.assert_allclose(found.mode["sum"], mean.sum(), atol=1e-6)


def test_draws_become_a_datatree_with_the_exact_predictive_mean(found):
    draws, y = {name: x[:400] for name, x in found.samples.items()}, data()
    tree = fd.to_datatree(draws, model, y)
    assert tree["posterior"]["b"].shape == (1, 400, 2)
    assert tree["log_likelihood"]["y"].shape == (1, 400, 13)
    np.testing.assert_array_equal(tree["observed_data"]["y"], y)
    replicated = tree["posterior_predictive"]["y"].values[0, :, :, 0]
    expected = predictive_mean(posterior(y)[0])
    assert (np.abs(replicated.mean(0) - expected) < 5 * replicated.std(0) / 20).all()


def test_prior_share_is_that_of_the_exact_covariances(found):
    _, cov, _ = posterior(data())
    prior = np.linalg.inv([[1.0, 0.5, 0.0], [0.5, 2.0, 0.0], [0.0, 0.0, 2.0]])
    shares = np.sort(np.linalg.eigvals(cov @ prior).real)[::-1]
    np.testing.assert_allclose(found.prior_share, shares, rtol=1e-6)
    along = found.directions @ np.linalg.inv(cov) @ found.directions.T
    np.testing.assert_allclose(along, np.eye(3), atol=1e-6)


def test_two_parameters_of_which_only_the_sum_is_seen_are_named():
    def unseen(y):
        a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(a + b, 1.0).expand([4]).to_event(1), obs=y)

    start = {"a": 0.1, "b": 0.2}
    with pytest.raises(ValueError, match=r"not identified: a [+-]1, b [+-]1 \(curvature"):
        fd.inference.laplace(unseen, jnp.ones(4), key=jr.key(0), start=start)


def test_what_is_wrong_with_the_start_is_said():
    with pytest.raises(KeyError, match="`start` has \\['c'\\]; the parameters are \\['b', 'd'\\]"):
        fd.inference.laplace(model, data(), key=jr.key(0), start={"c": 1.0})
    with pytest.raises(TypeError, match="`key` is int"):
        fd.inference.laplace(model, data(), key=0)
    with pytest.raises(ValueError, match="`num_samples` is 0"):
        fd.inference.laplace(model, data(), key=jr.key(0), num_samples=0)


@pytest.mark.slow
def test_nile_level_agrees_with_quadrature():
    known = json.loads((REFERENCE / "nile_posterior.json").read_text())
    nile = fd.datasets.nile()

    def level(times, y):
        sigma_obs = numpyro.sample("sigma_obs", dist.HalfNormal(200.0))
        sigma_level = numpyro.sample("sigma_level", dist.HalfNormal(100.0))
        one = jnp.eye(1)
        moves = fd.StateSpaceModel(
            dist.Normal(1000.0 * jnp.ones(1), 1000.0).to_event(1),
            fd.LinearTransition(one, sigma_level**2 * one),
            fd.LinearObservation(one, sigma_obs**2 * one),
        )
        numpyro.sample("y", fd.ObservedSeries(moves, times, filter=fd.KalmanFilter()), obs=y)

    found = fd.inference.laplace(level, nile.times, nile.observations, key=jr.key(0))
    assert abs(found.log_evidence - known["log_evidence"]) < 0.05
    for name, summary in known["summary"].items():
        # The posterior is skew; a Gaussian of the logarithm is off by a fifth of a standard deviation.
        assert abs(found.samples[name].mean() - summary["mean"]) < 0.25 * summary["sd"], name
        assert 0.9 < found.samples[name].std() / summary["sd"] < 1.25, name
