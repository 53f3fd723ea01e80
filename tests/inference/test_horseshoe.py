"""Horseshoe regression against dense Gaussians and an average over the prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import filterdyn as fd
from filterdyn.inference.horseshoe import _given_scales, _log_density, _stacked
from filterdyn.inference.term_regression import Equation
from filterdyn.inference.term_selection import Reduced

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 answers", allow_module_level=True)

Library = fd.inference.TermLibrary
pointwise = fd.inference.pointwise_regression
horseshoe = fd.inference.horseshoe_regression
RANDOM = np.random.default_rng(0)
A = RANDOM.normal(size=(30, 4)) @ np.array(
    [[1, 0.9, 0, 0], [0, 0.5, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]
)
B = A @ np.array([0.5, 0.0, -1.0, 0.0]) + 0.3 * RANDOM.normal(size=30)
SCALE, SIGMA = np.array([0.5, 0.01, 2.0, 0.2]), 0.1


def data():
    part = Reduced(Equation(A, B, False))
    return part, jax.tree.map(lambda x: x[0], _stacked([part]))


def test_the_density_without_the_coefficients_is_that_of_the_dense_gaussian():
    part, one = data()
    X, b = A / part.scale, B / part.size
    densities = []
    for scale, sigma in ((SCALE, SIGMA), (2 * SCALE, 0.5 * SIGMA)):
        cov = sigma**2 * np.eye(30) + (X * scale**2) @ X.T
        expected = multivariate_normal(np.zeros(30), cov).logpdf(b)
        densities.append(float(_log_density(one, jnp.asarray(scale), sigma)) - expected)
    # The same constant: that of 2 pi.
    np.testing.assert_allclose(densities, 15 * np.log(2 * np.pi), rtol=1e-10)


@pytest.mark.slow
def test_coefficients_given_the_scales_have_the_moments_of_the_dense_gaussian():
    """20,000 draws: 4 means and 10 covariances within 5 standard errors, a false alarm in 100,000."""
    part, one = data()
    X, b, count = A / part.scale, B / part.size, 20_000
    cov = np.linalg.inv(X.T @ X / SIGMA**2 + np.diag(1 / SCALE**2))
    mean = cov @ X.T @ b / SIGMA**2
    stacked = jax.tree.map(lambda x: x[None], one)
    scales = {"scale": jnp.asarray(SCALE)[None], "sigma": jnp.full(1, SIGMA)}
    keys = jax.random.split(jax.random.key(0), count)
    draws, kappa = jax.vmap(lambda key: _given_scales(key, stacked, scales))(keys)
    draws = np.asarray(draws[:, 0])
    error = np.sqrt(np.diag(cov) / count)
    assert (np.abs(draws.mean(0) - mean) < 5 * error).all()
    spread = np.sqrt((cov**2 + np.outer(np.diag(cov), np.diag(cov))) / count)
    assert (np.abs(np.cov(draws.T) - cov) < 5 * spread).all()
    np.testing.assert_allclose(kappa[0, 0], np.diag(cov) / SCALE**2)


@pytest.mark.slow
def test_the_posterior_is_the_prior_weighted_by_the_likelihood():
    """Two terms and one equation, weak data: means against 400,000 draws of the prior, within 5 of both
    standard errors together (and 3 % of the posterior's spread, for NUTS in the Cauchy's tails)."""
    random = np.random.default_rng(1)
    states = random.normal(size=(12, 2))
    states[:, 1] += 0.5 * states[:, 0]
    library = Library(["x", "y"], degree=1, constant=False)
    values = np.stack([0.8 * states[:, 0], np.zeros(12)], 1) + random.normal(size=(12, 2))
    regression = pointwise(library, states, values, covariance=1.0)
    settings = dict(expected_terms=1.0, num_warmup=500, num_samples=2000, num_chains=1)
    found = horseshoe(regression, key=jax.random.key(0), **settings)

    count, p, b = 400_000, 2, values[:, 0]
    norms, size = np.linalg.norm(states, axis=0), np.linalg.norm(b)
    X, sigma = states / norms, 1 / size
    tau = np.abs(random.standard_cauchy(count)) * 1.0 / (p - 1.0) * sigma
    local = np.abs(random.standard_cauchy((count, p)))
    slab = 1 / random.gamma(2.0, 1 / (2.0 * 2.0**2), count)
    square = (tau[:, None] * local) ** 2
    variance = slab[:, None] * square / (slab[:, None] + square)
    precision = X.T @ X / sigma**2 + np.eye(p) / variance[..., None]
    cov = np.linalg.inv(precision)
    mean = cov @ (X.T @ b / size / sigma**2)
    exponent = 0.5 * np.einsum("sp,p->s", mean, X.T @ b / size / sigma**2)
    log_weight = exponent - 0.5 * np.linalg.slogdet(precision)[1] - 0.5 * np.log(variance).sum(1)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    expected = weight @ mean * size / norms
    sd = (
        np.sqrt(weight @ (np.diagonal(cov, axis1=1, axis2=2) + mean**2) - (weight @ mean) ** 2)
        * size
        / norms
    )
    inclusion = 1 - weight @ (np.diagonal(cov, axis1=1, axis2=2) / variance)
    draws = found.samples[:, 0]
    error = draws.std(0) / np.sqrt(len(draws) / 4) + sd * np.sqrt((weight**2).sum())
    assert (np.abs(draws.mean(0) - expected) < 5 * error).all()
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.1)
    np.testing.assert_allclose(found.inclusion[0], inclusion, atol=0.03)


@pytest.mark.slow
def test_terms_are_found_with_the_intervals_of_least_squares():
    states = np.random.default_rng(2).normal(size=(80, 2))
    x, y = states.T
    noise = 0.1 * np.random.default_rng(3).normal(size=(80, 2))
    values = np.stack([1.3 * x - 0.9 * x * y, 0.8 * x * y - 1.8 * y], 1) + noise
    library = Library(["x", "y"], degree=3)
    regression = pointwise(library, states, values)
    found = horseshoe(regression, key=jax.random.key(0), num_warmup=200, num_samples=200)
    least = fd.inference.thresholded_least_squares(regression)
    assert found.terms == least.terms == (("x", "x"), ("x", "x y"), ("y", "y"), ("y", "x y"))
    assert found.inclusion[least.found].min() > 0.95
    assert found.settings["r_hat"] < 1.1
    width = (least.high - least.low)[least.found]
    for name in ("coefficients", "low", "high"):
        gap = getattr(found, name)[least.found] - getattr(least, name)[least.found]
        assert (np.abs(gap) < 0.25 * width).all()


@pytest.mark.parametrize(
    ("error", "message", "settings"),
    [
        (TypeError, "`key` is int", dict(key=3)),
        (ValueError, "`expected_terms` is 7", dict(expected_terms=7)),
        (ValueError, "`slab_scale` is -1.0", dict(slab_scale=-1.0)),
        (ValueError, "`num_samples` is 0", dict(num_samples=0)),
        (ValueError, "`level` is 2", dict(level=2)),
        (TypeError, "`regression` is str", dict(regression="x")),
    ],
)
def test_what_is_wrong_is_named(error, message, settings):
    states = np.ones((8, 2)) * np.arange(8)[:, None]
    regression = pointwise(Library(["x", "y"]), states, states)
    with pytest.raises(error, match=message):
        horseshoe(**{"regression": regression, "key": jax.random.key(0), **settings})
