"""The Rao-Blackwellised particle filter against an exact mixture: all sequences of regimes, each with its
Kalman filter."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

RUNS = 400
STAY = 0.8


def make(keep=0.9):
    """A level with two regimes, quiet and pushed; the regime is known at the start."""

    def linear(t, n, to, u):
        pushed = to[0]
        f = jnp.where(pushed > 0.5, 0.5, keep)[None, None]
        return f, jnp.stack([1.5 * pushed]), jnp.where(pushed > 0.5, 0.4, 0.1)[None, None]

    def driver(t, n, u):
        return dist.BernoulliProbs(jnp.where(n > 0.5, STAY, 1 - STAY)).to_event(1)

    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), jnp.array([0.0, 1.0]), validate_args=False).to_event(1),
        fd.ConditionallyLinear(driver, linear, 1),
        fd.LinearObservation([[0.0, 1.0]], [[0.3]]),
    )


def exact(y, keep=0.9):
    """log p(y) and the last filtered mean of (regime, level)."""
    terms, means = [], []
    for regimes in itertools.product((0, 1), repeat=len(y) - 1):
        m, p, total, n = 0.0, 1.0, 0.0, 0
        for t, value in enumerate(y):
            if t > 0:
                to = regimes[t - 1]
                total += np.log(STAY if to == n else 1 - STAY)
                f, b, q = (0.5, 1.5, 0.4) if to else (keep, 0.0, 0.1)
                m, p, n = f * m + b, f * f * p + q, to
            if np.isfinite(value):
                s = p + 0.3
                total += -0.5 * ((value - m) ** 2 / s + np.log(2 * np.pi * s))
                m, p = m + p / s * (value - m), p * 0.3 / s
        terms.append(total)
        means.append((n, m))
    terms = np.array(terms)
    w = np.exp(terms - terms.max())
    return terms.max() + np.log(w.sum()), w / w.sum() @ np.array(means)


@pytest.fixture(scope="module")
def series():
    times = np.arange(7.0)
    y = np.array(fd.simulate(make(), times, key=jr.key(3)).observations)
    y[3] = np.nan
    return fd.Series(times, y)


@pytest.fixture(scope="module")
def runs(series):
    def one(filter):
        def value(key):
            found = fd.filter(make(), series, filter, key=key)
            return found.log_likelihood, found.mean[-1]

        return jax.jit(jax.vmap(value))(jr.split(jr.key(0), RUNS))

    return one


@pytest.mark.slow
def test_likelihood_is_unbiased_and_varies_less_than_with_particles_for_everything(series, runs):
    log_p, mean = exact(np.asarray(series.observations)[:, 0])
    found, means = runs(fd.RaoBlackwellizedParticleFilter(50))
    found = np.asarray(found)
    ratio = np.exp(found - log_p)
    # Four standard errors: false alarms 6e-5.
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(RUNS)
    np.testing.assert_allclose(np.asarray(means).mean(0), mean, atol=0.05)
    plain = np.asarray(runs(fd.ParticleFilter(50))[0])
    assert abs(np.exp(plain - log_p).mean() - 1) < 4 * np.exp(plain - log_p).std() / np.sqrt(RUNS)
    assert found.std() < 0.7 * plain.std()


@pytest.mark.slow
def test_gradient_is_that_of_the_exact_mixture(series):
    """With a discrete regime no particle can be reparameterised."""
    y = np.asarray(series.observations)[:, 0]
    step = 1e-4
    slope = (exact(y, 0.9 + step)[0] - exact(y, 0.9 - step)[0]) / (2 * step)
    filter = fd.RaoBlackwellizedParticleFilter(300)
    value = lambda keep, key: fd.log_likelihood(make(keep), series, filter, key=key)
    found = np.asarray(jax.jit(jax.vmap(jax.grad(value), (None, 0)))(0.9, jr.split(jr.key(1), 50)))
    error = found.std() / np.sqrt(50)
    assert abs(found.mean() - slope) < 4.5 * error + 0.02 * abs(slope)


def test_one_regime_is_the_kalman_filter():
    """Where the driving part is always the same every particle is the exact filter."""
    driver = lambda t, n, u: dist.Delta(n, event_dim=1)
    f, q = jnp.array([[0.9, 0.3], [0.0, 0.8]]), jnp.array([[0.3, 0.1], [0.1, 0.2]])
    linear = lambda t, n, to, u: (f, jnp.zeros(2), q)
    r = [[0.3, 0.1], [0.1, 0.4]]
    start = dist.Normal(jnp.zeros(3), jnp.array([0.0, 1.0, 1.0]), validate_args=False).to_event(1)
    model = fd.StateSpaceModel(
        start,
        fd.ConditionallyLinear(driver, linear, 1),
        fd.LinearObservation([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5]], r),
    )
    plain = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        fd.LinearTransition(f, q),
        fd.LinearObservation([[1.0, 0.0], [0.5, 0.5]], r),
    )
    times = np.array([0.0, 1.0, 1.0, 2.0])
    y = np.array(fd.simulate(plain, times, key=jr.key(4)).observations)
    y[1], y[2, 0] = np.nan, np.nan
    series = fd.Series(times, y)
    filter = fd.RaoBlackwellizedParticleFilter(4)
    found = fd.filter(model, series, filter, key=jr.key(5), history="beliefs")
    exact = fd.filter(plain, series, fd.KalmanFilter())
    np.testing.assert_allclose(found.log_likelihood, exact.log_likelihood, rtol=1e-10)
    np.testing.assert_allclose(found.mean[:, 1:], exact.mean, atol=1e-10)
    np.testing.assert_allclose(found.cov[:, 1:, 1:], exact.cov, atol=1e-10)
    np.testing.assert_allclose(found.filtered.cov, found.cov, atol=1e-12)


def test_other_dynamics_are_refused():
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition([[1.0]], [[1.0]]),
        fd.LinearObservation([[1.0]], [[1.0]]),
    )
    series = fd.Series([0.0], [0.0])
    with pytest.raises(TypeError, match="ConditionallyLinear"):
        fd.filter(model, series, fd.RaoBlackwellizedParticleFilter(4), key=jr.key(0))
    with pytest.raises(TypeError, match="copies"):
        fd.RaoBlackwellizedParticleFilter(4, fd.OptimalTransport())
    with pytest.raises(TypeError, match="Rao"):
        fd.filter(make(), series, fd.ExtendedKalmanFilter())
