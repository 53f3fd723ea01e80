"""Derivatives of the log-likelihood against those of the dense joint density, and against finite
differences."""

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("second derivatives are compared in float64", allow_module_level=True)

NAN = np.nan
y = np.array([[0.3, -0.8], [1.1, NAN], [NAN, NAN], [NAN, 0.4], [-0.7, 0.9]])
inputs = np.array([[1.0], [0.0], [-2.0], [0.5], [1.5]])
whole, irregular = np.arange(5.0), np.array([0.0, 0.3, 1.1, 1.1, 2.0])
P0 = jnp.array([[1.0, 0.3], [0.3, 2.0]])
FILTERS = pytest.mark.parametrize(
    "filter", [fd.KalmanFilter(), fd.ExtendedKalmanFilter()], ids=["Kalman", "extended"]
)


def dense_log_likelihood(start, P0, steps, H, R, d):
    """log N(observed y; its joint mean and covariance); `steps` holds (F, Q, c) from each row to
    the next."""
    means, covs = [start], {(0, 0): P0}
    for k, (F, Q, c) in enumerate(steps):
        means.append(F @ means[k] + c)
        for j in range(k + 1):
            covs[k + 1, j] = F @ (covs[k, j] if j <= k else covs[j, k].T)
        covs[k + 1, k + 1] = F @ covs[k, k] @ F.T + Q
    size = len(means)
    cov = jnp.block(
        [[covs[i, j] if j <= i else covs[j, i].T for j in range(size)] for i in range(size)]
    )
    wide = jnp.kron(jnp.eye(size), H)
    seen = np.flatnonzero(~np.isnan(y.ravel()))
    mean = (jnp.stack(means) @ H.T + d).ravel()[seen]
    S = (wide @ cov @ wide.T + jnp.kron(jnp.eye(size), R))[np.ix_(seen, seen)]
    return jax.scipy.stats.multivariate_normal.logpdf(y.ravel()[seen], mean, S)


# Of each problem: start, two entries of the dynamics, log scales of both noises, one entry of H.
THETA = jnp.array([0.5, 0.9, 0.3, -1.0, -1.2, 0.4])
B, d = jnp.array([[0.5], [1.0]]), jnp.array([0.1, -0.2])
SHAPES = {
    "full": jnp.array([[1.0, 0.3], [0.3, 0.6]]),
    "rank one": jnp.array([[1.0, 0.5], [0.5, 0.25]]),
}


def parameters(theta, shape):
    start, f, g, log_q, log_r, h = theta
    F = jnp.array([[f, g], [-0.2, 0.8]])
    R = jnp.exp(log_r) * jnp.array([[1.0, 0.3], [0.3, 1.5]])
    return (
        jnp.array([start, -1.0]),
        F,
        jnp.exp(log_q) * SHAPES[shape],
        jnp.array([[1.0, h], [0.0, 1.0]]),
        R,
    )


def initial(start, known):
    return dist.Delta(start, event_dim=1) if known else dist.MultivariateNormal(start, P0)


def discrete(known, shape):
    series = fd.Series(whole, y, inputs)

    def library(theta, filter):
        start, F, Q, H, R = parameters(theta, shape)
        dynamics = fd.LinearTransition(F, Q, B=B, b=theta[:2])
        model = fd.StateSpaceModel(initial(start, known), dynamics, fd.LinearObservation(H, R, d=d))
        return fd.log_likelihood(model, series, filter)

    def oracle(theta):
        start, F, Q, H, R = parameters(theta, shape)
        steps = [(F, Q, B @ inputs[k] + theta[:2]) for k in range(4)]
        return dense_log_likelihood(start, 0 * P0 if known else P0, steps, H, R, d)

    return library, oracle


def van_loan(A, noise, offset, gap):
    """(Phi, Q, c) over a gap by one block exponential."""
    M = jnp.zeros((6, 6)).at[:2, :2].set(-A).at[:2, 2:4].set(noise).at[2:4, 2:4].set(A.T)
    E = jsl.expm(M[:4, :4] * gap)
    Phi = E[2:, 2:].T
    affine = jsl.expm(jnp.zeros((3, 3)).at[:2, :2].set(A).at[:2, 2].set(offset) * gap)
    return Phi, Phi @ E[:2, 2:], affine[:2, 2]


def continuous(known, shape):
    series = fd.Series(irregular, y, inputs)

    def parts(theta):
        start, F, Q, H, R = parameters(theta, shape)
        L = (
            jnp.linalg.cholesky(Q)
            if shape == "full"
            else jnp.exp(theta[3] / 2) * jnp.array([[1.0], [0.5]])
        )
        return start, F - jnp.eye(2), L, H, R

    def library(theta, filter):
        start, A, L, H, R = parts(theta)
        dynamics = fd.LinearSDE(A, L, B=B, b=theta[:2])
        model = fd.StateSpaceModel(initial(start, known), dynamics, fd.LinearObservation(H, R, d=d))
        return fd.log_likelihood(model, series, filter)

    def oracle(theta):
        start, A, L, H, R = parts(theta)
        steps = [
            van_loan(A, L @ L.T, B @ inputs[k] + theta[:2], gap)
            for k, gap in enumerate(np.diff(irregular))
        ]
        return dense_log_likelihood(start, 0 * P0 if known else P0, steps, H, R, d)

    return library, oracle


KINDS = {"discrete": discrete, "continuous": continuous}
STARTS = [(False, "full"), (False, "rank one"), (True, "full"), (True, "rank one")]
#: The longest of these are the continuous ones: one of the four starts stands for all in quick runs.
every_problem = pytest.mark.parametrize(
    ("kind", "known", "shape"),
    [
        pytest.param(
            kind,
            known,
            shape,
            marks=pytest.mark.slow if kind == "continuous" and (known or shape != "full") else (),
        )
        for kind in KINDS
        for known, shape in STARTS
    ],
)


@FILTERS
@every_problem
def test_value_gradient_and_jvp_are_those_of_the_joint_density(kind, known, shape, filter):
    library, oracle = KINDS[kind](known, shape)

    @jax.jit
    def derivatives(theta, tangent):
        def value(theta):
            return library(theta, filter)

        return jax.value_and_grad(value)(theta), jax.jvp(value, (theta,), (tangent,))

    tangent = jnp.array([1.0, -0.5, 0.3, 0.7, -1.1, 0.2])
    (value, gradient), (primal, slope) = derivatives(THETA, tangent)
    exact, exact_gradient = jax.jit(jax.value_and_grad(oracle))(THETA)
    np.testing.assert_allclose(value, exact, rtol=1e-11)
    np.testing.assert_allclose(primal, exact, rtol=1e-11)
    np.testing.assert_allclose(gradient, exact_gradient, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(slope, exact_gradient @ tangent, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "kind",
    ["discrete", pytest.param("continuous", marks=[pytest.mark.slow, pytest.mark.long])],
)
@pytest.mark.parametrize(
    ("known", "shape"), [(False, "full"), pytest.param(True, "rank one", marks=pytest.mark.slow)]
)
def test_hessian_is_that_of_the_joint_density(kind, known, shape):
    library, oracle = KINDS[kind](known, shape)
    value = jax.jit(jax.hessian(lambda theta: library(theta, fd.KalmanFilter())))(THETA)
    exact = jax.jit(jax.hessian(oracle))(THETA)
    np.testing.assert_allclose(value, exact, rtol=1e-7, atol=1e-7)


def test_hessian_of_the_extended_filter_is_that_of_the_joint_density():
    library, oracle = discrete(False, "full")
    value = jax.jit(jax.hessian(lambda theta: library(theta, fd.ExtendedKalmanFilter())))(THETA)
    np.testing.assert_allclose(value, jax.jit(jax.hessian(oracle))(THETA), rtol=1e-7, atol=1e-7)


@FILTERS
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_with_respect_to_whole_matrices_is_that_of_the_joint_density(shape, filter):
    """At a singular Q a factor has no derivative; the likelihood has one. Only the symmetric
    part is defined."""
    start, F, Q, H, R = parameters(THETA, shape)
    series = fd.Series(whole, y)

    def library(parts):
        start, F, Q, R, P0 = parts
        model = fd.StateSpaceModel(
            dist.MultivariateNormal(start, P0),
            fd.LinearTransition(F, Q),
            fd.LinearObservation(H, R),
        )
        return fd.log_likelihood(model, series, filter)

    def oracle(parts):
        start, F, Q, R, P0 = parts
        return dense_log_likelihood(start, P0, [(F, Q, jnp.zeros(2))] * 4, H, R, jnp.zeros(2))

    parts = (start, F, Q, R, P0)
    value, exact = jax.jit(jax.grad(library))(parts), jax.jit(jax.grad(oracle))(parts)
    for ours, theirs in zip(value[:2], exact[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9)
    for ours, theirs in zip(value[2:], exact[2:], strict=True):
        np.testing.assert_allclose(ours + ours.T, theirs + theirs.T, rtol=1e-8, atol=1e-9)


def central_difference(function, theta, step=1e-5):
    """Fourth-order central differences, one parameter at a time."""
    rows = step * jnp.eye(len(theta))
    return jnp.array(
        [
            (
                8 * (function(theta + e) - function(theta - e))
                - (function(theta + 2 * e) - function(theta - 2 * e))
            )
            / (12 * step)
            for e in rows
        ]
    )


def pendulum(theta):
    gravity, log_q, log_r, angle = theta

    def swing(t, x, u):
        mean = jnp.array([x[0] + 0.1 * x[1], x[1] - 0.1 * gravity * jnp.sin(x[0])])
        return dist.MultivariateNormal(mean, jnp.exp(log_q) * jnp.eye(2))

    observation = fd.GaussianObservation(
        lambda t, x, u: jnp.sin(x[:1]), jnp.exp(log_r) * jnp.eye(1)
    )
    start = dist.MultivariateNormal(jnp.array([angle, 0.0]), 0.1 * jnp.eye(2))
    series = fd.Series(np.arange(5), np.array([[0.9], [0.8], [NAN], [0.5], [0.1]]))
    return fd.StateSpaceModel(start, fd.Transition(swing), observation), series


def predator_and_prey(theta):
    a, c, sigma, start = theta

    def drift(t, x, u):
        prey, predator = jnp.exp(x)
        return jnp.array([a - 0.03 * predator, -c + 0.02 * prey])

    observation = fd.Observation(lambda t, x, u: dist.LogNormal(x, 0.25).to_event(1))
    series = fd.Series(
        irregular, np.array([[30.0, 4.0], [40.0, NAN], [50.0, 9.0], [NAN, 10.0], [70.0, 20.0]])
    )
    initial = dist.Delta(jnp.array([start, 1.5]), event_dim=1)
    return fd.StateSpaceModel(initial, fd.SDE(drift, sigma, substeps=4), observation), series


@pytest.mark.parametrize(
    ("make", "at"),
    [
        (pendulum, [9.0, -4.0, -2.0, 1.2]),
        pytest.param(predator_and_prey, [0.55, 0.8, 0.2, 3.4], marks=pytest.mark.slow),
    ],
    ids=["pendulum", "predator and prey from a known start"],
)
def test_gradient_and_hessian_of_a_nonlinear_filter_meet_finite_differences(make, at):
    theta = jnp.array(at)

    def log_likelihood(theta):
        return fd.log_likelihood(*make(theta), fd.ExtendedKalmanFilter())

    value, gradient = jax.jit(log_likelihood), jax.jit(jax.grad(log_likelihood))
    np.testing.assert_allclose(
        gradient(theta), central_difference(value, theta, 1e-3), rtol=1e-7, atol=1e-7
    )
    hessian = jax.jit(jax.hessian(log_likelihood))(theta)
    np.testing.assert_allclose(
        hessian, central_difference(gradient, theta, 1e-3), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-9, atol=1e-9)


def test_gradient_with_respect_to_the_data_reaches_every_observed_entry():
    """d log p / d y of the joint Gaussian; missing entries have none."""
    start, F, Q, H, R = parameters(THETA, "full")

    def library(values):
        model = fd.StateSpaceModel(
            dist.MultivariateNormal(start, P0),
            fd.LinearTransition(F, Q),
            fd.LinearObservation(H, R),
        )
        return fd.log_likelihood(model, fd.Series(whole, values), fd.KalmanFilter())

    gradient = np.asarray(jax.jit(jax.grad(library))(jnp.asarray(y)))
    assert np.all(gradient[np.isnan(y)] == 0)
    nudged = np.where(np.isnan(y), NAN, y)
    nudged[4, 0] += 1e-4
    change = (library(jnp.asarray(nudged)) - library(jnp.asarray(y))) / 1e-4
    np.testing.assert_allclose(gradient[4, 0], change, rtol=1e-3)


def from_nowhere(q):
    """A trend about whose start nothing is known; the rows take its two dimensions up."""
    dynamics = fd.LinearTransition(jnp.array([[1.0, 1.0], [0.0, 1.0]]), q * jnp.eye(2))
    return fd.StateSpaceModel(fd.Diffuse(2), dynamics, fd.LinearObservation([[1.0, 0.0]], 0.3))


def drifting(q):
    move = fd.Transition(lambda t, x, u: dist.Normal(0.9 * x, q).to_event(1))
    start = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    return fd.StateSpaceModel(start, move, fd.LinearObservation([[1.0, 0.0]], 0.3))


@pytest.mark.parametrize(
    "make, filter",
    [
        (from_nowhere, fd.KalmanFilter()),
        (drifting, fd.ParticleFilter(30, ess_threshold=0.5, gradient="affine")),
    ],
    ids=["diffuse", "particles"],
)
def test_the_gradient_of_a_vmap_is_the_vmap_of_gradients(make, filter):
    """Also where some series take one branch of a step and some the other."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 8, 1))
    values[1, 0] = NAN
    key = jax.random.key(0) if isinstance(filter, fd.ParticleFilter) else None

    def log_likelihood(q, values):
        return fd.log_likelihood(make(q), fd.Series(np.arange(8), values), filter, key=key)

    q = jnp.array([0.5, 0.7, 0.9])
    together = jax.jit(jax.grad(lambda q: jax.vmap(log_likelihood)(q, values).sum()))(q)
    one_by_one = jax.jit(jax.vmap(jax.grad(log_likelihood)))(q, values)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together, one_by_one, rtol=1e-9)
