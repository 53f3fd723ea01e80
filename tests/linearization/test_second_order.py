"""The second-order rule against the moments of quadratic functions in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import filterdyn as fd
from filterdyn.linalg import PSD
from filterdyn.linearization import GaussHermite, SecondOrderTaylor

if not jax.config.jax_enable_x64:
    pytest.skip("exactness is tested in float64", allow_module_level=True)

RULE = SecondOrderTaylor()
rng = np.random.default_rng(3)
A = rng.normal(size=(3, 3, 3))
A = A + A.transpose(0, 2, 1)
B, C = rng.normal(size=(3, 3)), rng.normal(size=3)
MEAN = np.array([0.3, -0.8, 0.5])
ROOT = np.array([[0.7, 0.0, 0.0], [0.2, 0.5, 0.0], [-0.3, 0.1, 0.4]])
SPREADS = {
    "regular": ROOT,
    "singular": ROOT * [1.0, 0.0, 1.0],
    "one direction": ROOT * [1.0, 0.0, 0.0],
    "a point": np.zeros((3, 3)),
}
every_spread = pytest.mark.parametrize("root", SPREADS.values(), ids=SPREADS)


def quadratic(x):
    return jnp.einsum("iab,a,b->i", A, x, x) + B @ x + C


def exact(mean, cov):
    """Mean, slope and the covariance of the error of x^T A_i x + B x + c under N(mean, cov)."""
    value = np.einsum("iab,a,b->i", A, mean, mean) + B @ mean + C + np.einsum("iab,ab->i", A, cov)
    seen = np.einsum("iab,bc->iac", A, cov)
    return value, 2 * A @ mean + B, 2 * np.einsum("iab,jba->ij", seen, seen)


def belief(root, mean=MEAN):
    return fd.Gaussian(jnp.asarray(mean), spread=PSD.from_factor(jnp.asarray(root)))


@every_spread
@pytest.mark.parametrize("form", ["square root", "covariance"])
def test_moments_of_a_quadratic_function_are_exact(root, form):
    at = belief(root)
    if form == "covariance":
        at = fd.Gaussian(at.mean, spread=at.spread.without_factor())
    found = RULE(quadratic, at)
    value, slope, error = exact(MEAN, root @ root.T)
    np.testing.assert_allclose(found.value, value, rtol=1e-12)
    np.testing.assert_allclose(found.slope, slope, rtol=1e-12)
    np.testing.assert_allclose(found.error.matrix, error, rtol=1e-12, atol=1e-14)
    columns = found.error.factor
    np.testing.assert_allclose(columns @ columns.T, error, rtol=1e-12, atol=1e-14)


def test_a_quadratic_function_has_the_moments_of_gauss_hermite_points():
    found, points = RULE(quadratic, belief(ROOT)), GaussHermite(3)(quadratic, belief(ROOT))
    np.testing.assert_allclose(found.value, points.value, rtol=1e-12)
    np.testing.assert_allclose(found.slope, points.slope, rtol=1e-11)
    np.testing.assert_allclose(found.error.matrix, points.error.matrix, rtol=1e-11)


def test_moment_equations_see_the_same_mean_and_slope():
    value, root = RULE.project(quadratic, jnp.asarray(MEAN), jnp.asarray(ROOT))
    mean, slope, _ = exact(MEAN, ROOT @ ROOT.T)
    np.testing.assert_allclose(value, mean, rtol=1e-12)
    np.testing.assert_allclose(root, slope @ ROOT, rtol=1e-12, atol=1e-13)


@every_spread
def test_derivatives_by_the_covariance_are_those_of_the_closed_form(root):
    """At a singular covariance too, in directions that leave its range."""
    cov, direction = root @ root.T, np.array([[1.0, 0.4, 0.2], [0.4, 2.0, -0.3], [0.2, -0.3, 1.5]])

    def moments(size):
        spread = PSD(jnp.asarray(root), jnp.asarray(cov) + size * jnp.asarray(direction))
        found = RULE(quadratic, fd.Gaussian(jnp.asarray(MEAN), spread=spread))
        return found.value, found.error.matrix

    _, (value, error) = jax.jvp(moments, (0.0,), (1.0,))
    one, other = np.einsum("iab,bc->iac", A, direction), np.einsum("iab,bc->iac", A, cov)
    cross = 2 * np.einsum("iab,jba->ij", one, other)
    np.testing.assert_allclose(value, np.einsum("iab,ab->i", A, direction), rtol=1e-12)
    np.testing.assert_allclose(error, cross + cross.T, rtol=1e-12, atol=1e-13)


def test_a_covariance_that_goes_with_the_square_of_the_state_is_averaged_exactly():
    cov = lambda x: jnp.outer(x, x) + jnp.eye(3)
    expected = np.outer(MEAN, MEAN) + ROOT @ ROOT.T + np.eye(3)
    np.testing.assert_allclose(RULE.average(cov, belief(ROOT)), expected, rtol=1e-12)


def test_what_a_function_gives_beside_comes_along_from_the_mean():
    found = RULE(lambda x: (quadratic(x), x.sum()), belief(ROOT), has_aux=True)
    np.testing.assert_allclose(found.aux, [MEAN.sum()])
