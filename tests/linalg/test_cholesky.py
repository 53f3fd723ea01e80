"""The Cholesky factor of a belief: its value, its derivatives, and what it is at a singular
covariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from filterdyn.linalg import PSD
from filterdyn.linalg.cholesky import cholesky

if not jax.config.jax_enable_x64:
    pytest.skip("second derivatives are compared in float64", allow_module_level=True)


def covariance(theta, n=3):
    a = jnp.sin(jnp.arange(n * n, dtype=float).reshape(n, n) + theta[0])
    return a @ a.T + jnp.exp(theta[1]) * jnp.eye(n)


THETA = jnp.array([0.4, -1.0])


@pytest.mark.parametrize("n", [1, 3, 20])
def test_factor_and_inverse_are_those_of_cholesky(n):
    p = covariance(THETA, n)
    turn = jnp.linalg.qr(jnp.cos(jnp.arange(n * n, dtype=float).reshape(n, n)) + jnp.eye(n))[0]
    found = cholesky(PSD.from_factor(jnp.linalg.cholesky(p) @ turn))
    np.testing.assert_allclose(found.factor, np.linalg.cholesky(p), atol=1e-12)
    np.testing.assert_allclose(found.inverse @ found.factor, np.eye(n), atol=1e-11)


@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev, jax.hessian])
def test_derivatives_of_the_factor_are_those_of_cholesky(derivative):
    ours = derivative(lambda theta: cholesky(PSD.from_matrix(covariance(theta))).factor)(THETA)
    jaxs = derivative(lambda theta: jnp.linalg.cholesky(covariance(theta)))(THETA)
    np.testing.assert_allclose(ours, jaxs, atol=1e-12)


def test_the_factor_of_a_turning_singular_covariance_turns_with_it():
    """P = v v^T: one column, v up to its sign; d(S S^T) = dP."""
    v = lambda theta: jnp.stack([jnp.cos(theta), 2 * jnp.sin(theta), theta**2])
    factor = lambda theta: cholesky(PSD.from_factor(v(theta)[:, None])).factor
    s, ds = jax.jvp(factor, (0.7,), (1.0,))
    np.testing.assert_allclose(s[:, 0], v(0.7), rtol=1e-14)
    np.testing.assert_allclose(ds[:, 0], jax.jacfwd(v)(0.7), rtol=1e-13)
    assert np.abs(s[:, 1:]).max() == 0 and np.abs(ds[:, 1:]).max() == 0


def test_a_zero_covariance_has_a_finite_derivative():
    factor = lambda q: cholesky(PSD(jnp.zeros((2, 2)), q * jnp.eye(2))).factor
    assert np.abs(jax.jacfwd(factor)(0.0)).max() == 0


def test_a_row_that_depends_on_others_to_rounding_has_no_column():
    s = jnp.array([[1.0, 0.0, 0.0], [1.0, 1e-17, 0.0], [0.0, 1.0, 0.0]])
    found = cholesky(PSD.from_factor(s))
    np.testing.assert_array_equal(found.factor, [[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(found.inverse, [[1, 0, 0], [0, 0, 0], [0, 0, 1]])


def test_a_nan_is_not_hidden():
    assert np.isnan(cholesky(PSD.from_factor(jnp.array([[jnp.nan, 0.0], [0.0, 1.0]]))).factor).any()
