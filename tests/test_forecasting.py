"""Forecasts: moments, intervals and simulated futures of measurements that are not Gaussian."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.transforms import SigmoidTransform
from oracles import dense
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 answers", allow_module_level=True)

COUNT = 40_000
m0, P0 = np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 2.0]])
F, Q = np.array([[0.9, 0.3], [-0.2, 0.8]]), np.array([[0.2, 0.05], [0.05, 0.1]])
R = np.array([[0.3, 0.1], [0.1, 0.4]])
initial = dist.MultivariateNormal(jnp.asarray(m0), jnp.asarray(P0))
dynamics = fd.LinearTransition(F, Q)
past, future = np.arange(4.0), 3.0 + np.arange(1.0, 4.0)
z = np.array([[0.3, -0.8], [1.1, np.nan], [0.2, 0.4], [-0.7, 0.9]])


def gaussian(t, x, u):
    return dist.MultivariateNormal(x, jnp.asarray(R))


def log_normal(t, x, u):
    return dist.LogNormal(x, 0.3).to_event(1)


def logit_normal(t, x, u):
    base = dist.MultivariateNormal(x, jnp.asarray(R))
    return dist.TransformedDistribution(base, SigmoidTransform())


FAMILIES = {
    "Gaussian": (gaussian, lambda z: z, R),
    "LogNormal": (log_normal, np.exp, 0.09 * np.eye(2)),
    "logit-normal": (logit_normal, expit, R),
}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    """The forecast of one family, and mean and covariance of the Gaussian beneath it."""
    fn, link, noise = FAMILIES[request.param]
    model = fd.StateSpaceModel(initial, dynamics, fd.Observation(fn))
    whole = np.where(np.isnan(z).any(1, keepdims=True), np.nan, z)
    filtered = fd.filter(model, fd.Series(past, link(whole)), fd.ExtendedKalmanFilter())
    ahead = fd.forecast(model, filtered, future, key=jr.key(0), num_samples=COUNT)
    y = np.concatenate([whole, np.full((3, 2), np.nan)])
    rows = dense.discrete_rows(m0, P0, F, Q, np.eye(2), noise, y)
    path_mean, path_cov, _ = dense.path(rows)
    keep = slice(8, None)
    mean = path_mean[keep]
    cov = path_cov[keep, keep] + np.kron(np.eye(3), noise)
    return ahead, link, mean, cov


def test_states_are_those_of_the_joint_distribution(case):
    ahead, _, mean, _ = case
    np.testing.assert_allclose(ahead.state_mean, mean.reshape(3, 2), rtol=1e-10)
    assert ahead.status == fd.Status.OK
    np.testing.assert_array_equal(ahead.times, future)


def test_means_and_variances_are_those_of_numerical_integration(case):
    ahead, link, mean, cov = case
    for i in range(6):
        sd = np.sqrt(cov[i, i])
        moment = lambda power, c=0.0, m=mean[i], sd=sd: quad(
            lambda s: (link(m + sd * s) - c) ** power * norm.pdf(s), -12, 12, epsabs=1e-13
        )[0]
        first = moment(1)
        t, j = divmod(i, 2)
        np.testing.assert_allclose(ahead.observation_mean[t, j], first, rtol=1e-7)
        np.testing.assert_allclose(ahead.observation_cov[t, j, j], moment(2, first), rtol=1e-6)


def test_covariances_are_those_of_draws(case):
    """Of 10^6 draws by NumPy; the scores are Gaussian, Bonferroni over 3: false alarm 1e-6."""
    ahead, link, mean, cov = case
    draws = link(np.random.default_rng(0).multivariate_normal(mean, cov, 1_000_000))
    for t in range(3):
        a, b = draws[:, 2 * t], draws[:, 2 * t + 1]
        product = (a - a.mean()) * (b - b.mean())
        error = product.mean() - float(ahead.observation_cov[t, 0, 1])
        assert abs(error) < norm.isf(1e-6 / 6) * product.std() / 1e3
        assert ahead.observation_cov[t, 0, 1] == ahead.observation_cov[t, 1, 0]


@pytest.mark.parametrize("probability", [0.5, 0.9])
def test_intervals_are_quantiles(case, probability):
    ahead, link, mean, cov = case
    low, high = ahead.observation_interval(probability)
    reach = norm.ppf(0.5 + probability / 2) * np.sqrt(np.diag(cov))
    np.testing.assert_allclose(low, link(mean - reach).reshape(3, 2), rtol=1e-10)
    np.testing.assert_allclose(high, link(mean + reach).reshape(3, 2), rtol=1e-10)


def test_simulated_futures_fall_into_the_intervals_as_often_as_they_say(case):
    """A binomial share of 40,000 draws, 6 of them: 5.5 standard errors, false alarm 3e-7."""
    ahead = case[0]
    for probability in (0.5, 0.9):
        low, high = ahead.observation_interval(probability)
        share = ((ahead.samples > low) & (ahead.samples < high)).mean(0)
        error = np.sqrt(probability * (1 - probability) / COUNT)
        assert np.abs(share - probability).max() < 5.5 * error


def test_simulated_futures_are_whole_paths(case):
    """Correlations across times, of the Gaussian beneath: Bonferroni over 21, false alarm 1e-6."""
    ahead, link, mean, cov = case
    assert ahead.samples.shape == (COUNT, 3, 2)
    inverse = {np.exp: np.log, expit: lambda p: np.log(p) - np.log1p(-p)}.get(link, lambda z: z)
    draws = inverse(np.asarray(ahead.samples)).reshape(COUNT, 6) - mean
    bound = norm.isf(1e-6 / 2 / 27)
    sd = np.sqrt(np.diag(cov))
    assert np.abs(draws.mean(0) / sd).max() < bound / np.sqrt(COUNT)
    spread = np.sqrt((np.outer(sd, sd) ** 2 + cov**2) / COUNT)
    assert (np.abs(draws.T @ draws / COUNT - cov) < bound * spread).all()


def test_a_predicted_measurement_can_be_drawn_too(case):
    ahead, link, mean, _ = case
    last = jax.tree.map(lambda x: x[-1], ahead.predicted)
    draws = np.asarray(last.sample(jr.key(1), (COUNT,)))
    assert draws.shape == (COUNT, 2)
    centre = link(mean[4:])
    share = (draws < centre).mean(0)  # the median is a half, whatever the transform
    assert np.abs(share - 0.5).max() < 5.5 * 0.5 / np.sqrt(COUNT)
    assert last.sample(jr.key(1)).shape == (2,)


def test_counts_are_forecast_by_their_moments():
    """log x ~ N(m, v) gives a Poisson count the mean e^(m + v/2) and more than that as variance;
    the filter's first-order answer is e^m for both parts, and its samples are exact."""
    start = dist.Normal(jnp.array([1.0]), 0.05).to_event(1)
    model = fd.StateSpaceModel(
        start,
        fd.LinearTransition(np.eye(1), np.zeros((1, 1))),
        fd.Observation(lambda t, x, u: dist.Poisson(jnp.exp(x)).to_event(1)),
    )
    filtered = fd.filter(model, fd.Series([0.0], [np.nan]), fd.ExtendedKalmanFilter())
    assert filtered.moments_matched
    ahead = fd.forecast(model, filtered, [1.0], key=jr.key(0), num_samples=COUNT)
    np.testing.assert_allclose(ahead.observation_mean[0, 0], np.e, rtol=1e-12)
    variance = np.e + (0.05 * np.e) ** 2
    np.testing.assert_allclose(ahead.observation_cov[0, 0, 0], variance, rtol=1e-12)
    exact = np.exp(1 + 0.05**2 / 2)
    assert abs(ahead.samples.mean() - exact) < 5 * np.sqrt(variance / COUNT)
    np.testing.assert_array_equal(ahead.samples, np.round(ahead.samples))


seen = fd.StateSpaceModel(initial, dynamics, fd.LinearObservation(np.eye(2), R))
exact = fd.KalmanFilter()


@pytest.fixture(scope="module")
def filtered():
    return fd.filter(seen, fd.Series(past, z), exact)


def test_a_forecast_at_the_last_row_is_the_filtered_belief(filtered):
    ahead = fd.forecast(seen, filtered, [3.0])
    np.testing.assert_array_equal(ahead.state_mean[0], filtered.mean[-1])
    np.testing.assert_array_equal(ahead.state_cov[0], filtered.cov[-1])
    np.testing.assert_allclose(ahead.observation_cov[0], filtered.cov[-1] + R, rtol=1e-12)


def test_without_a_key_there_are_no_samples(filtered):
    assert fd.forecast(seen, filtered, future).samples is None
    ahead = fd.forecast(seen, filtered, future, key=jr.key(0))
    assert ahead.samples.shape == (1000, 3, 2)


def test_lists_of_times_are_taken(filtered):
    given = fd.forecast(seen, filtered, [4, 5, 6])
    np.testing.assert_array_equal(given.state_mean, fd.forecast(seen, filtered, future).state_mean)


def test_an_ode_is_forecast_along_its_exact_path():
    """x' = -x^3 from a known start: x / sqrt(1 + 2 x^2 t), without variance."""
    model = fd.StateSpaceModel(
        dist.Delta(jnp.ones(1), event_dim=1),
        fd.ODE(lambda t, x, u: -(x**3)),
        fd.LinearObservation(np.eye(1), 0.25),
    )
    filtered = fd.filter(model, fd.Series([0.0], [1.2]), fd.ExtendedKalmanFilter())
    ahead = fd.forecast(model, filtered, [0.5, 1.0])
    np.testing.assert_allclose(ahead.state_mean[:, 0], [2**-0.5, 3**-0.5], atol=1e-5)
    np.testing.assert_array_equal(ahead.state_cov, np.zeros((2, 1, 1)))
    np.testing.assert_allclose(ahead.observation_cov[:, 0, 0], 0.25)


def test_after_a_failure_there_is_no_forecast():
    model = fd.StateSpaceModel(initial, dynamics, fd.Observation(log_normal))
    failed = fd.filter(model, fd.Series(past[:1], [[1.0, -1.0]]), fd.ExtendedKalmanFilter())
    ahead = fd.forecast(model, failed, future, key=jr.key(0), num_samples=3)
    assert ahead.status == fd.Status.OBSERVATION_OUT_OF_SUPPORT
    for part in (ahead.state_mean, ahead.observation_cov, ahead.samples):
        assert np.isnan(part).all()
    assert all(np.isnan(end).all() for end in ahead.observation_interval(0.9))


@pytest.mark.parametrize("fn", [gaussian, logit_normal])
def test_forecasts_are_differentiable_and_map_over_models(fn):
    series = fd.Series(past, np.full((4, 2), 0.4))

    @jax.jit
    def covariance(scale):
        model = fd.StateSpaceModel(initial, fd.LinearTransition(F, scale * Q), fd.Observation(fn))
        result = fd.filter(model, series, fd.ExtendedKalmanFilter())
        return fd.forecast(model, result, future).observation_cov[-1]

    step = 1e-5
    points = jnp.array([1.0, 1.0 + step, 1.0 - step])
    together = jax.vmap(covariance)(points)
    np.testing.assert_allclose(together[0], covariance(1.0), rtol=1e-10)
    finite = (together[1] - together[2]) / (2 * step)
    for derivative in (jax.jacfwd(covariance)(1.0), jax.jacrev(covariance)(1.0)):
        np.testing.assert_allclose(derivative, finite, rtol=1e-6, atol=1e-9)


def fails(error, message, *args, **kwargs):
    with pytest.raises(error, match=message):
        fd.forecast(*args, **kwargs)


def test_arguments_are_checked(filtered):
    fails(TypeError, "expected what fd.filter returned", seen, 1, future)
    fails(TypeError, "expected a StateSpaceModel", 1, filtered, future)
    fails(
        ValueError,
        "`times` begins at 2.5, before the last filtered row at 3.0",
        seen,
        filtered,
        [2.5],
    )
    fails(ValueError, "`times` decreases", seen, filtered, future[::-1])
    fails(ValueError, "`times` is empty", seen, filtered, [])
    fails(ValueError, r"`inputs` has shape \(2, 1\)", seen, filtered, future, np.ones((2, 1)))
    fails(TypeError, "`key` is int", seen, filtered, future, key=3)
    fails(ValueError, "`num_samples` is 0", seen, filtered, future, key=jr.key(0), num_samples=0)


def test_a_batch_of_results_is_refused_and_can_be_mapped_over():
    series = fd.stack([fd.Series([0.0, 1.0], y) for y in ([0.3, 0.1], [-0.2, 0.4])])
    walk = fd.LinearTransition(np.eye(1), np.eye(1))
    seen = fd.LinearObservation(np.eye(1), np.eye(1))
    model = fd.StateSpaceModel(dist.MultivariateNormal(jnp.zeros(1), jnp.eye(1)), walk, seen)
    for filter in (fd.KalmanFilter(), fd.EnsembleKalmanFilter(8)):
        key = None if isinstance(filter, fd.KalmanFilter) else jr.key(0)
        results = fd.filter(model, series, filter, key=key)
        with pytest.raises(ValueError, match=r"`result` is a batch of shape \(2,\)"):
            fd.forecast(model, results, [2.0], key=jr.key(1))
        ahead = fd.forecast(model, results[1], [2.0], key=jr.key(1))
        np.testing.assert_allclose(results[-1].mean, results.mean[1])
        last = results.mean[1, -1]
        np.testing.assert_allclose(ahead.state_mean[0], last, atol=1e-9 if key is None else 1.5)
        assert len(list(results)) == 2
        with pytest.raises(IndexError, match="2 of a batch of 2"):
            results[2]
        with pytest.raises(TypeError, match="result of one series"):
            results[1][0]


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, 90, np.nan])
def test_an_interval_needs_a_probability(filtered, probability):
    ahead = fd.forecast(seen, filtered, future)
    with pytest.raises(ValueError, match="expected 0 < p < 1"):
        ahead.observation_interval(probability)
