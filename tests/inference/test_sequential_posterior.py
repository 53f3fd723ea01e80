"""SMC^2 against evidence and posteriors by quadrature. Seeds are fixed."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("the references are float64", allow_module_level=True)
REFERENCE = Path(__file__).parents[1] / "reference"
TIMES = np.arange(10.0)
Y = np.array([0.3, 1.1, 0.2, np.nan, 2.0, 2.9, 1.7, 3.1, 4.4, 3.6])[:, None]


def level_model(sigma_obs, sigma_level, start=0.0, start_sd=1.0):
    one = jnp.eye(1)
    return fd.StateSpaceModel(
        dist.Normal(start * jnp.ones(1), start_sd).to_event(1),
        fd.LinearTransition(one, sigma_level**2 * one),
        fd.LinearObservation(one, sigma_obs**2 * one),
    )


def short(times, y=None, size=30):
    level = numpyro.sample("level", dist.HalfNormal(1.0))
    filter = fd.ParticleFilter(size, ess_threshold=1.0)
    d = fd.ObservedSeries(level_model(0.7, level), times, filter=filter, key=numpyro.prng_key())
    numpyro.sample("y", d, obs=y)


@pytest.fixture(scope="module")
def known():
    """Evidence, mean and standard deviation after every row, over a fine grid of the one parameter."""
    grid = np.linspace(1e-3, 6.0, 1500)

    @jax.jit
    @jax.vmap
    def rows(level):
        series = fd.Series(TIMES, Y)
        return fd.filter(level_model(0.7, level), series, fd.KalmanFilter()).log_likelihoods

    joint = (
        np.cumsum(np.asarray(rows(grid)), 1)
        + np.asarray(dist.HalfNormal(1.0).log_prob(grid) + np.log(grid[1] - grid[0]))[:, None]
    )
    evidence = jax.nn.logsumexp(joint, axis=0)
    w = np.exp(joint - evidence)
    mean = w.T @ grid
    return np.asarray(evidence), mean, np.sqrt(w.T @ grid**2 - mean**2)


@pytest.fixture(scope="module")
def result():
    return fd.inference.sequential_posterior(short, TIMES, Y, key=jr.key(0), size=800)


@pytest.mark.slow
def test_the_posterior_after_every_row_is_that_of_quadrature(result, known):
    """Within 5 standard errors of as many independent draws as count, of ten correlated means each: a
    right sampler fails with probability below 1e-4, were it not for copies that moves leave."""
    _, mean, sd = known
    se = sd / np.sqrt(result.effective_sample_sizes)
    assert (np.abs(result.means["level"] - mean) < 5 * se).all()
    assert (np.abs(result.sds["level"] / sd - 1) < 0.15).all()


@pytest.mark.slow
def test_the_evidence_of_the_first_rows_is_that_of_quadrature(result, known):
    se = float(result.log_evidence_se)
    assert 0 < se < 0.1
    assert (np.abs(np.cumsum(result.log_evidences) - known[0]) < 4 * se).all()
    # A row in which everything is missing says nothing.
    np.testing.assert_allclose(result.log_evidences[3], 0.0, atol=1e-12)


@pytest.mark.slow
def test_shapes_and_weights(result):
    assert result.history["level"].shape == (10, 800)
    assert result.states.shape == (800, 1)
    np.testing.assert_allclose(jnp.exp(result.log_weights).sum(), 1.0)
    draws = result.draws(jr.key(1), 5)
    assert draws["level"].shape == (5,)
    assert set(np.asarray(draws["level"])) <= set(np.asarray(result.samples["level"]))
    tree = fd.to_datatree(draws, short, TIMES, Y)
    assert tree["posterior"]["level"].shape == (1, 5)
    assert tree["log_likelihood"]["y"].shape == (1, 5, 9)


def test_unusable_models_are_refused_by_name():
    refused = lambda error, match, *args, **settings: pytest.raises(error, match=match)
    run = fd.inference.sequential_posterior

    def two(times, y):
        short(times, y)
        numpyro.sample("more", dist.Normal(0.0, 1.0), obs=1.0)

    with refused(ValueError, r"observes \['y', 'more'\]"):
        run(two, TIMES, Y, key=jr.key(0))
    with refused(ValueError, "`ess_threshold` is 1.5"):
        run(short, TIMES, Y, key=jr.key(0), ess_threshold=1.5)
    with refused(ValueError, "not observed"):
        run(short, TIMES, key=jr.key(0))


@pytest.mark.long
@pytest.mark.slow
def test_few_particles_are_doubled_and_the_evidence_stays_right(known):
    """With 2 particles moves are hardly accepted. What is then corrected is the likelihood's noise."""
    found = fd.inference.sequential_posterior(
        short, TIMES, Y, 2, key=jr.key(3), size=800, min_acceptance=0.3
    )
    assert found.particles[0] == 2 and found.particles[-1] >= 8
    assert abs(found.log_evidence - known[0][-1]) < 4 * found.log_evidence_se
    assert abs(found.means["level"][-1] - known[1][-1]) < 0.3 * known[2][-1]


@pytest.mark.slow
def test_the_nile_has_the_evidence_of_quadrature():
    """Within 4 standard errors as stated, which are 0.1 of the logarithm."""
    truth = json.loads((REFERENCE / "nile_posterior.json").read_text())
    nile = fd.datasets.nile()

    def model(times, y=None):
        sigma_obs = numpyro.sample("sigma_obs", dist.HalfNormal(200.0))
        sigma_level = numpyro.sample("sigma_level", dist.HalfNormal(100.0))
        filter = fd.ParticleFilter(60, ess_threshold=1.0)
        d = fd.ObservedSeries(
            level_model(sigma_obs, sigma_level, 1000.0, 1000.0),
            times,
            filter=filter,
            key=numpyro.prng_key(),
        )
        numpyro.sample("y", d, obs=y)

    found = fd.inference.sequential_posterior(
        model, nile.times, nile.observations, key=jr.key(10), size=1024
    )
    assert 0.05 < found.log_evidence_se < 0.12
    off = float(found.log_evidence) - truth["log_evidence"]
    assert abs(off) < 4 * found.log_evidence_se
    for name, summary in truth["summary"].items():
        assert abs(float(found.means[name][-1]) - summary["mean"]) < 0.15 * summary["sd"], name


@pytest.mark.long
@pytest.mark.slow
def test_a_swarm_of_which_one_survives_moves_on():
    """A prior a hundred times as wide as the first row allows, of two parameters: hardly any of 64 draws is
    left, and steps as wide as what is left would be steps of length 0."""

    def precise(times, y=None):
        level = numpyro.sample("level", dist.Normal(0.0, 30.0))
        slope = numpyro.sample("slope", dist.Normal(0.0, 30.0))
        model = fd.StateSpaceModel(
            dist.Normal(level * jnp.ones(1), 0.1).to_event(1),
            fd.LinearTransition([[1.0]], [[0.01]], b=slope * jnp.ones(1)),
            fd.LinearObservation([[1.0]], 0.1),
        )
        filter = fd.ParticleFilter(30, proposal=fd.KalmanFilter(), ess_threshold=1.0)
        d = fd.ObservedSeries(model, times, filter=filter, key=numpyro.prng_key())
        numpyro.sample("y", d, obs=y)

    y = 3.0 + 2.0 * np.arange(4.0)[:, None]
    found = fd.inference.sequential_posterior(
        precise, np.arange(4.0), y, key=jr.key(1), size=64, moves=60, min_acceptance=1e-6
    )
    assert len(np.unique(np.asarray(found.samples["slope"]))) > 16
    # The level is within 0.4 or so of 3, the slope within 0.15 of 2: five standard deviations.
    assert abs(float(found.means["level"][-1]) - 3.0) < 2.0
    assert abs(float(found.means["slope"][-1]) - 2.0) < 0.75
