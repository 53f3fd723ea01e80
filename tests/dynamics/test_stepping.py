"""One step of a solver, and the quadrature of the noise between steps."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from filterdyn.dynamics.stepping import quadrature_weight, solver_step


@pytest.mark.parametrize(
    "solver", [diffrax.Euler(), diffrax.Heun(), diffrax.Bosh3(), diffrax.Tsit5(), diffrax.Dopri8()]
)
def test_a_step_written_out_is_the_step_of_diffrax(solver):
    field = diffrax.ODETerm(lambda t, x, u: jnp.array([x[1] * jnp.cos(t), -x[0] + u * t]))
    x, u, start, length = jnp.array([1.0, 0.3]), 0.7, jnp.array(0.2), jnp.array(0.25)
    state = solver.init(field, start, start + length, x, u)
    expected = solver.step(field, start, start + length, x, u, state, made_jump=False)[0]
    found, fine = solver_step(field, solver, start, length, x, u)
    assert fine
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@jax.jit
def weight(i, count):
    return quadrature_weight(i, count, jnp.float64)


@pytest.mark.parametrize("count", range(1, 20))
def test_the_weights_of_the_noise_are_positive_and_exact_for_a_polynomial(count):
    """Of degree 5 from four steps on, 3 for two and three, 1 for a single step."""
    nodes = np.arange(count + 1)
    weights = np.array([weight(i, count) for i in nodes])
    assert (weights > 0).all()
    degree = {1: 1, 2: 3, 3: 3}.get(count, 5)
    for power in range(degree + 1):
        mean = (weights * (nodes / count) ** power).sum() / count
        np.testing.assert_allclose(mean, 1 / (power + 1), rtol=1e-14)
