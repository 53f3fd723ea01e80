"""The nested particle filter against sums over a grid of exact likelihoods."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from oracles import scalar_kalman

import filterdyn as fd

T = 40


def make(p):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition(p["a"] * jnp.eye(1), 0.5 * jnp.eye(1)),
        fd.LinearObservation(jnp.eye(1), p["r"] * jnp.eye(1)),
    )


MODEL = fd.ParametricModel(make, dict(a=dist.Normal(0.5, 0.4), r=dist.LogNormal(-1.0, 0.5)))
KALMAN = fd.KalmanFilter(square_root=False)


@pytest.fixture(scope="module")
def series():
    truth = make(dict(a=jnp.asarray(0.8), r=jnp.asarray(0.3)))
    ys = np.array(fd.simulate(truth, np.arange(T), key=jax.random.key(4)).observations)
    ys[7] = np.nan
    return fd.Series(np.arange(T), ys)


@pytest.fixture(scope="module")
def exact(series):
    """Evidence, means and standard deviations of a and log r, by summing over a grid."""
    a = np.linspace(0.5 - 2.4, 0.5 + 2.4, 241)[:, None]
    s = np.linspace(-1 - 3.0, -1 + 3.0, 241)[None, :]
    prior = -0.5 * ((a - 0.5) / 0.4) ** 2 - 0.5 * ((s + 1) / 0.5) ** 2
    prior = prior - np.log(np.exp(prior).sum())
    found = scalar_kalman.log_likelihoods(
        np.asarray(series.observations)[:, 0], a, 0.5, np.exp(s), 0.0, 1.0
    )
    return scalar_kalman.posterior(prior, found, a, s)


def test_without_jitter_it_is_importance_sampling_from_the_prior(series):
    """Weights are the likelihoods of parameters drawn from the prior, to the last digits."""
    filter = fd.NestedParticleFilter(64, KALMAN, jitter=None, ess_threshold=0.0)
    result = fd.filter(MODEL, series, filter, key=jax.random.key(0))
    assert result.status == fd.Status.OK
    belief = result.last
    theta = np.asarray(belief.thetas)
    found = scalar_kalman.log_likelihoods(
        np.asarray(series.observations)[:, 0], theta[:, 0], 0.5, np.exp(theta[:, 1]), 0.0, 1.0
    )
    weights = np.exp(found - found.max())
    np.testing.assert_allclose(belief.weights, weights / weights.sum(), rtol=1e-9, atol=1e-15)
    evidence = found.max() + np.log(weights.mean())
    np.testing.assert_allclose(result.log_likelihood, evidence, rtol=1e-11)
    mean = weights @ theta / weights.sum()
    np.testing.assert_allclose(result.parameters.unconstrained_mean[-1], mean, rtol=1e-9)
    assert (result.diagnostics["distinct_parameters"] == 64).all()
    assert not result.diagnostics["resampled"].any()
    assert result.log_likelihoods[7] == 0


def runs(filter, series, count):
    """Log-likelihoods, means and standard deviations of (a, log r) after the last row, by key."""

    def one(key):
        result = fd.filter(MODEL, series, filter, key=key)
        last = result.parameters
        sd = jnp.sqrt(jnp.diagonal(last.unconstrained_cov[-1]))
        return result.log_likelihood, last.unconstrained_mean[-1], sd

    return jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(2), count))


def agrees(found, exact, bias):
    """Means over runs within four standard errors (one false alarm in 15,000 each), and `bias` in units of
    the posterior's standard deviation."""
    evidence, mean, sd = exact
    lls, means, sds = (np.asarray(x) for x in found)
    error = lambda x: 4 * x.std(0, ddof=1) / np.sqrt(len(x))
    assert abs(lls.mean() - evidence) < error(lls) + 0.1
    assert (np.abs(means.mean(0) - mean) < error(means) + bias * sd).all()
    assert (np.abs(sds.mean(0) - sd) < error(sds) + bias * sd).all()


@pytest.mark.slow
def test_with_kalman_filters_inside_it_is_the_posterior_by_quadrature(series, exact):
    """Under shrinkage, which keeps mean and covariance, the bias is below a twentieth of a posterior standard
    deviation."""
    agrees(runs(fd.NestedParticleFilter(500, KALMAN), series, 30), exact, 0.05)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", ["small", "rare"])
def test_the_jitters_of_crisan_and_miguez_widen_little(series, exact, kind):
    filter = fd.NestedParticleFilter(500, KALMAN, jitter=fd.Jitter(kind))
    agrees(runs(filter, series, 30), exact, 0.08)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    "inner", [fd.ParticleFilter(100, ess_threshold=1.0), fd.EnsembleKalmanFilter(100)]
)
def test_with_draws_inside_it_is_the_same_posterior(series, exact, inner):
    agrees(runs(fd.NestedParticleFilter(300, inner), series, 30), exact, 0.12)


@pytest.mark.slow
def test_jitter_by_shrinkage_keeps_mean_and_covariance():
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(4000, 2)) @ np.array([[1.0, 0.0], [0.8, 0.3]])
    mean, cov = theta.mean(0), np.cov(theta.T, bias=True)
    for kind, factor in [("shrinkage", 1.0), ("small", 1 + 4 / 4000), ("rare", 1 + 4 / 4000**0.5)]:
        jitter = fd.Jitter(kind, 2.0)
        moved = np.asarray(jitter(jax.random.key(1), jnp.array(theta), mean, cov))
        # (A variance of 4000 draws is known to 2.2 per cent, what was added to it better.)
        np.testing.assert_allclose(np.cov(moved.T), factor * cov, atol=0.04)
        np.testing.assert_allclose(moved.mean(0), mean, atol=0.06)
        changed = (moved != theta).any(1).mean()
        assert changed == 1 if kind != "rare" else abs(changed - 4000**-0.5) < 0.01


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(size=0), ValueError, "`size` is 0"),
        (dict(inner=fd.AugmentedFilter(fd.ExtendedKalmanFilter())), TypeError, "which learns"),
        (dict(jitter=0.1), TypeError, "`jitter` is 0.1"),
        (dict(ess_threshold=2.0), ValueError, "`ess_threshold` is 2.0"),
        (dict(resampling=fd.OptimalTransport()), TypeError, "scheme that copies"),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        fd.NestedParticleFilter(**dict(size=10, inner=KALMAN) | arguments)


def test_a_jitter_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="`kind` is 'big'"):
        fd.Jitter("big")
    with pytest.raises(ValueError, match="`scale` is -1"):
        fd.Jitter("small", -1)
    with pytest.raises(TypeError, match=r"expected fd\.ParametricModel"):
        fd.NestedParticleFilter(10, KALMAN).check(make(dict(a=0.5, r=0.3)))
