"""Extended and sigma-point filters parallel in time: the sequential ones, or a status."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 answers", allow_module_level=True)

NAN = np.nan
extended = fd.ExtendedKalmanFilter()
parallel = fd.ParallelGaussianFilter()


def close(value, expected, tolerance=1e-9):
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)


def flow(x, bend):
    return 0.95 * x + bend * jnp.sin(2 * x)


def model(bend, noise=0.3):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(flow(x, bend), noise).to_event(1)),
        fd.GaussianObservation(lambda t, x, u: x + 0.2 * x**2, 0.2),
    )


#: More rows than the first guess goes through one by one; two at one time, and missing ones.
times = np.append(np.arange(199.0), 198.0)
y = np.sin(times / 9.0)[:, None] + np.cos(17 * times)[:, None] / 3
y[20:24] = NAN


@functools.cache
def batch(filter):
    """Filtered as a batch, with the derivative of its sum: (the series above, an unstable map that is
    not measured after row 1, the series with a NaN in the model)."""
    lost = y.copy()
    lost[2:] = NAN

    def one(bend, noise, y):
        result = fd.filter(model(bend, noise), fd.Series(times, y), filter)
        return jnp.where(jnp.isfinite(result.log_likelihood), result.log_likelihood, 0.0), result

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(bends):
        values, results = jax.vmap(one)(bends, jnp.array([0.3, 0.3, NAN]), jnp.stack([y, lost, y]))
        return values.sum(), results

    (_, results), slopes = total(jnp.array([0.4, 1.5, 0.4]))
    return [jax.tree.map(lambda x, i=i: x[i], results) for i in range(3)], slopes


def test_all_of_a_result_is_that_of_the_sequential_filter():
    one, other = batch(parallel)[0][0], batch(extended)[0][0]
    assert int(one.status) == int(other.status) == fd.Status.OK
    for name in (
        "mean",
        "cov",
        "innovations",
        "innovation_covs",
        "standardized_innovations",
        "log_likelihoods",
        "log_likelihood",
    ):
        close(getattr(one, name), getattr(other, name))
    close(one.predicted.mean, other.predicted.mean)
    close(one.predicted.cov, other.predicted.cov)


def test_the_gradient_is_that_of_the_sequential_filter_and_zero_after_a_failure():
    slopes, expected = batch(parallel)[1], batch(extended)[1]
    assert abs(expected[0]) > 1
    close(slopes[0], expected[0])
    np.testing.assert_array_equal(slopes[1:], 0.0)


def test_what_is_never_forgotten_is_refused_from_the_first_inexact_row():
    """Where the map without measurements comes to rest depends on where it was at the start."""
    (_, refused, _), _ = batch(parallel)
    (_, expected, _), _ = batch(extended)
    assert int(expected.status) == fd.Status.OK
    assert int(refused.status) == fd.Status.ITERATIONS_NOT_CONVERGED
    row = int(refused.failed_at)
    # The first guess goes through 128 rows one by one.
    assert 128 <= row < 199
    assert refused.log_likelihood == -np.inf
    assert np.isnan(refused.mean[row:]).all() and np.isnan(refused.cov[row:]).all()
    close(refused.mean[:row], expected.mean[:row], 1e-6)
    close(refused.cov[:row], expected.cov[:row], 1e-6)


@pytest.mark.slow
def test_a_prior_too_vague_for_the_scan_is_refused():
    vague = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), 1e14).to_event(1),
        fd.LinearTransition([[1.0, 1.0], [0.0, 1.0]], np.eye(2)),
        fd.LinearObservation([[1.0, 0.0]], 1.0),
    )
    series = fd.Series(np.arange(6.0), np.array([0.3, 1.1, 1.8, 3.2, 4.1, 4.9]))
    result = fd.filter(vague, series, parallel)
    assert (int(result.status), int(result.failed_at)) == (fd.Status.PARALLEL_INACCURATE, 2)
    assert int(fd.filter(vague, series, extended).status) == fd.Status.OK


def test_a_model_that_is_not_finite_fails_as_in_the_sequential_filter():
    one, other = batch(parallel)[0][2], batch(extended)[0][2]
    assert int(one.status) == int(other.status) == fd.Status.MODEL_NOT_FINITE
    assert int(one.failed_at) == int(other.failed_at)
    assert one.log_likelihood == -np.inf


@pytest.mark.slow
def test_too_few_iterations_are_reported_from_the_first_row_that_they_leave_inexact():
    """A pendulum that goes round forgets nothing of how often it has."""

    def spin(t, x, u):
        mean = jnp.array([x[0] + 0.1 * x[1], x[1] - 0.5 * jnp.sin(x[0])])
        return dist.Normal(mean, jnp.array([1e-3, 0.05])).to_event(1)

    rotor = fd.StateSpaceModel(
        dist.Normal(jnp.array([0.0, 3.0]), 0.3).to_event(1),
        fd.Transition(spin),
        fd.GaussianObservation(lambda t, x, u: jnp.sin(x[:1]), 0.1),
    )
    data = fd.simulate(rotor, np.arange(600.0), key=jax.random.key(0))
    series = fd.Series(data.times, data.observations)
    result = fd.filter(rotor, series, fd.ParallelGaussianFilter(max_iterations=2))
    expected = fd.filter(rotor, series, extended)
    assert int(result.status) == fd.Status.ITERATIONS_NOT_CONVERGED
    row = int(result.failed_at)
    # The first guess goes through 128 rows one by one.
    assert 128 <= row < 600
    close(result.mean[:row], expected.mean[:row], 1e-6)
    assert np.isnan(result.mean[row:]).all()


def turning(noise):
    """A target on a turn, its range and bearing measured."""
    move = np.eye(4) + np.diag([0.5, 0.5], 2)

    def bent(x):
        turn = 0.05 * jnp.array([0.0, 0.0, -x[3], x[2]]) * (1 + 0.1 * jnp.sin(x[0]))
        return jnp.asarray(move) @ x + turn

    return fd.StateSpaceModel(
        dist.Normal(jnp.array([5.0, 5.0, 1.0, 0.0]), 0.5).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(bent(x), noise).to_event(1)),
        fd.GaussianObservation(
            lambda t, x, u: jnp.stack([jnp.hypot(x[0], x[1]), jnp.arctan2(x[1], x[0])]),
            jnp.array([0.1, 0.01]),
        ),
    )


@pytest.mark.parametrize(
    ("filter", "iterations"),
    [
        pytest.param(extended, 1, marks=pytest.mark.slow),
        # (What docs/concepts/parallel.md prints says the same in every run.)
        pytest.param(extended, 3, marks=pytest.mark.slow),
        pytest.param(fd.CubatureKalmanFilter(), 3, marks=pytest.mark.slow),
        pytest.param(fd.UnscentedKalmanFilter(), 1, marks=pytest.mark.slow),
    ],
)
def test_the_smoother_is_the_sequential_one_iteration_by_iteration(filter, iterations):
    series = fd.Series(times[:150], y[:150])
    one, other = (
        fd.smooth(model(0.4), series, f, iterations=iterations)
        for f in (fd.ParallelGaussianFilter(filter), filter)
    )
    assert int(one.status) == int(other.status) == fd.Status.OK
    close(one.mean, other.mean)
    close(one.cov, other.cov)
    close(one.lag_one_covs, other.lag_one_covs)
    close(one.log_likelihood, other.log_likelihood)
    close(one.changes, other.changes, 1e-7)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("filter", [extended, fd.UnscentedKalmanFilter()])
def test_of_four_states_too_the_gradient_is_that_of_the_sequential_filter(filter):
    data = fd.simulate(turning(0.05), np.arange(300.0), key=jax.random.key(1))
    series = fd.Series(data.times, data.observations)

    def gradient(f):
        return jax.jit(jax.value_and_grad(lambda q: fd.log_likelihood(turning(q), series, f)))(0.05)

    value, expected = gradient(fd.ParallelGaussianFilter(filter)), gradient(filter)
    close(value[0], expected[0])
    close(value[1], expected[1], 1e-8)


@pytest.mark.slow
def test_second_derivatives_are_those_of_the_sequential_filter():
    series = fd.Series(times, y)
    curvature, expected = (
        jax.jit(jax.hessian(lambda bend: fd.log_likelihood(model(bend), series, f)))(0.4)  # noqa: B023
        for f in (parallel, extended)
    )
    close(curvature, expected, 1e-8)


@pytest.mark.slow
def test_single_precision_stays_close_to_double_precision():
    single = lambda x: jnp.asarray(x, jnp.float32)
    small = fd.StateSpaceModel(
        dist.Normal(single(jnp.zeros(1)), single(1.0)).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(flow(x, 0.4), single(0.3)).to_event(1)),
        fd.GaussianObservation(lambda t, x, u: x + 0.2 * x**2, single(0.2)),
    )
    result = fd.filter(small, fd.Series(times, single(y)), parallel)
    expected = batch(extended)[0][0]
    assert int(result.status) == fd.Status.OK
    assert result.mean.dtype == jnp.float32
    np.testing.assert_allclose(result.mean, expected.mean, atol=1e-4)
    np.testing.assert_allclose(result.cov, expected.cov, atol=1e-4)


def fails(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_what_goes_row_by_row_is_refused():
    make = fd.ParallelGaussianFilter
    fails(TypeError, r"`filter` is KalmanFilter; .*ParallelKalman", lambda: make(fd.KalmanFilter()))
    fails(TypeError, "`filter` is ExtendedKalmanFilter; ", lambda: make(fd.ExtendedKalmanFilter))
    several = fd.CubatureKalmanFilter(iterations=2)
    fails(ValueError, "`filter` has iterations=2; expected 1", lambda: make(several))
    plain = fd.ExtendedKalmanFilter(square_root=False)
    fails(ValueError, "`filter` has square_root=False", lambda: make(plain))
    robust = fd.ExtendedKalmanFilter(outliers=fd.HuberNoise())
    fails(ValueError, "`filter` has outliers=HuberNoise", lambda: make(robust))
    adaptive = fd.ExtendedKalmanFilter(adaptive=fd.AdaptiveNoise())
    fails(ValueError, "`filter` has adaptive=AdaptiveNoise", lambda: make(adaptive))
    fails(ValueError, "`max_iterations` is 0", lambda: make(max_iterations=0))
    fails(ValueError, "`tolerance` is 2.0", lambda: make(tolerance=2.0))
    vague = fd.StateSpaceModel(fd.Diffuse(1), model(0.4).dynamics, model(0.4).observation)
    series = fd.Series(times, y)
    fails(
        ValueError,
        r"`initial` is Diffuse.*ExtendedKalmanFilter\(\)",
        lambda: fd.filter(vague, series, parallel),
    )
