"""The filter whose noise a network sets: nothing before training, an exact surrogate at any weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from oracles.random_weights import shaken

import filterdyn as fd

X64 = jax.config.jax_enable_x64
TIGHT = 1e-12 if X64 else 2e-5
F = jnp.array([[1.0, 0.1], [-0.1, 0.95]])
Q = jnp.array([[1e-2, 1e-3], [1e-3, 2e-2]])
H = jnp.array([[1.0, 0.0], [0.5, 1.0], [0.0, 2.0]])
R = jnp.array([0.2, 0.05, 0.5])
COUNT = 25


def linear():
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        fd.LinearTransition(F, Q),
        fd.LinearObservation(H, R),
    )


def record(seed=0):
    y = np.array(fd.simulate(linear(), np.arange(COUNT), key=jr.key(seed)).observations)
    y[::5, 1] = np.nan
    y[7] = np.nan
    return fd.Series(np.arange(COUNT), y)


FRESH = fd.LearnedNoiseFilter(2, 3, key=jr.key(0), width=5)
SHAKEN = shaken(FRESH, 0.4)
SERIES = record()


@pytest.fixture(scope="module")
def result():
    return fd.filter(linear(), SERIES, SHAKEN)


@pytest.fixture(scope="module")
def smoothed():
    return fd.smooth(linear(), SERIES, SHAKEN)


def pendulum():
    """Nonlinear, driven, in continuous time."""

    def drift(t, x, u):
        return jnp.array([x[1], -jnp.sin(x[0]) + u[0]])

    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.array([0.5, 0.0]), 0.1 * jnp.eye(2)),
        fd.SDE(drift, jnp.array([0.0, 0.3]), substeps=3),
        fd.GaussianObservation(lambda t, x, u: jnp.sin(x), jnp.array([0.02, 0.05])),
    )


def test_before_training_it_is_the_filter_that_it_is_based_on():
    found = fd.filter(linear(), SERIES, FRESH)
    expected = fd.filter(linear(), SERIES, fd.ExtendedKalmanFilter())
    np.testing.assert_allclose(found.mean, expected.mean, rtol=TIGHT, atol=TIGHT)
    np.testing.assert_allclose(found.cov, expected.cov, rtol=TIGHT, atol=TIGHT)
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, rtol=TIGHT)


@pytest.mark.slow
def test_before_training_nonlinear_models_at_irregular_times_are_filtered_as_without_a_network():
    times = np.cumsum(np.random.default_rng(0).uniform(0.05, 0.5, 20))
    y = np.random.default_rng(1).normal(0, 0.3, (20, 2))
    y[3, 0] = y[9] = np.nan
    series = fd.Series(times, y, inputs=np.cos(times)[:, None])
    learned = fd.LearnedNoiseFilter(2, 2, key=jr.key(3), width=4)
    found = fd.filter(pendulum(), series, learned)
    expected = fd.filter(pendulum(), series, fd.ExtendedKalmanFilter())
    np.testing.assert_allclose(found.mean, expected.mean, rtol=TIGHT, atol=TIGHT)
    np.testing.assert_allclose(found.cov, expected.cov, rtol=TIGHT, atol=TIGHT)
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, rtol=TIGHT)


def matrices(e, nominal):
    """D E C E^T D."""
    d = np.diag(np.sqrt(np.diag(nominal)))
    correlations = np.linalg.inv(d) @ nominal @ np.linalg.inv(d)
    return d @ e @ correlations @ e.T @ d


def textbook(factors, filter=None):
    """The Kalman filter of a textbook with covariances that change from row to row."""
    filter = SHAKEN if filter is None else filter
    y = np.asarray(SERIES.observations, float)
    f, h = np.asarray(F, float), np.asarray(H, float)
    nominal = np.asarray(Q, float), np.diag(np.asarray(R, float))
    mean, cov, total, means, covs = np.zeros(2), np.eye(2), 0.0, [], []
    # What holds in a row was said after the one before; the first is what the network says unasked.
    unasked = filter.network.start(jnp.result_type(float))

    def in_rows(first, later, n):
        if later is None:
            return np.broadcast_to(np.eye(n), (COUNT, n, n))
        return np.concatenate([np.asarray(first)[None], np.asarray(later, float)])

    process = in_rows(unasked.process, factors.process, 2)
    sensors = in_rows(unasked.sensors, factors.sensors, 3)
    for k in range(COUNT):
        if k:
            mean, cov = f @ mean, f @ cov @ f.T + matrices(process[k], nominal[0])
        seen = ~np.isnan(y[k])
        if seen.any():
            r = matrices(sensors[k], nominal[1])[np.ix_(seen, seen)]
            s = h[seen] @ cov @ h[seen].T + r
            error = y[k, seen] - h[seen] @ mean
            gain = cov @ h[seen].T @ np.linalg.inv(s)
            total += -0.5 * (
                error @ np.linalg.solve(s, error) + np.linalg.slogdet(2 * np.pi * s)[1]
            )
            mean = mean + gain @ error
            left = np.eye(2) - gain @ h[seen]
            cov = left @ cov @ left.T + gain @ r @ gain.T
        means.append(mean)
        covs.append(cov)
    return np.array(means), np.array(covs), total


def test_with_any_weights_it_is_the_kalman_filter_of_the_covariances_that_it_reports(result):
    means, covs, total = textbook(result.noise_factors)
    rtol = 1e-9 if X64 else 1e-3
    np.testing.assert_allclose(result.mean, means, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(result.cov, covs, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(result.log_likelihood, total, rtol=rtol)
    # The network has moved something, differently from row to row.
    assert np.ptp(result.noise_factors.process[:, 0, 0]) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("fixed", ["process", "sensors"])
def test_a_covariance_that_is_not_modulated_is_that_of_the_model(fixed):
    filter = shaken(fd.LearnedNoiseFilter(2, 3, key=jr.key(0), width=5, **{fixed: False}), 0.4)
    found = fd.filter(linear(), SERIES, filter)
    assert getattr(found.noise_factors, fixed) is None
    other = {"process": "sensors", "sensors": "process"}[fixed]
    assert np.ptp(getattr(found.noise_factors, other)[:, 0, 0]) > 0.05
    means, covs, total = textbook(found.noise_factors, filter)
    rtol = 1e-9 if X64 else 1e-3
    np.testing.assert_allclose(found.mean, means, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(found.cov, covs, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(found.log_likelihood, total, rtol=rtol)


def test_factors_are_lower_triangular_with_a_positive_diagonal(result):
    for e in (result.noise_factors.process, result.noise_factors.sensors):
        np.testing.assert_array_equal(e, np.tril(e))
        assert (np.diagonal(e, axis1=1, axis2=2) > 0).all()


def test_noise_depends_on_earlier_rows_only(result):
    y = np.array(SERIES.observations)
    y[12] += 3.0
    other = fd.filter(linear(), fd.Series(np.arange(COUNT), y), SHAKEN)
    before, after = result.noise_factors.sensors, other.noise_factors.sensors
    np.testing.assert_array_equal(before[:12], after[:12])
    assert np.abs(before[12] - after[12]).max() > 1e-3
    np.testing.assert_array_equal(result.innovation_covs[:13], other.innovation_covs[:13])


def test_a_row_without_measurements_teaches_the_network_nothing(result):
    memory = result.noise_factors
    np.testing.assert_array_equal(memory.hidden[7], memory.hidden[6])
    assert float(memory.elapsed[7]) == 1.0 and float(memory.elapsed[8]) == 0.0
    assert float(result.log_likelihoods[7]) == 0.0


@pytest.mark.slow
def test_rows_without_measurements_in_between_change_nothing():
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearSDE(-0.5 * jnp.eye(1), jnp.eye(1)),
        fd.LinearObservation(jnp.eye(1), 0.1),
    )
    filter = shaken(fd.LearnedNoiseFilter(1, 1, key=jr.key(0), width=3), 0.4)
    y = np.sin(np.arange(6.0))
    plain = fd.filter(model, fd.Series(np.arange(6.0), y), filter)
    times = np.sort(np.concatenate([np.arange(6.0), np.arange(5) + 0.3]))
    there = times == np.round(times)
    longer = np.full(11, np.nan)
    longer[there] = y
    found = fd.filter(model, fd.Series(times, longer), filter)
    np.testing.assert_allclose(found.mean[there], plain.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.log_likelihood, plain.log_likelihood, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not X64, reason="finite differences in float64")
def test_gradient_by_the_weights_is_that_of_finite_differences():
    direction, rest = eqx.partition(shaken(SHAKEN, 1.0, seed=5), eqx.is_inexact_array)
    arrays = eqx.filter(SHAKEN, eqx.is_inexact_array)

    @jax.jit
    def value(h):
        moved = jax.tree.map(lambda x, d: x + h * (d - x), arrays, direction)
        return fd.log_likelihood(linear(), SERIES, eqx.combine(moved, rest))

    numeric = (value(1e-5) - value(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.grad(value))(0.0), numeric, rtol=1e-6)


@pytest.mark.slow
def test_stream_is_the_batch_and_goes_on_after_a_checkpoint(result, tmp_path):
    online = fd.OnlineFilter(linear(), SHAKEN)
    state = online.init(0.0)
    for k in range(COUNT):
        if k == 10:
            online.save(tmp_path / "state", state)
            state, _ = online.load(tmp_path / "state")
        state, _ = online.step(state, float(k), np.asarray(SERIES.observations[k]))
    np.testing.assert_allclose(state.mean, result.mean[-1], rtol=TIGHT)
    np.testing.assert_allclose(
        state.belief.memory.hidden, result.noise_factors.hidden[-1], rtol=10 * TIGHT
    )
    np.testing.assert_allclose(state.log_likelihood, result.log_likelihood, rtol=TIGHT)


def test_a_forecast_uses_the_noise_that_was_learnt(result):
    ahead = fd.forecast(linear(), result, [COUNT - 1.0])
    e = np.asarray(result.noise_factors.sensors[-1], float)
    h, cov = np.asarray(H, float), np.asarray(result.cov[-1], float)
    expected = h @ cov @ h.T + matrices(e, np.diag(np.asarray(R, float)))
    np.testing.assert_allclose(ahead.observation_cov[0], expected, rtol=1e-9 if X64 else 1e-4)


@pytest.mark.slow
def test_before_training_it_smooths_as_the_filter_that_it_is_based_on():
    found = fd.smooth(linear(), SERIES, FRESH)
    expected = fd.smooth(linear(), SERIES, fd.ExtendedKalmanFilter())
    np.testing.assert_allclose(found.mean, expected.mean, rtol=TIGHT, atol=TIGHT)
    np.testing.assert_allclose(found.cov, expected.cov, rtol=TIGHT, atol=TIGHT)


@pytest.mark.slow
def test_with_any_weights_it_smooths_under_the_covariances_that_it_reports(result, smoothed):
    """Rauch, Tung, Striebel in their own form: with the inverse of the predicted covariance."""
    means, covs = (np.array(x, float) for x in (result.mean, result.cov))
    f = np.asarray(F, float)
    for k in reversed(range(COUNT - 1)):
        process = np.asarray(result.noise_factors.process[k], float)
        predicted = f @ covs[k] @ f.T + matrices(process, np.asarray(Q, float))
        gain = covs[k] @ f.T @ np.linalg.inv(predicted)
        means[k] += gain @ (means[k + 1] - f @ means[k])
        covs[k] += gain @ (covs[k + 1] - predicted) @ gain.T
    np.testing.assert_allclose(smoothed.mean, means, rtol=1e3 * TIGHT, atol=1e3 * TIGHT)
    np.testing.assert_allclose(smoothed.cov, covs, rtol=1e3 * TIGHT, atol=1e3 * TIGHT)


@pytest.mark.slow
def test_the_smoother_ends_where_the_filter_does(result, smoothed):
    np.testing.assert_allclose(smoothed.mean[-1], result.mean[-1], rtol=TIGHT)
    np.testing.assert_allclose(smoothed.log_likelihood, result.log_likelihood, rtol=TIGHT)
    with pytest.raises(ValueError, match="has AdaptiveNoise or a network"):
        fd.smooth(linear(), SERIES, SHAKEN, iterations=2)


def test_weights_that_are_not_finite_are_a_status_and_not_a_number():
    broken = eqx.tree_at(lambda f: f.network.head.bias, SHAKEN, replace_fn=lambda b: b * jnp.nan)
    found = fd.filter(linear(), SERIES, broken)
    assert fd.Status(int(found.status)) is fd.Status.MODEL_NOT_FINITE
    assert float(found.log_likelihood) == -np.inf


@pytest.mark.slow
def test_a_batch_of_series_is_each_of_them(result):
    both = fd.log_likelihood(linear(), fd.stack([SERIES, record(1)]), SHAKEN)
    np.testing.assert_allclose(both[0], result.log_likelihood, rtol=TIGHT)
    assert both.shape == (2,) and both[1] != both[0]


@pytest.mark.slow
def test_single_precision_stays_single():
    cast = lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x
    model = jax.tree.map(cast, linear())
    series = fd.Series(np.arange(COUNT), np.asarray(SERIES.observations, np.float32))
    found = fd.filter(model, series, SHAKEN)
    assert found.mean.dtype == jnp.float32 and int(found.status) == 0
    assert np.linalg.eigvalsh(np.asarray(found.cov, float)).min() > -1e-8


@pytest.mark.slow
@pytest.mark.skipif(not X64, reason="training in float64")
def test_training_finds_noise_that_comes_in_bursts():
    """Sensor noise has a standard deviation of 0.3 or 3, for about 50 rows each. What one record teaches
    gains, on another, nearly half of what knowing the bursts would."""

    def model(r):
        return fd.StateSpaceModel(
            dist.Normal(jnp.zeros(1), 1.0).to_event(1),
            fd.LinearTransition(jnp.array([[0.95]]), 0.1 * jnp.eye(1)),
            fd.LinearObservation(jnp.eye(1), r),
        )

    def one(seed):
        rng = np.random.default_rng(seed)
        loud = np.cumsum(rng.uniform(size=2000) < 0.02) % 2
        sd = np.where(loud, 3.0, 0.3)
        states = fd.simulate(model(1.0), np.arange(2000), key=jr.key(seed)).states
        y = np.asarray(states)[:, 0] + sd * rng.normal(size=2000)
        return fd.Series(np.arange(2000), y), jnp.asarray(sd) ** 2

    (series, _), (fresh, variances) = one(0), one(1)
    start = fd.LearnedNoiseFilter(1, 1, key=jr.key(0), width=4)
    fitted = fd.fit(
        model(4.0),
        series,
        start,
        trainable=lambda m: (),
        optimizer=optax.adam(2e-2),
        steps=150,
    )
    ekf = fd.ExtendedKalmanFilter()
    known = model(lambda t: variances[jnp.round(t).astype(int)][None])
    before = fd.log_likelihood(model(4.0), fresh, ekf)
    after = fd.log_likelihood(model(4.0), fresh, fitted.filter)
    best = fd.log_likelihood(known, fresh, ekf)
    assert fitted.skipped == 0
    assert (after - before) / (best - before) > 0.45
    assert fitted.model.observation.R == 4.0


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (dict(dx=0), ValueError, "`dx` is 0; expected an integer >= 1"),
        (dict(width=2.5), ValueError, "`width` is 2.5"),
        (dict(key=3), TypeError, "`key` is int; expected a random key"),
        (dict(gap_scale=-1.0), ValueError, "`gap_scale` is -1.0; expected a positive number"),
        (dict(base=fd.ExtendedKalmanFilter), TypeError, "`base` is ExtendedKalmanFilter; expected"),
        (dict(sensors=0), TypeError, "`sensors` is 0; expected True or False"),
        (
            dict(process=False, sensors=False),
            ValueError,
            "`process` and `sensors` are both False; expected",
        ),
        (
            dict(base=fd.KalmanFilter(adaptive=fd.AdaptiveNoise())),
            ValueError,
            "`base` has AdaptiveNoise",
        ),
    ],
)
def test_bad_arguments_are_named(options, kind, message):
    with pytest.raises(kind, match=f"LearnedNoiseFilter: {message}"):
        fd.LearnedNoiseFilter(**{"dx": 2, "dy": 3, "key": jr.key(0), **options})


def test_a_model_of_another_size_and_a_diffuse_start_are_refused():
    with pytest.raises(ValueError, match="`dx` is 1 but the model has 2 states"):
        fd.filter(linear(), SERIES, fd.LearnedNoiseFilter(1, 3, key=jr.key(0)))
    with pytest.raises(ValueError, match="`dy` is 2 but a measurement has shape"):
        fd.filter(linear(), SERIES, fd.LearnedNoiseFilter(2, 2, key=jr.key(0)))
    diffuse = fd.StateSpaceModel(fd.Diffuse(2), linear().dynamics, linear().observation)
    with pytest.raises(ValueError, match="`initial` is Diffuse"):
        fd.filter(diffuse, SERIES, FRESH)
