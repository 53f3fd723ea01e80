"""Conditioning a Gaussian, in every form, against the textbook formula and its derivatives."""

import jax
import jax.numpy as jnp
import jax.scipy.stats as jss
import numpy as np
import pytest

from filterdyn.linalg import PSD, condition

if not jax.config.jax_enable_x64:
    pytest.skip("second derivatives are compared in float64", allow_module_level=True)


def problem(dx, dy, full):
    rng = np.random.default_rng(dx + 10 * dy)
    root = rng.normal(size=(dx, dx))
    noise = rng.normal(size=(dy, dy))
    noise = noise @ noise.T + np.eye(dy) if full else rng.uniform(0.5, 2.0, dy)
    return tuple(
        jnp.asarray(a)
        for a in (root @ root.T, rng.normal(size=(dy, dx)), rng.normal(size=dy), noise)
    )


def textbook(p, h, residual, noise, seen):
    """Posterior mean and covariance, and the log density of the seen entries."""
    r = jnp.diag(noise) if noise.ndim == 1 else noise
    h, residual, r = h[seen], residual[seen], r[np.ix_(seen, seen)]
    s = h @ p @ h.T + r
    gain = jnp.linalg.solve(s, h @ p).T
    density = jss.multivariate_normal.logpdf(residual, jnp.zeros(len(seen)), s)
    whitened = jnp.linalg.solve(jnp.linalg.cholesky(s), residual)
    return gain @ residual, p - gain @ h @ p, density, whitened


def ours(p, h, residual, noise, observed, square_root):
    cov = PSD.from_matrix(p)
    found = condition(
        cov if square_root else cov.without_factor(), h, residual, noise, jnp.asarray(observed)
    )
    return found.shift, found.cov.matrix, found.log_likelihood, found.standardized


SIZES = [(4, 3), (2, 9), (14, 4)]
every_form = pytest.mark.parametrize("square_root", [True, False], ids=["factor", "covariance"])
every_size = pytest.mark.parametrize(("dx", "dy"), SIZES)
every_noise = pytest.mark.parametrize("full", [False, True], ids=["variances", "full R"])


def pattern(dy):
    return np.array([i % 3 != 1 for i in range(dy)])


@every_form
@every_size
@every_noise
def test_posterior_and_density_are_those_of_the_textbook(dx, dy, full, square_root):
    parts, observed = problem(dx, dy, full), pattern(dy)
    found = jax.jit(lambda parts: ours(*parts, observed, square_root))(parts)
    seen = np.flatnonzero(observed)
    for value, exact in zip(found[:3], textbook(*parts, seen)[:3], strict=True):
        np.testing.assert_allclose(value, exact, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found[3][seen], textbook(*parts, seen)[3], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(np.asarray(found[3])[~observed], 0.0)


@every_form
@every_size
@pytest.mark.parametrize("full", [True])
def test_nothing_observed_changes_nothing(dx, dy, full, square_root):
    parts = problem(dx, dy, full)
    found = jax.jit(lambda parts: ours(*parts, np.zeros(dy, bool), square_root))(parts)
    assert float(found[2]) == 0.0
    np.testing.assert_array_equal(found[0], 0.0)
    np.testing.assert_allclose(found[1], parts[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("full", "square_root"),
    [
        pytest.param(False, True, marks=pytest.mark.slow),
        (True, True),
        pytest.param(False, False, marks=pytest.mark.slow),
        (True, False),
    ],
)
@pytest.mark.parametrize(
    ("dx", "dy"),
    [(2, 2), *(pytest.param(*size, marks=pytest.mark.slow) for size in [(4, 3), (14, 4)])],
)
def test_first_and_second_derivatives_are_those_of_the_textbook(dx, dy, full, square_root):
    """Along a line in the space of all parts, of a number to which every result contributes."""
    parts, observed = problem(dx, dy, full), pattern(dy)
    rng = np.random.default_rng(1)
    mix = rng.normal(size=dx), rng.normal(size=(dx, dx))

    def along(function):
        def value(s):
            moved = tuple(a + s * 0.1 * jnp.sin(a + 1) for a in parts)
            p, h, residual, noise = moved
            noise = noise if noise.ndim == 1 else 0.5 * (noise + noise.T)
            shift, cov, density, white = function(0.5 * (p + p.T), h, residual, noise)
            return mix[0] @ shift + (mix[1] * cov).sum() + density + jnp.sin(white).sum()

        return value

    library = along(lambda *a: ours(*a, observed, square_root))
    seen = np.flatnonzero(observed)
    oracle = along(lambda *a: textbook(*a, seen))
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(
            jax.jit(derivative(library))(0.0), derivative(oracle)(0.0), rtol=1e-8
        )
    second = jax.jit(jax.jacfwd(jax.grad(library)))(0.0)
    np.testing.assert_allclose(second, jax.jacfwd(jax.grad(oracle))(0.0), rtol=1e-7)


@pytest.mark.parametrize(("dx", "dy"), [(4, 2), (14, 3)])
def test_two_exact_sensors_of_the_same_thing_are_singular(dx, dy):
    h = jnp.ones((dy, dx))
    found = condition(
        PSD.from_matrix(jnp.eye(dx)), h, jnp.ones(dy), jnp.zeros(dy), jnp.ones(dy, bool)
    )
    assert bool(found.singular)
    assert np.isfinite(found.shift).all()
