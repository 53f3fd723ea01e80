"""The online filter against the batch verb, and what a stream may do to it."""

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

NAN = np.nan
EXACT = jax.config.jax_enable_x64
A, L = np.array([[-0.3, 1.0], [-1.5, -0.4]]), np.array([[0.3, 0.0], [0.1, 0.5]])
F, Q = np.array([[0.9, 0.3], [-0.2, 0.8]]), np.array([[0.2, 0.05], [0.05, 0.1]])
B, H = np.array([[0.5], [1.0]]), np.array([[1.0, 0.5], [0.0, 1.0]])
R, D = np.array([[0.3, 0.1], [0.1, 0.4]]), np.array([[0.2], [-0.5]])
m0, P0 = np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 2.0]])
y = np.array([
    [0.3, -0.8], [1.1, NAN], [NAN, NAN], [NAN, 0.4], [-0.7, 0.9], [0.2, -0.1], [NAN, NAN], [1.5, 0.6],
])  # fmt: skip
inputs = np.array([[1.0], [0.0], [-2.0], [0.5], [1.5], [-1.0], [0.0], [2.0]])
irregular = np.array([0.0, 0.3, 0.35, 1.2, 1.2, 2.0, 3.7, 4.0])
repeated = np.array([0.0, 1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 5.0])


def drift(t, x, u):
    push = 0.0 if u is None else B.astype(x.dtype) @ u
    return A.astype(x.dtype) @ jnp.sin(x) + push


def diffusion(t, x, u):
    return 0.3 + 0.1 * jnp.tanh(x)


def transition(t, x, u):
    mean = jnp.sin(F.astype(x.dtype) @ x) + B.astype(x.dtype) @ u
    return dist.MultivariateNormal(mean, jnp.asarray(Q, x.dtype))


def pelts(t, x, u):
    return dist.LogNormal(x, 0.3).to_event(1)


def counts(t, x, u):
    return dist.Poisson(jnp.exp(x)).to_event(1)


def linear(dtype):
    return fd.LinearObservation(H.astype(dtype), R.astype(dtype), D=D.astype(dtype))


def bend(t, x, u):
    return jnp.tanh(x) + D.astype(x.dtype) @ u


@dataclass(frozen=True)
class Setup:
    """A model in one precision, the filter for it, and a series."""

    dynamics: object  # dtype -> dynamics
    observation: object  # dtype -> observation
    times: np.ndarray
    filter: object = fd.ExtendedKalmanFilter()
    y: np.ndarray = field(default_factory=lambda: y)
    inputs: np.ndarray | None = field(default_factory=lambda: inputs)
    start: dict = field(default_factory=dict)

    def model(self, dtype=np.float64):
        initial = dist.MultivariateNormal(jnp.asarray(m0, dtype), jnp.asarray(P0, dtype))
        return fd.StateSpaceModel(initial, self.dynamics(dtype), self.observation(dtype))


early = dict(t0=-0.4, u0=np.array([0.7]))
positive = np.where(np.isnan(y), NAN, np.exp(y))
SETUPS = {
    "LinearTransition": Setup(
        lambda dtype: fd.LinearTransition(F.astype(dtype), Q.astype(dtype), B=B.astype(dtype)),
        linear, repeated, fd.KalmanFilter(),
    ),
    "LinearSDE": Setup(
        lambda dtype: fd.LinearSDE(A.astype(dtype), L.astype(dtype), B=B.astype(dtype)),
        linear, irregular, fd.KalmanFilter(), start=early,
    ),
    "Transition": Setup(
        lambda dtype: fd.Transition(transition),
        lambda dtype: fd.GaussianObservation(bend, R.astype(dtype)),
        repeated, fd.ExtendedKalmanFilter(iterations=2), start=dict(t0=-1.0, u0=np.array([0.7])),
    ),
    "ODE": Setup(lambda dtype: fd.ODE(drift, substeps=3), linear, irregular, start=early),
    "SDE": Setup(lambda dtype: fd.SDE(drift, L.astype(dtype), substeps=3), linear, irregular),
    "SDE, state-dependent noise, steps of dt": Setup(
        lambda dtype: fd.SDE(drift, diffusion, dt=0.25, max_substeps=8),
        linear, irregular, start=early,
    ),
    "LogNormal, without inputs": Setup(
        lambda dtype: fd.SDE(drift, L.astype(dtype), substeps=2),
        lambda dtype: fd.Observation(pelts), irregular, y=positive, inputs=None,
    ),
    "Poisson": Setup(
        lambda dtype: fd.LinearSDE(A.astype(dtype), L.astype(dtype)),
        lambda dtype: fd.Observation(counts), irregular, y=np.round(positive), inputs=None,
    ),
}  # fmt: skip
every_setup = pytest.mark.parametrize("name", SETUPS)


def cached(function):
    """Compiled things are shared by all tests."""
    kept = functools.cache(function)
    return lambda name, dtype=np.float64: kept(name, dtype)


@cached
def online_filter(name, dtype):
    s = SETUPS[name]
    return fd.OnlineFilter(s.model(dtype), s.filter)


@cached
def stream(name, dtype):
    """The states before and after every row, and what `step` said about it."""
    s, online = SETUPS[name], online_filter(name, dtype)
    states = [online.init(s.start.get("t0", s.times[0]), s.start.get("u0"))]
    results = []
    for k, t in enumerate(s.times):
        u = None if s.inputs is None else s.inputs[k]
        state, result = online.step(states[-1], t, s.y[k], u)
        states.append(state)
        results.append(result)
    return states, results


@cached
def batch(name, dtype):
    s = SETUPS[name]
    held = None if s.inputs is None else s.inputs.astype(dtype)
    series = fd.Series(s.times, s.y.astype(dtype), held)
    return fd.filter(s.model(dtype), series, s.filter, **s.start)


precisions = pytest.mark.parametrize(
    ("dtype", "rtol"),
    [
        pytest.param(np.float64, 1e-12, marks=pytest.mark.skipif(not EXACT, reason="no float64")),
        (np.float32, 1e-5),
    ],
    ids=["float64", "float32"],
)


@precisions
@every_setup
def test_a_stream_gives_what_the_batch_gives(name, dtype, rtol):
    states, results = stream(name, dtype)
    whole = batch(name, dtype)
    assert whole.status == fd.Status.OK
    pairs = dict(
        mean=whole.mean,
        cov=whole.cov,
        innovation=whole.innovations,
        innovation_cov=whole.innovation_covs,
        log_likelihood=whole.log_likelihoods,
        nis=whole.nis,
    )
    for part, expected in pairs.items():
        got = jnp.stack([getattr(r, part) for r in results])
        assert got.dtype == dtype
        scale = float(jnp.nanmax(jnp.abs(expected)))
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * scale, err_msg=part)
    np.testing.assert_allclose(states[-1].log_likelihood, whole.log_likelihood, rtol=rtol)
    # (XLA may compute what it returns twice in two fusions, which round each in their own way.)
    for of_state, of_step in (
        (states[-1].mean, results[-1].mean),
        (states[-1].cov, results[-1].cov),
    ):
        few = 4 * np.finfo(dtype).eps
        np.testing.assert_allclose(of_state, of_step, rtol=few, atol=few)
    assert float(states[-1].time) == SETUPS[name].times[-1]
    assert all(r.status == fd.Status.OK for r in results)


@every_setup
def test_a_missing_row_adds_exactly_nothing(name):
    _, results = stream(name)
    for k in (2, 6):
        assert float(results[k].log_likelihood) == 0.0
        assert np.isnan(results[k].nis)
        assert np.isnan(results[k].innovation).all()


@every_setup
def test_a_stream_that_was_stopped_and_resumed_agrees_to_the_bit(name, tmp_path):
    """The state goes through a file of plain arrays; nothing is pickled."""
    s, (states, _) = SETUPS[name], stream(name)
    leaves, structure = jax.tree.flatten(states[4])
    np.savez(tmp_path / "state.npz", *[np.asarray(x) for x in leaves])
    with np.load(tmp_path / "state.npz", allow_pickle=False) as saved:
        state = jax.tree.unflatten(structure, [saved[f"arr_{i}"] for i in range(len(leaves))])
    online = fd.OnlineFilter(s.model(), s.filter)
    for k in range(4, 8):
        u = None if s.inputs is None else s.inputs[k]
        state, _ = online.step(state, s.times[k], s.y[k], u)
    ended = jax.tree.leaves(states[-1])
    for resumed, uninterrupted in zip(jax.tree.leaves(state), ended, strict=True):
        np.testing.assert_array_equal(resumed, uninterrupted)


@every_setup
def test_all_steps_share_one_compilation(name):
    stream(name)
    assert online_filter(name).compile_count == 1


KINDS = {
    "int": int,
    "float": float,
    "NumPy scalar": np.float32,
    "NumPy integer": np.int64,
    "NumPy array": lambda v: np.array([v]),
    "list": lambda v: [v],
    "JAX scalar": jnp.asarray,
    "JAX integer": lambda v: jnp.asarray(int(v)),
    "JAX array": lambda v: jnp.asarray([v], jnp.float32),
}


def scalar_model():
    one = np.eye(1)
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(1), jnp.eye(1)),
        fd.LinearSDE(-0.5 * one, one, B=one),
        fd.LinearObservation(one, one),
    )


def test_numbers_of_every_kind_share_one_compilation_and_mean_the_same():
    clocks = [int, float, np.float64, np.int32, jnp.asarray, lambda v: jnp.asarray(int(v))]
    online = fd.OnlineFilter(scalar_model(), fd.KalmanFilter())
    state = online.init(0, 1)
    plain = fd.OnlineFilter(scalar_model(), fd.KalmanFilter())
    expected = plain.init(0.0, np.array([1.0]))
    time = 0
    for clock in clocks:
        for kind in KINDS.values():
            time += 1
            state, _ = online.step(state, clock(time), kind(2), kind(1))
            expected, _ = plain.step(expected, float(time), np.array([2.0]), np.array([1.0]))
    assert online.compile_count == 1
    np.testing.assert_array_equal(state.mean, expected.mean)
    np.testing.assert_array_equal(state.log_likelihood, expected.log_likelihood)


def test_an_input_that_is_not_given_is_held():
    online = fd.OnlineFilter(scalar_model(), fd.KalmanFilter())
    held, _ = online.step(online.init(0.0, 2.0), 1.0, 0.4)
    given, _ = online.step(online.init(0.0, 2.0), 1.0, 0.4, 2.0)
    np.testing.assert_array_equal(held.mean, given.mean)
    np.testing.assert_array_equal(held.input, [2.0])


def test_the_input_of_a_step_acts_after_it():
    online = fd.OnlineFilter(scalar_model(), fd.KalmanFilter())
    one, _ = online.step(online.init(0.0, 2.0), 1.0, NAN, 5.0)
    other, _ = online.step(online.init(0.0, 2.0), 1.0, NAN, -5.0)
    np.testing.assert_array_equal(one.mean, other.mean)
    one, _ = online.step(one, 2.0, NAN)
    other, _ = online.step(other, 2.0, NAN)
    response = (1 - np.exp(-0.5)) / 0.5  # of x' = -x / 2 + u after a unit of time
    np.testing.assert_allclose(one.mean - other.mean, [10 * response], rtol=1e-5)


def test_a_second_sensor_at_the_same_instant_is_an_update_without_a_prediction():
    online = fd.OnlineFilter(scalar_model(), fd.KalmanFilter())
    state, _ = online.step(online.init(0.0), 0.0, 1.0)
    state, result = online.step(state, 0.0, 1.0)
    np.testing.assert_allclose(result.cov, [[1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(state.mean, [2 / 3], rtol=1e-6)


def test_a_clock_in_seconds_since_1970_resolves_milliseconds_in_float32():
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(1, np.float32), jnp.eye(1, dtype=np.float32)),
        fd.LinearSDE(*(np.eye(1, dtype=np.float32) * v for v in (0, 1))),
        fd.LinearObservation(*(np.eye(1, dtype=np.float32) for _ in range(2))),
    )
    online = fd.OnlineFilter(model, fd.KalmanFilter())
    state, _ = online.step(online.init(1.7e9), 1.7e9 + 0.001, NAN)
    np.testing.assert_allclose(state.cov, [[1.001]], rtol=1e-6)
    assert state.cov.dtype == np.float32


def fails(error, message, call):
    with pytest.raises(error, match=message):
        call()


def fresh():
    online = online_filter("LinearSDE")
    return online, stream("LinearSDE")[0][3]


def test_going_back_in_time_is_an_error():
    online, state = fresh()
    fails(
        ValueError, "`t` is 0.3, before the last row at 0.35", lambda: online.step(state, 0.3, y[0])
    )
    fails(ValueError, "`t` is nan", lambda: online.step(state, NAN, y[0]))


def test_infinite_measurements_are_an_error():
    online, state = fresh()
    fails(ValueError, "`y` has infinite entries", lambda: online.step(state, 1.0, [0.1, np.inf]))


def test_inputs_must_be_known():
    online, state = fresh()
    fails(ValueError, "`u` has NaN", lambda: online.step(state, 1.0, y[0], [NAN]))
    fails(ValueError, "`u0` has NaN", lambda: online.init(0.0, [np.inf]))
    fails(
        ValueError,
        r"`u` has shape \(2,\) but the input before has shape \(1,\)",
        lambda: online.step(state, 1.0, y[0], [1.0, 2.0]),
    )


@every_setup
@pytest.mark.parametrize("wrong", [1.0, [1.0, 2.0, 3.0]])
def test_a_measurement_of_another_size_is_an_error_that_says_so(name, wrong):
    online, state = online_filter(name), stream(name)[0][-1]
    size = np.size(wrong)
    fails(
        ValueError,
        rf"OnlineFilter.step: `y` has shape \({size},\); expected \(2,\)",
        lambda: online.step(state, 9.0, wrong),
    )


def test_a_measurement_with_two_axes_is_an_error():
    online, state = fresh()
    fails(ValueError, "expected one axis", lambda: online.step(state, 1.0, y[:2]))


def test_a_measurement_that_is_not_a_number_is_an_error():
    online, state = fresh()
    fails(TypeError, "`y` has dtype object", lambda: online.step(state, 1.0, [None, 1.0]))


def test_a_start_that_is_not_finite_is_an_error():
    online, _ = fresh()
    fails(ValueError, "`t0` is nan", lambda: online.init(NAN))


def test_a_nonlinear_model_needs_the_input_before_the_first_row():
    online = online_filter("ODE")
    state = online.init(0.0)
    fails(ValueError, "give it to init as `u0`", lambda: online.step(state, 1.0, y[0], [1.0]))


def test_models_and_filters_that_do_not_fit_are_refused():
    model = SETUPS["ODE"].model()
    fails(TypeError, "fd.ExtendedKalmanFilter", lambda: fd.OnlineFilter(model, fd.KalmanFilter()))
    fails(TypeError, "expected a StateSpaceModel", lambda: fd.OnlineFilter(1, fd.KalmanFilter()))
    fails(TypeError, "expected a filter", lambda: fd.OnlineFilter(model, fd.KalmanFilter))
    unplanned = fd.StateSpaceModel(
        model.initial, fd.SDE(drift, 0.1, dt=0.1), fd.LinearObservation(H, R)
    )
    fails(
        ValueError,
        "needs `max_substeps`",
        lambda: fd.OnlineFilter(unplanned, fd.ExtendedKalmanFilter()),
    )


def test_after_a_failure_the_belief_stays_and_so_does_the_status():
    online, (states, _) = (
        online_filter("LogNormal, without inputs"),
        stream("LogNormal, without inputs"),
    )
    good = states[4]
    state, result = online.step(good, 1.5, [1.0, -2.0])
    assert result.status == fd.Status.OBSERVATION_OUT_OF_SUPPORT == state.status
    assert result.log_likelihood == -np.inf == state.log_likelihood
    assert all(np.isnan(x).all() for x in (result.mean, result.cov, result.innovation, result.nis))
    later, result = online.step(state, 2.0, [1.0, 2.0])
    assert result.status == fd.Status.OBSERVATION_OUT_OF_SUPPORT == later.status
    assert later.log_likelihood == -np.inf
    for after in (state, later):
        np.testing.assert_array_equal(after.mean, good.mean)
        np.testing.assert_array_equal(after.cov, good.cov)


def test_a_gap_of_too_many_steps_is_a_status():
    online = online_filter("SDE, state-dependent noise, steps of dt")
    state, result = online.step(online.init(0.0, [0.0]), 2.0, y[0])
    assert result.status == fd.Status.OK
    state, result = online.step(state, 4.1, y[0])
    assert result.status == fd.Status.SOLVER_OUT_OF_STEPS


TRACED = ["LinearSDE", "SDE, state-dependent noise, steps of dt", "Transition"]


def close(value, expected):
    rtol = 1e-12 if EXACT else 1e-5
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", TRACED)
def test_a_users_scan_over_steps_gives_the_batch(name):
    s, online = SETUPS[name], online_filter(name)

    @jax.jit
    def run(times, y, inputs):
        def one(state, row):
            state, result = online.step(state, *row)
            return state, (result.mean, result.log_likelihood, result.status)

        start = online.init(s.start.get("t0", times[0]), s.start.get("u0", np.zeros(1)))
        return jax.lax.scan(one, start, (times, y, inputs))

    end, (mean, log_likelihoods, status) = run(s.times, s.y, s.inputs)
    close(mean, batch(name).mean)
    close(log_likelihoods, batch(name).log_likelihoods)
    close(end.log_likelihood, batch(name).log_likelihood)
    assert not status.any()


def test_a_jitted_step_is_the_step():
    online, state = fresh()
    ahead = jax.jit(lambda state, t, y: online.step(state, t, y))
    new, result = ahead(state, 1.2, y[0])
    same, expected = online.step(state, 1.2, y[0])
    for a, b in zip(jax.tree.leaves((new, result)), jax.tree.leaves((same, expected)), strict=True):
        close(a, b)


def test_inside_a_trace_a_clock_that_runs_backwards_is_a_status():
    online, state = fresh()
    _, result = jax.jit(online.step)(state, 0.3, y[0])
    assert result.status == fd.Status.TIMES_DECREASING
    assert result.log_likelihood == -np.inf


def test_steps_map_over_states_and_measurements():
    online, state = fresh()
    several = jnp.asarray([[0.1, 0.2], [NAN, 1.0], [2.0, -1.0]])
    states, results = jax.jit(jax.vmap(lambda y: online.step(state, 1.2, y)))(several)
    again = jax.jit(jax.vmap(lambda s, t, y: online.step(s, t, y)))(
        states, np.full(3, 2.0), several
    )
    for k in range(3):
        one, result = online.step(state, 1.2, several[k])
        close(results.mean[k], result.mean)
        close(results.log_likelihood[k], result.log_likelihood)
        two, result = online.step(one, 2.0, several[k])
        close(again[1].mean[k], result.mean)
        close(again[0].log_likelihood[k], two.log_likelihood)


def test_a_step_is_differentiable_in_the_model():
    """d log p / d m of a measurement of N(m, 1) with noise of variance 1 is (y - m) / 2."""

    def log_likelihood(mean):
        model = fd.StateSpaceModel(
            dist.MultivariateNormal(mean[None], jnp.eye(1)),
            fd.LinearTransition(np.eye(1), np.eye(1)),
            fd.LinearObservation(np.eye(1), np.eye(1)),
        )
        online = fd.OnlineFilter(model, fd.KalmanFilter())
        return online.step(online.init(0.0), 0.0, 3.0)[1].log_likelihood

    np.testing.assert_allclose(jax.grad(log_likelihood)(jnp.asarray(1.0)), 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["LinearTransition", "SDE", "LogNormal, without inputs"])
@pytest.mark.parametrize("given", [False, True], ids=["held input", "given input"])
def test_a_forecast_online_is_the_forecast_of_the_batch(name, given):
    s = SETUPS[name]
    future = s.times[-1] + np.array([1.0, 2.0, 3.0])
    ahead = np.array([[0.3], [-1.2], [0.8]]) if given and s.inputs is not None else None
    key = jax.random.key(0)
    online = online_filter(name).forecast(
        stream(name)[0][-1], future, ahead, key=key, num_samples=3
    )
    whole = fd.forecast(s.model(), batch(name), future, ahead, key=key, num_samples=3)
    close(online.state_mean, whole.state_mean)
    close(online.state_cov, whole.state_cov)
    close(online.observation_mean, whole.observation_mean)
    close(online.observation_cov, whole.observation_cov)
    np.testing.assert_allclose(online.samples, whole.samples, rtol=1e-6, atol=1e-6)


def test_a_forecast_before_the_last_row_is_an_error():
    online, state = fresh()
    fails(ValueError, "before the last filtered row", lambda: online.forecast(state, [0.1, 1.0]))
