"""Smoothing and paths of the particle filter, against the exact smoother of linear models."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.dynamics import Interval
from filterdyn.smoothers.rejection import draw_by_rejection, highest_log_density

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def linear():
    """Two states, one seen; a missing row, a repeated time, irregular gaps. And the exact answer."""
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        fd.LinearSDE([[-0.3, 0.5], [-0.5, -0.3]], [0.5, 0.5]),
        fd.LinearObservation([[1.0, 0.0]], [[0.3]]),
    )
    times = np.array([0.0, 0.5, 1.5, 1.5, 2.5, 3.0, 4.0, 4.5])
    y = np.array(fd.simulate(model, times, key=jr.key(0)).observations)
    y[1] = np.nan
    series = fd.Series(times, y)
    return model, series, fd.smooth(model, series, fd.KalmanFilter())


METHODS = {
    "backward": fd.BackwardSmoothing(),
    "chain": fd.BackwardChain(4),
    "rejection": fd.BackwardRejection(4),
    "two filters": fd.TwoFilter(),
    "lag": fd.FixedLag(8),
}


def distances(model, series, exact, filter, keys):
    """Means over keys of smoothed means and variances, in posterior standard deviations off."""

    def one(key):
        found = fd.smooth(model, series, filter, key=key)
        return found.mean, jnp.diagonal(found.cov, axis1=1, axis2=2)

    mean, var = jax.jit(jax.vmap(one))(jr.split(jr.key(1), keys))
    sd = np.sqrt(np.diagonal(exact.cov, axis1=1, axis2=2))
    return (np.asarray(mean) - np.asarray(exact.mean)) / sd, np.asarray(var) / sd**2


@pytest.mark.parametrize(
    "name", ["backward", *(pytest.param(n, marks=slow) for n in METHODS if n != "backward")]
)
def test_smoothed_means_and_variances_are_those_of_the_exact_smoother(linear, name):
    filter = fd.ParticleFilter(150, paths=METHODS[name])
    error, var = distances(*linear, filter, 20)
    # 16 means: 5 standard errors each, and a bias of order 1 / N (false alarms 1e-5).
    standard = error.std(0, ddof=1) / np.sqrt(20)
    assert np.all(np.abs(error.mean(0)) < 6.5 * standard + 0.03)
    assert np.all(np.abs(var.mean(0) - 1) < 0.2)
    assert error.std(0).max() < 0.35


@slow
def test_backward_smoothing_beats_the_genealogy_in_the_first_rows(linear):
    spread = {
        name: distances(*linear, fd.ParticleFilter(100, paths=METHODS[name]), 40)[0].std(0)[0].max()
        for name in ("backward", "lag")
    }
    assert spread["backward"] < spread["lag"]


@slow
@pytest.mark.parametrize("name", ["backward", "chain", "rejection"])
def test_sampled_paths_have_the_joint_distribution_of_the_posterior(linear, name):
    """Covariances of neighbouring rows, which single rows do not show, over 30 filters."""
    model, series, exact = linear
    filter = fd.ParticleFilter(200, paths=METHODS[name])
    one = lambda key: fd.sample_paths(model, series, filter, key=key, num_samples=50)
    paths = np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(2), 30))).reshape(-1, 8, 2)
    sd = np.sqrt(np.diagonal(exact.cov, axis1=1, axis2=2))
    z = (paths - np.asarray(exact.mean)) / sd
    found = np.einsum("ski,skj->kij", z[:, 1:], z[:, :-1]) / len(z)
    expected = np.asarray(exact.lag_one_covs) / (sd[1:, :, None] * sd[:-1, None, :])
    # 1500 paths of 30 independent filters: standard errors of about 0.04.
    np.testing.assert_allclose(found, expected, atol=0.2)
    np.testing.assert_allclose(z.mean(0), 0, atol=0.2)
    np.testing.assert_array_equal(paths[:, 2], paths[:, 3])  # a repeated time has one state


@pytest.mark.parametrize("trials", [1, 50])
def test_rejection_draws_from_the_backward_weights(trials):
    """With few trials most draws come from the look at every particle, with many hardly any."""
    x, log_w = jnp.linspace(-2.0, 2.0, 7)[:, None], jnp.log(jnp.arange(7.0))  # (one weight is 0)
    density = lambda x_to, x_from: dist.Normal(0.8 * x_from[0], 0.5).log_prob(x_to[0])
    bound = dist.Normal(0.0, 0.5).log_prob(0.0)
    state = jnp.array([0.7])
    count = 20_000
    many = jnp.broadcast_to(state, (count, 1))
    index = jax.jit(draw_by_rejection, static_argnums=(0, 6))(
        density, bound, x, log_w, many, jr.key(0), trials
    )
    expected = jax.nn.softmax(log_w + jax.vmap(lambda a: density(state, a))(x))
    found = np.bincount(index, minlength=7) / count
    # Seven frequencies at 4.5 standard errors: false alarms 5e-5.
    assert np.all(np.abs(found - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / count))
    assert found[0] == 0


def test_rejection_finds_the_highest_density_of_gaussians_and_asks_for_that_of_others():
    x = jnp.array([[0.1], [1.0]])
    interval = Interval(jnp.asarray(0.0), jnp.asarray(1.0), None)
    method = fd.BackwardRejection()

    def highest(dynamics, method=method):
        model = fd.StateSpaceModel(
            dist.Normal(0.0, 1.0).expand([1]).to_event(1),
            dynamics,
            fd.LinearObservation([[1.0]], [[1.0]]),
        )
        return highest_log_density(method, model, x, interval)

    by_state = fd.Transition(lambda t, x, u: dist.Normal(x, 0.1 + x).to_event(1))
    np.testing.assert_allclose(highest(by_state), dist.Normal(0.0, 0.2).log_prob(0.0), rtol=1e-6)
    linear = fd.LinearTransition([[0.5]], [[0.04]])
    np.testing.assert_allclose(highest(linear), dist.Normal(0.0, 0.2).log_prob(0.0), rtol=1e-6)
    heavy = fd.Transition(lambda t, x, u: dist.StudentT(5.0, x, 0.3).to_event(1))
    with pytest.raises(TypeError, match="log_bound"):
        highest(heavy)
    assert highest(heavy, fd.BackwardRejection(log_bound=0.5)) == 0.5
    with pytest.raises(ValueError, match="log_bound"):
        fd.BackwardRejection(log_bound=np.inf)


@slow
def test_two_filters_are_better_where_the_first_one_had_few_particles():
    """Only the last row is measured, in the tail of what the forward filter expects."""
    model = fd.StateSpaceModel(
        dist.Normal(0.0, 1.0).expand([1]).to_event(1),
        fd.LinearTransition([[1.0]], [[0.04]]),
        fd.LinearObservation([[1.0]], [[0.01]]),
    )
    series = fd.Series(np.arange(4.0), np.array([np.nan, np.nan, np.nan, 1.5]))
    exact = fd.smooth(model, series, fd.KalmanFilter())

    def error(paths):
        filter = fd.ParticleFilter(100, paths=paths)
        one = lambda key: fd.smooth(model, series, filter, key=key).mean[:, 0]
        found = np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(5), 50)))
        return np.sqrt(np.mean((found - np.asarray(exact.mean)[:, 0]) ** 2))

    assert error(fd.TwoFilter()) < 0.8 * error(fd.BackwardSmoothing())


def test_two_filters_make_no_paths(linear):
    model, series, _ = linear
    filter = fd.ParticleFilter(8, paths=fd.TwoFilter())
    with pytest.raises(TypeError, match="BackwardSmoothing"):
        fd.sample_paths(model, series, filter, key=jr.key(0), num_samples=2)


@slow
def test_a_repeated_time_has_one_state(linear):
    model, series, _ = linear
    filter = fd.ParticleFilter(32, paths=fd.FixedLag(3))
    paths = fd.sample_paths(model, series, filter, key=jr.key(3), num_samples=5)
    assert paths.shape == (5, 8, 2)
    np.testing.assert_array_equal(paths[:, 2], paths[:, 3])


def test_dynamics_without_a_density_need_the_genealogy():
    model = fd.StateSpaceModel(
        dist.Normal(0.0, 1.0).expand([1]).to_event(1),
        fd.SDE(lambda t, x, u: -x, 0.3),
        fd.LinearObservation([[1.0]], [[0.1]]),
    )
    series = fd.Series(np.arange(3.0), np.zeros(3))
    with pytest.raises(TypeError, match="FixedLag"):
        fd.smooth(model, series, fd.ParticleFilter(8), key=jr.key(0))
    lag = fd.ParticleFilter(8, paths=fd.FixedLag(2))
    found = jax.eval_shape(lambda: fd.smooth(model, series, lag, key=jr.key(0)).mean)
    assert found.shape == (3, 1)


@slow
def test_conditional_filter_with_ancestor_sampling_has_the_posterior_as_its_fixed_point(linear):
    model, series, exact = linear
    filter = fd.ParticleFilter(15)

    def chain(key):
        start = fd.sample_paths(model, series, filter, key=key, num_samples=1)[0]

        def one(path, key):
            path = fd.conditional_path(model, series, filter, path, key=key)
            return path, path

        return jax.lax.scan(one, start, jr.split(jr.fold_in(key, 1), 300))[1][50:]

    paths = np.asarray(jax.jit(jax.vmap(chain))(jr.split(jr.key(4), 12)))
    sd = np.sqrt(np.diagonal(exact.cov, axis1=1, axis2=2))
    z = (paths - np.asarray(exact.mean)) / sd
    standard = z.mean(1).std(0, ddof=1) / np.sqrt(12)
    # Twelve chains; t with 11 degrees of freedom: 6.5 standard errors, false alarms 7e-4 for all 16.
    assert np.all(np.abs(z.mean((0, 1))) < 6.5 * standard + 1e-3)
    assert standard.max() < 0.05
    np.testing.assert_allclose((z**2).mean((0, 1)), 1.0, atol=0.2)
