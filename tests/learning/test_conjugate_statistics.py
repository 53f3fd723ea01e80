"""Statistics of conjugate posteriors add up to the formulas of a textbook."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import special

import filterdyn as fd
from filterdyn.learning.statistics import forgotten

ROWS = 12


def parametric(prior):
    """A model that says no more than which parameters there are."""

    def make(p):
        return fd.StateSpaceModel(
            dist.Normal(jnp.zeros(2), 1.0).to_event(1),
            fd.LinearTransition(jnp.eye(2), jnp.eye(2)),
            fd.LinearObservation(jnp.eye(2), jnp.eye(2)),
        )

    return fd.ParametricModel(make, prior)


@pytest.fixture(scope="module")
def path():
    """States (ROWS + 1, 2), measurements (ROWS, 2) of which some are missing, and whether a row moved."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS + 1, 2)).cumsum(0)
    y = x[1:] + rng.normal(size=(ROWS, 2))
    y[3] = np.nan
    y[5, 0] = np.nan
    moved = np.ones(ROWS, bool)
    moved[7] = False
    x[8] = x[7]
    return x, y, moved


def after(family, model, path):
    """The statistics after all rows."""
    x, y, moved = path
    start = jax.tree.map(jnp.asarray, family.prior(model))

    def one(statistics, row):
        x_from, x_to, y, moved = row
        zero = jnp.zeros(())
        x_from = jnp.where(moved, x_from, jnp.nan)
        passage = fd.Passage(x_from, x_to, y, zero, zero, zero + moved, None, None)
        return family.update(statistics, passage), None

    rows = (jnp.asarray(x[:-1]), jnp.asarray(x[1:]), jnp.asarray(y), jnp.asarray(moved))
    return jax.lax.scan(one, start, rows)[0]


def close(found, expected, tolerance=1e-12):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=tolerance, atol=tolerance)


def test_residuals_add_up_to_an_inverse_gamma(path):
    model = parametric(dict(v=dist.InverseGamma(3.0, 2.0)))
    family = fd.InverseGammaStatistics("v", lambda p: p.y - p.x_to)
    x, y, _ = path
    e = y - x[1:]
    a, b = 3 + np.isfinite(e).sum() / 2, 2 + np.nansum(e**2) / 2
    found = after(family, model, path)
    close(found, (a, b))
    mean, cov = family.moments(found)
    close((mean[0], cov[0, 0]), (np.log(b) - special.digamma(a), special.polygamma(1, a)))


def test_a_variance_of_each_sensor_has_its_own_residuals(path):
    model = parametric(dict(v=dist.InverseGamma(jnp.array([3.0, 4.0]), 2.0).to_event(1)))
    x, y, _ = path
    e = y - x[1:]
    found = after(fd.InverseGammaStatistics("v", lambda p: p.y - p.x_to), model, path)
    count = np.isfinite(e).sum(0)
    close(found, (np.array([3.0, 4.0]) + count / 2, 2 + np.nansum(e**2, 0) / 2))


def test_counts_add_up_to_a_gamma(path):
    model = parametric(dict(rate=dist.Gamma(2.0, 3.0)))
    family = fd.GammaStatistics("rate", lambda p: jnp.abs(p.y[0]), lambda p: p.x_to[1] ** 2)
    x, y, _ = path
    seen = np.isfinite(y[:, 0])
    a = 2 + np.abs(y[seen, 0]).sum()
    b = 3 + (x[1:][seen, 1] ** 2).sum()
    found = after(family, model, path)
    close(found, (a, b))


def test_trials_add_up_to_a_beta(path):
    model = parametric(dict(p=dist.Beta(2.0, 3.0)))
    family = fd.BetaStatistics("p", lambda p: jnp.abs(p.y[0]), lambda p: jnp.abs(p.y[0]) + 2.0)
    _, y, _ = path
    seen = np.isfinite(y[:, 0])
    found = after(family, model, path)
    close(found, (2 + np.abs(y[seen, 0]).sum(), 3 + 2.0 * seen.sum()))


def regression(path):
    """Targets x_to[0] and features (x_from, 1) of the rows that moved."""
    x, _, moved = path
    phi = np.column_stack([x[:-1], np.ones(ROWS)])[moved]
    return x[1:, 0][moved], x[1:][moved], phi


def features(p):
    return jnp.append(p.x_from, 1.0)


PRIOR_MEAN = np.array([0.9, 0.1, 0.0])
PRIOR_COV = np.array([[0.5, 0.1, 0.0], [0.1, 0.4, 0.0], [0.0, 0.0, 2.0]])


@pytest.mark.slow
def test_a_regression_with_known_noise_is_the_textbooks(path):
    prior = dist.MultivariateNormal(jnp.array(PRIOR_MEAN), jnp.array(PRIOR_COV))
    model = parametric(dict(beta=prior))
    family = fd.NormalStatistics("beta", lambda p: p.x_to[0], features, 0.7)
    y, _, phi = regression(path)
    cov = np.linalg.inv(np.linalg.inv(PRIOR_COV) + phi.T @ phi / 0.7)
    mean = cov @ (np.linalg.solve(PRIOR_COV, PRIOR_MEAN) + phi.T @ y / 0.7)
    close(family.moments(after(family, model, path)), (mean, cov))


def test_a_regression_with_unknown_noise_is_the_textbooks(path):
    prior = dist.MultivariateNormal(jnp.array(PRIOR_MEAN), jnp.array(PRIOR_COV))
    model = parametric(dict(beta=prior, v=dist.InverseGamma(4.0, 6.0)))
    family = fd.NormalInverseGammaStatistics("beta", "v", lambda p: p.x_to[0], features)
    y, _, phi = regression(path)
    k0 = np.linalg.inv(PRIOR_COV / 2.0)  # the mean of v is 6 / (4 - 1)
    k = k0 + phi.T @ phi
    m = np.linalg.solve(k, k0 @ PRIOR_MEAN + phi.T @ y)
    a = 4 + len(y) / 2
    e, d = y - phi @ m, m - PRIOR_MEAN
    b = 6 + 0.5 * (e @ e + d @ k0 @ d)
    found = after(family, model, path)
    mean, cov = family.moments(found)
    close((mean[:3], cov[:3, :3]), (m, b / (a - 1) * np.linalg.inv(k)), 1e-11)
    close((mean[3], cov[3, 3]), (np.log(b) - special.digamma(a), special.polygamma(1, a)), 1e-11)
    # The prior itself has the mean and the covariance that the model states.
    start = family.moments(jax.tree.map(jnp.asarray, family.prior(model)))
    close((start[0][:3], start[1][:3, :3]), (PRIOR_MEAN, PRIOR_COV), 1e-11)


@pytest.mark.slow
@pytest.mark.long
def test_a_multivariate_regression_is_the_textbooks(path):
    scale = np.array([[2.0, 0.5], [0.5, 2.0]])
    model = parametric(
        dict(
            A=dist.Normal(jnp.full((2, 3), 0.2), 1.5).to_event(2),
            V=dist.InverseWishart(6.0, scale_matrix=jnp.array(scale)),
        )
    )
    family = fd.MatrixNormalInverseWishartStatistics("A", "V", lambda p: p.x_to, features)
    _, y, phi = regression(path)
    k0 = np.eye(3) * (2.0 / 3.0) / 1.5**2  # E[V_ii] = 2 / (6 - 2 - 1)
    m0 = np.full((2, 3), 0.2)
    k = k0 + phi.T @ phi
    m = np.linalg.solve(k, k0 @ m0.T + phi.T @ y).T
    e, d = y - phi @ m.T, m - m0
    psi = scale + e.T @ e + d @ k0 @ d.T
    precision, weighted, count, squares = after(family, model, path)
    close((precision, weighted, count), (k, (m @ k).T, 6 + len(y)))
    close((squares - weighted.T @ np.linalg.solve(k, weighted),), (psi,), 1e-10)
    keys = jax.random.split(jax.random.key(1), 4_000)
    statistics = (precision, weighted, count, squares)
    draws = jax.jit(jax.vmap(lambda key: family.sample(key, statistics)))(keys)
    expected = psi / (6 + len(y) - 3)
    a, v = np.asarray(draws["A"]), np.asarray(draws["V"])
    spread = np.sqrt(np.diagonal(np.linalg.inv(k)) * expected[0, 0])
    np.testing.assert_allclose(a.mean(0), m, atol=5 * spread.max() / np.sqrt(len(keys)))
    np.testing.assert_allclose(v.mean(0), expected, atol=5 * v.std(0).max() / np.sqrt(len(keys)))
    rows = np.cov(a[:, :, 0].T) / np.linalg.inv(k)[0, 0]
    np.testing.assert_allclose(rows, expected, atol=0.15 * expected.max())


def test_forgetting_weighs_rows_exponentially_and_keeps_the_prior(path):
    model = parametric(dict(v=dist.InverseGamma(3.0, 2.0)))
    family = fd.InverseGammaStatistics("v", lambda p: p.x_to[0] - p.x_from[0])
    x, y, _ = path
    prior = statistics = family.prior(model)
    zero = jnp.zeros(())
    for row in range(5):
        passage = fd.Passage(x[row], x[row + 1], y[row], zero, zero, zero + 1, None, None)
        statistics = family.update(forgotten(statistics, prior, 0.9), passage)
    weights = 0.9 ** np.arange(4, -1, -1)
    e = np.diff(x[:6, 0])
    close(statistics, (3 + 0.5 * weights.sum(), 2 + 0.5 * weights @ e**2))


def identity(x):
    return x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "statistics", "bijections"),
    [
        (fd.InverseGammaStatistics("v", features), (2.5, 1.5), [np.log]),
        (fd.GammaStatistics("v", features), (2.5, 1.5), [np.log]),
        (fd.BetaStatistics("v", features), (2.5, 1.5), [special.logit]),
        (
            fd.NormalInverseGammaStatistics("b", "v", features, features),
            (np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([1.0, -1.0]), 4.0, 8.0),
            [identity, np.log],
        ),
    ],
    ids=["inverse gamma", "gamma", "beta", "normal inverse gamma"],
)
def test_draws_have_the_moments_that_a_family_states(family, statistics, bijections):
    statistics = jax.tree.map(jnp.asarray, statistics)
    mean, cov = family.moments(statistics)
    keys = jax.random.split(jax.random.key(1), 4_000)
    draws = jax.jit(jax.vmap(lambda key: family.sample(key, statistics)))(keys)
    free = [f(np.asarray(draws[n])) for n, f in zip(family.names, bijections, strict=True)]
    free = np.concatenate([z.reshape(len(keys), -1) for z in free], axis=1)
    sd = np.sqrt(np.diagonal(cov))
    # Five standard errors of a mean; of a variance (of a t of 8 degrees of freedom) about six.
    np.testing.assert_allclose(free.mean(0), mean, atol=(5 * sd / np.sqrt(len(keys))).max())
    np.testing.assert_allclose(np.cov(free.T).reshape(cov.shape), cov, atol=0.17 * sd.max() ** 2)


@pytest.mark.parametrize(
    ("prior", "family", "error", "message"),
    [
        (
            dict(v=dist.LogNormal(0.0, 1.0)),
            fd.InverseGammaStatistics("v", lambda p: p.y),
            TypeError,
            "prior of 'v' is LogNormal; conjugate is InverseGamma",
        ),
        (
            dict(v=dist.InverseGamma(3.0, 1.0)),
            fd.InverseGammaStatistics("w", lambda p: p.y),
            ValueError,
            "no parameter 'w'",
        ),
        (
            dict(b=dist.Normal(0.0, 1.0), v=dist.InverseGamma(1.0, 1.0)),
            fd.NormalInverseGammaStatistics("b", "v", lambda p: p.y[0], lambda p: p.x_to[0]),
            ValueError,
            "concentration 1; expected more than 1",
        ),
        (
            dict(
                A=dist.Normal(0.0, jnp.array([[1.0, 1.0], [2.0, 1.0]])).to_event(2),
                V=dist.InverseWishart(6.0, scale_matrix=jnp.eye(2)),
            ),
            fd.MatrixNormalInverseWishartStatistics("A", "V", lambda p: p.x_to, lambda p: p.x_from),
            ValueError,
            "no products",
        ),
    ],
)
def test_a_prior_that_is_not_conjugate_is_refused(prior, family, error, message):
    with pytest.raises(error, match=message):
        family.prior(parametric(prior))
