"""Dual estimation, against exact filters of the parameters, finite differences and the joint filter."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

TIMES = np.arange(40.0)


def close(a, b, tolerance=1e-10):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


class Driven(eqx.Module):
    """A state that an input drives through two gains, without noise."""

    b: jax.Array

    def __call__(self, t, x, u):
        return dist.Delta(jnp.array([0.8 * x[0] + jnp.dot(self.b, u)]), event_dim=1)


def driven(p):
    return fd.StateSpaceModel(
        dist.Delta(jnp.array([1.0]), event_dim=1),
        fd.Transition(Driven(p["b"])),
        fd.LinearObservation([[1.0], [2.0]], [0.3, 0.2]),
    )


@pytest.mark.slow
def test_with_a_state_that_is_known_given_the_parameters_it_is_their_kalman_filter():
    """x_k = 0.8^k + sum of 0.8^(k-1-j) b u_j: all rows are linear in b, which stands still."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=(len(TIMES), 2))
    features, path = [np.zeros(2)], [1.0]
    for row in u[:-1]:
        features.append(0.8 * features[-1] + row)
        path.append(0.8 * path[-1])
    features, b = np.array(features), np.array([0.4, -0.7])
    x = np.array(path) + features @ b
    y = x[:, None] * [1.0, 2.0] + rng.normal(size=(len(TIMES), 2)) * np.sqrt([0.3, 0.2])
    y[7, 0] = np.nan
    y[11] = np.nan
    model = fd.ParametricModel(driven, dict(b=dist.Normal(np.zeros(2), 0.5).to_event(1)))
    found = fd.filter(model, fd.Series(TIMES, y, u), fd.DualFilter(fd.ExtendedKalmanFilter()))
    assert found.status == fd.Status.OK

    mean, cov = np.zeros(2), 0.25 * np.eye(2)
    for k in range(len(TIMES)):
        there = ~np.isnan(y[k])
        h = np.array([features[k], 2.0 * features[k]])[there]
        r = np.diag([0.3, 0.2])[np.ix_(there, there)]
        s = h @ cov @ h.T + r
        error = y[k, there] - np.array([1.0, 2.0])[there] * path[k] - h @ mean
        close(found.log_likelihoods[k], dist_log_prob(error, s))
        close(found.innovation_covs[k][np.ix_(there, there)], s)
        mean = mean + cov @ h.T @ np.linalg.solve(s, error)
        cov = cov - cov @ h.T @ np.linalg.solve(s, h @ cov)
        close(found.parameters.unconstrained_mean[k], mean)
        close(found.parameters.unconstrained_cov[k], cov)
        close(found.mean[k], [path[k] + features[k] @ mean])


def dist_log_prob(error, s):
    if not len(error):
        return 0.0
    size = np.linalg.slogdet(2 * np.pi * s)[1]
    return -0.5 * (size + error @ np.linalg.solve(s, error))


class Pendulum(eqx.Module):
    pull: jax.Array

    def __call__(self, t, x, u):
        return jnp.stack([x[1], -self.pull * jnp.sin(x[0]) - 0.2 * x[1]])


def pendulum(p):
    return fd.StateSpaceModel(
        dist.Normal(jnp.array([1.5, 0.0]), 0.1).to_event(1),
        fd.SDE(Pendulum(p["pull"]), jnp.array([0.0, 0.2]), substeps=1),
        fd.GaussianObservation(lambda t, x, u: jnp.sin(x[:1]), p["noise"]),
    )


PENDULUM = dict(pull=2.0, noise=0.02)


@pytest.fixture(scope="module")
def swings():
    times = 0.2 * np.arange(150)
    y = fd.simulate(pendulum(PENDULUM), times, key=jax.random.key(2)).observations
    return fd.Series(times, y)


@pytest.mark.slow
@pytest.mark.parametrize(
    "inner",
    [
        fd.ExtendedKalmanFilter(),
        pytest.param(fd.UnscentedKalmanFilter(), marks=pytest.mark.long),
    ],
)
def test_the_recurrent_derivative_is_that_of_the_filter_of_the_state(swings, inner):
    """With parameters that are nearly known and do not move, by central differences."""
    short = swings[:15]
    prior = dict(pull=dist.LogNormal(0.6, 1e-9), noise=dist.LogNormal(-4.0, 1e-9))
    model = fd.ParametricModel(pendulum, prior)
    found = fd.filter(model, short, fd.DualFilter(inner))
    slopes = found.filtered.memory.slopes
    at = jax.jit(
        lambda theta: (lambda r: (r.mean, r.cov))(fd.filter(model.at(theta), short, inner))
    )
    for i in range(2):
        h = 1e-5 * np.eye(2)[i]
        up, down = at(model.prior_mean + h), at(model.prior_mean - h)
        close(slopes.mean[:, i], (up[0] - down[0]) / 2e-5, 1e-7)
        close(slopes.cov[:, i], (up[1] - down[1]) / 2e-5, 1e-7)


@pytest.mark.slow
@pytest.mark.long
def test_it_agrees_with_the_joint_filter_where_both_know_much(swings):
    model = fd.ParametricModel(
        lambda p: pendulum({**p, "noise": 0.02}),
        dict(pull=dist.LogNormal(np.log(1.5), 0.3)),
        evolution=fd.RandomWalk(0.01),
    )
    inner = fd.ExtendedKalmanFilter()
    dual = fd.filter(model, swings, fd.DualFilter(inner))
    joint = fd.filter(model, swings, fd.AugmentedFilter(inner))
    sd = np.sqrt(joint.parameters.unconstrained_cov[-50:, 0, 0])
    apart = (
        dual.parameters.unconstrained_mean[-50:, 0] - joint.parameters.unconstrained_mean[-50:, 0]
    )
    assert np.abs(apart / sd).max() < 0.2
    ratio = np.sqrt(dual.parameters.unconstrained_cov[-50:, 0, 0]) / sd
    assert 0.9 < ratio.min() and ratio.max() < 1.1
    low, high = dual.parameters.interval(0.99)["pull"]
    assert low[-1] < 2.0 < high[-1] and high[-1] - low[-1] < 0.8
    assert abs(dual.log_likelihood - joint.log_likelihood) < 1.0


def test_what_is_no_filter_of_a_state_is_refused():
    with pytest.raises(TypeError, match="DualFilter: `filter` is EnsembleKalmanFilter"):
        fd.DualFilter(fd.EnsembleKalmanFilter(10))
    with pytest.raises(TypeError, match="`model` is StateSpaceModel"):
        fd.DualFilter(fd.ExtendedKalmanFilter()).check(pendulum(PENDULUM))
