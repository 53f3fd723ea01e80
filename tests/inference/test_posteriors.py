"""Posteriors by NUTS against posteriors that were computed without this library.

A mean is held to 4 Monte Carlo standard errors (ours and the reference's together), a standard
deviation to 5 %. A right sampler fails the first with probability 6e-5 per parameter. The standard
deviation of n effective draws of kurtosis k has the relative error sqrt((k - 1) / 4 n): with n above
5,000 and k below 4, 5 % is 4 of them. Seeds are fixed.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, init_to_median
from oracles import ou_posterior

import filterdyn as fd

pytestmark = pytest.mark.slow
if not jax.config.jax_enable_x64:
    pytest.skip("the references are float64", allow_module_level=True)
REFERENCE = Path(__file__).parents[1] / "reference"


def reference(name):
    return json.loads((REFERENCE / name).read_text())


def nuts(model, *args, draws, **settings):
    """Draws by parameter, (chain, draw), of four chains without a divergence."""
    mcmc = MCMC(
        NUTS(model, dense_mass=True, **settings),
        num_warmup=500,
        num_samples=draws,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(0), *args, extra_fields=("diverging",))
    assert not mcmc.get_extra_fields()["diverging"].any()
    return {name: np.asarray(x) for name, x in mcmc.get_samples(group_by_chain=True).items()}


def mcse(draws):
    """Monte Carlo standard error of the mean of draws (chain, draw)."""
    return draws.std() / np.sqrt(effective_sample_size(draws))


def report(name, draws, known):
    print(
        f"{name:12s} mean {draws.mean():.5g} (reference {known['mean']:.5g}), "
        f"sd {draws.std():.4g} ({known['sd']:.4g}), ess {effective_sample_size(draws):.0f}, "
        f"off by {(draws.mean() - known['mean']) / mcse(draws):+.2f} MCSE, "
        f"{(draws.mean() - known['mean']) / known['sd']:+.3f} sd, sd ratio {draws.std() / known['sd']:.3f}"
    )


def assert_agrees(draws, known):
    for name, summary in known.items():
        report(name, draws[name], summary)
    for name, summary in known.items():
        error = np.hypot(mcse(draws[name]), summary.get("mcse_approx", 0.0))
        assert abs(draws[name].mean() - summary["mean"]) < 4 * error, name
        assert abs(draws[name].std() / summary["sd"] - 1) < 0.05, name


QUANTILES = {"q025": 0.025, "q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
QUANTILES["q975"] = 0.975


def assert_quantiles_agree(draws, known):
    """Within 4 Monte Carlo standard errors; of 14 quantiles a right sampler misses one in 1 of 1,100 runs."""
    stats = pytest.importorskip("arviz_stats").base.array_stats
    for name, summary in known.items():
        for label, p in QUANTILES.items():
            error = float(stats.mcse(draws[name], method="quantile", prob=p))
            value = np.quantile(draws[name], p)
            print(f"{name} {label}: {(value - summary[label]) / error:+.2f} MCSE")
            assert abs(value - summary[label]) < 4 * error, (name, label)


def level_model(sigma_obs, sigma_level, start=1000.0, start_sd=1000.0):
    one = jnp.eye(1)
    return fd.StateSpaceModel(
        dist.Normal(start * jnp.ones(1), start_sd).to_event(1),
        fd.LinearTransition(one, sigma_level**2 * one),
        fd.LinearObservation(one, sigma_obs**2 * one),
    )


def nile_level(times, y=None):
    sigma_obs = numpyro.sample("sigma_obs", dist.HalfNormal(200.0))
    sigma_level = numpyro.sample("sigma_level", dist.HalfNormal(100.0))
    model = level_model(sigma_obs, sigma_level)
    numpyro.sample("y", fd.ObservedSeries(model, times, filter=fd.KalmanFilter()), obs=y)


def test_nile_local_level():
    known, nile = reference("nile_posterior.json"), fd.datasets.nile()
    check = fd.log_likelihood(
        level_model(np.sqrt(15099.0), np.sqrt(1469.1)), nile, fd.KalmanFilter()
    )
    np.testing.assert_allclose(check, known["loglik_check"]["value"], rtol=1e-10)
    draws = nuts(nile_level, nile.times, nile.observations, draws=2500)
    assert_agrees(draws, known["summary"])
    assert_quantiles_agree(draws, known["summary"])
    correlation = np.corrcoef(draws["sigma_obs"].ravel(), draws["sigma_level"].ravel())[0, 1]
    assert abs(correlation - known["corr"]) < 0.05
    flat = {name: x.ravel() for name, x in draws.items()}
    evidence = fd.inference.log_evidence(flat, nile_level, nile.times, nile.observations)
    print(evidence, f"(quadrature {known['log_evidence']:.3f})")
    assert evidence.reliable
    assert evidence.standard_error < 0.01
    assert abs(evidence.value - known["log_evidence"]) < 0.05


def ornstein_uhlenbeck(theta, mu, sigma, r):
    one = jnp.eye(1)
    return fd.StateSpaceModel(
        dist.Normal(mu * jnp.ones(1), sigma / jnp.sqrt(2 * theta)).to_event(1),
        fd.LinearSDE(-theta * one, sigma * one, b=theta * mu * jnp.ones(1)),
        fd.LinearObservation(one, r**2 * one),
    )


def noisy_ornstein_uhlenbeck(times, y=None):
    theta = numpyro.sample("theta", dist.LogNormal(0.0, 1.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    r = numpyro.sample("r", dist.LogNormal(-1.0, 1.0))
    model = ornstein_uhlenbeck(theta, mu, sigma, r)
    numpyro.sample("y", fd.ObservedSeries(model, times, filter=fd.KalmanFilter()), obs=y)


def test_noisy_ornstein_uhlenbeck_at_irregular_times():
    """The stored summary has the right means, but its standard deviations are 7 to 9 % too small:
    importance sampling, which shares no code with the library, says so with 40,000 effective draws.
    So that answer is the judge of the standard deviations."""
    known = reference("ou_posterior.json")
    data = np.loadtxt(REFERENCE / "ou_data.csv", delimiter=",", skiprows=1)
    series = fd.Series(data[:, 0], data[:, 1])
    check = fd.log_likelihood(ornstein_uhlenbeck(**known["truth"]), series, fd.KalmanFilter())
    np.testing.assert_allclose(check, known["loglik_at_truth"], rtol=1e-9)
    draws = nuts(noisy_ornstein_uhlenbeck, series.times, series.observations, draws=2500)
    answer = ou_posterior.answer(*data.T, list(known["truth"].values()))
    exact = {
        name: dict(mean=mean, sd=sd, mcse_approx=sd / np.sqrt(answer.effective_size))
        for name, mean, sd in zip(ou_posterior.NAMES, answer.mean, answer.sd, strict=True)
    }
    assert_agrees(draws, exact)
    correlation = np.corrcoef([draws[name].ravel() for name in ou_posterior.NAMES])
    np.testing.assert_allclose(correlation, answer.corr, atol=0.06)
    for name, summary in known["summary"].items():
        report(name, draws[name], summary)
        error = np.hypot(mcse(draws[name]), summary["mcse_approx"])
        assert abs(draws[name].mean() - summary["mean"]) < 4 * error, name


def lynx_hare_ode(times, y=None):
    """Hare u and lynx v: u' = (a - b v) u, v' = (-c + d u) v from a start that is a parameter, so
    the filter's likelihood is that of a nonlinear regression."""
    positive = lambda loc, scale: dist.TruncatedNormal(loc, scale, low=0.0)
    a = numpyro.sample("theta[1]", positive(1.0, 0.5))
    b = numpyro.sample("theta[2]", positive(0.05, 0.05))
    c = numpyro.sample("theta[3]", positive(1.0, 0.5))
    d = numpyro.sample("theta[4]", positive(0.05, 0.05))
    sigma = jnp.stack([numpyro.sample(f"sigma[{i}]", dist.LogNormal(-1.0, 1.0)) for i in (1, 2)])
    start = jnp.stack(
        [numpyro.sample(f"z_init[{i}]", dist.LogNormal(np.log(10.0), 1.0)) for i in (1, 2)]
    )

    def field(t, x, u):
        hare, lynx = x
        return jnp.stack([(a - b * lynx) * hare, (-c + d * hare) * lynx])

    model = fd.StateSpaceModel(
        dist.Delta(start, event_dim=1),
        fd.ODE(field, substeps=10),
        fd.Observation(lambda t, x, u: dist.LogNormal(jnp.log(x), sigma).to_event(1)),
    )
    numpyro.sample("y", fd.ObservedSeries(model, times, filter=fd.ExtendedKalmanFilter()), obs=y)


def test_lynx_hare_ode():
    known, series = reference("posterior_lynx_hare_ode.json"), fd.datasets.lynx_hare()
    draws = nuts(
        lynx_hare_ode,
        series.times,
        series.observations,
        draws=750,
        target_accept_prob=0.9,
        init_strategy=init_to_median,
    )
    for name, summary in known["summary"].items():
        report(name, draws[name], summary)
        assert abs(draws[name].mean() - summary["mean"]) < 0.1 * summary["sd"], name


CONVENTIONS = {
    "proper prior a1=0,P1=1e7": (0.0, 1e7),
    "proper prior a1=0,P1=1e6": (0.0, 1e6),
    "proper prior a1=y1,P1=1e7": (1120.0, 1e7),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_nile_likelihood_and_its_maximum_under_proper_priors(name):
    nile, (mean, variance) = fd.datasets.nile(), CONVENTIONS[name]
    known = reference("nile_conventions.json")[name]

    @jax.jit
    def log_likelihood(log_variances):
        sd = jnp.exp(0.5 * log_variances)
        model = level_model(*sd, start=mean, start_sd=np.sqrt(variance))
        return fd.log_likelihood(model, nile, fd.KalmanFilter())

    at = jnp.log(jnp.array([15099.0, 1469.1]))
    np.testing.assert_allclose(log_likelihood(at), known["loglik_at_15099_1469_1"], rtol=1e-11)
    best = at
    for _ in range(4):  # Newton's method
        best = best - jnp.linalg.solve(
            jax.hessian(log_likelihood)(best), jax.grad(log_likelihood)(best)
        )
    np.testing.assert_allclose(jnp.exp(best), known["mle_var_eps_var_eta"], rtol=1e-5)
    np.testing.assert_allclose(log_likelihood(best), known["loglik_mle"], rtol=1e-11)


def test_nile_likelihood_without_the_first_flow():
    """The usual answer of exact diffuse initialisation, to what a variance of 1e7 leaves of it."""
    known = reference("nile_conventions.json")["P1=1e7, first obs dropped from sum"]
    model = level_model(np.sqrt(15099.0), np.sqrt(1469.1), start=0.0, start_sd=np.sqrt(1e7))
    result = fd.filter(model, fd.datasets.nile(), fd.KalmanFilter())
    np.testing.assert_allclose(
        result.log_likelihoods[1:].sum(), known["loglik_at_15099_1469_1"], rtol=1e-11
    )
