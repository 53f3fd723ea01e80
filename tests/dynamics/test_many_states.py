"""Draws of many states at once, and transition densities."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.dynamics import Interval

X64 = jax.config.read("jax_enable_x64")
N = 20_000
F = jnp.array([[0.5, 1.0], [0.0, 0.9]])
Q = jnp.array([[1.0, 0.5], [0.5, 2.0]])
X = jnp.broadcast_to(jnp.array([1.0, -0.5]), (N, 2))
OVER = Interval(jnp.asarray(0.3), jnp.asarray(0.7), None)
NOWHERE = OVER._replace(gap=jnp.asarray(0.0))


def drift(t, x, u):
    return -x * (1 + 0.1 * x**2)


DYNAMICS = {
    "LinearTransition": fd.LinearTransition(F, Q),
    "LinearSDE": fd.LinearSDE(F - jnp.eye(2), jnp.array([0.5, 0.0])),
    "normal": fd.Transition(lambda t, x, u: dist.Normal(F @ x, 0.3).to_event(1)),
    "multivariate": fd.Transition(lambda t, x, u: dist.MultivariateNormal(F @ x, Q)),
    "log-normal": fd.Transition(lambda t, x, u: dist.LogNormal(0.1 * x, 0.3).to_event(1)),
    "gamma": fd.Transition(lambda t, x, u: dist.Gamma(jnp.exp(x), 2.0).to_event(1)),
    "additive": fd.SDE(drift, jnp.array([[0.5, 0.1, 0.0], [0.0, 0.3, 0.1]]), substeps=2),
    "multiplicative": fd.SDE(drift, lambda t, x, u: 0.3 * x + 0.1, substeps=3),
    "space-time area": fd.SDE(drift, 0.4, substeps=2, path_solver=diffrax.ShARK()),
}


def drawn(dynamics):
    many = dynamics.sample_many(jax.random.key(0), X, OVER)
    keys = jax.random.split(jax.random.key(1), N)
    one_by_one = jax.vmap(lambda key, x: dynamics.sample(key, x, OVER))(keys, X)
    return many, one_by_one, dynamics.sample_many(jax.random.key(0), X, NOWHERE)


@pytest.mark.parametrize(
    "dynamics",
    [
        pytest.param(d, id=n, marks=[] if n[0] in "Ln" else pytest.mark.slow)
        for n, d in DYNAMICS.items()
    ],
)
def test_many_draws_at_once_have_the_distribution_of_single_ones(dynamics):
    many, single, still = jax.jit(lambda: drawn(dynamics))()
    # Five standard errors of the difference of two means, and of two covariances: one false alarm in
    # 1e5 for all of these.
    error = jnp.sqrt(2.0) * single.std(0) / N**0.5
    np.testing.assert_array_less(jnp.abs(many.mean(0) - single.mean(0)), 5 * error + 1e-6)
    products = lambda x: (x - x.mean(0))[:, :, None] * (x - x.mean(0))[:, None, :]
    a, b = products(many), products(single)
    spread = jnp.sqrt(2.0) * b.std(0) / N**0.5
    np.testing.assert_array_less(jnp.abs(a.mean(0) - b.mean(0)), 5 * spread + 1e-6)
    np.testing.assert_array_equal(still, X)


def test_densities_are_those_of_the_draws():
    x, y = jnp.array([0.3, -0.2]), jnp.array([1.0, 0.4])
    exact = dist.MultivariateNormal(F @ x, Q)
    linear = fd.LinearTransition(F, Q)
    np.testing.assert_allclose(linear.log_density(y, x, OVER), exact.log_prob(y), rtol=1e-5)
    given = fd.Transition(lambda t, x, u: dist.MultivariateNormal(F @ x, Q))
    np.testing.assert_allclose(given.log_density(y, x, OVER), exact.log_prob(y), rtol=1e-6)
    euler = fd.SDE(drift, 0.4, substeps=1, path_solver=diffrax.Euler())
    step = dist.Normal(x + 0.7 * drift(0, x, None), 0.4 * 0.7**0.5).to_event(1)
    np.testing.assert_allclose(euler.log_density(y, x, OVER), step.log_prob(y), rtol=1e-5)
    # A scalar Ornstein-Uhlenbeck process: decay and variance in closed form.
    ou = fd.LinearSDE(-jnp.eye(1), 0.5)
    variance = 0.125 * (1 - np.exp(-1.4))
    exact = dist.Normal(x[0] * np.exp(-0.7), variance**0.5).log_prob(y[0])
    np.testing.assert_allclose(ou.log_density(y[:1], x[:1], OVER), exact, rtol=1e-5)


def test_noise_that_does_not_reach_a_direction_has_a_density_within_those_that_it_reaches():
    flat = fd.LinearTransition(F, jnp.diag(jnp.array([4.0, 0.0])))
    x = jnp.array([0.3, -0.2])
    there = F @ x + jnp.array([1.0, 0.0])
    np.testing.assert_allclose(
        flat.log_density(there, x, OVER), dist.Normal(0.0, 2.0).log_prob(1.0), rtol=1e-5
    )
    assert flat.log_density(there + jnp.array([0.0, 0.1]), x, OVER) == -jnp.inf


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not X64, reason="needs float64")
def test_a_density_is_differentiable_twice_in_its_noise():
    x, y = jnp.array([0.3, -0.2]), jnp.array([1.0, 0.4])
    cov = lambda q: Q.at[0, 0].set(q)
    ours = lambda q: fd.LinearTransition(F, cov(q)).log_density(y, x, OVER)
    exact = lambda q: dist.MultivariateNormal(F @ x, cov(q)).log_prob(y)
    np.testing.assert_allclose(jax.grad(ours)(1.0), jax.grad(exact)(1.0), rtol=1e-10)
    np.testing.assert_allclose(jax.hessian(ours)(1.0), jax.hessian(exact)(1.0), rtol=1e-10)


def test_dynamics_without_a_density_say_so():
    with pytest.raises(TypeError, match="no transition density"):
        fd.ODE(drift).log_density(X[0], X[0], OVER)
    with pytest.raises(TypeError, match="no transition density"):
        fd.SDE(drift, 0.4, substeps=2).log_density(X[0], X[0], OVER)
