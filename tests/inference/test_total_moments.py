"""Total covariance over draws of parameters: mean of covariances and spread of means."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from oracles.straight_line import data, model, posterior

import filterdyn as fd
from filterdyn.inference import predictive_moments, total_moments


def test_law_of_total_variance_by_monte_carlo():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(5, 3, 2))
    roots = rng.normal(size=(5, 3, 2, 2))
    found = total_moments(means, roots @ np.swapaxes(roots, -1, -2))
    n = 40_000
    noise = np.einsum("sbij,nsbj->nsbi", roots, rng.normal(size=(n, 5, 3, 2)))
    draws = (means + noise).reshape(-1, 3, 2)
    # 200,000 draws: five standard errors are below 3 % of a variance.
    np.testing.assert_allclose(found.mean, draws.mean(0), atol=0.03)
    for b in range(3):
        np.testing.assert_allclose(found.cov[b], np.cov(draws[:, b].T), atol=0.15)
    np.testing.assert_allclose(found.cov, found.within + found.between, rtol=1e-6)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`means` has shape \(5, 2\) and `covs` \(5, 2\)"):
        total_moments(jnp.zeros((5, 2)), jnp.zeros((5, 2)))


def draws(n):
    mean, cov, _ = posterior(data())
    z = np.random.default_rng(0).multivariate_normal(mean, cov, n)
    return {"b": z[:, :2], "d": z[:, 2]}


@pytest.mark.slow
def test_forecast_over_draws_is_the_exact_predictive_of_a_linear_model():
    """At one row ahead, against simulated futures: parameters from the exact posterior, states and noise of
    their own."""
    y, times, inputs = data(), jnp.array([15.0, 16.0]), jnp.zeros((2, 2))
    samples = draws(400)
    found = predictive_moments(samples, model, y, times=times, inputs=inputs)
    assert found.used == found.draws == 400
    tree = fd.inference.posterior_predictive(
        {n: np.tile(x, (10,) + (1,) * (x.ndim - 1)) for n, x in samples.items()},
        model, y, kind="forecast", times=times, inputs=inputs,
    )  # fmt: skip
    group = next(g for name, g in tree.children.items() if "forecast" in name or "predict" in name)
    futures = group["y"].values.reshape(-1, 2)
    assert len(futures) == 4000
    total = np.asarray(found.observation.cov)[:, 0, 0]
    # 4,000 draws of a future: 1.6 % in the mean (in sd), 2.2 % in the variance; five of these.
    error = (futures.mean(0) - np.asarray(found.observation.mean)[:, 0]) / np.sqrt(total)
    assert (np.abs(error) < 0.08).all()
    np.testing.assert_allclose(futures.var(0), total, rtol=0.11)
    assert (np.asarray(found.observation.between)[:, 0, 0] > 0.02 * total).all()


@pytest.mark.slow
def test_states_over_draws_are_those_of_each_draw():
    y, samples = data(), draws(3)
    for kind in ("filtered", "smoothed"):
        found = predictive_moments(samples, model, y, kind=kind)
        assert found.observation is None
        each = [
            predictive_moments({n: x[i : i + 1] for n, x in samples.items()}, model, y, kind=kind)
            for i in range(3)
        ]
        again = total_moments(
            jnp.stack([e.state.mean for e in each]), jnp.stack([e.state.cov for e in each])
        )
        np.testing.assert_allclose(found.state.cov, again.cov, rtol=1e-5)
        np.testing.assert_allclose(each[0].state.between, 0.0, atol=1e-12)


def test_wrong_kinds_and_sites_are_named():
    y, samples = data(), draws(3)
    with pytest.raises(ValueError, match="`kind` is 'all'"):
        predictive_moments(samples, model, y, kind="all")
    with pytest.raises(ValueError, match="`kind` is 'forecast' but `times` is missing"):
        predictive_moments(samples, model, y, kind="forecast")

    def particles(y):
        a = numpyro.sample("a", dist.Normal())
        moves = fd.LinearTransition([[0.5]], [[1.0]])
        start = dist.Normal(a * jnp.ones(1), 1.0).to_event(1)
        one = fd.StateSpaceModel(start, moves, fd.LinearObservation([[1.0]], [[1.0]]))
        site = fd.ObservedSeries(one, jnp.arange(3.0), filter=fd.ParticleFilter(5), key=jr.key(0))
        numpyro.sample("y", site, obs=y)

    with pytest.raises(
        TypeError, match=r"ParticleFilter; expected an fd.ObservedSeries with a Gaussian"
    ):
        predictive_moments({"a": jnp.zeros(2)}, particles, jnp.zeros((3, 1)))
