"""The filter whose gain a network corrects: nothing before training, Joseph's covariance at any weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from oracles.random_weights import shaken

import filterdyn as fd
from filterdyn.filters.learned_gain import _widened
from filterdyn.filters.learned_networks import Scales, _split_gain, additive_gain
from filterdyn.linalg import PSD, condition

X64 = jax.config.jax_enable_x64
TIGHT = 1e-12 if X64 else 2e-5
COUNT = 20


def linear(dy=1, r=0.3, a=0.9):
    h = jnp.array([[1.0, 0.0], [0.5, 1.0]])[:dy]
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.ones(2), jnp.eye(2)),
        fd.LinearTransition(jnp.array([[1.0, 0.1], [-0.1, a]]), 0.1 * jnp.eye(2)),
        fd.LinearObservation(h, r * jnp.ones(dy)),
    )


def level():
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition(jnp.array([[0.9]]), jnp.array([[0.2]])),
        fd.LinearObservation(jnp.array([[2.0]]), 0.3),
    )


def record(model, seed=0, count=COUNT):
    y = np.array(fd.simulate(model, np.arange(count), key=jr.key(seed)).observations)
    y[::5, 0] = np.nan
    y[7] = np.nan
    return fd.Series(np.arange(count), y)


def learned(dx, dy, architecture="kalmannet-1", **options):
    return fd.LearnedGainFilter(
        dx, dy, key=jr.key(0), architecture=architecture, width=4, **options
    )


SCALAR = shaken(learned(1, 1), 0.6)
SERIES = record(level())


@pytest.fixture(scope="module")
def result():
    return fd.filter(level(), SERIES, SCALAR)


def agree(found, expected):
    np.testing.assert_allclose(found.mean, expected.mean, rtol=TIGHT, atol=TIGHT)
    np.testing.assert_allclose(found.cov, expected.cov, rtol=TIGHT, atol=TIGHT)
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, rtol=TIGHT)


def test_before_training_it_is_the_filter_that_it_is_based_on():
    agree(fd.filter(level(), SERIES, learned(1, 1)), fd.filter(level(), SERIES, fd.KalmanFilter()))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["kalmannet-1", "kalmannet-2", "split"])
def test_before_training_every_architecture_is_the_filter_that_it_is_based_on(architecture):
    model = linear(2)
    series = record(model)
    found = fd.filter(model, series, learned(2, 2, architecture))
    agree(found, fd.filter(model, series, fd.KalmanFilter()))


def test_the_covariance_is_that_of_josephs_form_for_the_gain_that_was_used(result):
    """With one state and one sensor everything can be read off the result."""
    seen = ~np.isnan(np.asarray(SERIES.observations)[:, 0])
    part = lambda x: np.asarray(x, float).reshape(COUNT)
    prior, error = part(result.predicted.cov), part(result.innovations)
    shift = part(result.mean) - part(result.predicted.mean)
    gain = shift[seen] / error[seen]
    unasked = float(SCALAR.network.noise.start(jnp.result_type(float)).sensors[0, 0])
    sensors = np.concatenate([[unasked], part(result.noise_factors.sensors)[:-1]])
    r = 0.3 * sensors[seen] ** 2
    expected = (1 - 2 * gain) ** 2 * prior[seen] + gain**2 * r
    rtol = 1e-9 if X64 else 1e-3
    np.testing.assert_allclose(part(result.cov)[seen], expected, rtol=rtol)
    np.testing.assert_allclose(part(result.innovation_covs)[seen], 4 * prior[seen] + r, rtol=rtol)
    np.testing.assert_array_equal(part(result.cov)[~seen], prior[~seen])
    best = 2 * prior[seen] / (4 * prior[seen] + r)
    assert np.abs(gain / best - 1).max() > 0.1
    s = 4 * prior[seen] + r
    terms = -0.5 * (error[seen] ** 2 / s + np.log(2 * np.pi * s))
    np.testing.assert_allclose(result.log_likelihood, terms.sum(), rtol=rtol)


@pytest.mark.slow
def test_covariances_that_are_not_modulated_are_those_of_the_model_whatever_the_gain_is():
    found = fd.filter(level(), SERIES, shaken(learned(1, 1, process=False, sensors=False), 0.6))
    assert found.noise_factors.process is None and found.noise_factors.sensors is None
    seen = ~np.isnan(np.asarray(SERIES.observations)[:, 0])
    part = lambda x: np.asarray(x, float).reshape(COUNT)
    prior, cov = part(found.predicted.cov), part(found.cov)
    rtol = 1e-9 if X64 else 1e-3
    np.testing.assert_allclose(prior[1:], 0.81 * cov[:-1] + 0.2, rtol=rtol)
    shift = part(found.mean) - part(found.predicted.mean)
    gain = shift[seen] / part(found.innovations)[seen]
    expected = (1 - 2 * gain) ** 2 * prior[seen] + gain**2 * 0.3
    np.testing.assert_allclose(cov[seen], expected, rtol=rtol)
    assert np.abs(gain * (4 * prior[seen] + 0.3) / (2 * prior[seen]) - 1).max() > 0.1


def test_a_row_without_measurements_changes_nothing_but_the_wait(result):
    before, after = (jax.tree.map(lambda x, k=k: x[k], result.noise_factors) for k in (6, 7))
    for a, b in zip(jax.tree.leaves(before.hidden), jax.tree.leaves(after.hidden), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(before.last, after.last)
    assert float(before.noise.elapsed) == 0.0 and float(after.noise.elapsed) == 1.0


@pytest.mark.parametrize("form", ["square root", "covariance"])
def test_josephs_form_of_any_gain_is_that_of_the_best_one_and_a_square(form):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    h, change = rng.normal(size=(2, 3)), rng.normal(size=(3, 2))
    r = np.array([[0.5, 0.2], [0.2, 0.4]])
    observed = np.array([True, False])
    cov = root @ root.T
    prior = PSD.from_factor(jnp.asarray(root))
    prior = prior if form == "square root" else prior.without_factor()
    arguments = (jnp.asarray(h), jnp.zeros(2), jnp.asarray(r), jnp.asarray(observed))
    change[:, 1] = 0.0
    s = np.where(np.outer(observed, observed), h @ cov @ h.T + r, np.eye(2))
    scales = Scales(prior.matrix, jnp.asarray(h * observed[:, None]), jnp.asarray(s), arguments[3])

    @jax.jit
    def widened(prior, scales):
        after = condition(prior, *arguments).cov
        return _widened(after, prior, jnp.asarray(change), scales, jnp.asarray(r))

    found = widened(prior, scales)
    h1 = h[:1]
    gain = cov @ h1.T / (h1 @ cov @ h1.T + r[0, 0]) + change[:, :1]
    left = np.eye(3) - gain @ h1
    expected = left @ cov @ left.T + gain * r[0, 0] @ gain.T
    rtol = 1e-10 if X64 else 1e-4
    np.testing.assert_allclose(found.matrix, expected, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(found.root @ found.root.T, expected, rtol=rtol, atol=rtol)


def test_the_split_gain_is_the_product_of_its_factors():
    rng = np.random.default_rng(1)
    spd = lambda n: (lambda a: a @ a.T + np.eye(n))(rng.normal(size=(n, n)))
    cov, s, h = spd(3), spd(2), rng.normal(size=(2, 3))
    first, second = np.tril(rng.normal(size=(3, 3))), np.tril(rng.normal(size=(2, 2)))
    scales = Scales(*(jnp.asarray(x) for x in (cov, h, s)), jnp.array([True, True]))
    found = jax.jit(_split_gain)(jnp.asarray(first), jnp.asarray(second), scales)
    dx, dy = np.diag(np.sqrt(np.diag(cov))), np.diag(np.sqrt(np.diag(s)))
    units = lambda d, c: np.linalg.inv(d) @ c @ np.linalg.inv(d)
    g1 = dx @ first @ units(dx, cov) @ first.T @ dx
    inverse = np.linalg.inv(units(dy, s))
    g2 = np.linalg.inv(dy) @ second @ inverse @ second.T @ np.linalg.inv(dy)
    expected = g1 @ h.T @ g2 - cov @ h.T @ np.linalg.inv(s)
    np.testing.assert_allclose(found, expected, rtol=1e-9 if X64 else 1e-3, atol=1e-5)


def test_what_is_added_to_a_gain_has_its_units():
    scales = Scales(
        *(jnp.asarray(x) for x in (np.diag([4.0, 0.0]), np.ones((1, 2)), [[9.0]])), True
    )
    found = additive_gain(jnp.array([0.1, 0.1]), scales._replace(observed=jnp.array([True])))
    np.testing.assert_allclose(found, [[2 * 2 * np.tanh(0.05) / 3], [0.0]], rtol=1e-5)


def test_weights_that_are_not_finite_are_a_status_and_not_a_number():
    broken = eqx.tree_at(
        lambda f: f.network.gain.out.bias, SCALAR, replace_fn=lambda b: b * jnp.nan
    )
    found = fd.filter(level(), SERIES, broken)
    assert fd.Status(int(found.status)) is fd.Status.MODEL_NOT_FINITE
    assert float(found.log_likelihood) == -np.inf


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["kalmannet-2", "split"])
@pytest.mark.skipif(not X64, reason="finite differences in float64")
def test_gradient_by_the_weights_is_that_of_finite_differences(architecture):
    model = linear(2)
    series = record(model, count=10)
    filter = shaken(learned(2, 2, architecture), 0.1)
    direction, rest = eqx.partition(shaken(filter, 1.0, seed=5), eqx.is_inexact_array)
    arrays = eqx.filter(filter, eqx.is_inexact_array)

    @jax.jit
    def value(h):
        moved = jax.tree.map(lambda x, d: x + h * (d - x), arrays, direction)
        result = fd.filter(model, series, eqx.combine(moved, rest))
        return result.log_likelihood + jnp.sum(result.cov * result.mean[:, None])

    numeric = (value(1e-5) - value(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.grad(value))(0.0), numeric, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "base", [fd.ExtendedKalmanFilter(square_root=False), fd.UnscentedKalmanFilter()]
)
def test_it_follows_a_driven_pendulum_at_irregular_times_over_any_base(base):
    def drift(t, x, u):
        return jnp.array([x[1], -jnp.sin(x[0]) + u[0]])

    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.array([0.5, 0.0]), 0.1 * jnp.eye(2)),
        fd.SDE(drift, jnp.array([0.0, 0.3]), substeps=3),
        fd.GaussianObservation(lambda t, x, u: jnp.sin(x), jnp.array([0.02, 0.05])),
    )
    times = np.cumsum(np.random.default_rng(0).uniform(0.05, 0.5, 15))
    y = np.random.default_rng(1).normal(0, 0.3, (15, 2))
    y[3, 0] = y[9] = np.nan
    series = fd.Series(times, y, inputs=np.cos(times)[:, None])
    fresh = learned(2, 2, base=base)
    found, expected = fd.filter(model, series, fresh), fd.filter(model, series, base)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=TIGHT, atol=TIGHT)
    np.testing.assert_allclose(found.cov, expected.cov, rtol=10 * TIGHT, atol=TIGHT)
    other = fd.filter(model, series, shaken(fresh, 0.3))
    assert int(other.status) == 0
    assert np.linalg.eigvalsh(np.asarray(other.cov, float)).min() > 0


@pytest.mark.slow
def test_the_smoother_reverses_the_model_from_the_beliefs_of_the_learned_gain(result):
    found = fd.smooth(level(), SERIES, SCALAR)
    part = lambda x: np.array(x, float).reshape(COUNT)
    mean, cov = part(result.mean), part(result.cov)
    ahead, spread = part(result.predicted.mean), part(result.predicted.cov)
    for k in reversed(range(COUNT - 1)):
        gain = 0.9 * cov[k] / spread[k + 1]
        mean[k] += gain * (mean[k + 1] - ahead[k + 1])
        cov[k] += gain**2 * (cov[k + 1] - spread[k + 1])
    np.testing.assert_allclose(
        part(found.mean), mean, rtol=1e-9 if X64 else 1e-3, atol=1e-3 * TIGHT
    )
    np.testing.assert_allclose(part(found.cov), cov, rtol=1e-9 if X64 else 1e-3)
    agree(fd.smooth(level(), SERIES, learned(1, 1)), fd.smooth(level(), SERIES, fd.KalmanFilter()))


@pytest.mark.slow
@pytest.mark.skipif(not X64, reason="slopes by differences, in float64")
def test_the_smoothed_covariance_is_that_of_the_error_for_any_gain_that_data_do_not_change():
    """Smoothed means are affine in the measurements, so their error's covariance is that of an affine
    function of all states and all noise."""
    model, count = linear(), 6
    filter = learned(2, 1, process=False, sensors=False)
    bias = jnp.array([0.5, -0.4])
    filter = eqx.tree_at(lambda f: f.network.gain.out.bias, filter, bias)

    def means(y):
        found = fd.smooth(model, fd.Series(np.arange(count), y[:, None]), filter)
        return np.asarray(found.mean).ravel(), np.asarray(found.cov)

    constant, covs = means(np.zeros(count))
    slope = np.stack([means(row)[0] - constant for row in np.eye(count)], axis=1)

    f, h = np.asarray(model.dynamics.F), np.asarray(model.observation.H)
    into = np.eye(2 * count) - np.kron(np.eye(count, k=-1), f)  # of all states, to start and noises
    start = np.concatenate([np.ones(2), np.zeros(2 * count - 2)])
    sizes = np.diag(np.concatenate([np.ones(2), 0.1 * np.ones(2 * count - 2)]))
    mean, back = np.linalg.solve(into, start), np.linalg.inv(into)
    joint = back @ sizes @ back.T
    seen = np.kron(np.eye(count), h)
    left = np.eye(2 * count) - slope @ seen
    error = left @ joint @ left.T + 0.3 * slope @ slope.T
    np.testing.assert_allclose(left @ mean, constant, atol=1e-10)  # no bias
    for k in range(count):
        at = slice(2 * k, 2 * k + 2)
        np.testing.assert_allclose(covs[k], error[at, at], rtol=1e-9)
    best = np.linalg.inv(np.linalg.inv(joint) + seen.T @ seen / 0.3)
    assert 1.05 * np.trace(best) < np.trace(error)  # the gain is not the best one


@pytest.mark.slow
def test_stream_is_the_batch(result):
    online = fd.OnlineFilter(level(), SCALAR)
    state = online.init(0.0)
    for k in range(COUNT):
        state, _ = online.step(state, float(k), np.asarray(SERIES.observations[k]))
    np.testing.assert_allclose(state.mean, result.mean[-1], rtol=TIGHT)
    np.testing.assert_allclose(state.log_likelihood, result.log_likelihood, rtol=TIGHT)


@pytest.mark.slow
def test_a_batch_in_single_precision_is_each_of_them(result):
    cast = lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x
    y = np.asarray(SERIES.observations, np.float32)
    series = fd.stack([fd.Series(np.arange(COUNT), y), fd.Series(np.arange(COUNT), 2 * y)])
    found = fd.filter(jax.tree.map(cast, level()), series, SCALAR)
    assert found.mean.dtype == jnp.float32 and (found.status == 0).all()
    np.testing.assert_allclose(found.mean[0], result.mean, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (dict(dy=0), ValueError, "`dy` is 0; expected an integer >= 1"),
        (dict(width=True), ValueError, "`width` is True"),
        (dict(key=None), TypeError, "`key` is NoneType; expected a random key"),
        (dict(gap_scale=0.0), ValueError, "`gap_scale` is 0.0; expected a positive number"),
        (dict(architecture="lstm"), ValueError, "`architecture` is 'lstm'; expected one of"),
        (
            dict(base=fd.ParticleFilter(10)),
            TypeError,
            "`base` is ParticleFilter; expected a Gaussian",
        ),
        (dict(base=fd.ExtendedKalmanFilter(3)), ValueError, "`base` has iterations=3; expected 1"),
        (dict(base=fd.KalmanFilter(outliers=fd.Gate())), ValueError, "`base` has outliers=Gate"),
    ],
)
def test_bad_arguments_are_named(options, kind, message):
    with pytest.raises(kind, match=f"LearnedGainFilter: {message}"):
        fd.LearnedGainFilter(**{"dx": 2, "dy": 3, "key": jr.key(0), **options})


def test_a_model_of_another_size_is_refused():
    with pytest.raises(ValueError, match="`dx` is 1 but the model has 2 states"):
        fd.filter(linear(), SERIES, SCALAR)
