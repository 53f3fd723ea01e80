"""Forecasts of a filter that learns are those at the parameters that it has learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd


def scale(p):
    """A constant 1 that is seen in an unknown unit, in noise of variance 1."""
    return fd.StateSpaceModel(
        dist.Delta(jnp.ones(1), event_dim=1),
        fd.LinearTransition(jnp.eye(1), jnp.zeros((1, 1))),
        fd.LinearObservation(p["unit"] * jnp.eye(1), jnp.eye(1)),
    )


MODEL = fd.ParametricModel(scale, dict(unit=dist.Normal(0.0, 2.0)))
UNIT = fd.NormalStatistics("unit", lambda p: p.y[0], lambda p: p.x_to[0], 1.0)
YS = np.array([1.0, 3.0, 2.0, 1.5])
#: The posterior of the unit, which is a regression with known noise.
VARIANCE = 1 / (1 / 4 + len(YS))
MEAN = VARIANCE * YS.sum()

LEARNERS = {
    "extended": fd.AugmentedFilter(fd.ExtendedKalmanFilter()),
    "particles": fd.AugmentedFilter(fd.ParticleFilter(4000)),
    "statistics": fd.ParticleLearning(2000, UNIT),
    "nested": fd.NestedParticleFilter(4000, fd.KalmanFilter()),
    "nested ensembles": fd.NestedParticleFilter(1000, fd.EnsembleKalmanFilter(10)),
}
#: The others compile as much again, each.
FIRST = {"extended", "nested"}


def marked(name):
    marks = [pytest.mark.slow] if name in FIRST else [pytest.mark.slow, pytest.mark.long]
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", list(map(marked, LEARNERS)))
def test_a_forecast_is_that_of_the_posterior(name):
    learner = LEARNERS[name]
    series = fd.Series(np.arange(len(YS)), YS)
    result = fd.filter(MODEL, series, learner, key=jax.random.key(1))
    ahead = fd.forecast(MODEL, result, [4.0, 5.0], key=jax.random.key(2), num_samples=4000)
    # Four standard errors of 1000 particles, and of 4000 samples.
    exact = name == "extended" or name == "statistics"
    # (Those of statistics draw the unit once for each particle.)
    tolerance = 1e-9 if name == "extended" else 4 * np.sqrt(VARIANCE / 1000)
    np.testing.assert_allclose(ahead.observation_mean[:, 0], MEAN, atol=tolerance)
    np.testing.assert_allclose(ahead.observation_cov[:, 0, 0], 1 + VARIANCE, atol=tolerance)
    samples = np.asarray(ahead.samples)[..., 0]
    np.testing.assert_allclose(samples.mean(0), MEAN, atol=0.07 + (0 if exact else 0.06))
    # One unit for a whole future: what two of its measurements have in common.
    expected = np.array([[1 + VARIANCE, VARIANCE], [VARIANCE, 1 + VARIANCE]])
    np.testing.assert_allclose(np.cov(samples.T), expected, atol=0.12)
