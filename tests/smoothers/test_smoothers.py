"""Smoothing and posterior paths, beyond the linear cases that the dense oracle covers."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from oracles import dense

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 answers", allow_module_level=True)

NAN = np.nan
m0, P0 = np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 2.0]])
F, Q = np.array([[0.9, 0.3], [-0.2, 0.8]]), np.array([[0.2, 0.05], [0.05, 0.1]])
H, R = np.array([[1.0, 0.5], [0.0, 1.0]]), np.array([[0.3, 0.1], [0.1, 0.4]])
y = np.array([[0.3, -0.8], [1.1, NAN], [NAN, NAN], [NAN, 0.4], [-0.7, 0.9], [0.2, -0.1]])
times = np.arange(6.0)
series = fd.Series(times, y, observation_names=("left", "right"))
initial = dist.MultivariateNormal(jnp.asarray(m0), jnp.asarray(P0))
known_start = dist.Delta(jnp.asarray(m0), event_dim=1)
seen = fd.LinearObservation(H, R)
linear = fd.StateSpaceModel(initial, fd.LinearTransition(F, Q), seen)
exact, extended = fd.KalmanFilter(), fd.ExtendedKalmanFilter()


def bend(x):
    return jnp.sin(jnp.asarray(F) @ x)


nonlinear = fd.StateSpaceModel(
    initial, fd.Transition(lambda t, x, u: dist.MultivariateNormal(bend(x), jnp.asarray(Q))), seen
)


def close(value, expected, rtol=1e-10):
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=rtol)


@pytest.fixture(scope="module")
def smoothed():
    return fd.smooth(linear, series, exact)


def test_covariances_of_neighbouring_states_are_those_of_the_joint_distribution(smoothed):
    answer = dense.answer(dense.discrete_rows(m0, P0, F, Q, H, R, y))
    close(smoothed.lag_one_covs, answer.lag_one_cov)
    close(smoothed.mean, answer.smoothed_mean)
    assert smoothed.status == fd.Status.OK
    assert smoothed.failed_at == -1
    assert smoothed.observation_names == ("left", "right")


def test_the_last_row_is_smoothed_by_filtering(smoothed):
    filtered = fd.filter(linear, series, exact)
    np.testing.assert_array_equal(smoothed.mean[-1], filtered.mean[-1])
    np.testing.assert_array_equal(smoothed.cov[-1], filtered.cov[-1])


def test_smoothing_never_adds_variance(smoothed):
    filtered = fd.filter(linear, series, exact)
    difference = np.linalg.eigvalsh(filtered.cov - smoothed.cov)
    assert difference.min() > -1e-12
    assert difference[:-1].max() > 0.01


def test_one_row_is_smoothed_by_filtering():
    result = fd.smooth(linear, series[:1], exact)
    filtered = fd.filter(linear, series[:1], exact)
    np.testing.assert_array_equal(result.mean, filtered.mean)
    assert result.lag_one_covs.shape == (0, 2, 2)
    paths = fd.sample_paths(linear, series[:1], exact, key=jr.key(0), num_samples=3)
    assert paths.shape == (3, 1, 2)


def test_nonlinear_smoothing_is_the_textbook_recursion_on_the_filters_beliefs():
    """m <- m + G (m' - f(m)), P <- P + G (P' - predicted P') G^T, G = P J^T (predicted P')^-1."""
    filtered = fd.filter(nonlinear, series, extended)
    result = fd.smooth(nonlinear, series, extended)
    mean, cov = np.array(filtered.mean), np.array(filtered.cov)
    for k in range(4, -1, -1):
        slope = np.asarray(jax.jacobian(bend)(filtered.mean[k]))
        predicted = np.asarray(filtered.predicted.cov[k + 1])
        gain = cov[k] @ slope.T @ np.linalg.inv(predicted)
        mean[k] += gain @ (mean[k + 1] - np.asarray(bend(filtered.mean[k])))
        close(result.lag_one_covs[k], cov[k + 1] @ gain.T)
        cov[k] += gain @ (cov[k + 1] - predicted) @ gain.T
    close(result.mean, mean)
    close(result.cov, cov)


def test_a_deterministic_flow_is_smoothed_along_itself():
    """Without process noise every smoothed state is the flow of the first."""
    model = fd.StateSpaceModel(initial, fd.ODE(lambda t, x, u: jnp.asarray(F) @ x), seen)
    result = fd.smooth(model, series, extended)
    step = jax.scipy.linalg.expm(jnp.asarray(F))
    for k in range(5):
        close(result.mean[k + 1], step @ result.mean[k], 1e-6)
        close(result.cov[k + 1], step @ result.cov[k] @ step.T, 1e-6)


@pytest.mark.parametrize("start", [initial, known_start], ids=["Gaussian start", "known start"])
@pytest.mark.parametrize("part", ["mean", "cov"])
def test_the_derivative_of_smoothed_moments_is_the_limit_of_their_differences(start, part):
    @jax.jit
    def first(scale):
        model = fd.StateSpaceModel(start, fd.LinearTransition(F, scale * Q), seen)
        return getattr(fd.smooth(model, series, exact), part)[1].sum()

    step = 1e-5
    finite = (first(1 + step) - first(1 - step)) / (2 * step)
    close(jax.jit(jax.grad(first))(1.0), finite, 1e-7)


def test_smoothing_maps_over_series():
    batch = fd.stack([series, series[:4]])
    together = jax.vmap(lambda s: fd.smooth(linear, s, exact))(batch)
    alone = fd.smooth(linear, series[:4], exact)
    close(together.mean[1, :4], alone.mean)
    close(together.mean[0], fd.smooth(linear, series, exact).mean)
    close(together.mean[1, 4:], np.broadcast_to(alone.mean[-1], (2, 2)))


def log_normal(t, x, u):
    return dist.LogNormal(x, 0.3).to_event(1)


def test_a_failure_leaves_no_numbers_and_no_derivative():
    values = np.exp(np.where(np.isnan(y), NAN, y))
    values[3, 1] = -1.0

    def mean(scale):
        dynamics = fd.LinearTransition(F, scale * Q)
        model = fd.StateSpaceModel(initial, dynamics, fd.Observation(log_normal))
        return fd.smooth(model, fd.Series(times, values), extended)

    failed = mean(1.0)
    assert failed.status == fd.Status.OBSERVATION_OUT_OF_SUPPORT
    assert failed.failed_at == 3
    assert failed.log_likelihood == -np.inf
    assert np.isnan(failed.mean).all() and np.isnan(failed.cov).all()
    assert jax.jit(jax.grad(lambda s: mean(s).mean.sum()))(1.0) == 0.0
    model = fd.StateSpaceModel(initial, linear.dynamics, fd.Observation(log_normal))
    paths = fd.sample_paths(model, fd.Series(times, values), extended, key=jr.key(0), num_samples=2)
    assert np.isnan(paths).all()


def test_nonlinear_paths_have_the_smoothed_moments():
    """40,000 paths: means within 5 standard errors, variances within 5 times sqrt(2 / n)."""
    result = fd.smooth(nonlinear, series, extended)
    paths = fd.sample_paths(nonlinear, series, extended, key=jr.key(0), num_samples=40_000)
    variance = np.diagonal(result.cov, axis1=1, axis2=2)
    assert np.abs((paths.mean(0) - result.mean) / np.sqrt(variance)).max() < 5 / 200
    assert np.abs(paths.var(0) / variance - 1).max() < 5 * np.sqrt(2) / 200
    centred = np.asarray(paths - paths.mean(0))
    lagged = np.einsum("sti,stj->tij", centred[:, 1:], centred[:, :-1]) / 40_000
    sd = np.sqrt(variance)
    assert np.abs((lagged - result.lag_one_covs) / sd[1:, :, None] / sd[:-1, None]).max() < 0.035


def test_a_path_is_differentiable():
    @jax.jit
    def path(scale):
        model = fd.StateSpaceModel(initial, fd.LinearTransition(F, scale * Q), seen)
        return fd.sample_paths(model, series, exact, key=jr.key(0), num_samples=2).sum()

    step = 1e-5
    finite = (path(1 + step) - path(1 - step)) / (2 * step)
    close(jax.jit(jax.grad(path))(1.0), finite, 1e-6)


def test_a_key_says_which_paths():
    draw = lambda key: fd.sample_paths(linear, series, exact, key=key, num_samples=3)
    np.testing.assert_array_equal(draw(jr.key(0)), draw(jr.key(0)))
    assert (draw(jr.key(0)) != draw(jr.key(1))).all()


def fails(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_arguments_are_checked():
    draw = lambda **kwargs: fd.sample_paths(linear, series, exact, **kwargs)
    fails(TypeError, "`key` is int", lambda: draw(key=0, num_samples=3))
    fails(ValueError, "`num_samples` is 0", lambda: draw(key=jr.key(0), num_samples=0))
    fails(TypeError, "use fd.ExtendedKalmanFilter", lambda: fd.smooth(nonlinear, series, exact))
    fails(TypeError, "expected fd.Series", lambda: fd.smooth(linear, y, exact))
    fails(TypeError, "expected a filter", lambda: fd.smooth(linear, series, fd.KalmanFilter))
    fails(
        ValueError,
        "`series` is a batch",
        lambda: fd.smooth(linear, fd.stack([series, series]), exact),
    )
    fails(ValueError, "`t0` is 1.0", lambda: fd.smooth(linear, series, exact, t0=1.0))
