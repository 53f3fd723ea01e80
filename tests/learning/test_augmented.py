"""State and parameters followed together."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

TIMES = np.arange(30.0)
LN = dist.LogNormal(-0.3, 0.3)


def exact(a, b, tolerance=1e-11):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def regression(p):
    """Nothing moves, and what is seen is linear in the parameters."""
    return fd.StateSpaceModel(
        dist.Normal(0.0, 1.0).expand([1]).to_event(1),
        fd.LinearTransition([[0.0]], [[1e-4]]),
        fd.GaussianObservation(lambda t, x, u: (u @ p["slope"])[None] + p["level"], R=0.2),
    )


def test_what_is_linear_in_the_parameters_is_the_kalman_filter_of_them():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((30, 2))
    ys = inputs @ [1.0, -2.0] + 0.5 + 0.4 * rng.standard_normal(30)
    ys[5] = np.nan
    series = fd.Series(TIMES, ys, inputs)
    prior = dict(slope=dist.Normal(jnp.zeros(2), 2.0).to_event(1), level=dist.Normal(1.0, 3.0))
    walk = fd.RandomWalk(dict(level=0.1))
    learnt = fd.ParametricModel(regression, prior, evolution=walk)
    # The Kalman filter written out, with the regressors of every row.
    mean, cov = np.array([0.0, 0.0, 1.0]), np.diag([4.0, 4.0, 9.0])
    log_likelihood = 0.0
    for k in range(30):
        if k:
            cov = cov + np.diag([0.0, 0.0, 0.01])
        if np.isnan(ys[k]):
            continue
        h = np.array([*inputs[k], 1.0])
        s = h @ cov @ h + 0.2
        gain, e = cov @ h / s, ys[k] - h @ mean
        mean, cov = mean + gain * e, cov - np.outer(gain, h @ cov)
        log_likelihood -= 0.5 * (e * e / s + np.log(2 * np.pi * s))
    for filter in (fd.ExtendedKalmanFilter(), fd.CubatureKalmanFilter()):
        found = fd.filter(learnt, series, fd.AugmentedFilter(filter))
        exact(found.parameters.unconstrained_mean[-1], mean)
        exact(found.parameters.unconstrained_cov[-1], cov)
        exact(found.log_likelihood, log_likelihood)


def growth(p):
    return fd.StateSpaceModel(
        dist.Normal(p["start"] * jnp.ones(1), 0.3).to_event(1),
        fd.LinearSDE(-p["rate"] * jnp.eye(1), L=0.2),
        fd.LinearObservation(jnp.eye(1), 0.1),
    )


@pytest.mark.slow
def test_the_extended_filter_is_that_of_a_joint_model_written_out():
    prior = dict(rate=LN, start=dist.Normal(2.0, 0.5))
    learnt = fd.ParametricModel(growth, prior, evolution=fd.RandomWalk(dict(rate=0.1)))
    times = np.array([0.0, 0.3, 1.0, 1.2, 2.5, 2.5, 4.0])
    ys = np.array([2.2, 1.7, 1.0, 0.9, 0.3, 0.2, np.nan])
    found = fd.filter(learnt, fd.Series(times, ys), fd.AugmentedFilter(fd.ExtendedKalmanFilter()))

    def move(t, z, u):
        gap = jnp.interp(t, times[[0, 1, 2, 3, 5]], jnp.diff(times)[jnp.array([0, 1, 2, 3, 5])])
        rate = jnp.exp(z[1])
        variance = 0.04 * -jnp.expm1(-2 * rate * gap) / (2 * rate)
        mean = jnp.stack([z[0] * jnp.exp(-rate * gap), z[1], z[2]])
        # (Noise as it is at the mean, not through its dependence on the rate.)
        sd = jnp.stack([jnp.sqrt(variance), 0.1 * jnp.sqrt(gap), 0.0])
        return dist.MultivariateNormal(mean, scale_tril=jnp.diag(sd))

    cov = jnp.array([[0.09 + 0.25, 0.0, 0.25], [0.0, 0.09, 0.0], [0.25, 0.0, 0.25]])
    by_hand = fd.StateSpaceModel(
        dist.MultivariateNormal(
            jnp.array([2.0, -0.3, 2.0]), scale_tril=jnp.linalg.cholesky(cov + 1e-15 * jnp.eye(3))
        ),
        fd.Transition(move),
        fd.LinearObservation(jnp.array([[1.0, 0.0, 0.0]]), 0.1),
    )
    with pytest.warns(UserWarning, match="one transition per row"):
        other = fd.filter(by_hand, fd.Series(times, ys), fd.ExtendedKalmanFilter())
    exact(found.mean[:, 0], other.mean[:, 0], 1e-9)
    exact(found.parameters.unconstrained_mean, other.mean[:, 1:], 1e-9)
    exact(found.parameters.unconstrained_cov, other.cov[:, 1:, 1:], 1e-9)
    exact(found.log_likelihood, other.log_likelihood, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "filter, tolerance",
    [(fd.UnscentedKalmanFilter(), 0.15), (fd.ParticleFilter(20_000), 0.05)],
    ids=["unscented", "particles"],
)
def test_a_static_rate_has_the_posterior_of_quadrature(filter, tolerance):
    learnt = fd.ParametricModel(
        lambda p: growth(dict(p, start=2.0)), dict(rate=LN), evolution=fd.RandomWalk(0.0)
    )
    times = np.arange(0.0, 6.0, 0.3)
    ys = fd.simulate(growth(dict(rate=0.7, start=2.0)), times, key=jax.random.key(2)).observations
    series = fd.Series(times, ys)
    grid = jnp.linspace(-2.0, 1.0, 301)
    logs = jax.vmap(
        lambda z: fd.log_likelihood(
            growth(dict(rate=jnp.exp(z), start=2.0)), series, fd.KalmanFilter()
        )
    )(grid)
    weights = jax.nn.softmax(logs - 0.5 * ((grid + 0.3) / 0.3) ** 2)
    mean = weights @ grid
    sd = jnp.sqrt(weights @ (grid - mean) ** 2)
    # (A particle filter's estimate: 20,000 draws of which some thousand are distinct at the end.)
    key = jax.random.key(0) if isinstance(filter, fd.ParticleFilter) else None
    found = fd.filter(learnt, series, fd.AugmentedFilter(filter), key=key).parameters
    assert abs(found.unconstrained_mean[-1, 0] - mean) < tolerance * sd
    assert abs(jnp.sqrt(found.unconstrained_cov[-1, 0, 0]) / sd - 1) < tolerance


def test_directions_that_nothing_tells_are_named():
    gains = fd.ParametricModel(
        lambda p: fd.StateSpaceModel(
            dist.Normal(1.0, 0.1).expand([1]).to_event(1),
            fd.LinearTransition([[1.0]], [[0.0]]),
            fd.LinearObservation(p["a"] * p["b"] * jnp.eye(1), R=0.01),
        ),
        dict(a=dist.LogNormal(0.0, 0.5), b=dist.LogNormal(0.0, 1.0), c=dist.Normal(0.0, 1.0)),
    )
    series = fd.Series(np.arange(50.0), np.full(50, 2.0))
    found = fd.filter(gains, series, fd.AugmentedFilter(fd.ExtendedKalmanFilter()))
    last = jax.tree.map(lambda x: x[-1], found.parameters)
    directions = last.unidentified()
    assert len(directions) == 2
    # Of the logarithms (la, lb), with variances 1/4 and 1, la + lb is seen: la / sd_a stays along
    # (2, -1) / sqrt(5) of the scaled prior. `c` is not seen at all.
    of_c = [d for d in directions if abs(d["c"][0]) > 0.99]
    of_gains = [d for d in directions if abs(d["c"][0]) < 1e-6]
    assert len(of_c) == len(of_gains) == 1
    np.testing.assert_allclose(of_gains[0]["a"] / of_gains[0]["b"], -2.0, rtol=1e-3)


@pytest.mark.slow
def test_a_joint_transition_has_its_density():
    learnt = fd.ParametricModel(
        growth, dict(rate=LN, start=dist.Normal(2.0, 0.5)), evolution=fd.RandomWalk(0.2)
    )
    dynamics = fd.augmented(learnt).dynamics
    interval = fd.dynamics.Interval(jnp.zeros(()), jnp.asarray(0.5), None)
    before, after = jnp.array([1.0, -0.2, 2.0]), jnp.array([0.7, 0.1, 1.9])
    rate = np.exp(-0.2)
    sd = np.sqrt(0.04 * -np.expm1(-rate) / (2 * rate))
    expected = (
        dist.Normal(np.exp(-0.5 * rate), sd).log_prob(0.7)
        + dist.Normal(jnp.array([-0.2, 2.0]), 0.2 * np.sqrt(0.5)).log_prob(after[1:]).sum()
    )
    exact(dynamics.log_density(after, before, interval), expected)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(make=3), TypeError, "`make` is int"),
        (dict(prior={}), TypeError, "`prior` is dict"),
        (dict(prior=dict(rate=1.0)), TypeError, r"prior\['rate'\]` is float"),
        (dict(prior=dict(rate=dist.Poisson(1.0))), ValueError, "discrete"),
        (dict(prior=dict(rate=dist.Normal(jnp.zeros(2), 1.0))), ValueError, "batch shape"),
        (dict(evolution=fd.RandomWalk(dict(speed=1.0))), ValueError, "names 'speed'"),
        (dict(evolution=0.1), TypeError, "`evolution` is float"),
        (dict(make=lambda p: 3), TypeError, "returned int"),
    ],
)
def test_what_is_no_parametric_model_is_refused(change, error, message):
    arguments = dict(make=lambda p: growth(dict(p, start=0.0)), prior=dict(rate=LN), evolution=None)
    arguments |= change
    with pytest.raises(error, match=message):
        fd.ParametricModel(arguments["make"], arguments["prior"], evolution=arguments["evolution"])


def test_filters_that_cannot_follow_both_are_refused_by_name():
    with pytest.raises(TypeError, match="`model` is StateSpaceModel"):
        fd.OnlineFilter(
            growth(dict(rate=1.0, start=0.0)), fd.AugmentedFilter(fd.ExtendedKalmanFilter())
        )
    learnt = fd.ParametricModel(growth, dict(rate=LN, start=dist.Normal(2.0, 0.5)))
    with pytest.raises(TypeError, match="KalmanFilter"):
        fd.OnlineFilter(learnt, fd.AugmentedFilter(fd.KalmanFilter()))
    series = fd.Series(TIMES, TIMES)
    with pytest.raises(TypeError, match="learns on the way"):
        fd.smooth(learnt, series, fd.AugmentedFilter(fd.ExtendedKalmanFilter()))
    plain = fd.filter(growth(dict(rate=1.0, start=0.0)), series, fd.KalmanFilter())
    with pytest.raises(ValueError, match="KalmanFilter learns no parameters"):
        plain.parameters  # noqa: B018
