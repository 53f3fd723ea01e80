"""Particle marginal Metropolis-Hastings against posteriors by quadrature and exact smoothers.

A mean is held to 4 Monte Carlo standard errors: a right sampler fails with probability 6e-5 for each.
Seeds are fixed.
"""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC

import filterdyn as fd
from filterdyn.inference.particle_likelihood import estimate
from filterdyn.inference.random_walk import expected_acceptance
from filterdyn.inference.unconstrained import Call

if not jax.config.jax_enable_x64:
    pytest.skip("the references are float64", allow_module_level=True)
REFERENCE = Path(__file__).parents[1] / "reference"
PARTICLES = fd.ParticleFilter(60, ess_threshold=1.0)
NILE = fd.datasets.nile()
KNOWN = json.loads((REFERENCE / "nile_posterior.json").read_text())


def level_model(sigma_obs, sigma_level):
    one = jnp.eye(1)
    return fd.StateSpaceModel(
        dist.Normal(1000.0 * jnp.ones(1), 1000.0).to_event(1),
        fd.LinearTransition(one, sigma_level**2 * one),
        fd.LinearObservation(one, sigma_obs**2 * one),
    )


def nile_level(times, y=None, filter=PARTICLES, key=None):
    sigma_obs = numpyro.sample("sigma_obs", dist.HalfNormal(200.0))
    sigma_level = numpyro.sample("sigma_level", dist.HalfNormal(100.0))
    numpyro.deterministic("ratio", sigma_level / sigma_obs)
    key = numpyro.prng_key() if key is None else key
    model = level_model(sigma_obs, sigma_level)
    numpyro.sample("y", fd.ObservedSeries(model, times, filter=filter, key=key), obs=y)


def run(model, *args, draws=3000, warmup=500, chains=4, fields=("paths",), **settings):
    method = settings.pop("chain_method", "vectorized")
    mcmc = MCMC(
        fd.inference.ParticleMetropolis(model, **settings),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(jr.key(0), *args, extra_fields=fields)
    return mcmc


def mcse(draws):
    return draws.std() / np.sqrt(effective_sample_size(draws))


@pytest.fixture(scope="module")
def nile():
    return run(nile_level, NILE.times, NILE.observations)


@pytest.mark.slow
def test_parameters_of_the_nile_are_those_of_quadrature(nile):
    draws = nile.get_samples(group_by_chain=True)
    for name, known in KNOWN["summary"].items():
        x = np.asarray(draws[name])
        assert abs(x.mean() - known["mean"]) < 4 * mcse(x), name
        for level, q in ((0.05, "q05"), (0.5, "q50"), (0.95, "q95")):
            below = (x < known[q]).astype(float)
            assert abs(below.mean() - level) < 4 * mcse(below), (name, q)


@pytest.mark.slow
def test_paths_are_the_smoothed_states_averaged_over_the_parameters(nile):
    draws = nile.get_samples(group_by_chain=True)
    paths = np.asarray(nile.get_extra_fields(group_by_chain=True)["paths"]["y"])[..., 0]
    assert paths.shape == (4, 3000, 100)

    @jax.jit
    @jax.vmap
    def smoothed(a, b):
        found = fd.smooth(level_model(a, b), NILE, fd.KalmanFilter())
        return found.mean[:, 0], found.cov[:, 0, 0]

    some = slice(None, None, 50)
    mean, var = smoothed(
        *(np.asarray(draws[n][:, some]).ravel() for n in ("sigma_obs", "sigma_level"))
    )
    sd = np.sqrt(np.asarray(var.mean(0) + mean.var(0)))
    for row in (0, 30, 60, 99):
        # The error of the exact average over 400 draws is small beside that of the paths.
        error = np.hypot(mcse(paths[..., row]), mean[:, row].std() / 10)
        assert abs(paths[..., row].mean() - mean[:, row].mean()) < 4 * error, row
        assert abs(paths[..., row].std() / sd[row] - 1) < 0.1, row


@pytest.mark.slow
def test_forecasts_have_the_predictive_distribution(nile):
    paths = nile.get_extra_fields()["paths"]["y"]
    times = NILE.times[-1] + np.arange(1, 4)
    ahead = fd.inference.forecast_paths(
        nile_level, nile.get_samples(), paths, times, NILE.times, key=jr.key(1)
    )
    assert ahead.states.shape == (12000, 3, 1)
    y = np.asarray(ahead.observations[:, 0, 0]).reshape(4, -1)
    known = KNOWN["predictive_y101"]
    assert abs(y.mean() - known["mean"]) < 4 * mcse(y)
    assert abs(y.std() / known["sd"] - 1) < 0.05


@pytest.mark.slow
def test_the_noise_seen_in_the_warm_up_is_that_of_replicates(nile):
    seen = np.asarray(nile.last_state.likelihood_sd)
    at = {name: x["mean"] for name, x in KNOWN["summary"].items()}
    direct = fd.inference.log_likelihood_sd(
        nile_level, at, NILE.times, NILE.observations, key=jr.key(2), replicates=400
    )
    assert 1.0 < direct < 2.0
    assert abs(seen.mean() / direct - 1) < 0.25


def test_acceptance_without_noise_is_that_of_metropolis():
    np.testing.assert_allclose(expected_acceptance(jnp.array(0.0)), 0.234, atol=1e-3)
    # In equilibrium the estimate that is kept is high by the variance, by its selection.
    r = np.random.default_rng(0)
    noise = r.normal(-(1.5**2) / 2, 1.5, 10**6) - r.normal(1.5**2 / 2, 1.5, 10**6)
    b = r.normal(-(2.38**2) / 2, 2.38, 10**6) + noise
    np.testing.assert_allclose(
        expected_acceptance(jnp.array(1.5)), np.minimum(1, np.exp(b)).mean(), rtol=5e-3
    )


# A short series of which the first filters know all there is to know.
TIMES = np.arange(12.0)
Y = np.random.default_rng(3).normal(0.0, 1.5, (12, 1)).round(2)
Y[5] = np.nan
FEW = fd.ParticleFilter(30, ess_threshold=1.0)


def short_model(level, noise=1.0):
    one = jnp.eye(1)
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition(one, level**2 * one),
        fd.LinearObservation(one, noise**2 * one),
    )


def short(times, y=None, filter=FEW, key=None):
    level = numpyro.sample("level", dist.HalfNormal(1.0))
    numpyro.deterministic("double", 2 * level)
    key = numpyro.prng_key() if key is None else key
    numpyro.sample("y", fd.ObservedSeries(short_model(level), times, filter=filter, key=key), obs=y)


@pytest.fixture(scope="module")
def two_chains():
    return run(short, TIMES, Y, draws=200, warmup=100, chains=2)


def test_the_likelihood_that_was_accepted_is_kept_until_the_next_is(two_chains):
    """After the warm-up no estimate is made again: it changes when the parameters do, and only then."""
    fields = two_chains.get_extra_fields(group_by_chain=True)
    z = np.asarray(two_chains.get_samples(group_by_chain=True)["level"])
    moved = np.diff(z, axis=1) != 0
    assert 0.03 < moved.mean() < 0.9
    assert np.array_equal(moved, np.diff(np.asarray(fields["log_likelihood"]), axis=1) != 0)
    paths = np.asarray(fields["paths"]["y"])
    assert paths.shape == (2, 200, 12, 1)
    assert np.array_equal(moved, (np.diff(paths, axis=1) != 0).any((2, 3)))


def test_a_summary_and_the_progress_bar_say_what_matters(two_chains, capsys):
    two_chains.print_summary()
    assert "level" in capsys.readouterr().out
    one = jax.tree.map(lambda x: x[0], two_chains.last_state)
    assert "sd of log-likelihood" in two_chains.sampler.get_diagnostics_str(one)


@pytest.mark.slow
def test_a_posterior_becomes_a_datatree(two_chains):
    tree = fd.to_datatree(two_chains, short, TIMES, Y)
    assert tree["posterior"]["double"].shape == (2, 200)
    assert tree["posterior_predictive"]["y"].shape == (2, 200, 12, 1)
    assert tree["log_likelihood"]["y"].shape == (2, 200, 11)
    assert set(tree["sample_stats"]) >= {"lp", "acceptance_rate", "log_likelihood"}


@pytest.mark.slow
def test_one_chain_goes_on_from_where_it_stopped():
    mcmc = run(short, TIMES, Y, draws=20, warmup=20, chains=1)
    last = mcmc.last_state
    mcmc.post_warmup_state = last
    mcmc.run(jr.key(5), TIMES, Y)
    assert mcmc.last_state.i == last.i + 20
    assert mcmc.last_state.walk.log_size == last.walk.log_size


@pytest.mark.slow
def test_estimates_of_a_plate_of_series_are_unbiased():
    levels = jnp.array([0.5, 1.5])
    both = jnp.stack([jnp.asarray(Y), jnp.asarray(Y)[::-1] + 1.0])

    def model(y):
        noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
        models = eqx.filter_vmap(lambda level: short_model(level, noise))(levels)
        with numpyro.plate("series", 2):
            numpyro.sample(
                "y",
                fd.ObservedSeries(
                    models, TIMES, filter=FEW, key=numpyro.prng_key(), batch_shape=(2,)
                ),
                obs=y,
            )

    call = Call(model, (both,))
    z = {"noise": jnp.array(0.2)}
    one = lambda key: estimate(call, z, key)
    found = jax.jit(jax.vmap(one))(jr.split(jr.key(0), 4000))
    assert found.paths["y"].shape == (4000, 2, 12, 1)
    exact = sum(
        fd.log_likelihood(short_model(a, jnp.exp(0.2)), fd.Series(TIMES, y), fd.KalmanFilter())
        for a, y in zip(levels, both, strict=True)
    )
    ratio = np.exp(np.asarray(found.log_likelihood) - float(exact))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(4000)
    # The log-density of log(noise), which is what NumPyro makes of the prior.
    np.testing.assert_allclose(found.log_prior, dist.Normal(0, 1).log_prob(0.2))


def test_two_series_with_one_key_have_independent_estimates():
    """The square of one estimate would be high by its relative variance."""
    few, times, y = fd.ParticleFilter(10, ess_threshold=1.0), TIMES[:4], jnp.asarray(Y[:4])

    def model(y):
        level = numpyro.sample("level", dist.HalfNormal(1.0))
        key = numpyro.prng_key()
        for name in ("one", "two"):
            d = fd.ObservedSeries(short_model(level), times, filter=few, key=key)
            numpyro.sample(name, d, obs=y)

    call = Call(model, (y,))
    one = lambda key: estimate(call, {"level": jnp.array(0.0)}, key, with_paths=False)
    found = np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(0), 20_000)).log_likelihood)
    exact = fd.log_likelihood(short_model(1.0), fd.Series(times, y), fd.KalmanFilter())
    ratio = np.exp(found - 2 * float(exact))
    error = ratio.std() / np.sqrt(20_000)
    assert abs(ratio.mean() - 1) < 4 * error
    # Independent estimates have (1 + v)^2 = 1 + var(ratio).
    assert np.sqrt(1 + ratio.var()) - 1 > 8 * error


def test_unusable_starts_are_refused_by_name():
    def refused(error, match, start, chains=1):
        mcmc = MCMC(
            fd.inference.ParticleMetropolis(short),
            num_warmup=1,
            num_samples=1,
            num_chains=chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        with pytest.raises(error, match=match):
            mcmc.run(jr.key(0), TIMES, Y, init_params=start)

    refused(
        KeyError, r"`init_params` has \['lever'\]; the parameters are \['level'\]", {"lever": 0.0}
    )
    refused(KeyError, r"has \['level', 'more'\]", {"level": jnp.zeros(()), "more": jnp.zeros(())})
    refused(ValueError, r"'level' has shape \(3,\); expected \(\)", {"level": jnp.zeros(3)})
    refused(ValueError, r"shape \(2,\); expected \(\)", {"level": jnp.zeros((2, 2))}, chains=2)
    refused(TypeError, "`init_params` is ", jnp.zeros(1))


def test_unusable_models_are_refused_by_name():
    kernel = fd.inference.ParticleMetropolis

    def refused(error, match, model=short, *args, **settings):
        with pytest.raises(error, match=match):
            run(model, *(args or (TIMES, Y)), draws=1, warmup=0, chains=1, **settings)

    refused(ValueError, "fixed `key`", short, TIMES, Y, FEW, jr.key(0))
    transport = fd.ParticleFilter(30, fd.SortedTransport())
    refused(TypeError, "SortedTransport .* biased", short, TIMES, Y, transport)
    refused(TypeError, "EnsembleKalmanFilter", short, TIMES, Y, fd.EnsembleKalmanFilter(30))
    refused(TypeError, "use numpyro.infer.NUTS", short, TIMES, Y, fd.KalmanFilter())
    refused(ValueError, "not observed", short, TIMES)
    refused(ValueError, r"`proposal_cov` has shape \(3,\)", proposal_cov=jnp.ones(3))
    with pytest.raises(TypeError, match="`model` is int"):
        kernel(3)

    def discrete(y):
        n = numpyro.sample("n", dist.Poisson(3.0))
        numpyro.sample("z", dist.Normal(n, 1.0), obs=y)

    refused(ValueError, "'n' is discrete", discrete, Y)
    refused(ValueError, "no parameters", lambda y: numpyro.sample("z", dist.Normal(), obs=y), Y)


@pytest.mark.slow
def test_a_model_under_which_nothing_was_possible_is_refused():
    def impossible(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        model = fd.StateSpaceModel(
            dist.Normal(jnp.zeros(1), 1.0).to_event(1),
            fd.Transition(lambda t, x, u: dist.Normal(x, scale).to_event(1)),
            fd.Observation(lambda t, x, u: dist.Uniform(x, x + 1e-3).to_event(1)),
        )
        d = fd.ObservedSeries(model, TIMES, filter=FEW, key=numpyro.prng_key())
        numpyro.sample("y", d, obs=y)

    with pytest.raises(RuntimeError, match="likelihood is 0 at 20 starts"):
        run(impossible, Y, draws=1, warmup=0, chains=1)


def grid_posterior(y, means, memory=0.97, noise=0.2):
    """Weights of values of the mean of a stochastic volatility under a N(0, 1) prior: the state's distance
    from the mean lives on a grid, on which sums are integrals to many digits."""
    x = np.linspace(-6.0, 6.0, 401) * noise / np.sqrt(1 - memory**2)
    moved = np.exp(-0.5 * ((x[:, None] - memory * x) / noise) ** 2)
    moved /= moved.sum(0)
    out = []
    for mean in means:
        p, total = np.exp(-0.5 * (x * np.sqrt(1 - memory**2) / noise) ** 2), -0.5 * mean**2
        for k, value in enumerate(y):
            p = moved @ p if k else p / p.sum()
            p = p * np.exp(-0.5 * (mean + x) - 0.5 * value**2 * np.exp(-mean - x))
            total, p = total + np.log(p.sum()), p / p.sum()
        out.append(total)
    w = np.exp(np.array(out) - max(out))
    return w / w.sum()


@pytest.mark.slow
def test_a_volatility_is_that_of_a_grid():
    """A model in which nothing is Gaussian but the state."""
    y = np.array(
        json.loads((REFERENCE / "C02_stochastic_volatility.json").read_text())["problem"]["y"]
    )
    y = y[:80]

    def model(times, y=None):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        start = dist.Normal(mean, 0.2 / jnp.sqrt(1 - 0.97**2)).expand([1]).to_event(1)
        volatility = fd.StateSpaceModel(
            start,
            fd.Transition(lambda t, x, u: dist.Normal(mean + 0.97 * (x - mean), 0.2).to_event(1)),
            fd.Observation(lambda t, x, u: dist.Normal(0.0, jnp.exp(x / 2)).to_event(1)),
        )
        d = fd.ObservedSeries(volatility, times, filter=FEW, key=numpyro.prng_key())
        numpyro.sample("y", d, obs=y)

    mcmc = run(model, np.arange(80.0), y[:, None], draws=800, warmup=200, paths=False, fields=())
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["mean"])
    means = np.linspace(-3.5, 1.5, 101)
    w = grid_posterior(y, means)
    exact = w @ means
    assert abs(x.mean() - exact) < 4 * mcse(x)
    assert abs(x.std() / np.sqrt(w @ (means - exact) ** 2) - 1) < 0.15
