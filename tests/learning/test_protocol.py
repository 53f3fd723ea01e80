"""What holds for every filter that learns: it is a filter like any other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

#: Rows with a gap, a row of which everything is missing, and a second sensor at one instant.
TIMES = np.array([0.0, 0.5, 1.0, 1.5, 3.0, 3.5, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0])


def decay(p):
    """A state that decays and is seen twice, once in another unit."""
    return fd.StateSpaceModel(
        dist.Normal(jnp.array([2.0]), 0.5).to_event(1),
        fd.LinearSDE(-p["rate"] * jnp.eye(1), L=0.3),
        fd.LinearObservation(
            jnp.array([[1.0], [0.0]]) + p["gain"] * jnp.array([[0.0], [1.0]]), 0.05
        ),
    )


def model(evolution):
    prior = dict(rate=dist.LogNormal(-0.5, 0.5), gain=dist.Normal(1.0, 0.5))
    return fd.ParametricModel(decay, prior, evolution=evolution)


WALK = model(fd.RandomWalk(dict(rate=0.1)))


def diffusing(p):
    """A state that wanders with an unknown variance, seen twice, once in another unit."""
    return fd.StateSpaceModel(
        dist.Normal(jnp.array([2.0]), 0.5).to_event(1),
        fd.LinearSDE(jnp.zeros((1, 1)), L=jnp.sqrt(p["rate"]) * jnp.eye(1)),
        decay(dict(p, rate=1.0)).observation,
    )


CONJUGATE = fd.ParametricModel(
    diffusing,
    dict(rate=dist.InverseGamma(3.0, 1.0), gain=dist.Normal(1.0, 0.5)),
    evolution=fd.Forgetting(0.95),
)
STATISTICS = (
    fd.InverseGammaStatistics("rate", lambda p: (p.x_to - p.x_from) / jnp.sqrt(p.gap)),
    fd.NormalStatistics("gain", lambda p: p.y[1], lambda p: p.x_to[0], 0.05),
)


class Rate(eqx.Module):
    rate: jax.Array

    def __call__(self, t, x, u):
        return -self.rate * x


class Gain(eqx.Module):
    gain: jax.Array

    def __call__(self, t, x, u):
        return jnp.stack([x[0], self.gain * x[0]])


#: Numbers in a model itself, as those of a trained network are.
TRAINED = fd.StateSpaceModel(
    dist.Normal(jnp.array([2.0]), 0.5).to_event(1),
    fd.SDE(Rate(jnp.array(0.6)), 0.3, substeps=2),
    fd.GaussianObservation(Gain(jnp.array(1.0)), 0.05),
)
WEIGHTS = fd.LowRankWeightFilter(
    fd.ExtendedKalmanFilter(),
    lambda m: dict(rate=m.dynamics.drift.value.rate, gain=m.observation.h.value.gain),
    prior_sd=0.3,
    drift_sd=[0.05, 0.0],
    rank=1,
)

#: By name a model and a filter that learns.
LEARNERS = {
    "extended": (WALK, fd.AugmentedFilter(fd.ExtendedKalmanFilter())),
    "unscented": (WALK, fd.AugmentedFilter(fd.UnscentedKalmanFilter())),
    "extended, covariance form": (
        WALK,
        fd.AugmentedFilter(fd.ExtendedKalmanFilter(square_root=False)),
    ),
    "dual": (WALK, fd.DualFilter(fd.UnscentedKalmanFilter())),
    "weights": (TRAINED, WEIGHTS),
    "ensemble": (WALK, fd.AugmentedFilter(fd.EnsembleKalmanFilter(20))),
    "prediction errors": (WALK, fd.RecursivePredictionError(fd.KalmanFilter())),
    "maximum likelihood": (
        WALK,
        fd.RecursiveMaximumLikelihood(fd.KalmanFilter(), forgetting=0.9, directional=True),
    ),
    "Liu and West": (
        model(fd.Shrinkage(0.95)),
        fd.AugmentedFilter(fd.ParticleFilter(50, ess_threshold=1.0)),
    ),
    "nested": (WALK, fd.NestedParticleFilter(20, fd.KalmanFilter())),
    "statistics of particles": (CONJUGATE, fd.ParticleLearning(30, STATISTICS)),
    "variational": (WALK, fd.OnlineVariationalFilter()),
    "watched": (WALK, fd.WatchedFilter(fd.AugmentedFilter(fd.ExtendedKalmanFilter()))),
}


@pytest.fixture(scope="module")
def rows():
    sim = fd.simulate(decay(dict(rate=0.8, gain=1.5)), TIMES, key=jax.random.key(3))
    ys = np.array(sim.observations)
    ys[2] = np.nan
    ys[4, 0] = np.nan
    return ys


#: One with every change; the others compile as much again, each, and those that are like another one are
#: run by `make test-long`.
QUICK = {"extended"}
ALIKE = {
    "unscented",
    "extended, covariance form",
    "dual",
    "prediction errors",
    "Liu and West",
    "statistics of particles",
    "watched",
}
ALL = [
    pytest.param(
        name,
        marks=[
            *([] if name in QUICK else [pytest.mark.slow]),
            *([pytest.mark.long] * (name in ALIKE)),
        ],
    )
    for name in LEARNERS
]


@pytest.fixture(scope="module", params=ALL)
def followed(request, rows):
    """A learner, the states of its stream and its results."""
    learnt, learner = LEARNERS[request.param]
    online = fd.OnlineFilter(learnt, learner)
    key = jax.random.key(0) if isinstance(learner, fd.filters.AbstractSamplingFilter) else None
    states, steps = [online.init(0.0, key=key)], []
    for t, y in zip(TIMES, rows, strict=True):
        state, step = online.step(states[-1], t, y)
        states.append(state)
        steps.append(step)
    return online, key, states, steps


def close(a, b, tolerance=1e-10):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def test_a_stream_is_the_batch(followed, rows):
    online, key, states, steps = followed
    whole = fd.filter(online.model, fd.Series(TIMES, rows), online.filter, key=key, t0=0.0)
    assert whole.status == fd.Status.OK
    close(np.stack([s.mean for s in steps]), whole.mean)
    close(states[-1].log_likelihood, whole.log_likelihood)
    learnt = np.stack([s.parameters.unconstrained_mean for s in steps])
    close(learnt, whole.parameters.unconstrained_mean)
    assert np.ptp(learnt, axis=0).min() > 1e-3, "nothing was learnt"


def test_a_missing_row_teaches_nothing(followed):
    _, _, states, steps = followed
    assert steps[2].log_likelihood == 0
    before, after = states[2].parameters, states[3].parameters
    if np.allclose(before.unconstrained_mean, after.unconstrained_mean):
        return
    # (Filters that draw move the draws.)
    cov = before.unconstrained_cov
    sd = 1.0 if cov is None else np.sqrt(np.diagonal(cov))
    moved = np.abs(np.asarray(after.unconstrained_mean - before.unconstrained_mean))
    assert (moved < sd).all()


def test_a_stream_goes_on_from_a_file_to_the_same_bits(followed, rows, tmp_path):
    online, _, states, _ = followed
    online.save(tmp_path / "learner", states[6])
    again = fd.OnlineFilter(online.model, online.filter)
    state, _ = again.load(tmp_path / "learner")
    for t, y in zip(TIMES[6:], rows[6:], strict=True):
        state, _ = online.step(state, t, y)
    for a, b in zip(state.vectors, states[-1].vectors, strict=True):
        np.testing.assert_array_equal(a, b)


def test_keys_of_a_bank_learn_as_if_alone(followed, rows):
    online, key, states, _ = followed
    bank = fd.FilterBank(online.model, online.filter)
    state = bank.init(["a", "b"], t0=0.0, key=key)
    keys = np.repeat(["a", "b"], len(TIMES))
    times = np.concatenate([TIMES, TIMES])
    state, result = bank.step(state, keys, times, np.concatenate([rows, rows - 0.1]))
    assert (state.status == fd.Status.OK).all()
    found = state.parameters
    assert found.unconstrained_mean.shape[0] == 2
    last = result.parameters.unconstrained_mean[jnp.array([len(TIMES) - 1, -1])]
    close(last, found.unconstrained_mean)
    assert not np.allclose(found.unconstrained_mean[0], found.unconstrained_mean[1])
    if key is None:  # (with random numbers a key of a bank has those of its own)
        close(found.unconstrained_mean[0], states[-1].parameters.unconstrained_mean)
    close(found.unconstrained_mean[0], state.of("a").parameters.unconstrained_mean)


def test_an_estimate_speaks_of_parameters_in_their_units(followed):
    _, _, states, steps = followed
    now = steps[-1].parameters
    assert set(now.mean) == {"rate", "gain"}
    if getattr(now, "unconstrained_cov", ()) is None:
        with pytest.raises(ValueError, match="claims no posterior"):
            now.interval(0.9)
        return
    low, high = now.interval(0.9)["rate"]
    assert 0 < low < now.median["rate"] < high
    assert now.sd["gain"] > 0
    assert states[-1].parameters.sd["rate"] > 0
