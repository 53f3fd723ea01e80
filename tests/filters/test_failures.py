"""A failure is the status of its own series: `-inf`, no derivative, and neighbours as if alone."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import filterdyn as fd
from filterdyn import Status

if not jax.config.jax_enable_x64:
    pytest.skip("neighbours are compared in float64", allow_module_level=True)

NAN = np.nan
EKF = fd.ExtendedKalmanFilter()
TIMES = np.array([0.0, 0.5, 1.0, 2.0])
Y = np.array([[0.9], [NAN], [0.5], [0.4]])


# Drifts that leave their domain where the state starts too high; `a` is shared by all series.
DOMAINS = {
    "sqrt": lambda a, x: -jnp.sqrt(a - x),
    "log": lambda a, x: jnp.log(a - x) - 1.0,
}
STARTS = jnp.array([1.0, 0.5, 3.0, 0.8])  # the third is out of the domain of a = 2
GOOD = np.array([0, 1, 3])


def tank(kind, a, start):
    return fd.StateSpaceModel(
        dist.Normal(start[None], 0.02).to_event(1),
        fd.SDE(lambda t, x, u: DOMAINS[kind](a, x), 0.1 * a, substeps=3),
        fd.GaussianObservation(lambda t, x, u: x * a, 0.1),
    )


def of_one(kind, a, start):
    return fd.log_likelihood(tank(kind, a, start), fd.Series(TIMES, Y), EKF)


@pytest.mark.parametrize("kind", DOMAINS)
def test_a_series_out_of_the_domain_leaves_the_shared_gradient_to_the_others(kind):
    def total(a):
        values = jax.vmap(lambda start: of_one(kind, a, start))(STARTS)
        return jnp.where(jnp.isfinite(values), values, 0.0).sum(), values

    (_, values), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(2.0)
    one = jax.jit(jax.value_and_grad(lambda a, start: of_one(kind, a, start)))
    alone = [one(2.0, start) for start in STARTS]
    assert values[2] == alone[2][0] == -jnp.inf
    assert alone[2][1] == 0.0
    np.testing.assert_allclose(values[GOOD], [alone[k][0] for k in GOOD], rtol=1e-12)
    np.testing.assert_allclose(gradient, sum(alone[k][1] for k in GOOD), rtol=1e-11)


def test_the_sum_over_a_batch_with_a_failed_series_has_the_gradient_of_the_others():
    """Without a `where` of the caller's own: the sum is -inf, and its gradient is finite."""

    def total(a):
        return jax.vmap(lambda start: of_one("sqrt", a, start))(STARTS).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(2.0)
    alone = [jax.grad(lambda a, s=start: of_one("sqrt", a, s))(2.0) for start in STARTS[GOOD]]
    assert value == -jnp.inf
    np.testing.assert_allclose(gradient, sum(alone), rtol=1e-11)


def test_a_jvp_through_a_failed_series_is_finite():
    values, slopes = jax.jit(
        lambda a: jax.jvp(
            lambda a: jax.vmap(lambda start: of_one("sqrt", a, start))(STARTS), (a,), (1.0,)
        )
    )(2.0)
    assert values[2] == -jnp.inf and slopes[2] == 0.0
    assert np.isfinite(slopes).all() and np.all(slopes[GOOD] != 0)


@pytest.mark.slow
def test_smoothing_a_batch_with_a_failed_series_leaves_the_others_exact():
    def smoothed(a, start):
        result = fd.smooth(tank("sqrt", a, start), fd.Series(TIMES, Y), EKF)
        return result.mean, result.cov, result.status, result.failed_at

    def total(a):
        mean, cov, _, _ = jax.vmap(lambda start: smoothed(a, start))(STARTS)
        seen = jnp.where(jnp.isfinite(mean), mean, 0.0).sum((1, 2))
        return (seen + jnp.where(jnp.isfinite(cov), cov, 0.0).sum((1, 2, 3))).sum()

    mean, cov, status, row = jax.jit(jax.vmap(lambda start: smoothed(2.0, start)))(STARTS)
    assert list(status) == [0, 0, Status.MODEL_NOT_FINITE, 0]
    assert list(row) == [-1, -1, 1, -1]
    assert np.isnan(mean[2]).all() and np.isnan(cov[2]).all()
    one = jax.jit(lambda start: smoothed(2.0, start)[:2])
    for k in GOOD:
        alone_mean, alone_cov = one(STARTS[k])
        np.testing.assert_allclose(mean[k], alone_mean, rtol=1e-12)
        np.testing.assert_allclose(cov[k], alone_cov, rtol=1e-12)

    def total_of_good(a):
        mean, cov, _, _ = jax.vmap(lambda start: smoothed(a, start))(STARTS[GOOD])
        return mean.sum() + cov.sum()

    gradient = jax.jit(jax.grad(total))(2.0)
    np.testing.assert_allclose(gradient, jax.jit(jax.grad(total_of_good))(2.0), rtol=1e-11)


def test_a_failed_series_shows_its_good_rows_and_nothing_after():
    """x' = -sqrt(2 - x) from 1.95, then an input pushes it out of the domain."""
    drift = lambda t, x, u: -jnp.sqrt(2.0 - x) + 20.0 * u
    model = fd.StateSpaceModel(
        dist.Normal(jnp.array([1.0]), 0.1).to_event(1),
        fd.SDE(drift, 0.1, substeps=3),
        fd.GaussianObservation(lambda t, x, u: x, 0.1),
    )
    data = fd.Series(TIMES, Y, [0.0, 1.0, 0.0, 0.0])
    result = fd.filter(model, data, EKF)
    assert (result.status, result.failed_at) == (Status.MODEL_NOT_FINITE, 2)
    assert np.isfinite(result.mean[:2]).all() and np.isnan(result.mean[2:]).all()
    assert np.isnan(result.cov[2:]).all() and np.isnan(result.predicted.mean[2:]).all()
    assert np.isfinite(result.log_likelihoods[:2]).all()
    assert np.all(np.asarray(result.log_likelihoods[2:]) == -np.inf)
    assert result.log_likelihood == -np.inf
    before = fd.filter(model, data[:2], EKF)
    np.testing.assert_allclose(result.mean[:2], before.mean, rtol=1e-12)


# Model functions that return NaN.
start = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
walk = fd.LinearTransition(np.eye(2), np.eye(2))
sees = fd.LinearObservation(np.eye(2)[:1], 1.0)
NOT_FINITE = {
    "field": (fd.ODE(lambda t, x, u: x * NAN), sees, 1),
    "drift from a time on": (
        fd.SDE(lambda t, x, u: jnp.where(t > 0.7, NAN, x), 1.0, substeps=2), sees, 2
    ),
    "diffusion": (fd.SDE(lambda t, x, u: -x, lambda t, x, u: x * NAN, substeps=2), sees, 1),
    "transition": (
        fd.Transition(lambda t, x, u: dist.Normal(x * NAN, 1.0).to_event(1)), sees, 1
    ),
    "Q that is negative": (fd.LinearTransition(np.eye(2), lambda t: -jnp.eye(2)), sees, 1),
    "h": (walk, fd.GaussianObservation(lambda t, x, u: x[:1] * NAN, 1.0), 0),
    "R that is NaN": (walk, fd.LinearObservation(np.eye(2)[:1], lambda t: NAN), 0),
    "R that is negative": (walk, fd.LinearObservation(np.eye(2)[:1], lambda t: -0.5), 0),
    "R with a negative entry": (
        walk, fd.LinearObservation(np.eye(2)[:1], lambda t: -0.5 * jnp.eye(1)), 0
    ),
    "mean of a distribution": (
        walk, fd.Observation(lambda t, x, u: dist.Normal(x[:1] * NAN, 1.0).to_event(1)), 0
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_FINITE)
def test_a_model_function_that_is_not_finite_is_a_status(what):
    dynamics, observation, row = NOT_FINITE[what]
    model = fd.StateSpaceModel(start, dynamics, observation)
    result = fd.filter(model, fd.Series(TIMES, [1.0, 2.0, 3.0, 4.0]), EKF)
    assert (result.status, result.failed_at) == (Status.MODEL_NOT_FINITE, row)
    assert result.log_likelihood == -np.inf
    assert fd.log_likelihood(model, fd.Series(TIMES, Y), EKF) == -np.inf


@pytest.mark.parametrize(
    "matrix",
    [[[1.0, 2.0], [2.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]]],
    ids=["correlation above 1", "first variance negative", "second variance negative"],
)
def test_a_traced_covariance_that_is_none_never_gives_a_number(matrix):
    """Where nothing can be checked beforehand: sampled parameters that make Q or R indefinite."""
    data = fd.Series([0, 1], np.ones((2, 2)))

    def noisy(r):
        model = fd.StateSpaceModel(start, walk, fd.LinearObservation(np.eye(2), r))
        return fd.log_likelihood(model, data, fd.KalmanFilter())

    def driven(q):
        dynamics = fd.LinearTransition(np.eye(2), q)
        model = fd.StateSpaceModel(start, dynamics, fd.LinearObservation(np.eye(2), 1.0))
        return fd.log_likelihood(model, data, fd.KalmanFilter())

    for function in (noisy, driven):
        value, gradient = jax.jit(jax.value_and_grad(function))(jnp.array(matrix))
        assert value == -jnp.inf and np.all(np.asarray(gradient) == 0)
        assert np.isfinite(jax.jit(function)(jnp.eye(2)))


def test_a_measurement_without_noise_of_a_known_state_is_a_status():
    known = fd.StateSpaceModel(
        dist.Delta(jnp.zeros(2), event_dim=1), walk, fd.LinearObservation(np.eye(2)[:1], 0.0)
    )
    result = fd.filter(known, fd.Series([0, 1], [1.0, 2.0]), fd.KalmanFilter())
    assert (result.status, result.failed_at) == (Status.SINGULAR_INNOVATION, 0)


# Solvers that run out of steps.
def spring(stiffness, **stepping):
    """x'' = -stiffness x; the stiffer, the more adaptive steps a gap takes."""

    def field(t, x, u):
        return jnp.array([x[1], -stiffness * x[0]])

    return fd.StateSpaceModel(
        dist.Normal(jnp.array([1.0, 0.0]), 0.1).to_event(1),
        fd.ODE(field, **stepping),
        fd.GaussianObservation(lambda t, x, u: x[:1], 0.1),
    )


STIFFNESS = jnp.array([1.0, 4000.0, 2.0])
ADAPTIVE = dict(stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-8), max_steps=64)


def test_a_solver_out_of_steps_fails_its_own_series():
    def run(stiffness):
        result = fd.filter(spring(stiffness, **ADAPTIVE), fd.Series(TIMES, Y), EKF)
        return result.log_likelihood, result.status, result.failed_at, result.mean

    values, statuses, rows, means = jax.jit(jax.vmap(run))(STIFFNESS)
    assert list(statuses) == [Status.OK, Status.SOLVER_OUT_OF_STEPS, Status.OK]
    assert list(rows) == [-1, 1, -1]
    assert values[1] == -jnp.inf
    one = jax.jit(run)
    assert one(STIFFNESS[1])[1] == Status.SOLVER_OUT_OF_STEPS
    for k in (0, 2):
        value, _, _, mean = one(STIFFNESS[k])
        np.testing.assert_allclose(values[k], value, rtol=1e-12)
        np.testing.assert_allclose(means[k], mean, rtol=1e-12, atol=1e-14)


@pytest.mark.long
@pytest.mark.slow
def test_a_solver_out_of_steps_leaves_the_shared_gradient_to_the_others():
    def total(scale, stiffness):
        return jax.vmap(
            lambda k: fd.log_likelihood(spring(scale * k, **ADAPTIVE), fd.Series(TIMES, Y), EKF)
        )(stiffness).sum()

    gradient = jax.jit(jax.grad(total))
    batch = gradient(1.0, STIFFNESS)
    alone = gradient(1.0, STIFFNESS[:1]) + gradient(1.0, STIFFNESS[2:])
    np.testing.assert_allclose(batch, alone, rtol=1e-11)


def test_a_gap_that_needs_more_than_max_substeps_fails_its_own_series():
    times = jnp.array([[0.0, 0.5, 1.0, 2.0], [0.0, 0.5, 3.0, 3.5], [0.0, 0.0, 0.7, 1.0]])

    def run(times):
        model = spring(2.0, dt=0.125, max_substeps=8)
        result = fd.filter(model, fd.Series(times, Y), EKF)
        return result.log_likelihood, result.status, result.failed_at

    values, statuses, rows = jax.jit(jax.vmap(run))(times)
    assert list(statuses) == [Status.OK, Status.SOLVER_OUT_OF_STEPS, Status.OK]
    assert list(rows) == [-1, 2, -1] and values[1] == -jnp.inf
    one = jax.jit(run)
    for k in (0, 2):
        np.testing.assert_allclose(values[k], one(times[k])[0], rtol=1e-12)


# What is no failure.
@pytest.mark.parametrize(
    "dynamics",
    [
        walk,
        fd.LinearSDE(-np.eye(2), 1.0),
        fd.ODE(lambda t, x, u: -x, substeps=2),
        fd.SDE(lambda t, x, u: -x, 1.0, substeps=2),
        fd.ODE(lambda t, x, u: -x, dt=0.3),
        fd.Transition(lambda t, x, u: dist.Normal(x, 1.0).to_event(1)),
    ],
    ids=["LinearTransition", "LinearSDE", "ODE", "SDE", "ODE by dt", "Transition"],
)
def test_nothing_observed_repeated_times_and_single_rows(dynamics):
    model = fd.StateSpaceModel(start, dynamics, sees)
    times = [0.0, 0.5, 0.5, 1.0]
    nothing = fd.filter(model, fd.Series(times, [NAN] * 4), EKF)
    assert nothing.log_likelihood == 0.0 and np.all(np.asarray(nothing.log_likelihoods) == 0.0)
    assert nothing.status == Status.OK
    # A second measurement at the same instant moves nothing but adds what it says.
    np.testing.assert_array_equal(nothing.mean[1], nothing.mean[2])
    np.testing.assert_array_equal(nothing.cov[1], nothing.cov[2])
    result = fd.filter(model, fd.Series(times, [NAN, 1.0, 2.0, NAN]), EKF)
    m, p = result.predicted.mean[1, 0], result.predicted.cov[1, 0, 0]
    both = stats.multivariate_normal([m, m], p + np.eye(2)).logpdf([1.0, 2.0])
    np.testing.assert_allclose(result.log_likelihood, both, rtol=1e-11)
    # A single row is the prior and its measurement.
    one = fd.filter(model, fd.Series([7.0], [1.5]), EKF)
    np.testing.assert_allclose(
        one.log_likelihood, stats.norm.logpdf(1.5, 0.0, np.sqrt(2.0)), rtol=1e-12
    )
    assert one.mean.shape == (1, 2) and one.failed_at == -1


def test_the_vmapped_gradient_is_the_gradient_of_each():
    def log_likelihood(theta, y):
        model = fd.StateSpaceModel(
            start,
            fd.SDE(lambda t, x, u: -theta[0] * x, theta[1], substeps=2),
            fd.LinearObservation(np.eye(2)[:1], theta[2]),
        )
        return fd.log_likelihood(model, fd.Series(TIMES, y), EKF)

    thetas = jnp.array([[0.5, 0.3, 0.1], [1.0, 0.8, 0.4]])
    ys = jnp.array([[[1.0], [NAN], [0.5], [0.1]], [[NAN], [0.3], [0.2], [0.9]]])
    gradient = jax.grad(log_likelihood)
    batch = jax.jit(jax.vmap(gradient))(thetas, ys)
    for k in range(2):
        np.testing.assert_allclose(batch[k], jax.jit(gradient)(thetas[k], ys[k]), rtol=1e-11)


class Reservoir(eqx.Module):
    """Outflow through a valve that cannot run backwards: out of its domain below the valve."""

    level: jax.Array

    def __call__(self, t, x, u):
        return -jnp.sqrt(x - self.level)


def test_a_failed_model_of_a_batch_leaves_the_other_models_their_gradients():
    levels = jnp.array([0.0, 1.5, -1.0])

    def make(level):
        return fd.StateSpaceModel(
            dist.Normal(jnp.array([1.0]), 0.1).to_event(1),
            fd.SDE(Reservoir(level), 0.1, substeps=2),
            fd.GaussianObservation(lambda t, x, u: x, 0.1),
        )

    def log_probs(levels):
        batch = eqx.filter_vmap(make)(levels)
        observed = fd.ObservedSeries(batch, TIMES, filter=EKF, batch_shape=(3,))
        return observed.log_prob(jnp.asarray(Y))

    values, gradients = jax.jit(
        lambda v: (log_probs(v), jax.grad(lambda v: log_probs(v).sum())(v))
    )(levels)
    assert values[1] == -jnp.inf and gradients[1] == 0.0
    alone = jax.jit(
        jax.value_and_grad(lambda v: fd.log_likelihood(make(v), fd.Series(TIMES, Y), EKF))
    )
    for k in (0, 2):
        value, gradient = alone(levels[k])
        np.testing.assert_allclose(values[k], value, rtol=1e-12)
        np.testing.assert_allclose(gradients[k], gradient, rtol=1e-11)
