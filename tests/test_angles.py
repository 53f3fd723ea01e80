"""Bearings across the cut at +-pi: every filter gives what it gives in a frame turned away from the cut,
where measurements are plain numbers."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("compared in float64", allow_module_level=True)

NAN = np.nan
PACE, T = 0.12, 12
TURN = np.array([[np.cos(PACE), -np.sin(PACE)], [np.sin(PACE), np.cos(PACE)]])
R = np.array([0.02, 0.05])


def sees(angle):
    """Bearing and distance of a target, in a frame turned by `angle`."""
    c, s = np.cos(angle), np.sin(angle)

    def h(t, x, u):
        east, north = c * x[0] - s * x[1], s * x[0] + c * x[1]
        return jnp.stack([jnp.arctan2(north, east), jnp.sqrt(x @ x)])

    return h


def residual(y, z):
    difference = y - z
    return difference.at[0].set(fd.wrap_angle(difference[0]))


def orbit(observation):
    """A target that circles the sensor, from a bearing of 2.5 to one of 3.9."""
    start = dist.MultivariateNormal(
        2.0 * jnp.array([np.cos(2.5), np.sin(2.5)]), jnp.array([[0.3, 0.1], [0.1, 0.2]])
    )
    return fd.StateSpaceModel(start, fd.LinearTransition(TURN, 0.01 * np.eye(2)), observation)


CUT = orbit(fd.GaussianObservation(sees(0.0), R, residual))
TURNED = orbit(fd.GaussianObservation(sees(np.pi / 2), R))


@functools.cache
def record():
    rng = np.random.default_rng(4)
    angles = 2.55 + PACE * np.arange(T)
    y = np.stack([angles, np.full(T, 2.0)], axis=1) + np.sqrt(R) * rng.normal(size=(T, 2))
    y[3, 0], y[6, 1], y[8] = NAN, NAN, NAN
    wrapped = y.copy()
    wrapped[:, 0] = (y[:, 0] + np.pi) % (2 * np.pi) - np.pi
    turned = y.copy()
    turned[:, 0] = y[:, 0] + np.pi / 2 - 2 * np.pi
    assert np.ptp(wrapped[[0, -1], 0]) > np.pi and np.nanmax(np.abs(turned[:, 0])) < 2.5
    return tuple(fd.Series(np.arange(T * 1.0), each) for each in (wrapped, turned))


def same(one, other, names=("mean", "cov", "log_likelihood"), tolerance=1e-9):
    for name in names:
        np.testing.assert_allclose(
            getattr(one, name), getattr(other, name), rtol=0, atol=tolerance, err_msg=name
        )


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)
FILTERS = {
    "extended": fd.ExtendedKalmanFilter(),
    "cubature, outliers": fd.CubatureKalmanFilter(outliers=fd.StudentTNoise(5.0)),
    "iterated": fd.ExtendedKalmanFilter(iterations=3),
    "second order": fd.ExtendedKalmanFilter(order=2),
    "gated": fd.ExtendedKalmanFilter(outliers=fd.Gate()),
    "unscented": fd.UnscentedKalmanFilter(),
    "unscented, iterated": fd.UnscentedKalmanFilter(0.5, 2.0, 1.0, iterations=3),
    "cubature, fifth degree": fd.CubatureKalmanFilter(5),
    "Gauss-Hermite": fd.GaussHermiteKalmanFilter(3),
}
DEFAULT = ("extended", "cubature, outliers")


@pytest.mark.parametrize("name", [name if name in DEFAULT else slow(name) for name in FILTERS])
def test_a_filter_gives_the_same_on_the_cut_and_turned_away_from_it(name):
    """Smoothed, with what the filter says on the way."""
    on, off = (
        fd.smooth(model, series, FILTERS[name])
        for model, series in zip((CUT, TURNED), record(), strict=True)
    )
    same(on, off)
    assert np.isfinite(on.log_likelihood)


@pytest.mark.parametrize(
    "rule", [fd.CubatureKalmanFilter().rule, slow(fd.UnscentedKalmanFilter().rule)]
)
def test_points_on_both_sides_of_the_cut_have_the_mean_and_slope_of_a_turned_frame(rule):
    """A belief as wide as the target is far, right at the cut, and an expectation beyond it."""
    at = fd.Gaussian(jnp.array([-1.0, 0.02]), jnp.array([[0.05, 0.04], [0.04, 0.4]]))
    y = jnp.array([-3.0, NAN])
    plain = orbit(fd.GaussianObservation(sees(0.0), R))
    on, off, lost = (
        jax.jit(lambda y, model=model: model.observation.linearize(rule, at, 0.0, None, y))(y)
        for model, y in ((CUT, y), (TURNED, y.at[0].add(np.pi / 2)), (plain, y))
    )
    np.testing.assert_allclose(on.slope, off.slope, atol=1e-12)
    np.testing.assert_allclose(on.noise, off.noise, atol=1e-12)
    np.testing.assert_allclose((on.z - on.value)[0], (off.z - off.value)[0], atol=1e-12)
    assert list(on.observed) == [True, False]
    assert np.abs(lost.slope - on.slope).max() > 1


@functools.cache
def filtered():
    return fd.filter(CUT, record()[0], FILTERS["extended"])


def test_innovations_are_less_than_half_a_turn_and_missing_ones_stay_missing():
    innovations = np.asarray(filtered().innovations)
    np.testing.assert_array_equal(np.isnan(innovations), np.isnan(record()[0].observations))
    assert np.nanmax(np.abs(innovations)) < 1.0


def test_without_a_residual_the_filter_is_lost_at_the_cut():
    lost = fd.filter(orbit(fd.GaussianObservation(sees(0.0), R)), record()[0], FILTERS["extended"])
    assert lost.log_likelihood < filtered().log_likelihood - 100


def test_whole_turns_in_the_data_change_nothing():
    """In the density of a series, and where the state is known exactly."""
    series = fd.ObservedSeries(CUT, record()[0].times, filter=FILTERS["extended"])
    y = np.asarray(record()[0].observations)
    turns = 2 * np.pi * np.stack([np.arange(T) % 5 - 2.0, np.zeros(T)], axis=1)
    found = series.log_prob(np.stack([y, y + turns]))
    np.testing.assert_allclose(found[0], filtered().log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)


def test_of_a_known_state_the_likelihood_is_the_density_of_the_residual():
    x = jnp.array([-2.0, 0.01])
    known = fd.StateSpaceModel(dist.Delta(x, event_dim=1), CUT.dynamics, CUT.observation)
    y = np.array([[-np.pi + 0.1, 2.1]])
    found = fd.log_likelihood(known, fd.Series([0.0], y), FILTERS["extended"])
    away = np.array([0.1 + np.arctan(0.005), 2.1 - np.hypot(2.0, 0.01)])
    expected = -0.5 * (away**2 / R + np.log(2 * np.pi * R)).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.slow
def test_row_by_row_it_is_the_batch():
    online = fd.OnlineFilter(CUT, FILTERS["extended"])
    series = record()[0]
    state, means = online.init(0.0), []
    for t, y in zip(series.times, np.asarray(series.observations), strict=True):
        state, step = online.step(state, t, y)
        means.append(step.mean)
    np.testing.assert_allclose(means, filtered().mean, rtol=1e-12)


@pytest.mark.slow
def test_simulated_and_forecast_angles_are_not_wrapped():
    # One draw in 40 is beyond pi, and as many on the other side: of 400 none, less than once in 1e4 seeds.
    drawn = fd.simulate(CUT, [0.0, 3.0], key=jr.key(0), num_samples=400).observations[:, 1, 0]
    assert (drawn > np.pi).any() and (drawn < -np.pi / 2).any()
    steps = (3 * np.pi - (2.55 + PACE * (T - 1))) // PACE
    ahead = fd.forecast(CUT, filtered(), T + np.arange(steps))
    low, high = (float(end[-1, 0]) for end in ahead.observation_interval(0.9))
    assert low < np.pi < high < low + 4


@pytest.mark.slow
def test_derivatives_do_not_see_the_cut():
    def value(model, series, log_r):
        seen = model.observation
        scaled = fd.GaussianObservation(seen.h, R * jnp.exp(log_r), seen.residual)
        return fd.log_likelihood(orbit(scaled), series, FILTERS["extended"])

    on, off = (
        jax.jit(jax.value_and_grad(functools.partial(value, model, series)))(0.2)
        for model, series in zip((CUT, TURNED), record(), strict=True)
    )
    np.testing.assert_allclose(on, off, rtol=1e-10)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_wrapped_angle_is_in_the_half_open_circle_with_derivative_one(precision):
    pi = np.asarray(np.pi, precision)
    x = np.concatenate([np.linspace(-30, 30, 997), pi * np.arange(-7, 8)]).astype(precision)
    wrap = jax.jit(fd.wrap_angle)
    found = np.asarray(wrap(x))
    assert found.dtype == precision and (found > -pi).all() and (found <= pi).all()
    np.testing.assert_allclose(np.cos(found), np.cos(x), atol=40 * np.finfo(precision).eps)
    np.testing.assert_allclose(np.sin(found), np.sin(x), atol=40 * np.finfo(precision).eps)
    assert (jax.jit(jax.vmap(jax.grad(fd.wrap_angle)))(x) == 1).all()
    ends = np.asarray(fd.wrap_angle(np.array([pi, -pi, NAN], precision)))
    np.testing.assert_array_equal(ends, np.array([pi, pi, NAN], precision))


def test_a_residual_of_another_shape_is_refused_by_name():
    series = record()[0]
    wrong = orbit(fd.GaussianObservation(sees(0.0), R, lambda y, z: fd.wrap_angle(y - z)[:1]))
    with pytest.raises(
        ValueError, match=r"`residual\(y, z\)` returned shape \(1,\); expected \(2,\)"
    ):
        fd.log_likelihood(wrong, series, FILTERS["extended"])
    with pytest.raises(TypeError, match="`residual` is float; expected a function of"):
        fd.GaussianObservation(sees(0.0), R, 2.0)


@pytest.mark.slow
def test_a_particle_filter_weighs_angles_by_the_residual_too():
    """The same draws in both frames, so the same weights; without a residual it is lost."""
    follow = fd.ParticleFilter(200)
    on, off = (
        fd.filter(model, series, follow, key=jr.key(3))
        for model, series in zip((CUT, TURNED), record(), strict=True)
    )
    same(on, off, ("mean", "log_likelihood", "innovations", "innovation_covs"))
    assert np.nanmax(np.abs(np.asarray(on.innovations))) < 1.5
