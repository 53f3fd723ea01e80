"""Ensemble Kalman filters against the Kalman filter, and what a filter that samples must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

X64 = jax.config.read("jax_enable_x64")
KEY = jax.random.key(0)
F = jnp.array([[0.9, 0.2, 0.0], [-0.1, 0.8, 0.3], [0.0, 0.1, 0.7]])
H = jnp.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
R = jnp.array([[0.3, 0.1], [0.1, 0.2]])


def model(mean=jnp.zeros(3), cov=jnp.eye(3), q=0.0, r=R, scale=1.0):
    return fd.StateSpaceModel(
        dist.MultivariateNormal(mean, cov),
        fd.LinearTransition(scale * F, q * jnp.eye(3)),
        fd.LinearObservation(H, r),
    )


@pytest.fixture(scope="module")
def series():
    """Twelve rows: one missing, one half missing, one time that is repeated."""
    times = np.arange(12.0)
    times[7] = times[6]
    y = fd.simulate(model(q=0.1), jnp.arange(12.0), key=jax.random.key(3)).observations
    return fd.Series(times, y.at[3].set(jnp.nan).at[5, 0].set(jnp.nan))


@pytest.fixture(scope="module")
def kalman(series):
    """The Kalman filter that starts at the moments of an ensemble."""
    run = jax.jit(lambda mean, cov: fd.filter(model(mean, cov), series, fd.KalmanFilter()))

    def start(filter):
        belief = filter.init(model(), F.dtype, jax.random.fold_in(KEY, 0))
        return run(belief.mean, belief.cov)

    return start


@pytest.fixture(scope="module")
def transformed(series):
    return fd.filter(model(), series, fd.EnsembleKalmanFilter(8, "transform"), key=KEY)


def assert_same(result, exact, tolerance=1e-10 if X64 else 2e-4):
    np.testing.assert_allclose(result.mean, exact.mean, atol=tolerance)
    np.testing.assert_allclose(result.cov, exact.cov, atol=tolerance)
    np.testing.assert_allclose(result.log_likelihoods, exact.log_likelihoods, atol=tolerance)
    np.testing.assert_allclose(result.innovations, exact.innovations, atol=tolerance)
    np.testing.assert_allclose(result.innovation_covs, exact.innovation_covs, atol=tolerance)
    np.testing.assert_allclose(
        result.standardized_innovations, exact.standardized_innovations, atol=tolerance
    )


def test_transform_is_the_kalman_filter_of_its_own_moments(transformed, kalman):
    assert_same(transformed, kalman(transformed.filter))


def test_serial_is_the_kalman_filter_of_its_own_moments(series, kalman):
    serial = fd.EnsembleKalmanFilter(8, "serial")
    assert_same(fd.filter(model(), series, serial, key=KEY), kalman(serial))


def test_smoothed_members_are_the_smoother_of_their_own_moments(series):
    """Without process noise: the regression on N members is the inverse of the transition."""
    filter = fd.EnsembleKalmanFilter(8, "transform")
    found = fd.smooth(model(), series, filter, key=KEY)
    belief = filter.init(model(), F.dtype, jax.random.fold_in(KEY, 0))
    exact = fd.smooth(model(belief.mean, belief.cov), series, fd.KalmanFilter())
    tolerance = 1e-9 if X64 else 1e-2
    np.testing.assert_allclose(found.mean, exact.mean, atol=tolerance)
    np.testing.assert_allclose(found.cov, exact.cov, atol=tolerance)
    np.testing.assert_allclose(found.log_likelihood, exact.log_likelihood, rtol=tolerance)


@pytest.mark.slow
def test_smoothed_members_tend_to_the_smoother_with_process_noise_too(series):
    noisy = model(q=0.1)
    exact = fd.smooth(noisy, series, fd.KalmanFilter())
    filter = fd.EnsembleKalmanFilter(2000, "serial")
    found = fd.smooth(noisy, series, filter, key=KEY)
    # Standard deviations are up to 0.7: the standard error of a mean is 0.016 at most, here 36 of them.
    np.testing.assert_allclose(found.mean, exact.mean, atol=0.07)
    np.testing.assert_allclose(found.cov, exact.cov, atol=0.07)
    paths = fd.sample_paths(noisy, series, filter, key=KEY, num_samples=1500)
    lag_one = jnp.stack([jnp.cov(paths[:, k + 1].T, paths[:, k].T)[:3, 3:] for k in range(11)])
    np.testing.assert_allclose(lag_one, exact.lag_one_covs, atol=0.09)


@pytest.mark.slow
def test_the_symmetric_root_is_the_kalman_filter_of_its_own_moments(series, kalman):
    symmetric = fd.EnsembleKalmanFilter(8, "transform", rotate=False)
    assert_same(fd.filter(model(), series, symmetric, key=KEY), kalman(symmetric))


def test_a_missing_row_adds_exactly_nothing(transformed):
    assert transformed.log_likelihoods[3] == 0
    np.testing.assert_array_equal(transformed.mean[3], transformed.predicted_mean[3])
    np.testing.assert_array_equal(transformed.predicted_mean[7], transformed.mean[6])
    assert transformed.status == fd.Status.OK


def test_a_stream_repeats_the_batch_and_goes_on_to_the_bit_after_a_stop(series, transformed):
    online = fd.OnlineFilter(model(), transformed.filter)
    state = online.init(0.0, key=KEY)
    for k, (t, y) in enumerate(zip(series.times, series.observations, strict=True)):
        if k == 5:
            leaves, structure = jax.tree.flatten(state)
            state = jax.tree.unflatten(structure, [jnp.array(x, copy=True) for x in leaves])
        state, step = online.step(state, t, y)
        # (Two compilations may fuse differently.)
        np.testing.assert_allclose(step.mean, transformed.mean[k], atol=1e-12 if X64 else 1e-5)
    np.testing.assert_allclose(state.log_likelihood, transformed.log_likelihood, rtol=1e-6)
    again = online.init(0.0, key=KEY)
    for t, y in zip(series.times, series.observations, strict=True):
        again, _ = online.step(again, t, y)
    np.testing.assert_array_equal(again.belief.members, state.belief.members)
    ahead = online.forecast(state, [12.0, 13.0], key=KEY)
    batch = fd.forecast(model(), transformed, [12.0, 13.0], key=KEY)
    np.testing.assert_allclose(ahead.state_mean, batch.state_mean, atol=1e-5)


def test_a_forecast_moves_the_members_on(transformed, kalman):
    exact = kalman(transformed.filter)
    ahead = fd.forecast(model(), transformed, [12.0, 13.0], key=KEY)
    mean = exact.mean[-1]
    cov = exact.cov[-1]
    for k in range(2):
        mean, cov = F @ mean, F @ cov @ F.T
        np.testing.assert_allclose(ahead.state_mean[k], mean, atol=1e-5)
        np.testing.assert_allclose(ahead.state_cov[k], cov, atol=1e-5)
        np.testing.assert_allclose(ahead.observation_mean[k], H @ mean, atol=1e-5)
        np.testing.assert_allclose(ahead.observation_cov[k], H @ cov @ H.T + R, atol=1e-5)
    low, high = ahead.observation_interval(0.9)
    assert (low < ahead.observation_mean).all() and (ahead.observation_mean < high).all()
    assert ahead.samples.shape == (1000, 2, 2)


@pytest.mark.slow
def test_the_stochastic_filter_tends_to_the_kalman_filter_like_one_over_root_n(series):
    noisy = model(q=0.1)
    exact = fd.log_likelihood(noisy, series, fd.KalmanFilter())
    keys = jax.random.split(KEY, 40)

    def error(size):
        filter = fd.EnsembleKalmanFilter(size)
        run = lambda key: fd.log_likelihood(noisy, series, filter, key=key)
        return float(jnp.sqrt(((jax.jit(jax.vmap(run))(keys) - exact) ** 2).mean()))

    # A ratio of 4 for 16 times the members; the relative standard error of each root mean square over
    # 40 keys is 11 %, that of the ratio 16 %: one false alarm in 1e4.
    small, large = error(50), error(800)
    assert 2.2 < small / large < 7.2
    assert large < 0.45


def test_gradients_under_a_fixed_key_are_those_of_differences(series):
    filter = fd.EnsembleKalmanFilter(10, inflation=1.1, relaxation=0.2, additive=0.01)

    def ll(scale):
        return fd.log_likelihood(model(q=0.1, scale=scale), series, filter, key=KEY)

    value_and_slope = jax.jit(jax.value_and_grad(ll))
    step = 1e-5 if X64 else 1e-2
    high, low = (value_and_slope(1.0 + s)[0] for s in (step, -step))
    np.testing.assert_allclose(
        value_and_slope(1.0)[1], (high - low) / (2 * step), rtol=1e-7 if X64 else 2e-2
    )


def test_a_key_is_asked_for_by_name(series):
    filter = fd.EnsembleKalmanFilter(8)
    online = fd.OnlineFilter(model(), filter)
    for call in (
        lambda: fd.filter(model(), series, filter),
        lambda: fd.log_likelihood(model(), series, filter),
        lambda: fd.smooth(model(), series, filter),
        lambda: fd.ObservedSeries(model(), series.times, filter=filter),
        lambda: online.init(0.0),
    ):
        with pytest.raises(ValueError, match="`key` is missing; EnsembleKalmanFilter draws"):
            call()


def test_members_are_kept_only_on_request(series, transformed):
    with pytest.raises(ValueError, match='history="beliefs"'):
        transformed.filtered  # noqa: B018
    np.testing.assert_allclose(
        transformed.variances, jnp.diagonal(transformed.cov, axis1=1, axis2=2), rtol=1e-5
    )
    assert (transformed.effective_sample_sizes == 8).all()


def test_one_step_predictions_are_drawn_from_the_innovations(series, transformed):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = fd.plots.one_step(model(), transformed, series)
    middle = axes[0].lines[0].get_ydata()
    expected = (H @ transformed.predicted_mean.T)[0]
    seen = ~np.isnan(np.asarray(series.observations[:, 0]))
    np.testing.assert_allclose(middle[seen], expected[seen], atol=1e-5)


def test_an_ensemble_that_loses_its_spread_is_a_status():
    exact = model(r=0.0)
    exact = fd.StateSpaceModel(exact.initial, exact.dynamics, fd.LinearObservation(jnp.eye(3), 0.0))
    y = jnp.ones((3, 3))
    result = fd.filter(
        exact, fd.Series(jnp.arange(3.0), y), fd.EnsembleKalmanFilter(8, "serial"), key=KEY
    )
    assert result.status == fd.Status.COLLAPSED
    assert result.failed_at == 1
    np.testing.assert_allclose(result.mean[0], 1.0, atol=1e-5)
    assert jnp.isnan(result.mean[1:]).all() and result.log_likelihood == -jnp.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(size=1), "at least 2 members"),
        (dict(size=5, kind="square"), "expected one of stochastic"),
        (dict(size=5, kind="local"), "`localization` is missing"),
        (dict(size=5, inflation=-1.0), "`inflation` is -1.0"),
        (dict(size=5, relaxation=2.0), "expected a number in"),
        (dict(size=5, additive=-jnp.ones(3)), "negative"),
        (
            dict(size=5, kind="transform", localization=fd.GaspariCohn(1.0, np.arange(3.0))),
            "expected kind='local'",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fd.EnsembleKalmanFilter(**arguments)


def test_a_diffuse_start_cannot_be_sampled(series):
    diffuse = fd.StateSpaceModel(fd.Diffuse(3), model().dynamics, model().observation)
    with pytest.raises(TypeError, match="`initial` is diffuse"):
        fd.filter(diffuse, series, fd.EnsembleKalmanFilter(8), key=KEY)


@pytest.mark.slow
def test_a_log_normal_measurement_is_the_logarithm_measured(series):
    """Exactly, with its log-Jacobian: a transformed Gaussian is seen where it is Gaussian."""
    h = lambda x: 0.3 * (H @ x)
    gaussian = fd.Observation(lambda t, x, u: dist.Normal(h(x), 0.4).to_event(1))
    log_normal = fd.Observation(lambda t, x, u: dist.LogNormal(h(x), 0.4).to_event(1))
    filter = fd.EnsembleKalmanFilter(12, "serial", inflation=1.05)
    found = []
    for observation, y in (
        (gaussian, series.observations),
        (log_normal, jnp.exp(series.observations)),
    ):
        with_it = fd.StateSpaceModel(model().initial, model().dynamics, observation)
        found.append(fd.filter(with_it, fd.Series(series.times, y), filter, key=KEY))
    plain, logged = found
    np.testing.assert_allclose(logged.mean, plain.mean, atol=1e-10 if X64 else 1e-4)
    jacobian = jnp.nansum(series.observations)
    np.testing.assert_allclose(
        logged.log_likelihood, plain.log_likelihood - jacobian, rtol=1e-10 if X64 else 1e-4
    )
    assert not logged.moments_matched


@pytest.mark.slow
def test_counts_enter_by_their_moments_and_are_filtered_as_the_unscented_filter_does():
    """A Poisson count of a rate that the members spread over: E y and Var y = Var rate + E rate."""
    rate = lambda x: jnp.exp(x)
    counts = fd.StateSpaceModel(
        dist.Normal(jnp.array([1.0]), 0.3).to_event(1),
        fd.LinearTransition(jnp.eye(1), 0.01 * jnp.eye(1)),
        fd.Observation(lambda t, x, u: dist.Poisson(rate(x)).to_event(1)),
    )
    series = fd.Series(jnp.arange(4.0), jnp.array([3.0, jnp.nan, 5.0, 2.0]))
    result = fd.filter(counts, series, fd.EnsembleKalmanFilter(100_000), key=KEY)
    exact = fd.filter(counts, series, fd.GaussHermiteKalmanFilter(order=9))
    assert result.moments_matched
    # 1e5 members: the standard error of a mean is below 1e-3; the ensemble is not Gaussian where the
    # other filter's belief is, hence the larger tolerance on later rows.
    np.testing.assert_allclose(result.mean[0], exact.mean[0], atol=5e-3)
    np.testing.assert_allclose(result.log_likelihoods[0], exact.log_likelihoods[0], atol=5e-3)
    np.testing.assert_allclose(result.mean, exact.mean, atol=3e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stochastic", "deterministic", "serial", "transform"])
def test_many_measurements_are_weighed_in_the_space_of_the_members(kind):
    """100 measurements and 6 members: against N x N algebra done with dy x dy matrices in NumPy."""
    dy, n = 100, 6
    rng = np.random.default_rng(0)
    h = rng.normal(size=(dy, 3))
    many = fd.StateSpaceModel(
        model().initial, model().dynamics, fd.LinearObservation(h, jnp.full(dy, 0.5))
    )
    y = jnp.asarray(rng.normal(size=(1, dy))).at[0, 7].set(jnp.nan)
    filter = fd.EnsembleKalmanFilter(n, kind, rotate=False)
    result = fd.filter(many, fd.Series(jnp.zeros(1), y), filter, key=KEY)
    belief = filter.init(many, F.dtype, jax.random.fold_in(KEY, 0))
    seen = ~np.isnan(np.asarray(y[0]))
    p, hs = np.asarray(belief.cov), h[seen]
    s = hs @ p @ hs.T + 0.5 * np.eye(seen.sum())
    d = np.asarray(y[0])[seen] - hs @ np.asarray(belief.mean)
    mean = belief.mean + p @ hs.T @ np.linalg.solve(s, d)
    ll = dist.MultivariateNormal(jnp.zeros(len(d)), jnp.asarray(s)).log_prob(jnp.asarray(d))
    tolerance = 1e-10 if X64 else 2e-3
    np.testing.assert_allclose(result.mean[0], mean, atol=tolerance)
    np.testing.assert_allclose(result.log_likelihood, ll, rtol=tolerance)
    np.testing.assert_allclose(result.nis[0], d @ np.linalg.solve(s, d), rtol=tolerance)
    if kind in ("serial", "transform"):
        np.testing.assert_allclose(
            result.cov[0], p - p @ hs.T @ np.linalg.solve(s, hs @ p), atol=tolerance
        )


def ring(n):
    """Lorenz 1996 on n cells."""

    def wind(x):
        return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + 8.0

    def step(t, x, u):
        a = wind(x)
        b = wind(x + 0.025 * a)
        return dist.Delta(x + 0.05 * wind(x + 0.025 * b), event_dim=1)

    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(n).at[0].set(1.0), 0.5).to_event(1),
        fd.Transition(step),
        fd.GaussianObservation(lambda t, x, u: x, 1.0),
    )


@pytest.fixture(scope="module")
def storm():
    times = 0.05 * np.arange(150)
    truth = fd.simulate(ring(20), times, key=jax.random.key(4))
    return truth.states, fd.Series(times, truth.observations)


@pytest.mark.slow
@pytest.mark.parametrize(
    "filter",
    [
        fd.EnsembleKalmanFilter(30, inflation=1.08),
        fd.EnsembleKalmanFilter(20, "deterministic", inflation=1.04),
        fd.EnsembleKalmanFilter(20, "transform", inflation=fd.AdaptiveInflation(1.02)),
        fd.EnsembleKalmanFilter(
            8,
            "serial",
            inflation=1.04,
            localization=fd.GaspariCohn(3.0, np.arange(20.0), period=20),
        ),
        fd.EnsembleKalmanFilter(
            8, "local", inflation=1.04, localization=fd.GaspariCohn(3.0, np.arange(20.0), period=20)
        ),
    ],
    ids=["stochastic", "deterministic", "adaptive", "serial, localised", "local"],
)
def test_chaos_is_followed_and_the_spread_tells_how_well(storm, filter):
    truth, series = storm
    result = fd.filter(ring(20), series, filter, key=KEY, history="beliefs")
    assert result.status == fd.Status.OK
    found = fd.diagnostics.spread_skill(result, truth, skip=50)
    # Measurements alone have error 1. (Seen: 0.20 to 0.29, ratios 0.85 to 1.35.)
    assert found.skill < 0.4
    assert 0.6 < found.ratio < 1.7
    ranks = fd.diagnostics.rank_histogram(result, truth, skip=50)
    assert ranks.counts.sum() == 100 * 20
    assert ranks.outside < 0.5


@pytest.mark.slow
def test_ten_thousand_states_are_filtered_without_a_matrix_of_them():
    n = 10_000
    where = np.arange(float(n))
    taper = fd.GaspariCohn(3.0, where, where[::10], period=n)
    wide = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(n), 1.0).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(0.9 * x, 0.1).to_event(1)),
        fd.GaussianObservation(lambda t, x, u: x[::10], 0.5),
    )
    series = fd.Series(jnp.arange(2.0), jnp.ones((2, n // 10)))
    for filter in (
        fd.EnsembleKalmanFilter(64, "transform"),
        fd.EnsembleKalmanFilter(16, "local", localization=taper),
    ):
        run = jax.jit(
            lambda y, filter=filter: fd.filter(wide, fd.Series(series.times, y), filter, key=KEY)
        )
        memory = run.lower(series.observations).compile().memory_analysis()
        # A matrix of the states would take 400 or 800 MB.
        assert memory.temp_size_in_bytes < 250e6
        result = run(series.observations)
        assert result.status == fd.Status.OK
        with pytest.raises(ValueError, match="use `variances`"):
            result.cov  # noqa: B018
        assert result.variances.shape == (2, n)


@pytest.mark.slow
def test_local_with_every_measurement_near_is_the_symmetric_transform(series):
    everywhere = fd.GaspariCohn(1e6, np.zeros(3), np.zeros(2))
    independent = model(r=jnp.array([0.3, 0.2]))
    local = fd.EnsembleKalmanFilter(8, "local", localization=everywhere, inflation=1.1)
    transform = fd.EnsembleKalmanFilter(8, "transform", rotate=False, inflation=1.1)
    one, other = (
        fd.filter(independent, series, f, key=KEY, history="beliefs") for f in (local, transform)
    )
    tolerance = 1e-9 if X64 else 1e-3
    np.testing.assert_allclose(one.filtered.members, other.filtered.members, atol=tolerance)
    np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, rtol=tolerance)


@pytest.mark.slow
def test_a_truncated_gradient_forgets_and_the_value_does_not(series):
    def ll(scale, truncation):
        filter = fd.EnsembleKalmanFilter(10, truncation=truncation)
        return fd.log_likelihood(model(q=0.1, scale=scale), series, filter, key=KEY)

    run = jax.jit(jax.value_and_grad(ll), static_argnums=1)
    whole, cut, longer = run(1.0, None), run(1.0, 3), run(1.0, 100)
    assert whole[0] == cut[0] == longer[0]
    np.testing.assert_allclose(longer[1], whole[1], rtol=1e-9 if X64 else 1e-4)
    assert abs(cut[1] - whole[1]) > 1e-3


@pytest.mark.slow
def test_one_failed_series_leaves_the_gradients_of_a_batch_finite():
    """The transition of the second is the square root of a negative number."""

    def ll(a, y):
        root = fd.StateSpaceModel(
            dist.Normal(jnp.ones(1), 0.1).to_event(1),
            fd.Transition(lambda t, x, u: dist.Normal(x + jnp.sqrt(a - 1.0), 0.1).to_event(1)),
            fd.GaussianObservation(lambda t, x, u: x, 1.0),
        )
        series = fd.Series(jnp.arange(3.0), y)
        return fd.log_likelihood(root, series, fd.EnsembleKalmanFilter(8), key=KEY)

    y = jnp.ones((3, 1))
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(ll), (0, None)))(jnp.array([2.0, 0.5]), y)
    assert jnp.isfinite(values[0]) and values[1] == -jnp.inf
    assert jnp.isfinite(slopes).all() and slopes[1] == 0


@pytest.mark.slow
def test_a_reverse_pass_in_blocks_has_the_same_gradient(series, monkeypatch):
    """Twelve rows in blocks of four, the last of them padded for eleven."""
    from filterdyn.filters import sampling_scan

    filter = fd.EnsembleKalmanFilter(10)

    def gradient(rows):
        part = series[:rows]
        ll = lambda scale: fd.log_likelihood(model(q=0.1, scale=scale), part, filter, key=KEY)
        return jax.jit(jax.value_and_grad(ll))(1.0)

    whole = gradient(11)
    monkeypatch.setattr(sampling_scan, "_MOST_BYTES", 0)
    np.testing.assert_allclose(gradient(11), whole, rtol=1e-10 if X64 else 1e-4)
