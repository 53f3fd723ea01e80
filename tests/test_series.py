"""Series: what is refused, with which message, and what is taken as it comes."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

NAN = np.nan
FLOAT = jnp.result_type(float)

REFUSED = {
    "observations of another length": (
        ValueError,
        "Series: `observations` has shape (99, 2) but `times` has shape (100,); the first axes must agree",
        lambda: fd.Series(np.arange(100), np.zeros((99, 2))),
    ),
    "inputs of another length": (
        ValueError,
        "Series: `inputs` has shape (2, 1) but `times` has shape (3,); the first axes must agree",
        lambda: fd.Series(np.arange(3), np.zeros(3), np.zeros((2, 1))),
    ),
    "times with two axes": (
        ValueError,
        "Series: `times` has shape (1, 2); expected (T,)",
        lambda: fd.Series([[0, 1]], [1, 2]),
    ),
    "observations with three axes": (
        ValueError,
        "Series: `observations` has shape (2, 1, 1); expected (T, columns)",
        lambda: fd.Series([0, 1], np.zeros((2, 1, 1))),
    ),
    "no columns": (
        ValueError,
        "Series: `observations` has shape (2, 0); expected at least one column",
        lambda: fd.Series([0, 1], np.zeros((2, 0))),
    ),
    "no rows": (
        ValueError,
        "Series: `times` is empty; expected at least one row",
        lambda: fd.Series([], np.zeros((0, 2))),
    ),
    "times that decrease": (
        ValueError,
        "Series: `times` decreases from 2.0 (row 1) to 1.0 (row 2); expected non-decreasing times",
        lambda: fd.Series([0, 2, 1], np.zeros(3)),
    ),
    "a time that is NaN": (
        ValueError,
        "Series: `times` is nan in row 1; expected finite numbers",
        lambda: fd.Series([0, NAN, 1], np.zeros(3)),
    ),
    "a time that is infinite": (
        ValueError,
        "Series: `times` is inf in row 2; expected finite numbers",
        lambda: fd.Series([0, 1, np.inf], np.zeros(3)),
    ),
    "an infinite observation": (
        ValueError,
        "Series: `observations` has an infinite entry in row 1; expected finite numbers, or NaN for a "
        "missing entry",
        lambda: fd.Series([0, 1, 2], [1, np.inf, 3]),
    ),
    "a missing input": (
        ValueError,
        "Series: `inputs` has NaN or infinite entries; inputs must be known",
        lambda: fd.Series([0, 1], [1, 2], [1, NAN]),
    ),
    "None for a missing observation": (
        TypeError,
        "Series: `observations` has dtype object; expected real numbers (NaN, not None, marks a missing "
        "value)",
        lambda: fd.Series([0, 1, 2], [1, None, 3]),
    ),
    "an array of objects": (
        TypeError,
        "Series: `inputs` has dtype object; expected real numbers",
        lambda: fd.Series([0, 1], [1, 2], np.array([1, "two"], object)),
    ),
    "times that are objects": (
        TypeError,
        "Series: `times` has dtype object; expected real numbers",
        lambda: fd.Series(np.array([0, None], object), [1, 2]),
    ),
    "dates": (
        TypeError,
        "Series: `times` has dtype datetime64[D]; expected real numbers (dates become seconds with "
        "Series.from_dataframe)",
        lambda: fd.Series(np.array(["2020-01-01", "2020-01-02"], "datetime64[D]"), [1, 2]),
    ),
    "text": (
        TypeError,
        "Series: `observations` has dtype <U1; expected real numbers",
        lambda: fd.Series([0, 1], ["a", "b"]),
    ),
    "complex numbers": (
        TypeError,
        "Series: `observations` is complex; expected real numbers",
        lambda: fd.Series([0, 1], [1, 2j]),
    ),
    "rows that differ in length": (
        ValueError,
        "Series: `observations` is a nested sequence whose parts differ in length; expected a "
        "rectangular array",
        lambda: fd.Series([0, 1], [[1, 2], [3]]),
    ),
    "names for other columns": (
        ValueError,
        "Series: `observation_names` has 1 names for 2 columns",
        lambda: fd.Series([0, 1], np.zeros((2, 2)), observation_names=["level"]),
    ),
    "one row by its number": (
        TypeError,
        "Series: index 0 is not a slice; one row as a series is series[k:k+1]",
        lambda: fd.Series([0, 1], [1, 2])[0],
    ),
    "a slice without rows": (
        ValueError,
        "Series: the slice slice(5, None, None) selects no rows",
        lambda: fd.Series([0, 1], [1, 2])[5:],
    ),
    "a slice that runs backwards": (
        ValueError,
        "Series: the slice slice(None, None, -1) runs backwards; expected a positive step",
        lambda: fd.Series([0, 1], [1, 2])[::-1],
    ),
    "nothing to stack": (
        ValueError,
        "stack: `series` is empty; expected at least one Series",
        lambda: fd.stack([]),
    ),
    "a stack of something else": (
        TypeError,
        "stack: series 0 is ndarray; expected one fd.Series",
        lambda: fd.stack([np.zeros(3)]),
    ),
    "a stack of different columns": (
        ValueError,
        "stack: series 1 has 2 observation columns and no inputs, unlike series 0",
        lambda: fd.stack([fd.Series([0, 1], [1, 2]), fd.Series([0, 1], np.zeros((2, 2)))]),
    ),
    "a stack of different inputs": (
        ValueError,
        "stack: series 1 has 2 input columns, series 0 has 1",
        lambda: fd.stack([
            fd.Series([0, 1], [1, 2], [1, 2]), fd.Series([0, 1], [1, 2], np.zeros((2, 2)))
        ]),
    ),
    "a stack of different names": (
        ValueError,
        "stack: series 1 has other column names than series 0",
        lambda: fd.stack([
            fd.Series([0], [1], observation_names=["a"]),
            fd.Series([0], [1], observation_names=["b"]),
        ]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_is_refused_by_name(what):
    kind, message, make = REFUSED[what]
    with pytest.raises(kind) as caught:
        make()
    assert message in str(caught.value)


def test_a_data_frame_without_the_column_names_the_columns_it_has():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"year": [1900, 1901], "hare": [30.0, 47.2]})
    with pytest.raises(KeyError, match=r"no column 'lynx'; the columns are \['year', 'hare'\]"):
        fd.Series.from_dataframe(frame, time="year", observations=["lynx"])


def test_a_data_frame_of_dates_becomes_seconds():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"level": [1.0, 2.0, NAN], "valve": [0, 1, 1]},
        index=pandas.to_datetime(["1970-01-01 00:00", "1970-01-01 00:01", "1970-01-02 00:00"]),
    )
    series = fd.Series.from_dataframe(frame, observations=["level"], inputs=["valve"])
    np.testing.assert_array_equal(series.times, [0.0, 60.0, 86400.0])
    np.testing.assert_array_equal(series.observations, [[1.0], [2.0], [NAN]])
    assert series.observation_names == ("level",) and series.input_names == ("valve",)


def test_a_missing_date_is_refused_by_its_row():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"when": pandas.to_datetime([None, "2020-01-01"]), "level": [1.0, 2.0]}
    )
    with pytest.raises(ValueError, match="`times` is nan in row 0; expected finite numbers"):
        fd.Series.from_dataframe(frame, time="when", observations=["level"])


@pytest.mark.parametrize("kind", [list, tuple, np.array, jnp.array], ids=lambda k: k.__name__)
def test_whole_numbers_in_any_container_become_floats(kind):
    series = fd.Series(kind([0, 1, 2]), kind([3, 4, 5]), kind([6, 7, 8]))
    assert series.times.dtype == np.float64
    assert series.observations.dtype == FLOAT and series.inputs.dtype == FLOAT
    np.testing.assert_array_equal(series.observations, [[3], [4], [5]])


def test_truth_values_are_numbers():
    np.testing.assert_array_equal(
        fd.Series([0, 1], [True, False]).observations, np.array([[1.0], [0.0]])
    )


def test_concrete_times_keep_their_gaps_in_float32_seconds_since_1970():
    start = 1_700_000_000.0
    series = fd.Series(start + np.array([0.0, 0.25, 1.0]), np.zeros(3, np.float32))
    np.testing.assert_array_equal(series.gaps, [0.0, 0.25, 0.75])


def test_a_slice_starts_its_own_clock():
    series = fd.Series([0.0, 1.0, 3.0, 6.0], np.arange(4), np.arange(4))
    part = series[2:]
    assert len(part) == 2
    np.testing.assert_array_equal(part.gaps, [0.0, 3.0])
    np.testing.assert_array_equal(part.inputs, [[2.0], [3.0]])
    np.testing.assert_array_equal(series[::2].gaps, [0.0, 3.0])


# Series of three lengths, one of a single row, for a model with an input and irregular gaps.
rng = np.random.default_rng(3)
RAGGED = [
    fd.Series(np.cumsum(rng.uniform(0.1, 1.0, n)), rng.normal(size=(n, 1)), rng.normal(size=(n, 1)))
    for n in (5, 1, 8)
]


def oscillator(rate):
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        fd.LinearSDE(jnp.array([[0.0, 1.0], [-1.0, -0.4]]) * rate, [0.1, 0.5], B=[[0.0], [1.0]]),
        fd.LinearObservation([[1.0, 0.0]], 0.1),
    )


def log_likelihood(rate, series):
    return fd.log_likelihood(oscillator(rate), series, fd.KalmanFilter())


@pytest.mark.slow
def test_vmap_over_a_stack_gives_the_log_likelihoods_and_gradients_of_the_separate_series():
    batch = fd.stack(RAGGED)
    assert batch.times.shape == (3, 8) and batch.observations.shape == (3, 8, 1)
    rate = jnp.asarray(1.3)
    both = jax.jit(jax.vmap(jax.value_and_grad(log_likelihood), in_axes=(None, 0)))
    values, gradients = both(rate, batch)
    for k, series in enumerate(RAGGED):
        value, gradient = jax.value_and_grad(log_likelihood)(rate, series)
        np.testing.assert_allclose(values[k], value, rtol=1e-12 if FLOAT == jnp.float64 else 1e-5)
        np.testing.assert_allclose(
            gradients[k], gradient, rtol=1e-10 if FLOAT == jnp.float64 else 1e-3
        )


def test_padded_rows_change_no_belief_and_add_exactly_nothing():
    short = fd.stack(RAGGED)[0]
    result = fd.filter(oscillator(1.3), short, fd.KalmanFilter())
    assert np.all(np.asarray(result.log_likelihoods[5:]) == 0.0)
    for row in range(5, 8):
        np.testing.assert_array_equal(result.mean[row], result.mean[4])
        np.testing.assert_array_equal(result.cov[row], result.cov[4])


def test_one_of_a_stack_is_a_series():
    batch = fd.stack(RAGGED)
    one = batch[2]
    np.testing.assert_array_equal(one.observations, RAGGED[2].observations)
    np.testing.assert_array_equal(one.gaps, RAGGED[2].gaps)


def test_a_verb_that_takes_no_stack_says_to_map_over_it():
    message = r"{}: `series` is a batch of shape \(3,\); map over it with jax.vmap"
    with pytest.raises(ValueError, match=message.format("smooth")):
        fd.smooth(oscillator(1.0), fd.stack(RAGGED), fd.KalmanFilter())
    sampling = fd.EnsembleKalmanFilter(10)
    with pytest.raises(ValueError, match=message.format("smooth")):
        fd.smooth(oscillator(1.0), fd.stack(RAGGED), sampling, key=jax.random.key(0))


# Times that are only known inside jit: a status, not silence.
def status_of(times, **start):
    def run(times, start):
        model = fd.StateSpaceModel(
            dist.Normal(0.0, 1.0).expand([1]).to_event(1),
            fd.LinearSDE([[-0.5]], 1.0),
            fd.LinearObservation([[1.0]], 1.0),
        )
        result = fd.filter(model, fd.Series(times, jnp.ones(3)), fd.KalmanFilter(), **start)
        return result.status, result.failed_at, result.log_likelihood

    status, row, value = jax.jit(run)(times, start)
    assert bool(value == -jnp.inf) == bool(status != fd.Status.OK)
    return fd.Status(int(status)), int(row)


def test_traced_times_that_decrease_are_a_status():
    assert status_of(jnp.array([0.0, 2.0, 1.0])) == (fd.Status.TIMES_DECREASING, 2)


def test_traced_times_that_are_nan_are_a_status():
    assert status_of(jnp.array([0.0, NAN, 1.0])) == (fd.Status.TIMES_DECREASING, 1)


def test_a_traced_start_after_the_first_row_is_a_status():
    times = jnp.array([0.0, 1.0, 2.0])
    assert status_of(times, t0=jnp.asarray(0.5)) == (fd.Status.TIMES_DECREASING, 0)
    assert status_of(times, t0=jnp.asarray(-0.5)) == (fd.Status.OK, -1)


def test_a_traced_float32_clock_that_cannot_resolve_its_gaps_is_a_status():
    seconds = jnp.asarray(1.7e9 + np.array([0.0, 60.0, 120.0]), jnp.float32)
    assert status_of(seconds) == (fd.Status.TIMES_UNRESOLVED, 1)


def test_a_traced_float32_clock_that_resolves_its_gaps_is_fine():
    assert status_of(jnp.array([1900.0, 1900.0, 1901.0], jnp.float32)) == (fd.Status.OK, -1)


def test_an_infinite_observation_that_is_traced_is_a_status():
    def run(y):
        result = fd.filter(oscillator(1.0), fd.Series([0, 1], y, [0, 0]), fd.KalmanFilter())
        return result.status, result.failed_at, result.log_likelihood

    status, row, value = jax.jit(run)(jnp.array([1.0, jnp.inf]))
    assert (status, row, value) == (fd.Status.MODEL_NOT_FINITE, 1, -jnp.inf)
