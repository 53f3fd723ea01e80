"""A posterior SDE whose steps have a covariance of their own, against the likelihood of a linear model."""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.inference import PathEncoder, PosteriorSDE, path_elbo

A = np.array([[-0.5, 1.0], [-1.0, -0.2]])
L = np.array([[0.8, 0.0], [0.5, 0.6]])
H, R = np.array([[1.0, 0.5]]), 0.01
m0, scale = np.array([0.3, -0.2]), np.array([1.2, 0.7])
times = np.array([0.0, 0.3, 0.8, 0.8, 1.0])
y = np.array([[0.9], [0.1], [np.nan], [-0.4], [0.6]])
series = fd.Series(times, y)
model = fd.StateSpaceModel(
    dist.Normal(jnp.asarray(m0), jnp.asarray(scale)).to_event(1),
    fd.SDE(lambda t, x, u: jnp.asarray(A) @ x, L, substeps=1, path_solver=diffrax.Euler()),
    fd.LinearObservation(H, [[R]]),
)


def exact():
    """log N(y) by the joint density of the states at all rows, with one Euler step a gap."""
    mean, cov = [m0], np.diag(scale**2)
    for gap in np.diff(times):
        F = np.eye(2) + gap * A
        last = cov[-2:] if len(mean) > 1 else cov
        cross = F @ last
        own = F @ last[:, -2:] @ F.T + gap * L @ L.T
        cov = np.block([[cov, cross.T], [cross, own]])
        mean.append(F @ mean[-1])
    rows = np.flatnonzero(~np.isnan(y[:, 0]))
    wide = np.zeros((len(rows), 2 * len(times)))
    for i, row in enumerate(rows):
        wide[i, 2 * row : 2 * row + 2] = H
    error = y[rows, 0] - wide @ np.concatenate(mean)
    S = wide @ cov @ wide.T + R * np.eye(len(rows))
    determinant = np.linalg.slogdet(2 * np.pi * S)[1]
    return -0.5 * (error @ np.linalg.solve(S, error) + determinant)


def later(gaps, observations, inputs, index):
    """Precision and its product with the mean, as the measurements of each row and all later ones say."""

    def back(carry, row):
        J, eta = carry
        gap, value, there = row
        J = J + jnp.where(there, H.T @ H / R, 0.0)
        eta = eta + jnp.where(there, H[0] * value / R, 0.0)
        G, F = jnp.sqrt(gap) * L, jnp.eye(2) + gap * A
        K = G @ jnp.linalg.inv(jnp.eye(2) + G.T @ J @ G) @ G.T
        before = F.T @ (J - J @ K @ J) @ F, F.T @ (eta - J @ K @ eta)
        return before, jnp.concatenate([J.ravel(), eta])

    there = ~jnp.isnan(observations[:, 0])
    values = jnp.where(there, observations[:, 0], 0.0)
    start = jnp.zeros((2, 2), values.dtype), jnp.zeros(2, values.dtype)
    return jax.lax.scan(back, start, (gaps, values, there), reverse=True)[1]


def normal(G, J, eta):
    """Mean and factor of n ~ N(0, I) where exp(-z'J z / 2 + eta'z), z = G n, is known of it."""
    cov = jnp.linalg.inv(jnp.eye(2) + G.T @ J @ G)
    return cov @ G.T @ eta, jnp.linalg.cholesky(cov)


def bridge(t, x, context):
    J, eta, gap = context[:4].reshape(2, 2), context[4:6], context[6]
    mean, factor = normal(jnp.sqrt(gap) * L, J, eta - J @ (x + gap * A @ x))
    return mean / jnp.sqrt(gap), factor


def start(context):
    J, eta = context[:4].reshape(2, 2), context[4:6]
    return normal(jnp.diag(scale), J, eta - J @ m0)


def test_with_a_covariance_of_its_own_the_posterior_is_exact_and_every_path_weighs_the_same():
    bound = path_elbo(
        model, series, PosteriorSDE(bridge, later, start), key=jr.key(0), num_samples=400
    )
    assert bound.status == fd.Status.OK
    tight = 1e-9 if jax.config.jax_enable_x64 else 2e-3
    np.testing.assert_allclose(bound.value, exact(), atol=tight)
    np.testing.assert_allclose(bound.weighted_value, exact(), atol=tight)
    assert bound.standard_error < tight
    # The divergence says the same in the mean: a path's estimate of it varies by about 1.5.
    parts = bound.log_likelihoods.sum() - bound.kl
    assert abs(float(parts) - exact()) < 4 * 1.5 / 400**0.5


def test_networks_with_a_spread_begin_at_the_prior():
    encoder = PathEncoder(1, key=jr.key(1), width=4, size=3)
    posterior = PosteriorSDE.amortized(model, encoder, key=jr.key(2), width=4, spread=True)
    mean, factor = posterior.control(0.0, jnp.ones(2), jnp.ones(4))
    np.testing.assert_array_equal(mean, np.zeros(2))
    np.testing.assert_array_equal(factor, np.eye(2))


def test_a_spread_of_another_shape_is_refused():
    wrong = PosteriorSDE(lambda t, x, context: (jnp.zeros(2), jnp.ones(2)), later, start)
    with pytest.raises(ValueError, match=r"returned S of shape \(2,\); expected \(2, 2\)"):
        path_elbo(model, series, wrong, key=jr.key(0))
