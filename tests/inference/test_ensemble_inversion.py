"""Ensemble Kalman inversion and the iterative smoother against exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

X64 = jax.config.read("jax_enable_x64")
KEY = jax.random.key(0)
G = jnp.array([[1.0, 0.5], [0.2, -1.0], [0.3, 0.3]])
R = jnp.array([0.2, 0.1, 0.4])
Y = jnp.array([1.0, -0.3, 0.4])
linear = lambda theta: G @ theta
inversion = fd.inference.ensemble_kalman_inversion
smoother = fd.inference.iterative_ensemble_smoother


@pytest.fixture(scope="module")
def ensemble():
    return fd.Ensemble(jax.random.normal(KEY, (7, 2)) + jnp.array([0.5, -1.0]))


def update(mean, cov, g=G, r=R, y=Y):
    """The Kalman update."""
    g, r, cov = np.asarray(g), np.diag(r), np.asarray(cov)
    gain = cov @ g.T @ np.linalg.inv(g @ cov @ g.T + r)
    return mean + gain @ (y - g @ mean), cov - gain @ g @ cov


@pytest.mark.parametrize("steps", [1, 4])
def test_tempered_steps_make_one_kalman_update(ensemble, steps):
    found = inversion(linear, Y, R, ensemble, key=KEY, steps=steps, kind="transform")
    mean, cov = update(ensemble.mean, ensemble.cov)
    np.testing.assert_allclose(found.mean, mean, atol=1e-10 if X64 else 1e-5)
    np.testing.assert_allclose(found.cov, cov, atol=1e-10 if X64 else 1e-5)
    assert found.misfits.shape == (steps + 1,)
    assert (jnp.diff(found.misfits) < 0).all() and found.status == fd.Status.OK


@pytest.mark.parametrize("iterations", [1, 3])
def test_iterations_of_the_smoother_count_the_data_once(ensemble, iterations):
    found = smoother(linear, Y, R, ensemble, key=KEY, iterations=iterations)
    mean, cov = update(ensemble.mean, ensemble.cov)
    np.testing.assert_allclose(found.mean, mean, atol=1e-10 if X64 else 1e-5)
    np.testing.assert_allclose(found.cov, cov, atol=1e-10 if X64 else 1e-5)


def test_a_missing_datum_is_left_out(ensemble):
    some = smoother(linear, Y.at[1].set(jnp.nan), R, ensemble, key=KEY, iterations=1)
    keep = jnp.array([0, 2])
    mean, cov = update(ensemble.mean, ensemble.cov, G[keep], R[keep], Y[keep])
    np.testing.assert_allclose(some.mean, mean, atol=1e-10 if X64 else 1e-5)
    np.testing.assert_allclose(some.cov, cov, atol=1e-10 if X64 else 1e-5)


@pytest.mark.slow
def test_the_stochastic_inversion_tends_to_the_posterior():
    prior = dist.MultivariateNormal(jnp.array([0.5, -1.0]), jnp.eye(2))
    found = inversion(linear, Y, R, prior, key=KEY, size=20_000, steps=3)
    mean, cov = update(np.array([0.5, -1.0]), np.eye(2))
    # Standard errors are below 0.004 for means and 0.003 for variances.
    np.testing.assert_allclose(found.mean, mean, atol=0.02)
    np.testing.assert_allclose(found.cov, cov, atol=0.02)


def test_the_initial_state_of_a_series_is_that_of_the_kalman_smoother(ensemble):
    """A series without process noise is a linear map of its first state."""
    f = jnp.array([[0.9, 0.3], [-0.2, 0.8]])
    h = jnp.array([[1.0, 0.0]])
    y = jnp.array([[0.5], [jnp.nan], [0.2], [-0.4]])
    powers = [np.linalg.matrix_power(np.asarray(f), k) for k in range(4)]
    forward = lambda x: jnp.concatenate([h @ jnp.asarray(p) @ x for p in powers])
    found = smoother(forward, y[:, 0], 0.3, ensemble, key=KEY, iterations=2)
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(ensemble.mean, ensemble.cov),
        fd.LinearTransition(f, jnp.zeros((2, 2))),
        fd.LinearObservation(h, 0.3),
    )
    exact = fd.smooth(model, fd.Series(jnp.arange(4.0), y), fd.KalmanFilter())
    np.testing.assert_allclose(found.mean, exact.mean[0], atol=1e-9 if X64 else 1e-4)
    np.testing.assert_allclose(found.cov, exact.cov[0], atol=1e-9 if X64 else 1e-4)


@pytest.mark.slow
def test_iterations_find_the_mode_where_one_update_does_not():
    """exp(theta) measured precisely: the mode solves theta + (exp(theta) - y) exp(theta) / r = 0."""
    prior = dist.Normal(jnp.zeros(1), 1.0).to_event(1)
    found = smoother(jnp.exp, jnp.array([5.0]), 0.01, prior, key=KEY, size=50, iterations=10)
    np.testing.assert_allclose(found.mean, jnp.log(5.0), atol=0.02)
    once = smoother(jnp.exp, jnp.array([5.0]), 0.01, prior, key=KEY, size=50, iterations=1)
    assert abs(once.mean[0] - jnp.log(5.0)) > 0.1


def test_a_map_that_fails_is_a_status(ensemble):
    found = inversion(lambda x: jnp.sqrt(x[:1] - 100.0), Y[:1], 0.1, ensemble, key=KEY, steps=2)
    assert found.status == fd.Status.MODEL_NOT_FINITE
    assert jnp.isnan(found.mean).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(observation=Y[None]), ValueError, r"`observation` has shape \(1, 3\)"),
        (dict(observation=Y[:2], noise=0.1), ValueError, r"`forward\(parameters\)` has shape"),
        (dict(noise=-R), ValueError, "`noise` holds variances"),
        (dict(noise=0.0), ValueError, "variance of 0"),
        (dict(prior=3.0), TypeError, "`prior` is float"),
        (dict(steps=0), ValueError, "`steps` is 0"),
        (dict(kind="serial"), ValueError, "`kind` is 'serial'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(ensemble, change, error, message):
    arguments = dict(
        forward=linear, observation=Y, noise=R, prior=ensemble, steps=2, kind="stochastic"
    )
    with pytest.raises(error, match=message):
        inversion(**(arguments | change), key=KEY)
