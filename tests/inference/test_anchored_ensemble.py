"""Members of an ensemble are draws of the posterior where it is Gaussian, of the prior without data."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from oracles.straight_line import data, model, posterior

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("equations are solved to the precision of float64", allow_module_level=True)


def adam(size, steps):
    return {"optimizer": optax.adam(optax.cosine_decay_schedule(size, steps)), "steps": steps}


def test_members_of_a_regression_scatter_by_the_covariance_of_its_posterior():
    x = np.random.default_rng(0).normal(size=(10, 2))
    y = x @ [1.0, -1.0] + 0.5 * np.random.default_rng(1).normal(size=10)
    y[3] = np.nan

    def line(y):
        b = numpyro.sample("b", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.deterministic("sum", b.sum())
        seen = ~jnp.isnan(y)
        with numpyro.handlers.mask(mask=seen):
            filled = jnp.where(seen, y, 0.0)
            numpyro.sample("y", dist.Normal(jnp.asarray(x) @ b, 0.5), obs=filled)

    found = fd.inference.ensemble(
        line, jnp.asarray(y), key=jr.key(0), members=300, **adam(0.3, 300)
    )
    seen = ~np.isnan(y)
    precision = np.eye(2) + x[seen].T @ x[seen] / 0.25
    z = found.samples["b"] - np.linalg.solve(precision, x[seen].T @ y[seen] / 0.25)
    # z' precision z is chi-square with 2 degrees of freedom for each of 300 members; 1e-5 on either side.
    total = np.einsum("ij,jk,ik->", z, precision, z)
    assert 463 < total < 759
    assert found.residuals.shape == (300,) and found.residuals.max() < 1e-3
    assert not found.failed.any()
    np.testing.assert_allclose(found.samples["sum"], found.samples["b"].sum(1))
    assert found.anchors["b"].std() > 3 * z.std()


@pytest.mark.slow
def test_ensemble_of_a_linear_gaussian_model_is_the_posterior_within_5_percent():
    mean, cov, _ = posterior(data())
    found = fd.inference.ensemble(
        model, data(), key=jr.key(1), members=4000, batch_size=500, **adam(0.3, 250)
    )
    z = np.column_stack([found.samples["b"], found.samples["d"]])
    sd = np.sqrt(np.diag(cov))
    # The errors of 4,000 draws: 1.6 % of the mean, in standard deviations; 1.1 % of those.
    assert (np.abs(z.mean(0) - mean) / sd < 0.05).all()
    assert (np.abs(z.std(0) / sd - 1) < 0.05).all()
    white = np.linalg.solve(np.linalg.cholesky(cov), (z - mean).T)
    assert (
        np.abs(np.cov(white) - np.eye(3)).max() < 0.08
    )  # five standard errors of a variance: 11 %


@pytest.mark.slow
def test_sum_of_squares_of_a_noise_level_follows_the_pivot_of_fisher():
    """With a wide prior of log sigma, sum(r^2) / sigma^2 is chi-square of n degrees of freedom."""
    n = 30
    y = jnp.asarray(np.random.default_rng(0).normal(size=n))

    def noise(y):
        log_sigma = numpyro.sample("log_sigma", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(jnp.zeros(n), jnp.exp(log_sigma)).to_event(1), obs=y)

    # Slopes at the anchors may be a thousand times those at the end, which Adam should forget.
    rule = optax.adam(optax.cosine_decay_schedule(0.2, 600), b2=0.9)
    found = fd.inference.ensemble(noise, y, key=jr.key(0), members=2000, optimizer=rule, steps=600)
    converged = found.samples["log_sigma"][found.residuals < 0.02]
    assert len(converged) > 1900
    pivots = float((y**2).sum()) * np.exp(-2 * converged)
    assert abs(pivots.mean() / n - 1) < 5 * np.sqrt(2 / n / 2000) + 0.01
    assert abs(pivots.std() / np.sqrt(2 * n) - 1) < 0.1


def test_without_data_members_are_draws_of_the_prior():
    def prior(y):
        numpyro.sample("a", dist.LogNormal(0.5, 0.7))
        numpyro.sample("s", dist.HalfNormal(2.0))
        numpyro.sample("y", dist.Normal(jnp.zeros(2), 1.0).to_event(1), obs=y)

    found = fd.inference.ensemble(
        prior, jnp.zeros(2), key=jr.key(0), members=20, optimizer=optax.sgd(0.1), steps=20
    )
    for name in ("a", "s"):
        np.testing.assert_allclose(found.samples[name], found.anchors[name], rtol=1e-9)


def test_an_optimiser_that_needs_a_loss_is_refused():
    with pytest.raises(TypeError, match=r"`optimizer` is .*; expected one of Optax that takes"):
        fd.inference.ensemble(model, data(), key=jr.key(0), optimizer=optax.lbfgs(), steps=3)


def test_members_that_fail_are_counted_and_left_out():
    def sometimes(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        level = jnp.where(a > 0, a, jnp.nan)
        numpyro.sample("y", dist.Normal(level, 1.0), obs=y)

    with pytest.warns(UserWarning, match="of 30 members failed and are left out"):
        found = fd.inference.ensemble(
            sometimes, jnp.ones(()), key=jr.key(0), members=30, **adam(0.1, 5)
        )
    assert 5 < found.failed.sum() < 25
    assert found.samples["a"].shape == (30 - found.failed.sum(),)
    assert np.isfinite(found.samples["a"]).all()
