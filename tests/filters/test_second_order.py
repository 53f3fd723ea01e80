"""The second-order extended Kalman filter: exact on quadratic models, against textbook formulas, flows in
closed form and moment equations solved by SciPy."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.integrate import solve_ivp

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("compared with oracles in float64", allow_module_level=True)

NAN = np.nan
SECOND = fd.ExtendedKalmanFilter(order=2)
EXACT = fd.GaussHermiteKalmanFilter(3)
M0, P0 = np.array([0.4, -0.3]), np.array([[0.5, 0.1], [0.1, 0.3]])
Y = np.array([[0.3, 0.1], [NAN, 0.4], [0.2, -0.1], [NAN, NAN], [0.5, 0.3]])
NOISE = np.array([[0.05, 0.01], [0.01, 0.04]])
R = np.array([0.1, 0.2])


def move(x):
    return jnp.stack([0.8 * x[0] + 0.2 * x[0] * x[1], 0.7 * x[1] - 0.1 * x[0] ** 2 + 0.1])


def look(t, x, u):
    return jnp.stack([x[0] ** 2 + x[1], x[0] * x[1] - x[1]])


def transition(t, x, u):
    """Its variance goes with the square of the state."""
    return dist.Normal(move(x), jnp.sqrt(0.05 + 0.02 * x[::-1] ** 2)).to_event(1)


def model(dynamics=None, initial=None, noise=R):
    initial = (
        dist.MultivariateNormal(jnp.asarray(M0), jnp.asarray(P0)) if initial is None else initial
    )
    dynamics = fd.Transition(transition) if dynamics is None else dynamics
    return fd.StateSpaceModel(initial, dynamics, fd.GaussianObservation(look, noise))


SERIES = fd.Series(np.arange(5.0), Y)


def same(one, other, tolerance=1e-10):
    for name in ("mean", "cov", "log_likelihood"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=tolerance)


def test_on_a_quadratic_model_it_smooths_as_points_that_are_exact_for_it_do():
    """Filtered and smoothed: Gauss-Hermite points of order three integrate all moments exactly."""
    one, other = (fd.smooth(model(), SERIES, f) for f in (SECOND, EXACT))
    same(one, other)


@pytest.mark.slow
def test_linearised_again_after_the_measurement_it_is_posterior_linearisation_by_exact_points():
    one = fd.filter(model(), SERIES, fd.ExtendedKalmanFilter(3, order=2))
    same(one, fd.filter(model(), SERIES, fd.GaussHermiteKalmanFilter(3, iterations=3)))


@pytest.mark.slow
def test_smoothed_again_around_the_smoothed_states_it_is_what_exact_points_give():
    one, other = (fd.smooth(model(), SERIES, f, iterations=3) for f in (SECOND, EXACT))
    same(one, other, 1e-9)


@pytest.mark.slow
def test_all_rows_at_once_it_is_the_filter_row_by_row():
    parallel = fd.filter(model(), SERIES, fd.ParallelGaussianFilter(SECOND))
    same(parallel, fd.filter(model(), SERIES, SECOND), 1e-7)


def textbook(y):
    """Särkkä and Svensson (2023), algorithm 7.8, in the order of our rows: update, then predict."""
    jac, hess = jax.jacfwd, lambda f: jax.jacfwd(jax.jacfwd(f))
    f, h = lambda x: jnp.stack([jnp.sin(x[0] + x[1]), 0.5 * x[1]]), lambda x: jnp.exp(x[:1] * x[1])
    m, P, total, means = M0, P0, 0.0, []

    def bent(hessians, P):
        value = [0.5 * np.trace(H @ P) for H in hessians]
        error = [[0.5 * np.trace(H @ P @ G @ P) for G in hessians] for H in hessians]
        return np.array(value), np.array(error)

    for observed in y:
        J = np.asarray(jac(h)(m))
        value, error = bent(np.asarray(hess(h)(m)), P)
        S = J @ P @ J.T + error + 0.1
        gain = P @ J.T / S
        innovation = observed - np.asarray(h(m)) - value
        total += float(-0.5 * (np.log(2 * np.pi * S[0, 0]) + innovation[0] ** 2 / S[0, 0]))
        m, P = m + gain @ innovation, P - gain @ S @ gain.T
        means.append(m)
        J = np.asarray(jac(f)(m))
        value, error = bent(np.asarray(hess(f)(m)), P)
        m, P = np.asarray(f(m)) + value, J @ P @ J.T + error + NOISE
    return np.array(means), total


def test_it_is_the_textbooks_algorithm():
    y = np.array([[0.9], [1.4], [0.7], [1.1]])
    root = jnp.linalg.cholesky(jnp.asarray(NOISE))
    moves = lambda t, x, u: dist.MultivariateNormal(
        jnp.stack([jnp.sin(x[0] + x[1]), 0.5 * x[1]]), scale_tril=root
    )
    seen = fd.GaussianObservation(lambda t, x, u: jnp.exp(x[:1] * x[1]), 0.1)
    start = dist.MultivariateNormal(jnp.asarray(M0), jnp.asarray(P0))
    found = fd.filter(
        fd.StateSpaceModel(start, fd.Transition(moves), seen), fd.Series(np.arange(4.0), y), SECOND
    )
    means, total = textbook(y)
    np.testing.assert_allclose(found.mean, means, rtol=1e-12)
    np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-12)


def test_the_flow_of_an_equation_is_expanded_from_row_to_row():
    """x' = -x^2 has the flow x / (1 + x t), of second derivative -2 t / (1 + x t)^3."""
    m, p, t = 0.8, 0.09, 0.5
    riccati = fd.StateSpaceModel(
        dist.Normal(m, 0.3).expand([1]).to_event(1),
        fd.ODE(lambda t, x, u: -(x**2)),
        fd.LinearObservation([[1.0]], 1.0),
    )
    found = fd.filter(riccati, fd.Series([0.0, t], [[NAN], [NAN]]), SECOND)
    slope, bend = 1 / (1 + m * t) ** 2, -2 * t / (1 + m * t) ** 3
    np.testing.assert_allclose(found.mean[1, 0], m / (1 + m * t) + bend * p / 2, rtol=1e-9)
    np.testing.assert_allclose(found.cov[1, 0, 0], slope**2 * p + (bend * p) ** 2 / 2, rtol=1e-8)


def test_the_moment_equations_of_a_stochastic_equation_are_of_second_order():
    """m' = f + tr(f'' P) / 2 and P' = F P + P F^T + L L^T, solved by SciPy; the scheme is of second
    order in the step."""
    drift = lambda x: np.array([x[1], -np.sin(x[0]) - 0.2 * x[1]])

    def velocity(t, state):
        m, P = state[:2], state[2:].reshape(2, 2)
        F = np.array([[0.0, 1.0], [-np.cos(m[0]), -0.2]])
        mean = drift(m) + np.array([0.0, 0.5 * np.sin(m[0]) * P[0, 0]])
        return np.concatenate([mean, (F @ P + P @ F.T + np.diag([0.0, 0.16])).ravel()])

    m0, p0 = np.array([1.0, 0.5]), 0.2
    state = np.concatenate([m0, p0 * np.eye(2).ravel()])
    exact = solve_ivp(velocity, (0.0, 1.0), state, rtol=1e-10, atol=1e-12).y[:, -1]
    field = lambda t, x, u: jnp.stack([x[1], -jnp.sin(x[0]) - 0.2 * x[1]])
    pendulum = fd.StateSpaceModel(
        dist.Normal(jnp.asarray(m0), np.sqrt(p0)).to_event(1),
        fd.SDE(field, jnp.array([[0.0], [0.4]]), substeps=100),
        fd.LinearObservation([[1.0, 0.0]], 1.0),
    )
    found = fd.filter(pendulum, fd.Series([0.0, 1.0], [[NAN], [NAN]]), SECOND)
    np.testing.assert_allclose(found.mean[1], exact[:2], atol=1e-5)
    np.testing.assert_allclose(found.cov[1].ravel(), exact[2:], atol=1e-5)


def test_on_a_linear_model_it_is_the_kalman_filter():
    linear = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.asarray(M0), jnp.asarray(P0)),
        fd.LinearTransition([[0.9, 0.1], [0.0, 0.8]], NOISE),
        fd.GaussianObservation(lambda t, x, u: jnp.array([[1.0, 0.5], [0.0, 1.0]]) @ x, R),
    )
    plain = fd.StateSpaceModel(
        linear.initial, linear.dynamics, fd.LinearObservation([[1.0, 0.5], [0.0, 1.0]], R)
    )
    same(fd.filter(linear, SERIES, SECOND), fd.filter(plain, SERIES, fd.KalmanFilter()), 1e-13)


STARTS = [
    lambda m: dist.Delta(m, event_dim=1),
    pytest.param(lambda m: dist.MultivariateNormal(m, jnp.asarray(P0)), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("start", STARTS, ids=["known", "uncertain"])
def test_derivatives_are_those_of_finite_differences(start):
    """From a state that is known too, where the factor of the covariance is zero."""

    @jax.jit
    @jax.value_and_grad
    def value(theta):
        initial = start(jnp.asarray(M0) + theta[0])
        return fd.log_likelihood(
            model(initial=initial, noise=R * jnp.exp(theta[1])), SERIES, SECOND
        )

    theta, step = jnp.array([0.1, -0.2]), 1e-5
    slope = value(theta)[1]
    for k in range(2):
        ends = [value(theta.at[k].add(sign * step))[0] for sign in (1, -1)]
        np.testing.assert_allclose(slope[k], (ends[0] - ends[1]) / (2 * step), rtol=1e-7)


@pytest.mark.slow
def test_in_single_precision_it_says_the_same():
    single = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.asarray(M0, "float32"), jnp.asarray(P0, "float32")),
        fd.Transition(transition),
        fd.GaussianObservation(look, jnp.asarray(R, "float32")),
    )
    found = fd.filter(single, fd.Series(np.arange(5.0), Y.astype("float32")), SECOND)
    assert found.mean.dtype == jnp.float32
    same(found, fd.filter(model(), SERIES, SECOND), 1e-5)


def test_what_cannot_be_expanded_is_refused():
    with pytest.raises(ValueError, match="`order` is 3; expected 1 or 2"):
        fd.ExtendedKalmanFilter(order=3)
    with pytest.raises(TypeError, match=r"order=2\): `initial` is Diffuse"):
        fd.filter(model(initial=fd.Diffuse(2)), SERIES, SECOND)
    adaptive = fd.SDE(
        lambda t, x, u: -x, 0.1, stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-6)
    )
    with pytest.raises(ValueError, match="second order or with sigma points needs fixed steps"):
        fd.filter(model(adaptive), SERIES, SECOND)
