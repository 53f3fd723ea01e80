"""Sigma-point filters: the reference pendulum, linear models, moments in closed form, derivatives
and failures."""

import functools
import json
import math
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from oracles import dense
from scipy.stats import norm

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("the oracles are float64", allow_module_level=True)

NAN = np.nan
FILTERS = {
    "unscented": fd.UnscentedKalmanFilter(),
    "unscented, alpha 0.1": fd.UnscentedKalmanFilter(0.1, 2.0, 0.0),
    "cubature": fd.CubatureKalmanFilter(),
    "fifth-degree cubature": fd.CubatureKalmanFilter(5),
    "Gauss-Hermite": fd.GaussHermiteKalmanFilter(3),
}
every_filter = pytest.mark.parametrize("filter", FILTERS.values(), ids=FILTERS)


# The reference pendulum


@functools.cache
def reference():
    path = Path(__file__).parents[1] / "reference" / "E02_pendulum_ekf_ukf_ckf.json"
    return json.loads(path.read_text())


def pendulum(dtype, R=None):
    problem = reference()["problem"]
    Q, P0, m0, r = (jnp.asarray(np.array(problem[n], dtype)) for n in ("Q", "P0", "m0", "R"))
    dt, g = problem["dt"], problem["g"]
    root = jnp.linalg.cholesky(Q)

    def move(t, x, u):
        angle, rate = x
        loc = jnp.stack([angle + rate * dt, rate - g * jnp.sin(angle) * dt])
        return dist.MultivariateNormal(loc, scale_tril=root)

    return fd.StateSpaceModel(
        dist.MultivariateNormal(m0, P0),
        fd.Transition(move),
        fd.GaussianObservation(lambda t, x, u: jnp.sin(x[:1]), r if R is None else R),
    )


CONVENTIONS = {
    "ukf_a1_b0_k1_redraw": (fd.UnscentedKalmanFilter(), 1e-9),
    "ukf_a1_b2_k1_redraw": (fd.UnscentedKalmanFilter(1.0, 2.0, 1.0), 1e-9),
    "ukf_a1e-3_b2_k0_redraw": (fd.UnscentedKalmanFilter(1e-3, 2.0, 0.0), 1e-6),
    "ckf3": (fd.CubatureKalmanFilter(), 1e-9),
}


def relative(value, exact):
    exact = np.asarray(exact)
    return np.abs(np.asarray(value, float) - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize(
    "name, precision",
    [
        *((name, "float64") for name in CONVENTIONS),
        ("ukf_a1_b0_k1_redraw", "float32"),
        ("ckf3", "float32"),
    ],
)
def test_the_reference_pendulum_is_met(name, precision):
    filter, tolerance = CONVENTIONS[name]
    tolerance = tolerance if precision == "float64" else 1e-3
    y = np.array(reference()["problem"]["y"], precision)
    result = fd.filter(pendulum(precision), fd.Series(np.arange(len(y)) * 1.0, y), filter)
    exact = reference()["exact"]["algorithms"][name]
    steps = np.array(exact["steps"])
    assert relative(result.log_likelihood, exact["loglik"]) < tolerance
    assert relative(result.mean[steps], exact["mean"]) < tolerance
    assert relative(result.cov[steps], exact["cov"]) < tolerance


def test_points_that_float32_does_not_resolve_are_refused():
    series = fd.Series(np.arange(2.0), np.zeros((2, 1), "float32"))
    with pytest.raises(ValueError, match=r"`alpha` is 0.001, .* too close in float32"):
        fd.filter(pendulum("float32"), series, fd.UnscentedKalmanFilter(1e-3, 2.0, 0.0))


def test_gauss_hermite_of_order_three_is_the_default_unscented_filter_on_two_states_but_for_products():
    """Both are exact for fourth powers of one state; on this pendulum nothing else matters."""
    y = np.array(reference()["problem"]["y"])
    series, model = fd.Series(np.arange(len(y)) * 1.0, y), pendulum(float)
    values = [
        fd.log_likelihood(model, series, f)
        for f in (fd.UnscentedKalmanFilter(), fd.GaussHermiteKalmanFilter(3))
    ]
    assert abs(values[0] - values[1]) < 1e-10


def test_the_covariance_stays_positive_in_float32_with_a_precise_sensor():
    rng = np.random.default_rng(0)
    count = 2000
    angle, rate, y = 1.5, 0.0, np.zeros((count, 1))
    for k in range(count):
        y[k] = np.sin(angle) + 1e-5 * rng.normal()
        angle, rate = angle + 0.05 * rate, rate - 9.81 * np.sin(angle) * 0.05
    series = lambda precision: fd.Series(np.arange(count) * 1.0, y.astype(precision))
    single, double = (
        fd.filter(pendulum(p, 1e-10), series(p), fd.UnscentedKalmanFilter())
        for p in ("float32", "float64")
    )
    assert single.status == fd.Status.OK
    exact = np.asarray(double.cov)
    sizes = np.sqrt(np.einsum("tii->ti", exact))
    correlation = np.asarray(single.cov, float) / (sizes[:, :, None] * sizes[:, None, :])
    assert np.linalg.eigvalsh(correlation).min() > -1e-6
    # The angle's variance is 1e-10 where the sensor is steep: 11 digits below the angle itself.
    assert np.median(np.abs(correlation - exact / (sizes[:, :, None] * sizes[:, None, :]))) < 1e-2


# Linear models


F, Q = np.array([[0.9, 0.3], [-0.2, 0.8]]), np.array([[0.2, 0.05], [0.05, 0.1]])
H, R = np.array([[1.0, 0.5], [0.0, 1.0]]), np.array([[0.3, 0.1], [0.1, 0.4]])
m0, P0 = np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 2.0]])
Y = np.array([[0.3, -0.8], [1.1, NAN], [NAN, NAN], [NAN, 0.4], [-0.7, 0.9], [1.5, 0.6]])
TIMES = np.arange(6.0)


def in_disguise(initial=None):
    """A linear model that is given by functions."""
    root = jnp.linalg.cholesky(jnp.asarray(Q))
    move = lambda t, x, u: dist.MultivariateNormal(jnp.asarray(F) @ x, scale_tril=root)
    see = lambda t, x, u: jnp.asarray(H) @ x
    if initial is None:
        initial = dist.MultivariateNormal(jnp.asarray(m0), jnp.asarray(P0))
    return fd.StateSpaceModel(initial, fd.Transition(move), fd.GaussianObservation(see, R))


def agrees(model, filter, answer, times=TIMES, tolerance=1e-10):
    series = fd.Series(times, Y)
    result, smooth = fd.filter(model, series, filter), fd.smooth(model, series, filter)
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    close(result.log_likelihoods, answer.log_likelihoods)
    close(result.mean, answer.filtered_mean)
    close(result.cov, answer.filtered_cov)
    close(result.predicted.cov, answer.predicted_cov)
    close(smooth.mean, answer.smoothed_mean)
    close(smooth.cov, answer.smoothed_cov)
    close(smooth.lag_one_covs, answer.lag_one_cov)


@every_filter
def test_a_linear_model_is_filtered_and_smoothed_exactly(filter):
    answer = dense.answer(dense.discrete_rows(m0, P0, F, Q, H, R, Y))
    agrees(in_disguise(), filter, answer, tolerance=1e-9)


def test_a_linear_model_is_exact_from_a_point():
    answer = dense.answer(dense.discrete_rows(m0, 0 * P0, F, Q, H, R, Y))
    start = dist.Delta(jnp.asarray(m0), event_dim=1)
    agrees(in_disguise(start), fd.UnscentedKalmanFilter(), answer)


A, L = np.array([[-0.3, 1.0], [-1.5, -0.4]]), np.array([0.0, 0.5])


@pytest.mark.parametrize("start", ["Gaussian", "Delta"])
def test_a_linear_equation_is_integrated_to_the_exact_answer(start):
    """Noise in one state only; the other one gets it from the drift. (Simpson's rule leaves h^4.)"""
    initial = (
        dist.MultivariateNormal(jnp.asarray(m0), jnp.asarray(P0))
        if start == "Gaussian"
        else dist.Delta(jnp.asarray(m0), event_dim=1)
    )
    exact, ours = (
        fd.StateSpaceModel(initial, dynamics, fd.LinearObservation(H, R))
        for dynamics in (
            fd.LinearSDE(A, L),
            fd.SDE(lambda t, x, u: jnp.asarray(A) @ x, L, substeps=20),
        )
    )
    series = fd.Series(np.array([0.0, 0.3, 0.35, 0.35, 1.2, 2.0]), Y)
    one = fd.smooth(exact, series, fd.KalmanFilter())
    two = fd.smooth(ours, series, fd.UnscentedKalmanFilter())
    np.testing.assert_allclose(two.mean, one.mean, atol=1e-6)
    np.testing.assert_allclose(two.cov, one.cov, atol=1e-6)
    np.testing.assert_allclose(two.log_likelihood, one.log_likelihood, atol=1e-6)


# Moments in closed form


def one_update(observation, filter, y, mean=0.4, variance=0.7):
    model = fd.StateSpaceModel(
        dist.Normal(jnp.array([mean]), jnp.sqrt(variance)).to_event(1),
        fd.LinearTransition([[1.0]], [[1.0]]),
        observation,
    )
    return fd.filter(model, fd.Series(np.zeros(1), np.array([[y]])), filter)


def assert_update(result, y, seen, variance, cross, mean=0.4, prior=0.7):
    """The update of a Gaussian with Cov(x, y) = cross, whatever made y."""
    np.testing.assert_allclose(result.innovation_covs[0, 0, 0], variance, rtol=1e-10)
    np.testing.assert_allclose(result.mean[0, 0], mean + cross / variance * (y - seen), rtol=1e-10)
    np.testing.assert_allclose(result.cov[0, 0, 0], prior - cross**2 / variance, rtol=1e-10)
    exact = norm.logpdf(y, seen, np.sqrt(variance))
    np.testing.assert_allclose(result.log_likelihood, exact, rtol=1e-10)


@pytest.mark.parametrize(
    "filter",
    [fd.GaussHermiteKalmanFilter(4), fd.UnscentedKalmanFilter()],
    ids=["GH 4", "unscented"],
)
def test_the_innovation_covariance_includes_the_spread_that_a_slope_does_not_explain(filter):
    """y = x^2 + v: Var y = 2 P^2 + 4 m^2 P + R, Cov(x, y) = 2 m P. An extended filter has no 2 P^2."""
    m, P = 0.4, 0.7
    result = one_update(fd.GaussianObservation(lambda t, x, u: x**2, 0.3), filter, 1.9)
    assert_update(result, 1.9, m**2 + P, 2 * P**2 + 4 * m**2 * P + 0.3, 2 * m * P)


def test_a_count_enters_by_the_mean_and_spread_of_its_rate():
    """y ~ Poisson(e^x): Var y = E e^x + Var e^x, Cov(x, y) = P E e^x (log-normal moments)."""
    m, P = 0.4, 0.7
    rate = math.exp(m + P / 2)
    observation = fd.Observation(lambda t, x, u: dist.Poisson(jnp.exp(x)).to_event(1))
    result = one_update(observation, fd.GaussHermiteKalmanFilter(24), 3.0)
    assert_update(result, 3.0, rate, rate + rate**2 * math.expm1(P), P * rate)


def test_noise_that_depends_on_the_state_is_averaged():
    """y ~ N(x, x^2): Var y = P + E x^2."""
    observation = fd.Observation(lambda t, x, u: dist.Normal(x, jnp.abs(x)).to_event(1))
    m, P = 0.4, 0.7
    result = one_update(observation, fd.UnscentedKalmanFilter(), 1.5)
    assert_update(result, 1.5, m, P + m**2 + P, P)


def test_a_log_normal_measurement_is_filtered_in_its_logarithm():
    observation = fd.Observation(lambda t, x, u: dist.LogNormal(x**2, 0.5).to_event(1))
    y, m, P = 2.5, 0.4, 0.7
    result = one_update(observation, fd.UnscentedKalmanFilter(), y)
    mean, variance = m**2 + P, 2 * P**2 + 4 * m**2 * P + 0.25
    exact = norm.logpdf(math.log(y), mean, math.sqrt(variance)) - math.log(y)
    np.testing.assert_allclose(result.log_likelihood, exact, rtol=1e-10)


def test_two_entries_share_the_error_of_the_regression():
    """y = (x^2, x^2) + v: the errors are one."""
    observation = fd.GaussianObservation(lambda t, x, u: jnp.stack([x[0] ** 2] * 2), [0.3, 0.5])
    model = fd.StateSpaceModel(
        dist.Normal(jnp.array([0.0]), 1.0).to_event(1),
        fd.LinearTransition([[1.0]], [[1.0]]),
        observation,
    )
    result = fd.filter(model, fd.Series(np.zeros(1), [[1.4, NAN]]), fd.UnscentedKalmanFilter())
    np.testing.assert_allclose(result.innovation_covs[0], [[2.3, 2.0], [2.0, 2.5]], rtol=1e-12)
    np.testing.assert_allclose(result.cov[0], [[1.0]], rtol=1e-12)
    np.testing.assert_allclose(result.log_likelihood, norm.logpdf(1.4, 1.0, math.sqrt(2.3)))


def test_the_noise_of_a_transition_is_averaged_over_the_state():
    """x' ~ N(x^2, 1 + x^2) from N(m, P): the variance of x^2 plus 1 + E x^2."""
    m, P = 0.4, 0.7
    model = fd.StateSpaceModel(
        dist.Normal(jnp.array([m]), math.sqrt(P)).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(x**2, jnp.sqrt(1 + x**2)).to_event(1)),
        fd.LinearObservation([[1.0]], 1.0),
    )
    series = fd.Series(np.arange(2.0), [[NAN], [NAN]])
    result = fd.filter(model, series, fd.UnscentedKalmanFilter())
    exact = 2 * P**2 + 4 * m**2 * P + 1 + m**2 + P
    np.testing.assert_allclose(result.mean[1, 0], m**2 + P, rtol=1e-12)
    np.testing.assert_allclose(result.cov[1, 0, 0], exact, rtol=1e-12)


def test_a_flow_is_regressed_as_a_whole():
    """x' = -x^2 / 2 has the flow x / (1 + x / 2): its mean over the three points of one state."""
    m, P = 2.0, 0.09
    model = fd.StateSpaceModel(
        dist.Normal(jnp.array([m]), math.sqrt(P)).to_event(1),
        fd.ODE(lambda t, x, u: -(x**2) / 2),
        fd.LinearObservation([[1.0]], 1.0),
    )
    series = fd.Series(np.arange(2.0), [[NAN], [NAN]])
    result = fd.filter(model, series, fd.UnscentedKalmanFilter())
    z = np.array([x / (1 + x / 2) for x in (m, m + math.sqrt(3 * P), m - math.sqrt(3 * P))])
    weights = np.array([2 / 3, 1 / 6, 1 / 6])
    mean = weights @ z
    np.testing.assert_allclose(result.mean[1, 0], mean, rtol=1e-6)
    np.testing.assert_allclose(result.cov[1, 0, 0], weights @ (z - mean) ** 2, rtol=1e-6)


def moments_after_one(dynamics, filter, m, P):
    model = fd.StateSpaceModel(
        dist.Normal(jnp.array([m]), math.sqrt(P)).to_event(1),
        dynamics,
        fd.LinearObservation([[1.0]], 1.0),
    )
    result = fd.filter(model, fd.Series(np.arange(2.0), [[NAN], [NAN]]), filter)
    return np.array([result.mean[1, 0], result.cov[1, 0, 0]])


def test_moments_of_geometric_brownian_motion_converge_at_second_order():
    """dx = a x dt + s x dW: E x^2 grows with 2 a + s^2, which needs the average diffusion."""
    a, s, m, P = -0.4, 0.6, 1.0, 0.04
    exact = (P + m**2) * math.exp(2 * a + s**2) - (m * math.exp(a)) ** 2

    def error(substeps):
        sde = fd.SDE(lambda t, x, u: a * x, lambda t, x, u: s * x, substeps=substeps)
        mean, variance = moments_after_one(sde, fd.UnscentedKalmanFilter(), m, P)
        assert abs(mean - m * math.exp(a)) < 1e-8
        return variance - exact

    coarse, fine = error(4), error(8)
    assert abs(fine) < 2e-4
    assert 3.3 < coarse / fine < 4.7


def test_the_mean_of_a_nonlinear_equation_sees_the_spread():
    """dx = -x^3 dt + s dW: m' = -m^3 - 3 m P, P' = -6 m^2 P - 6 P^2 + s^2 for a Gaussian (E x^4 is
    3 P^2 about the mean, which three points of one state have exactly)."""
    s, m, P = 0.5, 1.0, 0.25
    rate = lambda x: np.array(
        [-(x[0] ** 3) - 3 * x[0] * x[1], -6 * x[0] ** 2 * x[1] - 6 * x[1] ** 2 + s**2]
    )
    x, h = np.array([m, P]), 1e-3
    for _ in range(1000):
        k1 = rate(x)
        k2 = rate(x + h / 2 * k1)
        k3 = rate(x + h / 2 * k2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + rate(x + h * k3))
    sde = fd.SDE(lambda t, x, u: -(x**3), s, substeps=40)
    found = moments_after_one(sde, fd.UnscentedKalmanFilter(), m, P)
    np.testing.assert_allclose(found, x, atol=1e-4)


# Posterior linearisation


def posterior_linearisation(y, m, P, R, iterations):
    """Garcia-Fernandez et al. (2015) for y = e^x + v, with three Gauss-Hermite points of one state."""
    nodes, weights = np.sqrt(3) * np.array([0.0, 1.0, -1.0]), np.array([2 / 3, 1 / 6, 1 / 6])
    at, spread = m, P
    for _ in range(iterations):
        x = at + math.sqrt(spread) * nodes
        z = np.exp(x)
        mean = weights @ z
        slope = weights @ ((z - mean) * (x - at)) / spread
        error = weights @ (z - mean) ** 2 - slope**2 * spread
        S = slope**2 * P + error + R
        residual = y - mean - slope * (m - at)
        at, spread = m + P * slope / S * residual, P - (P * slope) ** 2 / S
    return at, spread


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_iterations_place_the_points_under_the_posterior(iterations):
    observation = fd.GaussianObservation(lambda t, x, u: jnp.exp(x), 0.05)
    result = one_update(observation, fd.UnscentedKalmanFilter(iterations=iterations), 3.0)
    exact = posterior_linearisation(3.0, 0.4, 0.7, 0.05, iterations)
    np.testing.assert_allclose([result.mean[0, 0], result.cov[0, 0, 0]], exact, rtol=1e-10)


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_measurement_counts_once_however_often_it_is_linearised(iterations):
    observation = fd.GaussianObservation(lambda t, x, u: x, 1.0)
    filter = fd.CubatureKalmanFilter(iterations=iterations)
    result = one_update(observation, filter, 0.3, variance=1.0)
    np.testing.assert_allclose(result.cov[0, 0, 0], 0.5, rtol=1e-12)


# Derivatives


SWING = np.sin(np.arange(8) * 0.5)[:, None] + 0.1 * np.cos(7 * np.arange(8))[:, None]
SWING[4] = NAN
THETA = jnp.array([2.0, 0.7, 1.0, 0.2])


def swing(theta, start, dynamics):
    g, size, noise, rate = theta
    mean = jnp.stack([jnp.asarray(1.6), rate])
    if start == "Delta":
        initial = dist.Delta(mean, event_dim=1)
    else:
        initial = dist.MultivariateNormal(mean, size * jnp.array([[0.1, 0.03], [0.03, 0.2]]))
    field = lambda t, x, u: jnp.stack([x[1], -g * jnp.sin(x[0])])
    if dynamics == "Transition":
        root = size * jnp.array([[0.05, 0.0], [0.02, 0.1]])
        moved = fd.Transition(
            lambda t, x, u: dist.MultivariateNormal(
                x + 0.1 * field(t, x, u), scale_tril=root * (1 + 0.3 * x[0] ** 2)
            )
        )
    elif dynamics == "ODE":
        moved = fd.ODE(field, solver=diffrax.Heun(), substeps=2)
    else:
        moved = fd.SDE(
            field,
            lambda t, x, u: jnp.stack([0.0 * x[0], size * (1 + x[0] ** 2)])[:, None],
            solver=diffrax.Heun(),
            substeps=2,
        )
    observation = fd.GaussianObservation(lambda t, x, u: jnp.sin(x[:1]), 0.1 * noise)
    return fd.StateSpaceModel(initial, moved, observation)


@pytest.mark.parametrize(
    "start, dynamics, filter",
    [
        ("Gaussian", "Transition", "unscented"),
        ("Gaussian", "Transition", "unscented, alpha 0.1"),
        ("Gaussian", "Transition", "fifth-degree cubature"),
        ("Delta", "Transition", "unscented"),
        ("Gaussian", "ODE", "unscented"),
        pytest.param("Delta", "SDE", "unscented", marks=pytest.mark.slow),
    ],
)
def test_gradient_of_the_likelihood_meets_finite_differences(start, dynamics, filter):
    series = fd.Series(np.arange(8) * 0.2, SWING)
    value = jax.jit(
        lambda theta: fd.log_likelihood(swing(theta, start, dynamics), series, FILTERS[filter])
    )
    gradient, h = jax.jit(jax.grad(value))(THETA), 1e-5
    differences = [(value(THETA + h * e) - value(THETA - h * e)) / (2 * h) for e in jnp.eye(4)]
    scale = np.abs(differences).max()
    np.testing.assert_allclose(gradient, differences, atol=1e-7 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["Gaussian", "Delta"])
def test_hessian_of_the_likelihood_meets_differences_of_the_gradient(start):
    series = fd.Series(np.arange(8) * 0.2, SWING)
    value = lambda theta: fd.log_likelihood(
        swing(theta, start, "Transition"), series, fd.UnscentedKalmanFilter()
    )
    gradient, h = jax.jit(jax.grad(value)), 1e-5
    hessian = jax.jit(jax.hessian(value))(THETA)
    differences = [
        (gradient(THETA + h * e) - gradient(THETA - h * e)) / (2 * h) for e in jnp.eye(4)
    ]
    scale = np.abs(np.array(differences)).max()
    np.testing.assert_allclose(hessian, differences, atol=1e-6 * scale)


# Failures, refusals, and the step as one kernel


def test_a_point_where_the_model_is_not_finite_fails_its_series():
    model = fd.StateSpaceModel(
        dist.Normal(jnp.array([1.0]), 1.0).to_event(1),
        fd.LinearTransition([[1.0]], [[1.0]]),
        fd.GaussianObservation(lambda t, x, u: jnp.log(x), 1.0),
    )
    series = fd.Series(np.arange(2.0), [[0.1], [0.2]])
    result = fd.filter(model, series, fd.UnscentedKalmanFilter())
    assert result.status == fd.Status.MODEL_NOT_FINITE
    assert result.failed_at == 0
    assert fd.filter(model, series, fd.ExtendedKalmanFilter()).innovations[0, 0] == 0.1


def test_one_point_that_runs_out_of_steps_fails_its_series():
    """The field is stiff only where the outer point goes."""
    model = fd.StateSpaceModel(
        dist.Normal(jnp.array([0.0]), 1.0).to_event(1),
        fd.ODE(
            lambda t, x, u: jnp.where(x > 1.0, -1e6 * (x - 1.0) + jnp.sin(1e5 * t), -x),
            stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-10),
            max_steps=64,
        ),
        fd.LinearObservation([[1.0]], 1.0),
    )
    series = fd.Series(np.arange(2.0), [[0.1], [0.2]])
    result = fd.filter(model, series, fd.UnscentedKalmanFilter())
    assert result.status == fd.Status.SOLVER_OUT_OF_STEPS
    assert result.failed_at == 1


def test_an_exact_measurement_of_a_known_state_is_a_singular_innovation():
    model = fd.StateSpaceModel(
        dist.Delta(jnp.array([1.0]), event_dim=1),
        fd.LinearTransition([[1.0]], [[0.0]]),
        fd.GaussianObservation(lambda t, x, u: x**2, 0.0),
    )
    result = fd.filter(model, fd.Series(np.zeros(1), [[1.0]]), fd.CubatureKalmanFilter())
    assert result.status == fd.Status.SINGULAR_INNOVATION


def adaptive():
    return fd.SDE(
        lambda t, x, u: -x,
        0.1,
        stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-8),
    )


@pytest.mark.parametrize(
    "initial, dynamics, filter, error, message",
    [
        (dist.Normal(jnp.zeros(1), 1.0).to_event(1), adaptive(), fd.UnscentedKalmanFilter(),
         ValueError, "sigma points needs fixed steps"),
        (fd.Diffuse(1), fd.ODE(lambda t, x, u: -x), fd.CubatureKalmanFilter(),
         TypeError, "CubatureKalmanFilter: `initial` is Diffuse"),
        (dist.Normal(jnp.zeros(1), 1.0).to_event(1), adaptive(), fd.UnscentedKalmanFilter(kappa=-1),
         ValueError, "UnscentedKalmanFilter: `kappa` is -1.0 for 1 states; expected > -1"),
    ],
)  # fmt: skip
def test_what_sigma_points_cannot_treat_is_refused(initial, dynamics, filter, error, message):
    model = fd.StateSpaceModel(initial, dynamics, fd.LinearObservation([[1.0]], 1.0))
    with pytest.raises(error, match=message):
        fd.filter(model, fd.Series(np.arange(2.0), np.zeros((2, 1))), filter)


def test_a_diffuse_start_of_a_linear_model_is_exact():
    model = fd.StateSpaceModel(
        fd.Diffuse(1),
        fd.LinearTransition([[1.0]], [[1469.1]]),
        fd.LinearObservation([[1.0]], 15099.0),
    )
    value = fd.log_likelihood(model, fd.datasets.nile(), fd.UnscentedKalmanFilter())
    np.testing.assert_allclose(value, -633.46456, atol=1e-4)


@pytest.mark.parametrize("filter", [fd.UnscentedKalmanFilter(), fd.CubatureKalmanFilter(5)])
def test_a_small_step_makes_no_library_call(filter):
    """No LAPACK and no BLAS in the program, so that the scan can become one kernel."""
    y, model = np.array(reference()["problem"]["y"]), pendulum(float)
    times = jnp.arange(len(y)) * 1.0
    start = dist.MultivariateNormal(model.initial.loc, scale_tril=jnp.eye(2))
    model = fd.StateSpaceModel(start, model.dynamics, model.observation)
    value = lambda y: fd.log_likelihood(model, fd.Series(times, y), filter)
    program = jax.jit(jax.grad(value)).lower(jnp.asarray(y)).as_text()
    assert "stablehlo.while" in program
    assert "lapack" not in program and "blas" not in program
