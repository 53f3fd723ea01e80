"""A Gaussian Markov posterior over paths against Kalman filter, smoother and quadrature."""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import norm, poisson

import filterdyn as fd
from filterdyn.inference import GaussianPath, VariationalSeries, path_elbo

X64 = jax.config.jax_enable_x64
close = dict(rtol=0, atol=1e-8 if X64 else 2e-3)
A = np.array([[-0.5, 1.0], [-1.0, -0.2]])
L = np.array([[0.5, 0.0], [0.2, 0.6]])
m0, P0 = np.array([0.3, -0.2]), np.array([[1.0, 0.2], [0.2, 0.5]])
seen = fd.LinearObservation(np.array([[1.0, 0.5]]), np.array([[0.1]]))
start = dist.MultivariateNormal(jnp.asarray(m0), jnp.asarray(P0))
times = np.array([0.0, 0.4, 0.5, 0.5, 1.1, 2.0])
y = np.array([[0.9], [np.nan], [0.2], [0.4], [-0.3], [1.0]])
series = fd.Series(times, y)
linear = fd.StateSpaceModel(start, fd.LinearSDE(A, L), seen)


@pytest.fixture(scope="module")
def bound():
    """Of a batch: with two rows at one time and a missing one, and with padding."""
    batch = fd.stack([series, fd.Series([0.0, 1.0, 3.0], [[0.3], [-0.2], [0.1]])])
    return path_elbo(linear, batch, GaussianPath()), batch


def test_the_bound_is_the_likelihood_of_a_linear_model(bound):
    found, batch = bound
    expected = fd.log_likelihood(linear, batch, fd.KalmanFilter())
    np.testing.assert_allclose(found.value, expected, **close)
    assert found.converged.all() and found.warning is None
    np.testing.assert_array_equal(found.status, fd.Status.OK)
    np.testing.assert_array_equal(found.kl_moves[1, 2:], 0.0)


def test_the_marginals_are_those_of_the_smoother(bound):
    found, _ = bound
    smoothed = fd.smooth(linear, series, fd.KalmanFilter())
    np.testing.assert_allclose(found.mean[0], smoothed.mean, **close)
    variances = np.diagonal(smoothed.cov, axis1=-2, axis2=-1)
    np.testing.assert_allclose(found.variance[0], variances, **close)


def test_the_divergence_of_the_start_is_that_of_two_gaussians(bound):
    found, _ = bound
    smoothed = fd.smooth(linear, series, fd.KalmanFilter())
    mean, cov = np.asarray(smoothed.mean[0]), np.asarray(smoothed.cov[0])
    inverse = np.linalg.inv(P0)
    log_det = np.linalg.slogdet(P0)[1] - np.linalg.slogdet(cov)[1]
    d = mean - m0
    expected = 0.5 * (np.trace(inverse @ cov) + d @ inverse @ d - 2 + log_det)
    np.testing.assert_allclose(found.kl_start[0].sum(), expected, **close)
    shift = np.linalg.solve(np.linalg.cholesky(P0), d)
    np.testing.assert_allclose(found.shift_start[0], shift, **close)


@pytest.mark.slow
def test_an_sde_is_bounded_as_euler_steps_make_it():
    """With steps of 0.1 the model is a linear transition, of which every fourth state is measured."""
    dynamics = fd.SDE(lambda t, x, u: A @ x, L, substeps=4)
    found = path_elbo(
        fd.StateSpaceModel(start, dynamics, seen),
        fd.Series(0.4 * np.arange(3), y[3:]),
        GaussianPath(),
    )
    fine = np.full((9, 1), np.nan)
    fine[::4] = y[3:]
    steps = fd.LinearTransition(np.eye(2) + 0.1 * A, 0.1 * L @ L.T)
    expected = fd.log_likelihood(
        fd.StateSpaceModel(start, steps, seen), fd.Series(np.arange(9.0), fine), fd.KalmanFilter()
    )
    np.testing.assert_allclose(found.value, expected, **close)


def growth(rate, size=0.4):
    """A population that is counted: log x' = log x + rate - e^(log x) / 4 + noise."""
    step = lambda t, x, u: dist.Normal(x + rate - jnp.exp(x) / 4, size).to_event(1)
    counted = fd.Observation(lambda t, x, u: dist.Poisson(jnp.exp(x)).to_event(1))
    initial = dist.Normal(jnp.ones(1), 0.7).to_event(1)
    return fd.StateSpaceModel(initial, fd.Transition(step), counted)


counts = np.array([2.0, 6.0, 3.0, np.nan, 1.0, 5.0, 4.0])
rows = np.arange(7.0)


def by_quadrature(rate, size=0.4):
    """log p(y) on 1,200 points."""
    x = np.linspace(-5, 5, 1200)
    h = x[1] - x[0]
    mean = x + rate - np.exp(x) / 4
    move = norm.pdf(x[None, :], mean[:, None], size) * h
    density, total = norm.pdf(x, 1.0, 0.7) * h, 0.0
    for k, count in enumerate(counts):
        density = density if k == 0 else density @ move
        if not np.isnan(count):
            density = density * poisson.pmf(count, np.exp(x))
        total += np.log(density.sum())
        density = density / density.sum()
    return total


@pytest.fixture(scope="module")
def bound_and_slope():
    def value(rate):
        return VariationalSeries(growth(rate), rows, posterior=GaussianPath()).log_prob(
            counts[:, None]
        )

    return jax.jit(jax.value_and_grad(value))


@pytest.mark.slow
def test_a_nonlinear_model_with_counts_is_bounded_from_below(bound_and_slope):
    """By quadrature the likelihood is known to 1e-6; the posterior is nearly Gaussian here."""
    gap = by_quadrature(0.8) - float(bound_and_slope(0.8)[0])
    assert 0 < gap < 0.1


@pytest.mark.slow
@pytest.mark.skipif(not X64, reason="finite differences need float64")
def test_the_derivative_is_that_of_the_maximum(bound_and_slope):
    slope = bound_and_slope(0.8)[1]
    difference = (bound_and_slope(0.801)[0] - bound_and_slope(0.799)[0]) / 0.002
    np.testing.assert_allclose(slope, difference, rtol=1e-4)


@pytest.mark.slow
def test_a_noise_that_nothing_measures_is_named():
    dynamics = fd.LinearSDE(np.diag([-0.5, -1.0]), np.diag([0.7, 0.3]))
    half = fd.StateSpaceModel(start, dynamics, fd.LinearObservation([[1.0, 0.0]], [[0.01]]))
    independent = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    half = fd.StateSpaceModel(independent, dynamics, half.observation)
    found = path_elbo(half, series, GaussianPath())
    assert found.noises.active.tolist() == [True, False]
    np.testing.assert_allclose(found.noises.kl[1], 0.0, **close)
    np.testing.assert_allclose(found.noises.kl[0] + found.kl_start.sum(), found.kl, rtol=1e-4)
    assert found.warning.startswith("1 of 2 noises are not used by the posterior")
    assert ": 1 (" in found.warning and ", 0 (" not in found.warning


@pytest.mark.slow
def test_a_bimodal_posterior_is_bounded_by_the_particle_filter():
    """A double well, whose particle likelihood is known to 0.05; the bound is below, and converged."""
    dynamics = fd.SDE(
        lambda t, x, u: 4 * x * (1 - x**2), 0.5, substeps=20, path_solver=diffrax.Euler()
    )
    well = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        dynamics,
        fd.LinearObservation([[1.0]], [[0.04]]),
    )
    at = np.arange(0, 8.01, 0.5)
    record = fd.Series(at, fd.simulate(well, at, key=jr.key(3)).observations)
    exact = fd.log_likelihood(well, record, fd.ParticleFilter(20_000), key=jr.key(0))
    found = path_elbo(well, record, GaussianPath())
    assert found.converged
    assert 0 < float(exact - found.value) < 2


@pytest.mark.slow
def test_a_noise_that_misses_a_state_is_a_status():
    flat = fd.LinearTransition(np.eye(2), np.diag([1.0, 0.0]))
    found = path_elbo(
        fd.StateSpaceModel(start, flat, seen), fd.Series(rows[:3], y[3:]), GaussianPath()
    )
    assert found.status == fd.Status.MODEL_NOT_FINITE and found.value == -np.inf
    assert "no finite bound" in found.warning


def test_what_cannot_be_followed_is_refused():
    known = fd.StateSpaceModel(dist.Delta(jnp.zeros(2), event_dim=1), fd.LinearSDE(A, L), seen)
    with pytest.raises(TypeError, match="`initial` is Delta"):
        path_elbo(known, series, GaussianPath())
    counted = growth(0.8)
    skewed = fd.Transition(lambda t, x, u: dist.Gumbel(x, 1.0).to_event(1))
    with pytest.raises(TypeError, match="returned Gumbel; expected a Gaussian"):
        path_elbo(
            fd.StateSpaceModel(counted.initial, skewed, counted.observation),
            fd.Series(rows, counts),
            GaussianPath(),
        )
    with pytest.raises(TypeError, match="`dynamics` is ODE"):
        path_elbo(
            fd.StateSpaceModel(start, fd.ODE(lambda t, x, u: -x), seen), series, GaussianPath()
        )
