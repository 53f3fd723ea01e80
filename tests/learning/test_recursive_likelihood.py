"""Recursive prediction errors and recursive maximum likelihood against derivatives, exact joint filters and
batch estimates."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.dynamics import Interval
from filterdyn.learning import tangent
from filterdyn.learning.recursive_likelihood import RecursiveMaximumLikelihood
from filterdyn.learning.recursive_prediction_error import RecursivePredictionError


def close(a, b, tolerance):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def spring(p):
    """Position and velocity, both seen."""
    A = jnp.array([[0.0, 1.0], [0.0, -0.2]])
    A = A - p["stiffness"] * jnp.array([[0.0, 0.0], [1.0, 0.0]])
    shared = jnp.array([[1.0, 0.5], [0.5, 2.0]])
    return fd.StateSpaceModel(
        dist.Normal(p["start"] * jnp.ones(2), 1.0).to_event(1),
        fd.LinearSDE(A, L=jnp.array([[0.0], [1.0]]) * p["force"]),
        fd.LinearObservation(jnp.eye(2), p["noise"] * shared),
    )


SPRING = fd.ParametricModel(
    spring,
    dict(
        stiffness=dist.LogNormal(0.5, 0.5),
        force=dist.LogNormal(-0.7, 0.5),
        noise=dist.LogNormal(-2.0, 0.5),
        start=dist.Normal(0.2, 1.0),
    ),
)
GAP = 0.1


@pytest.fixture(scope="module")
def spring_rows():
    times = GAP * np.arange(40)
    truth = spring(dict(stiffness=2.5, force=0.5, noise=0.1, start=0.0))
    ys = np.array(fd.simulate(truth, times, key=jax.random.key(0)).observations)
    ys[5] = np.nan
    ys[9, 0] = np.nan
    return times, ys


@pytest.mark.parametrize(
    "inner",
    [
        fd.KalmanFilter(),
        pytest.param(fd.UnscentedKalmanFilter(), marks=pytest.mark.slow),
        pytest.param(
            fd.KalmanFilter(square_root=False), marks=[pytest.mark.slow, pytest.mark.long]
        ),
    ],
    ids=["square root", "unscented", "covariance form"],
)
def test_the_scores_add_up_to_the_derivative_of_the_log_likelihood(inner, spring_rows):
    times, ys = spring_rows
    theta = SPRING.prior_mean + 0.1
    belief, slopes = tangent.start(inner, SPRING, theta, theta.dtype)

    @jax.jit
    def run(belief, slopes):
        def row(carry, y):
            belief, slopes = carry
            update, slopes, lesson = tangent.update(
                inner, SPRING, theta, belief, slopes, jnp.zeros(()), None, y
            )
            by_parts = lesson.errors @ lesson.slopes + lesson.squares @ lesson.square_slopes
            gap = Interval(jnp.zeros(()), jnp.asarray(GAP), None)
            end, slopes = tangent.predict(inner, SPRING, theta, update.belief, slopes, gap)
            return (end.belief, slopes), (lesson.score, by_parts)

        return jax.lax.scan(row, (belief, slopes), jnp.asarray(ys))[1]

    scores, by_parts = run(belief, slopes)
    close(scores, by_parts, 1e-10)
    series = fd.Series(times, ys)
    batch = lambda theta: fd.log_likelihood(SPRING.at(theta), series, inner)
    differences = [(batch(theta + h) - batch(theta - h)) / 2e-4 for h in 1e-4 * np.eye(len(theta))]
    close(scores.sum(0), differences, 1e-6)


def drifting_sensor(p):
    """A state that is pushed and a sensor with an offset: linear in state and parameters together."""
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 2.0).to_event(1),
        fd.LinearTransition([[0.9]], [[0.1]], b=p["push"][None]),
        fd.LinearObservation([[1.0], [0.5]], [0.2, 0.1], d=jnp.array([0.0, 1.0]) * p["offset"]),
    )


def jointly():
    """The same, with state (x, push, offset)."""
    return fd.StateSpaceModel(
        dist.Normal(jnp.array([0.0, 0.1, -0.2]), jnp.array([2.0, 0.5, 1.0])).to_event(1),
        fd.LinearTransition(
            [[0.9, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], np.diag([0.1, 0.0, 0.0])
        ),
        fd.LinearObservation([[1.0, 0.0, 0.0], [0.5, 0.0, 1.0]], [0.2, 0.1]),
    )


def test_prediction_errors_that_are_linear_give_the_exact_joint_filter():
    times = np.arange(30.0)
    ys = np.array(fd.simulate(jointly(), times, key=jax.random.key(4)).observations)
    ys[3] = np.nan
    ys[6:9, 1] = np.nan
    prior = dict(push=dist.Normal(0.1, 0.5), offset=dist.Normal(-0.2, 1.0))
    model = fd.ParametricModel(drifting_sensor, prior)
    learner = RecursivePredictionError(fd.KalmanFilter())
    found = fd.filter(model, fd.Series(times, ys), learner)
    exact = fd.filter(jointly(), fd.Series(times, ys), fd.KalmanFilter())
    close(found.parameters.unconstrained_mean, exact.mean[:, 1:], 1e-10)
    close(found.parameters.unconstrained_cov, exact.cov[:, 1:, 1:], 1e-10)
    close(found.mean[:, 0], exact.mean[:, 0], 1e-10)


# A scalar state with three parameters that are all learnt.


def decay(p):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition(p["rate"] * jnp.eye(1), p["drive"] * jnp.eye(1)),
        fd.LinearObservation([[1.0]], p["noise"]),
    )


DECAY = fd.ParametricModel(
    decay,
    dict(
        rate=dist.Uniform(0.0, 1.0),
        drive=dist.LogNormal(-1.0, 0.5),
        noise=dist.LogNormal(-1.0, 0.5),
    ),
)


@pytest.fixture(scope="module")
def long_record():
    times = np.arange(20_000.0)
    truth = decay(dict(rate=0.8, drive=0.5, noise=0.2))
    return times, np.asarray(fd.simulate(truth, times, key=jax.random.key(1)).observations)


@pytest.mark.slow
def test_recursive_maximum_likelihood_comes_to_the_estimate_of_the_batch(long_record):
    times, ys = long_record
    online = fd.OnlineFilter(DECAY, RecursiveMaximumLikelihood(fd.KalmanFilter()))
    state, _ = online.step_many(online.init(0.0), times, ys)
    found = state.parameters
    series = fd.Series(times, ys)
    objective = lambda theta: fd.log_likelihood(DECAY.at(theta), series, fd.KalmanFilter())
    score = jax.jit(jax.grad(objective))
    best = jnp.asarray(found.unconstrained_mean)
    for _ in range(4):
        best = best + found.unconstrained_cov @ score(best)
    sd = np.sqrt(np.diagonal(found.unconstrained_cov))
    assert (np.abs(found.unconstrained_mean - best) < 0.5 * sd).all()
    information = -jax.hessian(objective)(best)
    # (Information of early rows is that at early estimates.)
    close(sd, np.sqrt(np.diagonal(jnp.linalg.inv(information))), 0.15)


@pytest.mark.slow
@pytest.mark.long
def test_float32_learns_the_same(long_record):
    times, ys = long_record[0], long_record[1]

    def end(dtype):
        is_number = lambda x: jnp.issubdtype(getattr(x, "dtype", int), jnp.floating)
        model = jax.tree.map(lambda x: x.astype(dtype) if is_number(x) else x, DECAY)
        online = fd.OnlineFilter(model, RecursiveMaximumLikelihood(fd.KalmanFilter()))
        state, _ = online.step_many(online.init(0.0), times, ys.astype(dtype))
        assert state.mean.dtype == dtype
        return state.parameters

    ends = [end(np.float64), end(np.float32)]
    sd = np.sqrt(np.diagonal(ends[0].unconstrained_cov))
    assert (np.abs(ends[1].unconstrained_mean - ends[0].unconstrained_mean) < 0.1 * sd).all()
    close(ends[1].unconstrained_cov, ends[0].unconstrained_cov, 1e-2)


@pytest.mark.slow
def test_a_product_of_gains_leaves_one_direction_unidentified():
    gains = fd.ParametricModel(
        lambda p: fd.StateSpaceModel(
            dist.Normal(0.0, 1.0).expand([1]).to_event(1),
            fd.LinearTransition([[0.8]], [[0.5]]),
            fd.LinearObservation(p["amplifier"] * p["sensor"] * jnp.eye(1), 0.1),
        ),
        dict(amplifier=dist.LogNormal(0.0, 0.5), sensor=dist.LogNormal(0.0, 0.5)),
    )
    rows = fd.simulate(gains, np.arange(400.0), key=jax.random.key(1)).observations
    online = fd.OnlineFilter(gains, RecursiveMaximumLikelihood(fd.ExtendedKalmanFilter()))
    state, _ = online.step_many(online.init(0.0), np.arange(400.0), np.asarray(3.0 * rows))
    (direction,) = state.parameters.unidentified()
    assert abs(direction["amplifier"][0] + direction["sensor"][0]) < 1e-6
    found = state.parameters.unconstrained_mean
    # What the data do not tell stays that of the prior.
    close(found[0] - found[1], 0.0, 1e-9)
    close(found.sum(), np.log(3.0), 0.3)


# Claims and arguments.


def test_forgetting_claims_no_posterior():
    for learner in (RecursivePredictionError, RecursiveMaximumLikelihood):
        online = fd.OnlineFilter(DECAY, learner(fd.KalmanFilter(), forgetting=0.99))
        assert online.init(0.0).parameters.unconstrained_cov is None


@pytest.mark.parametrize("learner", [RecursivePredictionError, RecursiveMaximumLikelihood])
@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (fd.ParticleFilter(10), "expected one of KalmanFilter"),
        (fd.KalmanFilter(adaptive=fd.AdaptiveNoise()), "adaptive"),
        (fd.KalmanFilter, "is the class KalmanFilter"),
    ],
)
def test_other_filters_are_refused(learner, inner, message):
    with pytest.raises(TypeError, match=message):
        learner(inner)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="forgetting"):
        RecursivePredictionError(fd.KalmanFilter(), forgetting=1.5)
    with pytest.raises(TypeError, match="directional"):
        RecursiveMaximumLikelihood(fd.KalmanFilter(), directional=1)
    with pytest.raises(TypeError, match="ParametricModel"):
        fd.OnlineFilter(jointly(), RecursivePredictionError(fd.KalmanFilter()))


# A stiffness that jumps.


def oscillator(stiffness):
    A = jnp.array([[0.0, 1.0], [0.0, -0.3]]) - stiffness * jnp.array([[0.0, 0.0], [1.0, 0.0]])
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), 0.5).to_event(1),
        fd.LinearSDE(A, L=[[0.0], [0.2]], B=[[0.0], [1.0]]),
        fd.LinearObservation(H=[[1.0, 0.0]], R=0.05**2),
    )


@pytest.mark.slow
@pytest.mark.long
def test_a_step_in_the_stiffness_is_tracked_as_the_best_joint_filter_does():
    """Over 8 records; benchmarks/learning.py has more and other settings. 0.05 is the best random walk of
    0.02 to 0.2 there."""
    rows, half = 800, 400
    times = 0.1 * np.arange(rows)
    truth = np.where(np.arange(rows) < half, 2.0, 3.0)
    rng = np.random.default_rng(0)
    records = []
    for i in range(8):
        u = np.repeat(rng.choice([-1.0, 1.0], size=rows // 10), 10)[:, None]
        before, after = jax.random.split(jax.random.key(i))
        a = fd.simulate(oscillator(2.0), times[:half], u[:half], key=before)
        stiff = oscillator(3.0)
        at = dist.Delta(a.states[-1], event_dim=1)
        stiff = fd.StateSpaceModel(at, stiff.dynamics, stiff.observation)
        b = fd.simulate(stiff, times[half - 1 :], u[half - 1 :], key=after)
        ys = np.concatenate([a.observations, b.observations[1:]])
        records.append(fd.Series(times, ys, u))
    series = fd.stack(records)

    def error(learner, evolution):
        prior = dict(stiffness=dist.LogNormal(np.log(2.0), 0.3))
        make = lambda p: oscillator(p["stiffness"])
        model = fd.ParametricModel(make, prior, evolution=evolution)
        found = fd.filter(model, series, learner)
        assert (found.status == fd.Status.OK).all()
        errors = np.asarray(found.parameters.median["stiffness"]) - truth
        return np.sqrt(np.square(errors[:, 100:]).mean())

    walk = fd.RandomWalk(0.05)
    oracle = error(fd.AugmentedFilter(fd.UnscentedKalmanFilter()), walk)
    kalman = fd.KalmanFilter()
    assert oracle < 0.25
    assert error(RecursivePredictionError(kalman), walk) < 1.1 * oracle
    assert error(RecursivePredictionError(kalman, forgetting=0.97), None) < 1.2 * oracle
    assert error(RecursiveMaximumLikelihood(kalman, forgetting=0.97), None) < 1.2 * oracle
