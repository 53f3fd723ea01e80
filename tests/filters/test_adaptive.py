"""Noise factors learnt while filtering: planted ones are found, right ones stay."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

F = jnp.array([[1.0, 0.1], [0.0, 0.95]])
Q = jnp.array([[1e-4, 1e-3], [1e-3, 2e-2]])
R = jnp.array([0.2, 0.05])


def model(q=1.0, r=(1.0, 1.0)):
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        fd.LinearTransition(F, q * Q),
        fd.LinearObservation(jnp.eye(2), R * jnp.array(r)),
    )


def record(count=3000, q=1.0, r=(1.0, 1.0), seed=0):
    times = np.arange(count, dtype=float)
    y = np.array(fd.simulate(model(q, r), times, key=jr.key(seed)).observations)
    y[::7, 1] = np.nan
    return fd.Series(times, y)


def factors(series, **options):
    rule = fd.AdaptiveNoise(0.999, **options)
    return fd.filter(model(), series, fd.KalmanFilter(adaptive=rule)).noise_factors


@pytest.mark.parametrize(("q", "r"), [(1.0, (1.0, 1.0)), (5.0, (1.0, 1.0)), (0.2, (4.0, 0.25))])
def test_planted_factors_are_found(q, r):
    """About 1,000 rows are remembered: a factor is uncertain by some 10 %; three times that is
    allowed."""
    found = factors(record(q=q, r=r))
    np.testing.assert_allclose(found.process[-1], q, rtol=0.3)
    np.testing.assert_allclose(found.sensors[-1], r, rtol=0.3)


def test_a_change_of_the_noise_is_followed():
    before, after = record(1500), record(1500, r=(9.0, 1.0), seed=1)
    y = np.concatenate([before.observations, after.observations])
    found = fd.filter(
        model(),
        fd.Series(np.arange(3000), y),
        fd.KalmanFilter(adaptive=fd.AdaptiveNoise(0.99, process=False)),
    ).noise_factors
    assert 0.6 < float(found.sensors[1499, 0]) < 1.5
    assert 5.0 < float(found.sensors[-1, 0]) < 14.0
    np.testing.assert_array_equal(found.process, 1.0)


def test_missing_rows_and_repeated_times_teach_nothing_about_the_process():
    series = fd.Series([0.0, 1.0, 1.0, 2.0], [[0.1, 0.2], [np.nan, np.nan], [0.3, 0.1], [0.2, 0.0]])
    found = factors(series)
    assert float(found.process[0]) == 1.0 and float(found.process[1]) == 1.0
    assert float(found.process[2]) != 1.0
    np.testing.assert_array_equal(found.sensors[0], found.sensors[1])


def test_without_adaptation_of_anything_the_filter_is_the_plain_one():
    series = record(50)
    rule = fd.AdaptiveNoise(process=False, sensors=False)
    adaptive = fd.filter(model(), series, fd.KalmanFilter(adaptive=rule))
    plain = fd.filter(model(), series, fd.KalmanFilter())
    np.testing.assert_allclose(adaptive.mean, plain.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(adaptive.log_likelihood, plain.log_likelihood, rtol=1e-5)


@pytest.mark.slow
def test_factors_travel_with_the_stream():
    series = record(20)
    filter = fd.ExtendedKalmanFilter(adaptive=fd.AdaptiveNoise())
    batch = fd.filter(model(), series, filter)
    online = fd.OnlineFilter(model(), filter)
    state = online.init(0.0)
    for t, y in zip(series.times, np.asarray(series.observations), strict=True):
        state, _ = online.step(state, t, y)
    rtol = 1e-12 if jax.config.jax_enable_x64 else 1e-5
    np.testing.assert_allclose(
        state.belief.memory.process, batch.noise_factors.process[-1], rtol=rtol
    )


def test_gradient_through_an_adapting_filter_is_finite():
    series = record(30)

    def value(scale):
        return fd.log_likelihood(
            model(q=scale), series, fd.KalmanFilter(adaptive=fd.AdaptiveNoise())
        )

    slope, h = jax.jit(jax.grad(value))(1.3), 1e-3
    numeric = (value(1.3 + h) - value(1.3 - h)) / (2 * h)
    np.testing.assert_allclose(slope, numeric, rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(forgetting=0.0), "`forgetting` is 0.0"), (dict(weight=-1), "`weight` is -1")],
)
def test_a_rule_says_what_is_wrong_with_its_argument(options, message):
    with pytest.raises(ValueError, match=f"AdaptiveNoise: {message}"):
        fd.AdaptiveNoise(**options)


def test_a_class_in_place_of_a_rule_is_refused():
    with pytest.raises(TypeError, match=r"`adaptive` is AdaptiveNoise; expected fd.AdaptiveNoise"):
        fd.KalmanFilter(adaptive=fd.AdaptiveNoise)
