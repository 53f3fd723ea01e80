"""Simulated states and measurements against exact moments and exact paths."""

from dataclasses import dataclass, field

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from oracles import dense, high_precision
from scipy.stats import norm

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 answers", allow_module_level=True)

COUNT = 20_000
FALSE_ALARM = 1e-6  # of each of the tests of sampled moments, by Bonferroni over all entries
m0, P0 = np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 2.0]])
F, Q = np.array([[0.9, 0.3], [-0.2, 0.8]]), np.array([[0.2, 0.05], [0.05, 0.1]])
A, L = np.array([[-0.3, 1.0], [-1.5, -0.4]]), np.array([[0.3, 0.0], [0.1, 0.5]])
H, R = np.array([[1.0, 0.5], [0.0, 1.0]]), np.array([[0.3, 0.1], [0.1, 0.4]])
B, D = np.array([[0.5], [1.0]]), np.array([[0.2], [-0.5]])
inputs = np.array([[1.0], [-2.0], [0.5], [1.5]])
irregular = np.array([0.0, 0.3, 1.2, 1.5])
whole = np.arange(4.0)
nothing = np.full((4, 2), np.nan)
initial = dist.MultivariateNormal(jnp.asarray(m0), jnp.asarray(P0))
seen = fd.LinearObservation(H, R, D=D)


def discrete(times, **start):
    return dense.discrete_rows(
        m0, P0, F, Q, H, R, nothing, B=B, D=D, inputs=inputs, times=times, **start
    )


def continuous(times, **start):
    rows = high_precision.continuous_rows(
        m0, P0, A, L, H, R, nothing, times, B=B, D=D, inputs=inputs, **start
    )
    return high_precision.as_float(rows)


def transition(t, x, u):
    return dist.MultivariateNormal(jnp.asarray(F) @ x + B @ u, jnp.asarray(Q))


def drift(t, x, u):
    return jnp.asarray(A) @ x + B @ u


def diffusion(t, x, u):
    return jnp.asarray(L)


@dataclass(frozen=True)
class Setup:
    """Dynamics, the same written out for the oracle, and the bias that a path solver may have, in
    standard deviations."""

    dynamics: object
    rows: object
    times: np.ndarray
    start: dict = field(default_factory=dict)
    bias: float = 0.0


early = dict(t0=-0.4, u0=np.array([0.7]))
SETUPS = {
    "LinearTransition": Setup(fd.LinearTransition(F, Q, B=B), discrete, whole),
    "LinearTransition, prior early": Setup(fd.LinearTransition(F, Q, B=B), discrete, whole, early),
    "Transition": Setup(fd.Transition(transition), discrete, whole),
    "LinearSDE": Setup(fd.LinearSDE(A, L, B=B), continuous, irregular),
    "LinearSDE, prior early": Setup(fd.LinearSDE(A, L, B=B), continuous, irregular, early),
    "SDE": Setup(fd.SDE(drift, L, substeps=10), continuous, irregular, early, 1e-3),
    "SDE, diffusion a function": Setup(
        fd.SDE(drift, diffusion, substeps=60), continuous, irregular, early, 0.02
    ),
}


@pytest.mark.parametrize("name", SETUPS)
def test_simulated_series_have_the_moments_of_the_joint_distribution(name):
    """States and measurements together: all means and all covariances, those across times too."""
    s = SETUPS[name]
    model = fd.StateSpaceModel(initial, s.dynamics, seen)
    drawn = fd.simulate(model, s.times, inputs, key=jr.key(0), num_samples=COUNT, **s.start)
    assert drawn.states.shape == drawn.observations.shape == (COUNT, 4, 2)
    rows = s.rows(s.times, **s.start)
    state_mean, state_cov = dense.joint_state(rows)
    mean, cov, cross = dense.joint_observation(rows)
    keep = slice(2 * rows.lead, None)
    mean = np.concatenate([state_mean[keep], mean[keep]])
    cov = np.block([
        [state_cov[keep, keep], cross[keep, keep]], [cross[keep, keep].T, cov[keep, keep]],
    ])  # fmt: skip
    draws = np.concatenate([np.asarray(x).reshape(COUNT, 8) for x in drawn_parts(drawn)], 1)
    sd, centred = np.sqrt(np.diag(cov)), draws - mean
    bound = norm.isf(FALSE_ALARM / 2 / (16 + 136))
    error = np.abs(centred.mean(0)) / sd
    assert error.max() < bound / np.sqrt(COUNT) + s.bias
    error = np.abs(centred.T @ centred / COUNT - cov) / np.outer(sd, sd)
    allowed = bound * np.sqrt((1 + (cov / np.outer(sd, sd)) ** 2) / COUNT)
    assert (error < allowed + 2 * s.bias).all()


def drawn_parts(drawn):
    return drawn.states, drawn.observations


one = fd.LinearObservation(np.eye(1), 1.0)


def test_a_geometric_brownian_motion_is_that_of_ito():
    """Mean x0 e^(m t), variance x0^2 e^(2 m t) (e^(s^2 t) - 1). (Stratonovich's has a mean that is
    larger by 13 %.) The Euler scheme, 50 steps a gap, is off by less than 1 %."""
    rate, s = 0.3, 0.5
    dynamics = fd.SDE(lambda t, x, u: rate * x, lambda t, x, u: s * x, substeps=50)
    model = fd.StateSpaceModel(dist.Delta(jnp.ones(1), event_dim=1), dynamics, one)
    x = fd.simulate(model, [0.0, 0.5, 1.0], key=jr.key(0), num_samples=COUNT).states[..., 0]
    np.testing.assert_array_equal(x[:, 0], 1.0)
    for k, t in ((1, 0.5), (2, 1.0)):
        mean, ratio = np.exp(rate * t), np.exp(s**2 * t)
        sd = mean * np.sqrt(ratio - 1)
        assert abs(x[:, k].mean() / mean - 1) < 5 * sd / mean / np.sqrt(COUNT) + 0.01
        kurtosis = ratio**4 + 2 * ratio**3 + 3 * ratio**2 - 3
        assert abs(x[:, k].var() / sd**2 - 1) < 5 * np.sqrt((kurtosis - 1) / COUNT) + 0.02


def test_a_transition_may_be_any_distribution():
    """x' ~ Gamma(3, 3 / x) has mean x, and E[x'^2] = 4/3 x^2: after two of them the variance is
    16/9 - 1. Its kurtosis is 22 and its false-alarm rate at 5 standard errors below 1e-6."""
    dynamics = fd.Transition(lambda t, x, u: dist.Gamma(3.0, 3.0 / x).to_event(1))
    model = fd.StateSpaceModel(dist.Delta(jnp.ones(1), event_dim=1), dynamics, one)
    x = fd.simulate(model, [0.0, 1.0, 2.0], key=jr.key(0), num_samples=COUNT).states[:, 2, 0]
    assert abs(x.mean() - 1) < 5 * np.sqrt(7 / 9 / COUNT)
    assert abs(x.var() - 7 / 9) < 5 * np.sqrt(21 * (7 / 9) ** 2 / COUNT)


def test_an_ode_carries_every_draw_along_its_exact_path():
    """x' = -x^3 has the flow x / sqrt(1 + 2 x^2 t)."""
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1), fd.ODE(lambda t, x, u: -(x**3)), one
    )
    drawn = fd.simulate(model, irregular, key=jr.key(0), num_samples=50, t0=-0.5)
    again = fd.simulate(model, [-0.5], key=jr.key(0), num_samples=50)
    first = np.asarray(drawn.states[:, :1])
    exact = first / np.sqrt(1 + 2 * first**2 * irregular[:, None])
    np.testing.assert_allclose(drawn.states, exact, atol=1e-4)
    start = np.asarray(again.states[:, 0])
    np.testing.assert_allclose(first[:, 0], start / np.sqrt(1 + start**2), atol=1e-3)


def test_an_input_is_held_until_the_next_row():
    dynamics = fd.ODE(lambda t, x, u: u)
    model = fd.StateSpaceModel(dist.Delta(jnp.zeros(1), event_dim=1), dynamics, one)
    drawn = fd.simulate(model, irregular, inputs, key=jr.key(0), t0=-1.0, u0=[2.0])
    gaps = np.diff(irregular)
    expected = 2.0 + np.concatenate([[0.0], np.cumsum(gaps * inputs[:-1, 0])])
    np.testing.assert_allclose(drawn.states[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    "dynamics",
    [fd.LinearTransition(F, Q), fd.LinearSDE(A, L), fd.SDE(lambda t, x, u: -x, 0.5, substeps=2)],
    ids=["LinearTransition", "LinearSDE", "SDE"],
)
def test_a_repeated_time_is_a_second_look_at_the_same_state(dynamics):
    model = fd.StateSpaceModel(initial, dynamics, fd.LinearObservation(H, R))
    drawn = fd.simulate(model, [0.0, 1.0, 1.0, 2.0], key=jr.key(0), num_samples=5)
    np.testing.assert_array_equal(drawn.states[:, 1], drawn.states[:, 2])
    assert (drawn.observations[:, 1] != drawn.observations[:, 2]).all()
    assert (drawn.states[:, 2] != drawn.states[:, 3]).all()


def test_measurements_come_from_the_observation_distribution():
    """Poisson counts of a constant rate: mean and variance are the rate, within 5 standard errors."""
    dynamics = fd.ODE(lambda t, x, u: 0 * x)
    start = dist.Delta(jnp.array([1.0]), event_dim=1)
    model = fd.StateSpaceModel(
        start, dynamics, fd.Observation(lambda t, x, u: dist.Poisson(jnp.exp(x)).to_event(1))
    )
    y = fd.simulate(model, [0.0], key=jr.key(0), num_samples=COUNT).observations
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, np.round(y))
    rate = np.exp(1.0)
    assert abs(y.mean() - rate) < 5 * np.sqrt(rate / COUNT)
    assert abs(y.var() - rate) < 5 * np.sqrt((rate + 2 * rate**2) / COUNT)


model = fd.StateSpaceModel(initial, fd.LinearTransition(F, Q, B=B), seen)


def test_one_draw_has_no_axis_of_draws():
    drawn = fd.simulate(model, whole, inputs, key=jr.key(0))
    assert drawn.states.shape == drawn.observations.shape == (4, 2)
    assert fd.simulate(model, whole, inputs, key=jr.key(0), num_samples=1).states.shape == (1, 4, 2)


def test_a_key_says_which_draws():
    first, again, other = (
        fd.simulate(model, whole, inputs, key=key, num_samples=3).states
        for key in (jr.key(0), jr.key(0), jr.key(1))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    old = fd.simulate(model, whole, inputs, key=jr.PRNGKey(0), num_samples=3).states
    np.testing.assert_array_equal(old, first)


def test_simulation_maps_over_keys_inside_jit():
    keys = jr.split(jr.key(0), 3)
    drawn = jax.jit(jax.vmap(lambda key: fd.simulate(model, whole, inputs, key=key).states))(keys)
    for k in range(3):
        alone = fd.simulate(model, whole, inputs, key=keys[k]).states
        np.testing.assert_allclose(drawn[k], alone, rtol=1e-12)


def test_arrays_in_float32_give_draws_in_float32():
    single = np.float32
    start = dist.Normal(jnp.zeros(2, single), jnp.ones(2, single)).to_event(1)
    dynamics = fd.LinearTransition(F.astype(single), Q.astype(single))
    small = fd.StateSpaceModel(
        start, dynamics, fd.LinearObservation(H.astype(single), R.astype(single))
    )
    drawn = fd.simulate(small, whole, key=jr.key(0))
    assert drawn.states.dtype == drawn.observations.dtype == single


def last_state(make, value):
    times = np.array([0.0, 0.5, 1.0, 1.5])
    start = dist.Delta(jnp.ones(1), event_dim=1)
    return fd.simulate(fd.StateSpaceModel(start, make(value), one), times, key=jr.key(0)).states[
        -1, 0
    ]


def test_the_derivative_of_a_path_in_an_offset_is_that_of_the_recursion():
    """x' = 0.9 x + b + noise: three transitions give d x / d b = 1 + 0.9 + 0.81."""
    eye = jnp.eye(1)
    make = lambda b: fd.LinearTransition(0.9 * eye, 0.5 * eye, b=b[None])
    np.testing.assert_allclose(jax.grad(lambda b: last_state(make, b))(0.3), 2.71, rtol=1e-12)


RATES = {
    "LinearTransition": lambda a: fd.LinearTransition(a * jnp.eye(1), a * jnp.eye(1)),
    "LinearSDE": lambda a: fd.LinearSDE(-a * jnp.eye(1), a * jnp.eye(1)),
    "SDE": lambda a: fd.SDE(lambda t, x, u: -a * jnp.sin(x), a, substeps=3),
    "SDE, diffusion a function": lambda a: fd.SDE(
        lambda t, x, u: -a * x, lambda t, x, u: a * (1 + x**2), substeps=3
    ),
    "ODE": lambda a: fd.ODE(lambda t, x, u: -a * x**3, substeps=3),
}


@pytest.mark.parametrize("name", RATES)
def test_the_derivative_of_a_path_is_the_limit_of_its_differences(name):
    path = lambda a: last_state(RATES[name], a)
    step = 1e-5
    finite = (path(0.7 + step) - path(0.7 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(path)(0.7), finite, rtol=1e-6)


TWO_STATES = {
    "LinearTransition": lambda a: fd.LinearTransition(F, a * Q),
    "LinearTransition, singular noise": lambda a: fd.LinearTransition(F, a * np.ones((2, 2))),
    "LinearSDE": lambda a: fd.LinearSDE(A, jnp.stack([0.3 * jnp.eye(2)[0], jnp.array([a, 0.5])])),
}


@pytest.mark.parametrize("name", TWO_STATES)
def test_correlated_noise_has_the_derivative_of_its_differences(name):
    @jax.jit
    def path(a):
        model = fd.StateSpaceModel(initial, TWO_STATES[name](a), fd.LinearObservation(H, R))
        return fd.simulate(model, whole, key=jr.key(0)).states

    step = 1e-5
    finite = (path(0.7 + step) - path(0.7 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jacfwd(path)(0.7), finite, rtol=1e-6, atol=1e-8)


def test_a_solver_that_runs_out_of_steps_gives_no_numbers():
    dynamics = fd.ODE(
        lambda t, x, u: -x, stepsize_controller=diffrax.PIDController(1e-9, 1e-9), max_steps=3
    )
    start = dist.Delta(jnp.ones(1), event_dim=1)
    drawn = fd.simulate(fd.StateSpaceModel(start, dynamics, one), [0.0, 100.0], key=jr.key(0))
    np.testing.assert_array_equal(drawn.states[:, 0], [1.0, np.nan])


def fails(error, message, *args, **kwargs):
    with pytest.raises(error, match=message):
        fd.simulate(*args, **kwargs)


def test_keys_and_counts_are_checked():
    fails(TypeError, "`key` is int; expected a random key", model, whole, inputs, key=0)
    fails(TypeError, "`key`", model, whole, inputs, key=jnp.zeros(3))
    for count in (0, -1, 2.5, True):
        fails(
            ValueError, "`num_samples` is", model, whole, inputs, key=jr.key(0), num_samples=count
        )


def test_models_times_and_inputs_are_checked():
    key = jr.key(0)
    fails(TypeError, "expected a StateSpaceModel", 1, whole, key=key)
    fails(ValueError, "`times` decreases", model, whole[::-1], inputs, key=key)
    fails(ValueError, "`times` is empty", model, [], key=key)
    fails(ValueError, r"`inputs` has shape \(3, 1\)", model, whole, inputs[:3], key=key)
    fails(ValueError, "`t0` is 1.0", model, whole, inputs, key=key, t0=1.0)
    wide = np.ones((4, 2))
    fails(ValueError, "for 2 inputs", model, whole, wide, key=key)
