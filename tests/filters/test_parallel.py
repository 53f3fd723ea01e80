"""The filter and smoother that are parallel in time: exact where they answer, and a status where they
cannot."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from filters import test_dense_oracle as dense_oracle
from filters import test_gradients as gradients
from filters import test_hard_cases as hard
from filters.test_dense_oracle import SETUPS, close, exact

import filterdyn as fd
from filterdyn.filters import parallel_beliefs
from filterdyn.filters.elements import Element, combine
from filterdyn.filters.prefix import prefix_products
from filterdyn.smoothers import parallel as parallel_smoother

INACCURATE = int(fd.Status.PARALLEL_INACCURATE)
NAN = np.nan


@functools.cache
def filtered(name):
    s = SETUPS[name]
    return fd.filter(s.model, s.series, fd.ParallelKalmanFilter(), **s.start)


@functools.cache
def smoothed(name):
    s = SETUPS[name]
    return fd.smooth(s.model, s.series, fd.ParallelKalmanFilter(), **s.start)


#: Of these the compilation is affordable in every run.
OFTEN = ("continuous, prior early",)
every_setup = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in SETUPS],
)


@every_setup
def test_beliefs_are_those_of_dense_conditioning(name):
    result, answer = filtered(name), exact(name)
    assert int(result.status) == fd.Status.OK
    close(result.predicted.mean, answer.predicted_mean)
    close(result.predicted.cov, answer.predicted_cov)
    close(result.mean, answer.filtered_mean)
    close(result.cov, answer.filtered_cov)


@every_setup
def test_log_likelihood_is_the_density_of_the_observed_entries(name):
    close(filtered(name).log_likelihoods, exact(name).log_likelihoods)
    close(filtered(name).log_likelihood, exact(name).log_likelihood)


@every_setup
def test_smoothed_beliefs_condition_on_all_rows(name):
    result, answer = smoothed(name), exact(name)
    assert int(result.status) == fd.Status.OK
    close(result.mean, answer.smoothed_mean)
    close(result.cov, answer.smoothed_cov)
    close(result.log_likelihood, answer.log_likelihood)


def test_everything_else_in_a_result_is_that_of_the_sequential_filter():
    name = "continuous, prior early"
    s, result, other = SETUPS[name], filtered(name), dense_oracle.filtered(name)
    close(result.innovations, other.innovations)
    close(result.innovation_covs, other.innovation_covs)
    close(result.standardized_innovations, other.standardized_innovations)
    lag_one = fd.smooth(s.model, s.series, fd.KalmanFilter(), **s.start).lag_one_covs
    close(smoothed(name).lag_one_covs, lag_one)


@pytest.mark.slow
def test_sampled_paths_are_those_of_the_sequential_filter():
    s, key = SETUPS["discrete, repeated times"], jax.random.key(0)
    paths = [
        fd.sample_paths(s.model, s.series, filter, key=key, num_samples=3)
        for filter in (fd.ParallelKalmanFilter(), fd.KalmanFilter())
    ]
    close(*paths)


@pytest.mark.slow
def test_online_the_numbers_are_those_of_the_batch():
    s, result = SETUPS["discrete, repeated times"], filtered("discrete, repeated times")
    online = fd.OnlineFilter(s.model, fd.ParallelKalmanFilter())
    state = online.init(s.times[0])
    for t, y, u in zip(s.times, s.series.observations, dense_oracle.inputs, strict=True):
        state, _ = online.step(state, t, np.asarray(y), u)
    close(state.mean, result.mean[-1], 1e-12)
    close(state.log_likelihood, result.log_likelihood, 1e-12)


# -- The pieces ------------------------------------------------------------------------------------


def random_element(seed, n=3):
    draw = np.random.default_rng(seed).standard_normal
    return Element(*(jnp.asarray(draw(s)) for s in ((n, n), n, (n, n), n, (n, n))))


def test_two_elements_combine_as_their_covariances_and_informations_do():
    i, j = random_element(1), random_element(2)
    both = jax.jit(combine)(i, j)
    C, J = i.u @ i.u.T, j.z @ j.z.T
    left = j.a @ np.linalg.inv(np.eye(3) + C @ J)
    right = i.a.T @ np.linalg.inv(np.eye(3) + J @ C)
    close(both.a, left @ i.a)
    close(both.b, left @ (i.b + C @ j.eta) + j.b)
    close(both.u @ both.u.T, left @ C @ j.a.T + j.u @ j.u.T)
    close(both.eta, right @ (j.eta - J @ i.b) + i.eta)
    close(both.z @ both.z.T, right @ J @ i.a + i.z @ i.z.T)


def test_the_order_of_combining_does_not_matter():
    i, j, k = (random_element(seed) for seed in (1, 2, 3))
    pair = jax.jit(combine)
    first, second = pair(pair(i, j), k), pair(i, pair(j, k))
    close(first.a, second.a)
    close(first.b, second.b)
    close(first.u @ first.u.T, second.u @ second.u.T)
    close(first.eta, second.eta)
    close(first.z @ first.z.T, second.z @ second.z.T)


@pytest.mark.parametrize("count", [1, 8, 100])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_prefix_products_are_those_of_a_loop(count, reverse):
    matrices = 0.7 * np.random.default_rng(count).standard_normal((count, 2, 2))
    found = jax.jit(lambda x: prefix_products(jnp.matmul, x, reverse))(matrices)
    order = matrices[::-1] if reverse else matrices
    products = [order[0]]
    for matrix in order[1:]:
        products.append(products[-1] @ matrix)
    close(found, np.array(products[::-1] if reverse else products))


def test_a_longer_series_is_no_larger_program():
    def size(count):
        matrices = jax.ShapeDtypeStruct((count, 2, 2), jnp.float64)
        return len(jax.make_jaxpr(lambda x: prefix_products(jnp.matmul, x))(matrices).eqns)

    assert size(10_001) == size(101)


# -- The cross-check -------------------------------------------------------------------------------


def position(filter, transition, noise, prior_sd, sensor, y):
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), prior_sd).to_event(1),
        fd.LinearTransition(transition, noise),
        fd.LinearObservation([[1.0, 0.0]], sensor),
    )
    result = fd.filter(model, fd.Series(np.arange(6.0), y), filter)
    return result.log_likelihood, result


@functools.cache
def compiled(filter):
    """`position`, differentiated by the variance of its sensor."""
    function = functools.partial(position, filter)
    return jax.jit(jax.value_and_grad(function, argnums=3, has_aux=True))


#: Covariances of 1e28 and 1 in one model.
BEYOND = (
    np.array([[1.0, 1.0], [0.0, 1.0]]),
    np.eye(2),
    1e14,
    1.0,
    np.array([[0.3], [1.1], [1.8], [3.2], [4.1], [4.9]]),
)
#: Exactly seen, exchanged without noise, exactly seen.
EXCHANGED = (
    np.array([[0.0, 1.0], [1.0, 0.0]]),
    np.zeros((2, 2)),
    1.0,
    0.0,
    np.array([[0.3], [1.1], [NAN], [NAN], [NAN], [NAN]]),
)


def assert_refused_from(row, result, sequential):
    assert (int(result.status), int(result.failed_at)) == (INACCURATE, row)
    assert int(sequential.status) == fd.Status.OK
    assert float(result.log_likelihood) == -np.inf
    close(result.log_likelihoods[:row], sequential.log_likelihoods[:row], 1e-6)
    np.testing.assert_array_equal(np.asarray(result.log_likelihoods[row:]), -np.inf)
    assert np.isfinite(np.asarray(result.mean[:row])).all()
    for wrong in (result.mean, result.cov, result.predicted.mean, result.innovations):
        assert np.isnan(np.asarray(wrong[row:])).all()


def test_a_prior_too_vague_for_the_scan_is_refused_with_a_gradient_of_zero():
    (_, result), slope = compiled(fd.ParallelKalmanFilter())(*BEYOND)
    assert_refused_from(2, result, compiled(fd.KalmanFilter())(*BEYOND)[0][1])
    assert float(slope) == 0.0


def test_within_the_envelope_value_and_gradient_are_those_of_the_sequential_filter():
    transition, noise, _, sensor, y = BEYOND
    y = np.where(np.arange(6)[:, None] == 3, NAN, y)
    (value, result), slope = compiled(fd.ParallelKalmanFilter())(transition, noise, 2.0, sensor, y)
    (expected, other), slope_expected = compiled(fd.KalmanFilter())(
        transition, noise, 2.0, sensor, y
    )
    close(value, expected, 1e-12)
    close(result.mean, other.mean, 1e-12)
    close(slope, slope_expected, 1e-12)


def test_an_exact_sensor_without_noise_in_between_has_no_element_and_is_refused():
    results = [
        compiled(f)(*EXCHANGED)[0][1] for f in (fd.ParallelKalmanFilter(), fd.KalmanFilter())
    ]
    assert_refused_from(1, *results)


#: Each in one precision, in turn: the compilation of both would take a quarter of an hour of one core.
PRECISIONS = {name: [p for n, p in hard.PROBLEMS if n == name] for name, _ in hard.PROBLEMS}
IN_TURN = [(name, found[k % len(found)]) for k, (name, found) in enumerate(PRECISIONS.items())]
#: All of them take ten minutes.
EVERY = 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(*p, id=", ".join(p), marks=[pytest.mark.long] if k % EVERY else [])
        for k, p in enumerate(IN_TURN)
    ],
)
def test_an_ill_conditioned_problem_is_solved_as_by_the_sequential_filter_or_refused(
    name, precision
):
    model, series, answer = hard.problem(name, precision)
    filter, allowed = fd.ParallelKalmanFilter(), hard.allowed(name, precision)
    scale = hard.natural_scale(answer)
    result, smooth = fd.filter(model, series, filter), fd.smooth(model, series, filter)
    statuses = {int(result.status), int(smooth.status)}
    assert statuses <= {int(fd.Status.OK), INACCURATE}

    def right(belief, mean, cov):
        found = hard.metrics(
            np.asarray(belief.mean, float), np.asarray(belief.cov, float), mean, cov, scale
        )
        assert found[0] <= allowed.mean_sd
        assert found[1] <= allowed.cov_rel

    if int(result.status) == fd.Status.OK:
        error = hard.loglik_rel(float(result.log_likelihood), answer.log_likelihood)
        assert error <= allowed.loglik_rel
        right(result.predicted, answer.predicted_mean, answer.predicted_cov)
        right(result.filtered, answer.filtered_mean, answer.filtered_cov)
    else:
        assert float(result.log_likelihood) == -np.inf
        assert np.isnan(np.asarray(result.mean[-1])).all()
    if int(smooth.status) == fd.Status.OK:
        right(smooth.smoothed, answer.smoothed_mean, answer.smoothed_cov)
    else:
        assert float(smooth.log_likelihood) == -np.inf
        assert np.isnan(np.asarray(smooth.mean)).all()


def constant(rows):
    """An unknown number, measured only at the end: an error made anywhere stays as it is."""
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition([[1.0]], [[0.0]]),
        fd.LinearObservation([[1.0]], 0.5),
    )
    y = np.full((rows, 1), NAN)
    y[-1] = 0.3
    return model, fd.Series(np.arange(float(rows)), y)


def with_errors_in_the_scan(monkeypatch, module, name, change):
    honest = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: change(honest(*args, **kwargs)))


@functools.cache
def with_errors():
    """The filter of `constant(6)` whose scan makes errors: factors on its variances, shifts of means."""
    model, series = constant(6)

    def result(factors, shifts):
        def change(whole):
            b, u = whole.b + shifts[:, None], whole.u * jnp.sqrt(1 + factors)[:, None, None]
            return whole._replace(b=b, u=u)

        with pytest.MonkeyPatch.context() as monkeypatch:
            with_errors_in_the_scan(monkeypatch, parallel_beliefs, "scan_elements", change)
            return fd.filter(model, series, fd.ParallelKalmanFilter())

    return jax.jit(result)


@pytest.mark.parametrize(
    ("errors", "row"),
    [
        ([0, 0, 0, 0, 0, 0], -1),
        ([0, 0, 1e-8, 0, 0, 0], -1),
        ([0, 0, 1e-5, 0, 0, 0], 2),
        ([0, 6e-7, 1.2e-6, 1.8e-6, 2.4e-6, 3.0e-6], 3),
    ],
    ids=["none", "below the tolerance", "one above it", "many below it that add up"],
)
def test_an_error_of_the_scan_is_found_where_it_reaches_a_result(errors, row):
    # The variance of every row is 1, and the error of a row reaches the next one.
    result = with_errors()(jnp.asarray(errors, float), jnp.zeros(6))
    assert int(result.failed_at) == row
    assert int(result.status) == (fd.Status.OK if row < 0 else INACCURATE)


def test_errors_in_the_means_of_the_scan_are_taken_out():
    result = with_errors()(jnp.zeros(6), jnp.array([0.0, 1e-3, 0.0, -2e-3, 0.0, 0.0]))
    sequential = fd.filter(*constant(6), fd.KalmanFilter())
    close(result.predicted.mean, sequential.predicted.mean, 1e-14)
    close(result.log_likelihood, sequential.log_likelihood, 1e-14)


def test_an_error_of_the_smoothers_scan_makes_the_whole_smoother_fail(monkeypatch):
    s = SETUPS["discrete"]

    @jax.jit
    def smooth(error):
        change = lambda products: products._replace(shift=products.shift.at[2].add(error))
        with_errors_in_the_scan(monkeypatch, parallel_smoother, "prefix_products", change)
        return fd.smooth(s.model, s.series, fd.ParallelKalmanFilter())

    for error, status in ((1e-8, fd.Status.OK), (1e-5, INACCURATE)):
        result = smooth(error)
        assert int(result.status) == status
        assert np.isfinite(float(result.log_likelihood)) == (status == 0)
        assert np.isnan(np.asarray(result.mean)).all() == (status != 0)


# -- Derivatives -----------------------------------------------------------------------------------

CASES = {
    "discrete": gradients.discrete(known=False, shape="full"),
    "continuous, known start, Q of rank one": gradients.continuous(known=True, shape="rank one"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradient_is_that_of_the_dense_density(case):
    library, oracle = CASES[case]
    gradient = jax.jit(jax.grad(lambda theta: library(theta, fd.ParallelKalmanFilter())))
    close(gradient(gradients.THETA), jax.grad(oracle)(gradients.THETA), 1e-8)


@pytest.mark.slow
def test_forward_mode_and_second_derivatives_are_those_of_the_dense_density():
    library, oracle = CASES["discrete"]
    hessian = jax.jit(jax.hessian(lambda theta: library(theta, fd.ParallelKalmanFilter())))
    close(hessian(gradients.THETA), jax.hessian(oracle)(gradients.THETA), 1e-7)


def oscillator(theta, filter, verb):
    rate, drift, noise = theta
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(drift * jnp.ones(2), jnp.eye(2)),
        fd.LinearSDE(jnp.array([[0.0, 1.0], [0.0, 0.0]]) - rate * jnp.eye(2), drift * jnp.eye(2)),
        fd.LinearObservation(jnp.array([[1.0, 0.3]]), noise),
    )
    times = np.array([0.0, 0.5, 0.5, 1.2, 2.0, 2.1, 3.0, 4.0, 4.5, 5.0])
    y = np.sin(times)[:, None]
    y[3] = NAN
    return verb(model, fd.Series(times, y), filter)


@pytest.mark.slow
def test_smoothed_moments_have_the_derivative_of_finite_differences():
    def moments(theta):
        result = oscillator(theta, fd.ParallelKalmanFilter(), fd.smooth)
        return jnp.concatenate([result.mean.ravel(), result.cov.ravel()])

    def both(theta):
        return jax.jacfwd(lambda theta: (moments(theta),) * 2, has_aux=True)(theta)

    theta, h, both = jnp.array([0.3, 0.7, 0.4]), 1e-5, jax.jit(both)
    value = lambda theta: both(theta)[1]
    slopes = [(value(theta + h * e) - value(theta - h * e)) / (2 * h) for e in jnp.eye(3)]
    close(both(theta)[0], np.stack(slopes, axis=1), 1e-8)


# -- Failures, batches, precision ------------------------------------------------------------------


@pytest.mark.slow
def test_a_failed_series_of_a_batch_fails_as_the_sequential_one_and_leaves_its_neighbour_exact():
    times = np.arange(7.0)
    y = np.array([[0.3, 1.1, 0.2, NAN, 0.9, -0.4, 0.1], [1.3, 0.1, 0.7, 0.2, NAN, 0.4, 0.2]])

    def values(a, ends, filter):
        def one(end, y):
            model = fd.StateSpaceModel(
                dist.Normal(jnp.zeros(1), 1.0).to_event(1),
                # NaN from t > end on.
                fd.LinearTransition([[0.9]], [[0.3]], b=lambda t: a * jnp.sqrt(end - t)[None]),
                fd.LinearObservation([[1.0]], 0.5),
            )
            result = fd.filter(model, fd.Series(times, y[:, None]), filter)
            return result.log_likelihood, (result.failed_at, result.status, result.mean)

        return jax.vmap(one)(ends, y)

    def total(a, ends, filter):
        value, rest = values(a, ends, filter)
        return jnp.where(jnp.isfinite(value), value, 0.0).sum(), rest

    ends = jnp.array([2.5, 50.0])
    results = [
        jax.jit(jax.value_and_grad(lambda a: total(a, ends, filter), has_aux=True))(0.4)  # noqa: B023
        for filter in (fd.ParallelKalmanFilter(), fd.KalmanFilter())
    ]
    ((value, rest), slope), ((other_value, other_rest), other_slope) = results
    close(value, other_value)
    close(slope, other_slope)
    for one, other in zip(rest, other_rest, strict=True):
        close(one, other)
    assert int(rest[0][0]) == 4


@pytest.mark.slow
def test_float32_stays_close_to_float64():
    def run(dtype, filter, offset):
        array = lambda x: jnp.asarray(x, dtype)
        model = fd.StateSpaceModel(
            dist.MultivariateNormal(array([offset, 0.0]), array(np.eye(2))),
            fd.LinearTransition(array([[1.0, 0.1], [0.0, 1.0]]), array(0.01 * np.eye(2))),
            fd.LinearObservation(array([[1.0, 0.0]]), array(1.0)),
        )
        y = offset + np.round(8 * np.random.default_rng(0).standard_normal((300, 1))) / 8
        return fd.filter(model, fd.Series(np.arange(300.0), y.astype(dtype)), filter)

    exact = run(np.float64, fd.KalmanFilter(), 0.0)
    for offset in (0.0, 1000.0):
        result = run(np.float32, fd.ParallelKalmanFilter(), offset)
        assert result.mean.dtype == jnp.float32
        assert int(result.status) == fd.Status.OK
        assert abs(float(result.log_likelihood) - float(exact.log_likelihood)) < 0.01
        np.testing.assert_allclose(result.cov, exact.cov, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(result.mean[:, 1], exact.mean[:, 1], atol=1e-3)


@pytest.mark.slow
def test_a_series_as_a_distribution_takes_it():
    s = SETUPS["discrete"]
    observed = fd.ObservedSeries(
        s.model, s.times, dense_oracle.inputs, filter=fd.ParallelKalmanFilter()
    )
    y = np.stack([np.asarray(s.series.observations)] * 2)
    close(observed.log_prob(y), np.full(2, exact("discrete").log_likelihood))


# -- Refusals --------------------------------------------------------------------------------------


def test_a_diffuse_start_is_refused_with_the_filter_that_takes_it():
    s = SETUPS["discrete"]
    model = fd.StateSpaceModel(fd.Diffuse(2), s.dynamics, s.observation)
    with pytest.raises(ValueError, match=r"`initial` is Diffuse.*KalmanFilter\(\)"):
        fd.filter(model, s.series, fd.ParallelKalmanFilter())


def test_a_nonlinear_model_is_refused_with_the_filter_that_takes_it():
    s = SETUPS["discrete"]
    other = {
        "dynamics": (fd.ODE(lambda t, x, u: -x), s.observation),
        "observation": (s.dynamics, fd.GaussianObservation(lambda t, x, u: x, 1.0)),
    }
    for part, parts in other.items():
        model = fd.StateSpaceModel(s.model.initial, *parts)
        with pytest.raises(TypeError, match=rf"`{part}` is .*ExtendedKalmanFilter\(\)"):
            fd.filter(model, s.series, fd.ParallelKalmanFilter())
    model = fd.StateSpaceModel(
        dist.Gamma(2.0, 1.0).expand([2]).to_event(1), s.dynamics, s.observation
    )
    with pytest.raises(TypeError, match=r"`initial` is Independent.*ExtendedKalmanFilter\(\)"):
        fd.filter(model, s.series, fd.ParallelKalmanFilter())


@pytest.mark.parametrize("tolerance", [0.0, -1.0, 1.0, NAN])
def test_a_tolerance_is_between_zero_and_one(tolerance):
    with pytest.raises(ValueError, match="`tolerance`"):
        fd.ParallelKalmanFilter(tolerance)
