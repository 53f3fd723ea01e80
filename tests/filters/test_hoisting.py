"""What a distribution computes from constants is computed once, and not in every row."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import filterdyn as fd
from filterdyn._callables import Held
from filterdyn._hoisting import hoisted

Q = np.array([[0.2, 0.1], [0.1, 0.3]])


def model(a, q, factored):
    """Coupled sines; the noise by its covariance, which NumPyro factors, or by the factor itself."""

    def move(t, x, u):
        mean = jnp.sin(a * x[::-1]) + 0.3
        if factored:
            return dist.MultivariateNormal(mean, scale_tril=jnp.sqrt(q) * np.linalg.cholesky(Q))
        return dist.MultivariateNormal(mean, covariance_matrix=q * Q)

    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        fd.Transition(move),
        fd.Observation(lambda t, x, u: dist.Normal(x[:1] ** 2 + x[1:], 0.5).to_event(1)),
    )


def likelihood(factored):
    y = np.random.default_rng(0).normal(size=(12, 1))
    series = fd.Series(np.arange(12), y)
    return lambda a, q: fd.log_likelihood(model(a, q, factored), series, fd.ExtendedKalmanFilter())


def test_noise_by_its_covariance_and_by_its_factor_are_the_same_model():
    found, expected = (
        jax.jit(jax.value_and_grad(likelihood(factored), argnums=(0, 1)))(0.9, 1.5)
        for factored in (False, True)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-13)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-11)
    assert abs(found[1][1]) > 0.1


def test_no_row_factors_a_constant_covariance():
    loops = []

    def walk(jaxpr, inside):
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if inside:
                loops.append(name)
            for part in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
                if is_jaxpr(part):
                    walk(getattr(part, "jaxpr", part), inside or name == "scan")

    is_jaxpr = lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    walk(jax.make_jaxpr(likelihood(factored=False))(0.9, 1.5).jaxpr, False)
    assert "sin" in loops and "cholesky" not in loops


def test_a_function_whose_constants_cost_nothing_stays_as_it_is():
    function = Held(lambda t, x, u: dist.Normal(jnp.sin(x), 0.5).to_event(1))
    assert hoisted(function, jnp.array(0.0), jnp.zeros(2), None) is function
    noise = jnp.array([0.1, 0.2])
    function = Held(lambda t, x, u: dist.Normal(x * t + u, jnp.exp(noise)).to_event(1))
    rest = hoisted(function, jnp.array(0.0), jnp.zeros(2), jnp.zeros(2))
    assert rest is not function
    args = jnp.array(2.0), jnp.array([1.0, 2.0]), jnp.array([5.0, 7.0])
    expected, found = function(*args), rest(*args)
    assert isinstance(found.base_dist, dist.Normal)
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(found.variance, expected.variance)


def test_a_distribution_that_jax_cannot_take_apart_is_left_alone():
    class Own(dist.Normal):
        def tree_flatten(self):
            return ("not an array", super().tree_flatten()[0]), None

    function = Held(lambda t, x, u: Own(x, jnp.exp(jnp.ones(2))))
    assert hoisted(function, jnp.array(0.0), jnp.zeros(2), None) is function
