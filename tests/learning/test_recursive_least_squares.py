"""Recursive least squares against the Kalman filter of constant parameters and dense least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.learning.recursive_least_squares import RecursiveLeastSquares
from filterdyn.learning.regression import Autoregression, Regression

T = 60
TIMES = np.arange(float(T))
R = np.array([[0.5, 0.2], [0.2, 0.3]])
MEAN, SD = np.array([0.3, -0.5, 1.0]), np.array([1.0, 2.0, 0.5])
PRIOR = dict(level=dist.Normal(0.3, 1.0), waves=dist.Normal(MEAN[1:], SD[1:]).to_event(1))


def features(t, u):
    """Of two quantities."""
    return jnp.array([[1.0, jnp.sin(t), jnp.cos(0.7 * t)], [0.5, -jnp.cos(t), t / T]])


def regression(**options):
    return Regression(features, R, PRIOR, **options)


@pytest.fixture(scope="module")
def ys():
    rng = np.random.default_rng(0)
    phi = np.stack([np.asarray(features(t, None)) for t in TIMES])
    theta = np.array([1.0, -1.5, 0.8])
    ys = phi @ theta + rng.multivariate_normal(np.zeros(2), R, size=T)
    ys[7] = np.nan
    ys[20:25, 1] = np.nan
    return ys


def weighted_least_squares(ys, forgetting):
    """Dense, with the past of row s weighted by forgetting to the number of rows seen since."""
    seen = ~np.isnan(ys)
    rows = np.flatnonzero(seen.any(1))
    information = np.diag(SD**-2.0) * forgetting ** len(rows)
    total = information @ MEAN
    for since, s in zip(range(len(rows) - 1, -1, -1), rows, strict=True):
        phi = np.asarray(features(TIMES[s], None))[seen[s]]
        weight = forgetting**since * np.linalg.inv(R[np.ix_(seen[s], seen[s])])
        information = information + phi.T @ weight @ phi
        total = total + phi.T @ weight @ ys[s, seen[s]]
    return np.linalg.solve(information, total)


def close(a, b, tolerance):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def test_without_forgetting_it_is_the_kalman_filter_of_constant_parameters(ys):
    series = fd.Series(TIMES, ys)
    found = fd.filter(regression(), series, RecursiveLeastSquares())
    constant = fd.StateSpaceModel(
        dist.MultivariateNormal(MEAN, np.diag(SD**2)),
        fd.LinearTransition(np.eye(3), np.zeros((3, 3))),
        fd.LinearObservation(lambda t: features(t, None), R),
    )
    exact = fd.filter(constant, series, fd.KalmanFilter())
    assert found.status == fd.Status.OK
    close(found.parameters.unconstrained_mean, exact.mean, 1e-12)
    close(found.parameters.unconstrained_cov, exact.cov, 1e-12)
    close(found.log_likelihoods, exact.log_likelihoods, 1e-12)
    close(found.innovations, exact.innovations, 1e-12)
    close(found.innovation_covs, exact.innovation_covs, 1e-12)
    close(found.nis, exact.nis, 1e-12)
    close(found.parameters.mean["level"], exact.mean[:, 0], 1e-12)


@pytest.mark.parametrize(
    "forgetting", [0.9, pytest.param(0.99, marks=[pytest.mark.slow, pytest.mark.long])]
)
def test_forgetting_is_weighted_least_squares(ys, forgetting):
    learner = RecursiveLeastSquares(forgetting=forgetting)
    found = fd.filter(regression(), fd.Series(TIMES, ys), learner).parameters
    for row in (5, 30, T - 1):
        expected = weighted_least_squares(ys[: row + 1], forgetting)
        close(found.unconstrained_mean[row], expected, 1e-10)
    with pytest.raises(ValueError, match="claims no posterior"):
        found.sd  # noqa: B018


@pytest.mark.slow
@pytest.mark.long
def test_a_random_walk_is_that_of_the_kalman_filter(ys):
    series = fd.Series(TIMES, ys)
    model = regression(evolution=fd.RandomWalk(dict(waves=0.1)))
    found = fd.filter(model, series, RecursiveLeastSquares())
    moving = fd.StateSpaceModel(
        dist.MultivariateNormal(MEAN, np.diag(SD**2)),
        fd.LinearTransition(np.eye(3), np.diag([0.0, 0.01, 0.01])),
        fd.LinearObservation(lambda t: features(t, None), R),
    )
    exact = fd.filter(moving, series, fd.KalmanFilter())
    close(found.parameters.unconstrained_mean, exact.mean, 1e-12)
    close(found.log_likelihood, exact.log_likelihood, 1e-12)


@pytest.mark.slow
def test_forecasts_know_how_uncertain_the_parameters_are(ys):
    model = regression()
    result = fd.filter(model, fd.Series(TIMES[:10], ys[:10]), RecursiveLeastSquares())
    ahead = fd.forecast(model, result, TIMES[10:13])
    cov, phi = np.asarray(result.parameters.unconstrained_cov[-1]), features(12.0, None)
    close(ahead.observation_mean[2], phi @ result.parameters.unconstrained_mean[-1], 1e-12)
    close(ahead.observation_cov[2], phi @ cov @ phi.T + R, 1e-12)


# Only the first of two inputs is excited after row 50.


@pytest.fixture(scope="module")
def one_input_at_rest():
    rng = np.random.default_rng(1)
    u = rng.normal(size=(400, 2))
    u[50:350, 1] = 0.0
    y = u @ [1.0, -2.0] + 0.1 * rng.normal(size=400)
    return u, y


def gains():
    prior = dict(gains=dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    return Regression(lambda t, u: u, 0.01, prior)


def spreads_of(learner, u, y):
    online = fd.OnlineFilter(gains(), learner)
    state = online.init(0.0, u[0])
    found = []
    for rows in (slice(0, 50), slice(50, 350), slice(350, 400)):
        state, _ = online.step_many(state, np.arange(400.0)[rows], y[rows], u[rows])
        found.append((state.parameters.unconstrained_mean, state.belief.memory.spread.matrix))
    return found


@pytest.mark.slow
def test_directional_forgetting_keeps_what_is_not_excited(one_input_at_rest):
    u, y = one_input_at_rest
    before, at_rest, _ = spreads_of(RecursiveLeastSquares(forgetting=0.9, directional=True), u, y)
    close(at_rest[1][1, 1], before[1][1, 1], 0.2 * float(before[1][1, 1]))
    close(at_rest[0][1], -2.0, 0.1)
    _, wound_up, _ = spreads_of(RecursiveLeastSquares(forgetting=0.9), u, y)
    assert wound_up[1][1, 1] > 1e10 * before[1][1, 1]


@pytest.mark.slow
def test_directional_forgetting_is_that_of_cao_and_schwartz(one_input_at_rest):
    """R' = R - (1 - f) R phi phi^T R / (phi^T R phi) + phi phi^T."""
    u, y = one_input_at_rest
    f = 0.9
    information, theta = np.eye(2) / 100.0, np.zeros(2)
    for phi, value in zip(10.0 * u[:350], 10.0 * y[:350], strict=True):
        seen = information @ phi
        information = information - (1 - f) * np.outer(seen, seen) / (phi @ seen)
        information = information + np.outer(phi, phi)
        theta = theta + np.linalg.solve(information, phi) * (value - phi @ theta)
    _, found, _ = spreads_of(RecursiveLeastSquares(forgetting=f, directional=True), u, y)
    close(found[0], theta, 1e-9)
    close(found[1], np.linalg.inv(information), 1e-9)


# Autoregressions.


def second_order(start_sd=10.0):
    prior = dict(
        outputs=dist.Normal(0.0, 1.0).expand([2]).to_event(1),
        inputs=dist.Normal(0.0, 2.0).expand([2]).to_event(1),
        intercept=dist.Normal(0.0, 3.0),
    )
    return Autoregression(prior, R=0.04, start_sd=start_sd)


@pytest.fixture(scope="module")
def driven():
    rng = np.random.default_rng(2)
    u, y = rng.normal(size=200), np.zeros(200)
    for t in range(1, 200):
        past = y[t - 1], y[t - 2] if t > 1 else 0.0, u[t - 1], u[t - 2] if t > 1 else 0.0
        y[t] = np.dot([1.2, -0.5, 0.7, 0.2], past) + 0.3 + 0.2 * rng.normal()
    return u, y


@pytest.mark.slow
def test_an_autoregression_with_inputs_is_the_dense_posterior(driven):
    u, y = driven
    series = fd.Series(np.arange(200.0), y, u[:, None])
    found = fd.filter(second_order([1.0, 0.0]), series, RecursiveLeastSquares())
    assert found.status == fd.Status.OK
    before = np.concatenate([[0.0], y[:-2]]), np.concatenate([[0.0], u[:-2]])
    phi = np.stack([y[:-1], before[0], u[:-1], before[1], np.ones(199)], axis=1)
    information = phi.T @ phi / 0.04 + np.diag([1.0, 1.0, 0.25, 0.25, 1 / 9])
    expected = np.linalg.solve(information, phi.T @ y[1:] / 0.04)
    last = jax.tree.map(lambda x: x[-1], found.parameters)
    close(last.unconstrained_mean, expected, 1e-10)
    close(last.unconstrained_cov, np.linalg.inv(information), 1e-10)
    total = np.eye(199) * 0.04 + phi @ np.diag([1.0, 1.0, 4.0, 4.0, 9.0]) @ phi.T
    # (That of a regression on past measurements is the product of its predictions, as the dense one is.)
    exact = dist.MultivariateNormal(np.zeros(199), total).log_prob(y[1:])
    close(found.log_likelihoods[1:].sum(), exact, 1e-9)


@pytest.mark.slow
@pytest.mark.long
def test_several_outputs_are_several_regressions():
    rng = np.random.default_rng(3)
    a = np.array([[0.6, 0.2], [-0.3, 0.5]])
    y = np.zeros((300, 2))
    for t in range(1, 300):
        y[t] = a @ y[t - 1] + [0.1, 0.3] * rng.normal(size=2)
    prior = dict(outputs=dist.Normal(0.0, 1.0).expand([1, 2, 2]).to_event(3))
    model = Autoregression(prior, R=[0.01, 0.09])
    online = fd.OnlineFilter(model, RecursiveLeastSquares())
    state, _ = online.step_many(online.init(0.0), np.arange(300.0), y)
    for i, r in enumerate((0.01, 0.09)):
        information = y[:-1].T @ y[:-1] / r + np.eye(2)
        expected = np.linalg.solve(information, y[:-1].T @ y[1:, i] / r)
        close(state.parameters.mean["outputs"][0, i], expected, 1e-10)


@pytest.mark.slow
@pytest.mark.long
def test_a_missing_measurement_is_filled_in_by_what_is_expected(driven):
    u, y = driven
    y = np.where(np.arange(200) % 10 == 7, np.nan, y)
    online = fd.OnlineFilter(second_order(), RecursiveLeastSquares())
    state, _ = online.step_many(online.init(0.0, [0.0]), np.arange(200.0), y, u[:, None])
    assert state.status == fd.Status.OK
    error = state.parameters.mean["outputs"] - np.array([1.2, -0.5])
    assert (np.abs(error) < 4 * state.parameters.sd["outputs"]).all()
    assert (state.parameters.sd["outputs"] < 0.05).all()


@pytest.mark.slow
def test_simulated_series_come_from_the_centre_of_the_prior():
    prior = dict(
        outputs=dist.Normal(jnp.array([0.5, 0.3]), 0.1).to_event(1),
        inputs=dist.Normal(jnp.ones(2), 0.1).to_event(1),
    )
    model = Autoregression(prior, R=0.0)
    u = np.array([1.0, 0.0, 2.0, 0.0, 0.0])
    y = np.asarray(
        fd.simulate(model, np.arange(5.0), u[:, None], key=jax.random.key(0)).observations
    )[:, 0]
    for t in range(2, 5):
        close(y[t], 0.5 * y[t - 1] + 0.3 * y[t - 2] + u[t - 1] + u[t - 2], 1e-12)


# Arguments.


@pytest.mark.parametrize("wrong", [0.0, 1.1, "much"])
def test_forgetting_lies_between_0_and_1(wrong):
    with pytest.raises(ValueError, match="forgetting"):
        RecursiveLeastSquares(forgetting=wrong)


def test_other_models_are_refused_by_name():
    model = regression()
    plain = fd.StateSpaceModel(model.initial, model.dynamics, model.observation)
    with pytest.raises(TypeError, match=r"expected fd\.Regression"):
        fd.OnlineFilter(plain, RecursiveLeastSquares())


def test_a_parameter_with_limits_is_refused():
    with pytest.raises(ValueError, match="has limits"):
        Regression(features, R, dict(a=dist.LogNormal(0.0, 1.0)))


def test_features_must_fit_the_parameters():
    model = Regression(lambda t, u: jnp.ones(4), 1.0, PRIOR)
    with pytest.raises(ValueError, match="column for each parameter"):
        fd.filter(model, fd.Series(TIMES, np.zeros(T)), RecursiveLeastSquares())


@pytest.mark.parametrize(
    "prior",
    [
        dict(inputs=dist.Normal(0.0, 1.0)),
        dict(outputs=dist.Normal(0.0, 1.0)),
        dict(outputs=dist.Normal(0.0, 1.0).expand([1, 2, 3]).to_event(3)),
        dict(outputs=dist.Normal(0.0, 1.0).expand([1]).to_event(1), gain=dist.Normal(0.0, 1.0)),
    ],
)
def test_an_autoregression_refuses_other_shapes_and_names(prior):
    with pytest.raises(ValueError, match="outputs"):
        Autoregression(prior, R=1.0)
