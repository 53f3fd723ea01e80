"""Predictions: each from exactly the rows it may see, against dense conditioning of the joint Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

pytestmark = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="compared to 1e-10")
F, Q = np.array([[0.9, 0.4], [-0.3, 0.8]]), np.diag([0.2, 0.1])
H, R = np.array([[1.0, 0.5]]), np.array([[0.3]])
T = 12
MODEL = fd.StateSpaceModel(
    dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
    fd.LinearTransition(jnp.array(F), jnp.array(Q)),
    fd.LinearObservation(jnp.array(H), jnp.array(R)),
)
Y = np.random.default_rng(0).normal(size=T)
Y[4] = np.nan
SERIES = fd.Series(np.arange(float(T)), Y)


def given(rows, target):
    """Mean and variance of a measurement given those of `rows`, from the joint covariance of all."""
    joint = np.zeros((2 * T, 2 * T))
    for j in range(T):
        at = np.eye(2)
        for _ in range(j):
            at = F @ at @ F.T + Q
        for i in range(j, T):
            block = np.linalg.matrix_power(F, i - j) @ at
            joint[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = block
            joint[2 * j : 2 * j + 2, 2 * i : 2 * i + 2] = block.T
    see = np.kron(np.eye(T), H)
    cov = see @ joint @ see.T + np.kron(np.eye(T), R)
    rows = [k for k in rows if not np.isnan(Y[k])]
    gain = np.linalg.solve(cov[np.ix_(rows, rows)], cov[rows, target])
    return gain @ Y[rows], cov[target, target] - gain @ cov[rows, target]


@pytest.mark.parametrize("ahead", [1, 3])
def test_predictions_are_those_of_the_rows_so_far(ahead):
    found = fd.predict(MODEL, SERIES, fd.KalmanFilter(), ahead=ahead)
    assert np.isnan(found.mean[:ahead]).all() and found.kind.startswith(f"{ahead} row")
    for k in range(ahead, T):
        mean, variance = given(range(k - ahead + 1), k)
        np.testing.assert_allclose(found.mean[k, 0], mean, atol=1e-12)
        np.testing.assert_allclose(found.cov[k, 0, 0], variance, rtol=1e-12)


def test_a_free_run_sees_the_rows_of_the_burn_in_only():
    found = fd.free_run(MODEL, SERIES, fd.KalmanFilter(), burn_in=3)
    assert np.isnan(found.mean[:3]).all()
    for k in range(3, T):
        mean, variance = given(range(3), k)
        np.testing.assert_allclose(found.mean[k, 0], mean, atol=1e-12)
        np.testing.assert_allclose(found.cov[k, 0, 0], variance, rtol=1e-12)
    errors = np.delete(Y, 4)[3:] - np.delete(np.asarray(found.mean)[:, 0], 4)[3:]
    np.testing.assert_allclose(found.scores().rmse, np.sqrt((errors**2).mean()), rtol=1e-12)
    np.testing.assert_allclose(found.residuals[5:, 0], Y[5:] - found.mean[5:, 0])


@pytest.mark.slow
def test_an_ensemble_predicts_as_the_exact_filter():
    # 0.02 are four standard errors of the mean of 40,000 draws of spread one.
    ensemble = fd.EnsembleKalmanFilter(40_000)
    key = jax.random.key(1)
    for one, exact in (
        (fd.predict(MODEL, SERIES, ensemble, ahead=2, key=key), given(range(T - 2), T - 1)),
        (fd.free_run(MODEL, SERIES, ensemble, burn_in=2, key=key), given(range(2), T - 1)),
    ):
        np.testing.assert_allclose(one.mean[-1, 0], exact[0], atol=0.03)
        np.testing.assert_allclose(one.cov[-1, 0, 0], exact[1], rtol=0.05)


def test_errors_name_argument_value_and_what_was_expected():
    with pytest.raises(ValueError, match="`ahead` is 12 but the series has 12 rows"):
        fd.predict(MODEL, SERIES, fd.KalmanFilter(), ahead=12)
    with pytest.raises(ValueError, match="`burn_in` is -1; expected an integer >= 0"):
        fd.free_run(MODEL, SERIES, fd.KalmanFilter(), burn_in=-1)
    with pytest.raises(ValueError, match="predict: `key` is missing"):
        fd.predict(MODEL, SERIES, fd.EnsembleKalmanFilter(10))
