"""Chunks of a stream, predictions, kinds of times, and how often a step is compiled."""

import datetime

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

TOLERANCE = 1e-12 if jax.config.jax_enable_x64 else 1e-5
ONE = np.eye(1)
MODEL = fd.StateSpaceModel(
    dist.MultivariateNormal(jnp.zeros(1), jnp.eye(1)),
    fd.LinearSDE(-0.5 * ONE, ONE, B=ONE),
    fd.LinearObservation(ONE, ONE),
)
TIMES = np.array([0.5, 0.5, 1.25, 3.0, 3.5])
Y = np.array([0.3, np.nan, -0.4, 2.0, 0.1])
U = np.array([1.0, 0.5, 0.0, -1.0, 2.0])


@pytest.fixture(scope="module")
def online():
    return fd.OnlineFilter(MODEL, fd.KalmanFilter(), num_inputs=1)


def test_a_filter_that_knows_its_inputs_is_compiled_when_it_is_made(online):
    assert online.compile_count == 1
    online.step(online.init(0.0, 0.0), 1.0, 2.0, 1.0)
    assert online.compile_count == 1


def test_a_chunk_gives_what_its_steps_give(online):
    state = start = online.init(0.0, 0.7)
    results = []
    for row in zip(TIMES, Y, U, strict=True):
        state, result = online.step(state, *row)
        results.append(result)
    end, chunk = online.step_many(start, TIMES, Y, U)
    np.testing.assert_allclose(end.mean, state.mean, rtol=TOLERANCE)
    np.testing.assert_allclose(end.log_likelihood, state.log_likelihood, rtol=TOLERANCE)
    np.testing.assert_array_equal(end.input, state.input)
    assert end.time == 3.5
    for part in ("mean", "cov", "innovation", "nis", "log_likelihood"):
        each = np.stack([getattr(r, part) for r in results])
        np.testing.assert_allclose(getattr(chunk, part), each, rtol=10 * TOLERANCE, err_msg=part)
    compiled = online.compile_count
    online.step_many(start, TIMES[:2] + 3, Y[:2], U[:2])
    small = online.compile_count
    for rows in (5, 3, 4):
        padded = online.step_many(start, TIMES[:rows], Y[:rows], U[:rows])[1]
        np.testing.assert_allclose(padded.mean, chunk.mean[:rows], rtol=10 * TOLERANCE)
    assert small == compiled + 1
    assert online.compile_count == small + 1  # of four rows; five took the size of eight


def test_a_chunk_that_goes_back_in_time_is_refused_whole(online):
    with pytest.raises(ValueError, match=r"`times\[2\]` is 1.0, before the row at 2.0"):
        online.step_many(online.init(0.0, 0.0), [1.0, 2.0, 1.0], [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"`observations` has shape \(2, 3\)"):
        online.step_many(online.init(0.0, 0.0), [1.0, 2.0], np.zeros((2, 3)))


def test_a_prediction_is_the_solution_of_the_equation(online):
    """Of dx = (-x / 2 + u) dt + dW from N(0, 1), which is its own stationary spread."""
    state = online.predict_to(online.init(0.0, 2.0), 3.0)
    np.testing.assert_allclose(state.mean, [4 * (1 - np.exp(-1.5))], rtol=1e-6)
    np.testing.assert_allclose(state.cov, [[1.0]], rtol=1e-6)
    assert state.log_likelihood == 0


def test_times_with_a_zone_are_seconds_and_times_without_are_refused(online):
    noon = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
    east = datetime.timezone(datetime.timedelta(hours=2))
    later = datetime.datetime(2026, 3, 1, 14, 0, 2, 500000, tzinfo=east)
    state, _ = online.step(online.init(noon, 0.0), later, 1.0)
    plain, _ = online.step(online.init(0.0, 0.0), 2.5, 1.0)
    assert state.time == noon.timestamp() + 2.5
    np.testing.assert_allclose(state.mean, plain.mean, rtol=1e-6)
    machine, _ = online.step(state, np.datetime64("2026-03-01T12:00:03"), 1.0)
    assert machine.time == noon.timestamp() + 3
    with pytest.raises(ValueError, match="without a time zone"):
        online.step(state, later.replace(tzinfo=None), 1.0)
    with pytest.raises(TypeError, match="`t` is str; expected a number or a datetime"):
        online.step(state, "noon", 1.0)


def test_a_gate_says_what_it_kept_out():
    online = fd.OnlineFilter(MODEL, fd.KalmanFilter(outliers=fd.Gate(0.99)))
    state, inside = online.step(online.init(0.0), 0.0, 0.5)
    _, outside = online.step(state, 1.0, 100.0)
    assert inside.outlier_weights == [1.0]
    assert outside.outlier_weights == [0.0]


def test_streams_begin_alike_inside_a_trace_and_after_it():
    online = fd.OnlineFilter(MODEL, fd.KalmanFilter())
    assert jax.jit(lambda t: online.init(t, 0.0).cov)(1.0) == 1.0
    first, second = online.init(0.0), online.init(1.0, 0.5)
    assert first.vectors[0] is second.vectors[0]
    assert (first.time, first.input, second.time, second.input) == (0.0, None, 1.0, 0.5)
    assert online.init(0.0, key=jax.random.key(0)).mean == first.mean
