"""Smoothing with several iterations: exact on linear models, the most probable path of others."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.optimize import least_squares

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 answers", allow_module_level=True)

NAN = np.nan
LOG_2PI = np.log(2 * np.pi)
m0, P0 = np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 2.0]])
F, Q = np.array([[0.9, 0.3], [-0.2, 0.8]]), np.array([[0.2, 0.05], [0.05, 0.1]])
R = np.array([0.1, 0.2])
# A second sensor at one instant, missing entries, and a start before the first row.
times = np.array([0.0, 1.0, 1.0, 2.0, 3.0, 4.0])
y = np.array([[0.3, -0.8], [1.1, NAN], [NAN, -0.2], [NAN, NAN], [NAN, 0.4], [-0.7, 0.9]])
u = np.cos(times)[:, None]
series = fd.Series(times, y, u)
early = {"t0": -1.0, "u0": np.array([0.2])}
initial = dist.MultivariateNormal(jnp.asarray(m0), jnp.asarray(P0))
known = dist.Delta(jnp.asarray(m0), event_dim=1)
extended = fd.ExtendedKalmanFilter()


def close(value, expected, tolerance=1e-10):
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)


def same(a, b, tolerance=1e-10):
    assert int(a.status) == int(b.status) == fd.Status.OK
    close(a.mean, b.mean, tolerance)
    close(a.cov, b.cov, tolerance)
    close(a.lag_one_covs, b.lag_one_covs, tolerance)
    close(a.log_likelihood, b.log_likelihood, tolerance)


# -- Linear models: nothing changes ----------------------------------------------------------------

oscillator = fd.LinearTransition(F, Q, B=np.array([[0.0], [1.0]]))
seen = fd.LinearObservation(np.array([[1.0, 0.3], [0.0, 1.0]]), R)


@pytest.mark.parametrize(
    ("start", "filter", "exact"),
    [
        (initial, fd.UnscentedKalmanFilter(), fd.KalmanFilter()),
        pytest.param(
            known,
            fd.ExtendedKalmanFilter(square_root=False),
            fd.KalmanFilter(square_root=False),
            marks=pytest.mark.slow,
        ),
        pytest.param(fd.Diffuse(2), extended, fd.KalmanFilter(), marks=pytest.mark.slow),
        pytest.param(
            initial,
            fd.ExtendedKalmanFilter(outliers=fd.HuberNoise()),
            fd.KalmanFilter(outliers=fd.HuberNoise()),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["sigma points", "known start, covariance form", "diffuse start", "outlier rule"],
)
def test_a_linear_model_is_smoothed_exactly_by_any_number_of_iterations(start, filter, exact):
    model = fd.StateSpaceModel(start, oscillator, seen)
    result = fd.smooth(model, series, filter, iterations=3, **early)
    same(result, fd.smooth(model, series, exact, **early))
    assert result.changes.shape == (2,)
    assert np.max(result.changes) < 1e-10


# -- Taylor expansion: the most probable path ------------------------------------------------------


def bend(x, u):
    return jnp.sin(jnp.asarray(F) @ x) + 0.3 * x + u[0] * jnp.array([0.0, 0.5])


def look(x):
    return jnp.array([jnp.exp(0.4 * x[0]), x[1] + 0.3 * x[0] ** 2])


def curved(scale=1.0):
    move = lambda t, x, u: dist.MultivariateNormal(bend(x, u), scale * jnp.asarray(Q))
    return fd.StateSpaceModel(
        initial, fd.Transition(move), fd.GaussianObservation(lambda t, x, u: look(x), R)
    )


@jax.jit
def residuals(flat):
    """Minus twice the log joint density of the states at -1, 0, 1, 2, 3, 4 is their sum of squares, but
    for a constant."""
    x = flat.reshape(6, 2)
    root = lambda cov: jnp.linalg.inv(jnp.linalg.cholesky(jnp.asarray(cov)))
    held = np.array([0.2, *np.cos([0.0, 1.0, 2.0, 3.0])])[:, None]
    moves = jax.vmap(lambda x, x1, u: root(Q) @ (x1 - bend(x, u)))(x[:-1], x[1:], held)
    state = np.array([1, 2, 2, 3, 4, 5])
    errors = (y - jax.vmap(look)(x)[state]) / np.sqrt(R)
    errors = jnp.where(np.isnan(y), 0.0, errors)
    return jnp.concatenate([root(P0) @ (x[0] - m0), moves.ravel(), errors.ravel()])


@pytest.fixture(scope="module")
def path():
    jacobian = jax.jit(jax.jacobian(residuals))
    return least_squares(residuals, np.zeros(12), jacobian, xtol=1e-15, ftol=1e-15, gtol=1e-15)


@pytest.fixture(scope="module")
def iterated():
    return fd.smooth(curved(), series, extended, iterations=60, damping=0.5, **early)


def test_the_mean_converges_to_the_most_probable_path(path, iterated):
    states = path.x.reshape(6, 2)
    close(iterated.mean, states[[1, 2, 2, 3, 4, 5]], 1e-7)
    one_pass = fd.smooth(curved(), series, extended, **early)
    assert np.abs(one_pass.mean[1] - states[2]).max() > 0.01


def test_the_covariance_is_the_inverse_of_gauss_and_newtons_hessian(path, iterated):
    joint = np.linalg.inv(path.jac.T @ path.jac).reshape(6, 2, 6, 2)
    state = [1, 2, 2, 3, 4, 5]
    close(iterated.cov, [joint[k, :, k] for k in state], 1e-6)
    close(
        iterated.lag_one_covs,
        [joint[j, :, k] for k, j in itertools.pairwise(state)],
        1e-6,
    )


def test_the_log_likelihood_is_laplaces_approximation(path, iterated):
    hessian = path.jac.T @ path.jac
    count = (~np.isnan(y)).sum()
    logdets = np.linalg.slogdet(P0)[1] + 5 * np.linalg.slogdet(Q)[1]
    logdets += (np.log(R) * ~np.isnan(y)).sum()
    at_path = -0.5 * (path.fun**2).sum() - 0.5 * logdets - 0.5 * (12 + count) * LOG_2PI
    close(
        iterated.log_likelihood,
        at_path + 6 * LOG_2PI - 0.5 * np.linalg.slogdet(hessian)[1],
        1e-7,
    )


def test_changes_say_whether_the_iterations_converge(iterated):
    assert iterated.changes.shape == (59,)
    assert iterated.changes[0] > 1
    assert iterated.changes[-1] < 1e-9
    # Whole steps go to and fro between two paths here.
    undamped = fd.smooth(curved(), series, extended, iterations=60, **early)
    assert undamped.changes[-1] > 1


# -- Any rule: the textbook iteration, by dense conditioning ---------------------------------------


def dense_passes(passes):
    """A random walk seen through counts y ~ Poisson(exp(x)). Every pass replaces a count by
    exp(m) (1 + x - m) + N(0, exp(m)) and conditions the joint distribution of all states."""
    prior = 0.5 * np.ones((5, 5)) + 0.2 * np.minimum.outer(range(5), range(5))
    mean, cov, first = np.zeros(5), prior, None
    for _ in range(passes):
        if first is None:
            # As a filter does it: each count linearised given the ones before.
            m, P = np.zeros(5), prior
            for k, count in enumerate(COUNTS):
                h = np.exp(m[k]) * np.eye(5)[k]
                gain = P @ h / (h @ P @ h + np.exp(m[k]))
                m, P = m + gain * (count - np.exp(m[k])), P - np.outer(gain, h @ P)
            mean, cov = first = m, P
            continue
        H, noise = np.diag(np.exp(mean)), np.diag(np.exp(mean))
        gain = prior @ H.T @ np.linalg.inv(H @ prior @ H.T + noise)
        cov = prior - gain @ H @ prior
        mean = gain @ (COUNTS - np.exp(mean) + H @ mean)
    return mean, cov


COUNTS = np.array([2.0, 0.0, 3.0, 1.0, 4.0])


def test_counts_are_linearised_anew_in_every_iteration():
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 0.5**0.5).to_event(1),
        fd.LinearTransition([[1.0]], [[0.2]]),
        fd.Observation(lambda t, x, u: dist.Poisson(jnp.exp(x)).to_event(1)),
    )
    result = fd.smooth(model, fd.Series(np.arange(5.0), COUNTS), extended, iterations=3)
    mean, cov = dense_passes(3)
    close(result.mean[:, 0], mean)
    close(result.cov[:, 0, 0], np.diag(cov))
    close(result.lag_one_covs[:, 0, 0], np.diag(cov, 1))
    assert result.moments_matched


def on_a_grid(values):
    """Means given all rows of the model below, by sums over 1201 points."""
    x = np.linspace(-4.0, 4.0, 1201)
    move = np.exp(-0.5 * (x[:, None] - np.asarray(FLOW(x))[None]) ** 2 / 0.1)
    see = [np.exp(-0.5 * (v - np.asarray(SENSOR(x))) ** 2 / 0.05) for v in values[:, 0]]
    forward = [np.exp(-0.5 * (x - 0.8) ** 2) * see[0]]
    for likelihood in see[1:]:
        p = likelihood * (move @ forward[-1])
        forward.append(p / p.sum())
    back, means = np.ones_like(x), []
    for p, likelihood in zip(forward[::-1], see[::-1], strict=True):
        weight = p * back
        means.append((x * weight).sum() / weight.sum())
        back = move.T @ (likelihood * back)
        back = back / back.sum()
    return np.array(means[::-1])


FLOW = lambda x: 0.9 * x + 0.3 * jnp.sin(2 * x)
SENSOR = lambda x: jnp.exp(0.6 * x)


def test_posterior_linearisation_is_nearer_to_the_exact_mean_than_one_pass():
    model = fd.StateSpaceModel(
        dist.Normal(jnp.array([0.8]), 1.0).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(FLOW(x), 0.1**0.5).to_event(1)),
        fd.GaussianObservation(lambda t, x, u: SENSOR(x), 0.05),
    )
    data = fd.simulate(model, np.arange(40.0), key=jax.random.key(0))
    series = fd.Series(data.times, data.observations)
    answer = on_a_grid(np.asarray(data.observations))
    filter = fd.GaussHermiteKalmanFilter(5)
    error = [
        np.sqrt(np.mean((fd.smooth(model, series, filter, iterations=n).mean[:, 0] - answer) ** 2))
        for n in (1, 6)
    ]
    assert error[1] < 0.5 * error[0]


# -- Derivatives, failures, precision --------------------------------------------------------------


@pytest.mark.slow
def test_the_derivative_is_that_of_all_iterations():
    @jax.jit
    @jax.value_and_grad
    def moments(scale):
        result = fd.smooth(curved(scale), series, extended, iterations=3, damping=0.5, **early)
        return result.mean.sum() + result.cov.sum()

    step = 1e-5
    finite = (moments(1 + step)[0] - moments(1 - step)[0]) / (2 * step)
    close(moments(1.0)[1], finite, 1e-7)


def test_an_iteration_that_is_not_finite_fails_alone_in_a_batch():
    """A large second value pulls the state of the first row to where log(1 - x) does not exist."""

    def look(t, x, u):
        return jnp.where(t == 0, jnp.log(1 - x), x)

    def smooth(noise, value):
        model = fd.StateSpaceModel(
            dist.Normal(jnp.array([0.5]), 1.0).to_event(1),
            fd.LinearTransition([[1.0]], noise[None, None]),
            fd.GaussianObservation(look, 0.01),
        )
        rows = jnp.array([[jnp.log(0.5)], [value]])
        return fd.smooth(model, fd.Series([0.0, 1.0], rows), extended, iterations=4)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(noise, values):
        results = jax.vmap(lambda value: smooth(noise, value))(values)
        return jnp.where(jnp.isfinite(results.mean), results.mean, 0.0).sum(), results

    (_, results), slope = total(jnp.array(1e-4), jnp.array([9.0, 0.4]))
    assert results.status.tolist() == [fd.Status.MODEL_NOT_FINITE, fd.Status.OK]
    assert results.log_likelihood[0] == -np.inf
    assert np.isnan(results.mean[0]).all() and np.isnan(results.cov[0]).all()
    (_, twice), slope_of_twice = total(jnp.array(1e-4), jnp.array([0.4, 0.4]))
    close(results.mean[1], twice.mean[0])
    close(2 * slope, slope_of_twice)
    step = 1e-7
    above, below = (total(jnp.array(1e-4 + h), jnp.array([0.4, 0.4]))[0][0] for h in (step, -step))
    close(slope_of_twice, (above - below) / (2 * step), 1e-5)


@pytest.mark.slow
def test_single_precision_is_near_double_precision(iterated):
    single = lambda x: jnp.asarray(x, jnp.float32)
    move = lambda t, x, u: dist.MultivariateNormal(bend(x, u).astype(x.dtype), single(Q))
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(single(m0), single(P0)),
        fd.Transition(move),
        fd.GaussianObservation(lambda t, x, u: look(x), single(R)),
    )
    rows = fd.Series(times, single(y), single(u))
    result = fd.smooth(model, rows, extended, iterations=60, damping=0.5, t0=-1.0, u0=single([0.2]))
    assert result.mean.dtype == result.changes.dtype == jnp.float32
    np.testing.assert_allclose(result.mean, iterated.mean, atol=1e-4)
    np.testing.assert_allclose(result.cov, iterated.cov, atol=1e-4)


def test_iterations_are_counted_from_one():
    model = fd.StateSpaceModel(initial, oscillator, seen)
    with pytest.raises(ValueError, match="`iterations` is 0; expected an integer >= 1"):
        fd.smooth(model, series, extended, iterations=0)
    assert fd.smooth(model, series, extended).changes.shape == (0,)


@pytest.mark.parametrize("damping", [-0.1, 1.0, NAN])
def test_damping_leaves_part_of_a_step(damping):
    model = fd.StateSpaceModel(initial, oscillator, seen)
    with pytest.raises(ValueError, match=r"`damping` is .* expected a number 0 <= d < 1"):
        fd.smooth(model, series, extended, iterations=2, damping=damping)


def test_noise_that_adapts_is_refused():
    model = fd.StateSpaceModel(initial, oscillator, seen)
    filter = fd.ExtendedKalmanFilter(adaptive=fd.AdaptiveNoise())
    with pytest.raises(ValueError, match="`iterations` is more than 1, and `filter` learns"):
        fd.smooth(model, series, filter, iterations=2)


def test_a_filter_that_samples_is_refused():
    model = fd.StateSpaceModel(initial, oscillator, seen)
    with pytest.raises(
        ValueError, match="`iterations` is 2, and ParticleFilter linearises nothing"
    ):
        fd.smooth(model, series, fd.ParticleFilter(8), iterations=2, key=jax.random.key(0))
