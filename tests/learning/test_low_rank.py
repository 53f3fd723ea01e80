"""Weights that adapt while a filter runs, against joint filters, least squares and matrices by the book."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.datasets.stand_ins import simulated_cascaded_tanks
from filterdyn.learning.spreads import DenseSpread, LowRankSpread

W = jnp.array([0.5, -0.4, 0.3])
TIMES = np.arange(30.0)


class Bent(eqx.Module):
    """Two states and three weights that are not additive in anything."""

    w: jax.Array

    def __call__(self, t, x, u):
        a = 0.9 * x[0] + 0.2 * self.w[0] * jnp.sin(x[1] + self.w[2])
        b = 0.8 * x[1] + self.w[1] * jnp.tanh(x[0])
        return dist.MultivariateNormal(jnp.array([a, b]), scale_tril=0.1 * jnp.eye(2))


def bent(p):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        fd.Transition(Bent(p["w"])),
        fd.GaussianObservation(lambda t, x, u: jnp.array([x[0] + 0.1 * x[1] ** 2, x[1]]), 0.04),
    )


def weights_of(model):
    return model.dynamics.fn.value.w


@pytest.fixture(scope="module")
def record():
    y = np.array(fd.simulate(bent({"w": W}), TIMES, key=jax.random.key(1)).observations)
    y[5, 0] = np.nan
    y[9] = np.nan
    return fd.Series(TIMES, y)


def close(a, b, tolerance=1e-10):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def diagonal(cov):
    return jnp.diagonal(cov, axis1=-2, axis2=-1)


def learner_of(rank, **options):
    return fd.LowRankWeightFilter(
        fd.ExtendedKalmanFilter(), weights_of, prior_sd=0.3, rank=rank, **options
    )


def check_is_joint(record, evolution, learner):
    prior = {"w": dist.Normal(W + 0.1, 0.3).to_event(1)}
    joint = fd.filter(
        fd.ParametricModel(bent, prior, evolution=evolution),
        record,
        fd.AugmentedFilter(fd.ExtendedKalmanFilter()),
    )
    found = fd.filter(bent({"w": W + 0.1}), record, learner)
    assert found.status == fd.Status.OK
    for name in ("mean", "cov", "predicted_cov", "innovations", "innovation_covs", "nis"):
        close(getattr(found, name), getattr(joint, name))
    close(found.log_likelihoods, joint.log_likelihoods)
    close(found.parameters.unconstrained_mean, joint.parameters.unconstrained_mean)
    close(found.parameters.variances, diagonal(joint.parameters.unconstrained_cov))
    return found


@pytest.fixture(scope="module")
def walked(record):
    """Of weights that wander, with as many columns as weights."""
    return check_is_joint(record, fd.RandomWalk(0.05), learner_of(3, drift_sd=0.05))


@pytest.mark.slow
def test_with_columns_enough_it_is_the_joint_extended_filter(walked):
    assert np.ptp(walked.parameters.unconstrained_mean, axis=0).min() > 0.05


@pytest.mark.slow
@pytest.mark.long
def test_simulated_futures_start_from_weights_and_states_that_go_together(record, walked):
    """Their moments are those of the linearised forecast, but for curvature and chance (2,000 draws, 5
    standard errors)."""
    ahead = TIMES[-1] + np.array([1.0, 4.0])
    model = bent({"w": W + 0.1})
    found = fd.forecast(model, walked, ahead, key=jax.random.key(4), num_samples=2000)
    sd = np.sqrt(diagonal(found.observation_cov))
    assert (np.abs(found.samples.mean(0) - found.observation_mean) < 0.25 * sd).all()
    # (That of a variance is 3 per cent; the weights make 10 and more of it.)
    without = fd.filter(model, record, fd.ExtendedKalmanFilter())
    blind = fd.forecast(model, without, ahead)
    share = diagonal(found.observation_cov - blind.observation_cov) / sd**2
    ratio = found.samples.var(0) / sd**2
    assert share.max() > 0.1
    assert (np.abs(ratio - 1) < 0.16).all()


@pytest.mark.slow
@pytest.mark.long
def test_with_the_whole_covariance_it_is_the_joint_extended_filter(record):
    check_is_joint(record, fd.Forgetting(0.9), learner_of(None, forgetting=0.9))


class Sum(eqx.Module):
    """The next state is a weighted sum of the inputs, and of nothing else."""

    w: jax.Array

    def __call__(self, t, x, u):
        return dist.Normal(jnp.dot(self.w, u)[None], 0.3).to_event(1)


def summed(k):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.Transition(Sum(jnp.zeros(k))),
        fd.LinearObservation(jnp.eye(1), 0.2),
    )


def series_of_sums(k, rows, seed=0):
    rng = np.random.default_rng(seed)
    u, w = rng.normal(size=(rows, k)), rng.normal(size=k)
    y = np.concatenate([[0.0], u[:-1] @ w]) + 0.5 * rng.normal(size=rows)
    return fd.Series(np.arange(float(rows)), y, u)


def least_squares(u, y, noise, prior_sd, forgetting=1.0):
    """Normal equations of y = u w + e, in which the past is forgotten."""
    precision, b = np.eye(u.shape[1]) / prior_sd**2, np.zeros(u.shape[1])
    for k, (row, value) in enumerate(zip(u, y, strict=True)):
        keep = forgetting if k else 1.0
        precision = keep * precision + np.outer(row, row) / noise
        b = keep * b + row * value / noise
    return np.linalg.solve(precision, b), np.linalg.inv(precision)


@pytest.mark.slow
def test_linear_in_the_weights_it_is_least_squares():
    series = series_of_sums(60, 20)
    learner = fd.LowRankWeightFilter(
        fd.ExtendedKalmanFilter(), lambda m: m.dynamics.fn.value.w, prior_sd=0.7, rank=20
    )
    found = fd.filter(summed(60), series, learner)
    # What moved the state in the last row has not been seen.
    u, y = np.asarray(series.inputs)[:-1], np.asarray(series.observations)[1:, 0]
    mean, cov = least_squares(u, y, 0.09 + 0.2, 0.7)
    close(found.parameters.unconstrained_mean[-1], mean)
    close(found.parameters.variances[-1], np.diagonal(cov))


class Scale(eqx.Module):
    """A sensor that shows a weighted sum of the inputs."""

    w: jax.Array

    def __call__(self, t, x, u):
        return jnp.dot(self.w, u)[None]


@pytest.mark.slow
def test_weights_of_a_sensor_are_recursive_least_squares_with_forgetting():
    series = series_of_sums(4, 50)
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition([[0.9]], [[0.1]]),
        fd.GaussianObservation(Scale(jnp.zeros(4)), 0.3),
    )
    learner = fd.LowRankWeightFilter(
        fd.ExtendedKalmanFilter(),
        lambda m: m.observation.h.value.w,
        prior_sd=0.7,
        rank=4,
        forgetting=0.95,
    )
    found = fd.filter(model, series, learner)
    u, y = np.asarray(series.inputs), np.asarray(series.observations)[:, 0]
    mean, cov = least_squares(u, y, 0.3, 0.7, 0.95)
    close(found.parameters.unconstrained_mean[-1], mean)
    close(found.parameters.variances[-1], np.diagonal(cov))


def by_the_paper(rows, rank, prior_sd, drift, decay, noise):
    """LO-FI with its own matrices: the prediction by Cholesky, the update by a singular value
    decomposition (Chang et al. 2023, section 3)."""
    k = rows[0][0].shape[1]
    m, u, w = np.zeros(k), np.full(k, prior_sd**-2.0), np.zeros((k, rank))
    for h, y in rows:
        m = decay * m
        new = 1.0 / (decay**2 / u + drift**2)
        c = np.linalg.inv(np.eye(rank) + drift**2 * w.T @ np.diag(new / u) @ w)
        w = decay * np.diag(new / u) @ w @ np.linalg.cholesky(c)
        u = new
        a = np.linalg.inv(np.linalg.cholesky(noise))
        wide = np.concatenate([w, h.T @ a.T], axis=1)
        g = np.linalg.inv(np.eye(wide.shape[1]) + wide.T @ np.diag(1 / u) @ wide)
        c = h.T @ a.T @ a
        gain = np.diag(1 / u) @ c - np.diag(1 / u) @ wide @ g @ wide.T @ np.diag(1 / u) @ c
        m = m + gain @ (y - h @ m)
        left, values, _ = np.linalg.svd(wide, full_matrices=False)
        w = left[:, :rank] * values[:rank]
        u = u + ((left[:, rank:] * values[rank:]) ** 2).sum(1)
    return m, u, w


def test_with_few_columns_it_is_the_low_rank_filter_of_the_paper():
    rng, k, rank = np.random.default_rng(2), 15, 4
    noise = np.array([[0.3, 0.1], [0.1, 0.2]])
    rows = [(rng.normal(size=(2, k)), rng.normal(size=2)) for _ in range(12)]
    m, u, w = by_the_paper(rows, rank, 0.6, 0.1, 0.97, noise)
    spread, mean = LowRankSpread(jnp.full(k, 0.6**-2.0), jnp.zeros((k, rank))), np.zeros(k)

    @jax.jit
    def row(spread, h):
        moved = spread.moved(jnp.asarray(0.97), jnp.full(k, 0.01), jnp.zeros((1, k))).spread
        return moved.images(h), moved.learned(h, jnp.asarray(noise))

    for h, y in rows:
        image, spread = row(spread, h)
        mean = 0.97 * mean
        total = np.asarray(image.cov.matrix) + noise
        mean = mean + np.asarray(image.cross).T @ np.linalg.solve(total, y - h @ mean)
    close(mean, m)
    close(spread.precisions, u)
    close(spread.columns @ spread.columns.T, w @ w.T)
    close(spread.variances, np.diagonal(np.linalg.inv(np.diag(u) + w @ w.T)))


@jax.jit
def everything_of(spread, a, slope, noise):
    moved, grown = spread.moved(slope, noise, a), spread.inflated(0.8, a)
    whole = lambda s: s.images(jnp.eye(a.shape[1])).cov.matrix
    return (
        spread.variances,
        spread.images(a),
        moved,
        whole(moved.spread),
        grown,
        whole(grown.spread),
    )


@pytest.mark.parametrize("still", [False, True])
def test_spreads_move_as_joint_gaussians_do(still):
    """theta' = slope theta + w, and A theta regressed on theta', by the covariance of both."""
    rng, k = np.random.default_rng(3), 7
    u, w = rng.uniform(1.0, 3.0, k), rng.normal(size=(k, 3))
    cov = np.linalg.inv(np.diag(u) + w @ w.T)
    a, slope = rng.normal(size=(2, k)), 0.9
    noise = np.zeros(k) if still else rng.uniform(0.0, 0.2, k) * (np.arange(k) > 1)
    new = slope**2 * cov + np.diag(noise)
    slopes = slope * a @ cov @ np.linalg.inv(new)
    left = a @ cov @ a.T - slopes @ new @ slopes.T
    for spread in (LowRankSpread(jnp.asarray(u), jnp.asarray(w)), DenseSpread(jnp.asarray(cov))):
        variances, images, moved, matrix, grown, larger = everything_of(spread, a, slope, noise)
        close(variances, np.diagonal(cov))
        close(images.cross, a @ cov)
        close(images.cov.matrix, a @ cov @ a.T)
        close(moved.slopes, slopes)
        close(moved.left.matrix, left)
        close(matrix, new)
        close(larger, cov / 0.8)
        close(grown.slopes @ larger @ grown.slopes.T + grown.left.matrix, a @ cov @ a.T)


@pytest.mark.slow
@pytest.mark.long
def test_weights_fall_back_to_those_of_the_model():
    learner = learner_of(2, decay_time=2.0, drift_sd=0.3)
    model = bent({"w": W})
    online = fd.OnlineFilter(model, learner)
    state, _ = online.step(online.init(0.0), 0.0, np.array([1.0, 1.0]))
    state, _ = online.step(state, 1.0, np.array([2.0, -1.0]))
    learnt = np.asarray(state.parameters.unconstrained_mean - W)
    assert np.abs(learnt).max() > 0.01
    later = online.predict_to(online.predict_to(state, 2.0), 3.0).parameters
    close(later.unconstrained_mean - W, learnt * np.exp(-1.0))
    for _ in range(40):
        state = online.predict_to(state, state.time + 1.0)
    close(state.parameters.variances, 0.3**2, 1e-6)  # (of the process: sd^2 decay_time / 2)


def universal(width):
    network = fd.fields.MLP(
        2, key=jax.random.key(0), width=width, depth=2, state_scale=[2.0, 3.0], zero=True
    )
    known = lambda t, x, u: jnp.stack([x[1], -x[0] - 0.1 * x[1]])
    return fd.StateSpaceModel(
        dist.Normal(jnp.array([1.0, 0.0]), 0.1).to_event(1),
        fd.SDE(fd.fields.UniversalField(known, network), 0.05, solver=diffrax.Heun(), substeps=2),
        fd.LinearObservation(np.array([[1.0, 0.0]]), 0.01),
    )


def residual(model):
    return model.dynamics.drift.value.residual


def test_a_state_holds_a_few_vectors_of_weights():
    model = universal(40)
    learner = fd.LowRankWeightFilter(fd.ExtendedKalmanFilter(), residual, rank=5)
    network = residual(model)
    size = sum(x.size for x in (*network.weights, *network.biases))
    assert learner.space(model).size == size  # what it is normalised by does not count
    state = fd.OnlineFilter(model, learner).init(0.0)
    # Mean, prior variances, precisions, five columns and the slopes of two states.
    assert sum(len(v) for v in state.vectors) < 10 * size + 50


@pytest.mark.slow
@pytest.mark.long
def test_what_was_learnt_is_a_network_in_its_place():
    model = universal(3)
    learner = fd.LowRankWeightFilter(fd.ExtendedKalmanFilter(), residual, prior_sd=0.5, rank=4)
    online = fd.OnlineFilter(model, learner)
    state = online.init(0.0)
    for k in range(1, 6):
        state, step = online.step(state, 0.3 * k, np.array([np.cos(0.6 * k)]))
    found = step.parameters
    adapted = learner.adapted(model, found)
    assert jax.tree.structure(adapted) == jax.tree.structure(model)
    for a, b in zip(residual(adapted).biases, found.mean.biases, strict=True):
        close(a, b)
    close(residual(adapted).state.scale, [2.0, 3.0])
    x = jnp.array([0.5, -0.2])
    whole = eqx.combine(found.mean, residual(model))
    close(residual(adapted)(0.0, x), whole(0.0, x))
    assert np.abs(whole(0.0, x)).max() > 1e-3
    low, high = found.interval(0.9).weights[2]
    assert (low < found.mean.weights[2]).all() and (found.mean.weights[2] < high).all()
    assert (found.variances <= found.unmeasured_variances * (1 + 1e-12)).all()


@pytest.mark.slow
@pytest.mark.long
def test_sigma_points_see_the_same_where_the_model_is_linear_in_the_state():
    series = series_of_sums(3, 20)
    each = [
        fd.filter(
            summed(3),
            series,
            fd.LowRankWeightFilter(one, lambda m: m.dynamics.fn.value.w, prior_sd=0.7, rank=2),
        )
        for one in (fd.ExtendedKalmanFilter(), fd.UnscentedKalmanFilter())
    ]
    close(each[0].parameters.unconstrained_mean, each[1].parameters.unconstrained_mean)
    close(each[0].log_likelihoods, each[1].log_likelihoods)


@pytest.mark.slow
@pytest.mark.long
def test_single_precision_does_as_well(record, walked):
    narrow = lambda tree: jax.tree.map(
        lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, tree
    )
    series = fd.Series(TIMES, np.asarray(record.observations, np.float32))
    learner = narrow(learner_of(3, drift_sd=0.05))
    found = fd.filter(narrow(bent({"w": W + 0.1})), series, learner)
    assert found.mean.dtype == jnp.float32 and found.status == fd.Status.OK
    close(found.parameters.unconstrained_mean, walked.parameters.unconstrained_mean, 1e-4)
    close(found.parameters.variances, walked.parameters.variances, 1e-4)


class Tanks(eqx.Module):
    """The tanks that stand in for the recordings, of known physics, with a network for what is not known."""

    network: fd.fields.MLP

    def field(self, x, u):
        root = jnp.sqrt(jnp.maximum(x, 0.01))
        over = 0.12 * jnp.maximum(x[0] - 9.5, 0.0)
        out = 0.055 * root[0] + 0.0006 * x[0]
        known = jnp.stack([0.05 * u[0] - out - over, out + 0.4 * over - 0.058 * root[1]])
        return known + 0.05 * self.network(0.0, x, u)

    def __call__(self, t, x, u):
        middle = x + 2.0 * self.field(x, u)
        return dist.MultivariateNormal(
            x + 4.0 * self.field(middle, u), scale_tril=0.02 * jnp.eye(2)
        )


@pytest.mark.slow
@pytest.mark.long
def test_an_adapting_residual_beats_the_frozen_one_after_the_pump_has_lost_a_quarter():
    u, y = simulated_cascaded_tanks()[1]
    # (Told more volts than there were, the filter sees a pump that delivers less.)
    told = np.where(np.arange(500) < 250, u, u / 0.75)
    series = fd.Series(4.0 * np.arange(500), y, told)
    network = fd.fields.MLP(
        2, 1, key=jax.random.key(0), width=8, depth=1, zero=True, state_center=[5.0, 5.0],
        state_scale=[3.0, 3.0], input_center=3.2, input_scale=1.5,
    )  # fmt: skip
    model = fd.StateSpaceModel(
        dist.Normal(jnp.array([5.0, 5.0]), 0.5).to_event(1),
        fd.Transition(Tanks(network)),
        fd.LinearObservation([[0.0, 1.0]], 0.03**2),
    )
    adapting = fd.LowRankWeightFilter(
        fd.ExtendedKalmanFilter(),
        lambda m: m.dynamics.fn.value.network,
        prior_sd=0.05,
        drift_sd=0.005,
        rank=6,
    )

    def errors(filter, ahead):
        found = fd.predict(model, series, filter, ahead=ahead)
        error = np.asarray(series.observations - found.mean)[:, 0]
        return [np.sqrt(np.mean(error[rows] ** 2)) for rows in (slice(30, 250), slice(300, None))]

    for ahead, share in ((1, 0.5), (25, 0.5)):
        frozen, adapted = errors(fd.ExtendedKalmanFilter(), ahead), errors(adapting, ahead)
        assert adapted[1] < share * frozen[1]
        assert adapted[0] < 2.0 * frozen[0]


def test_arguments_that_make_no_sense_are_named():
    extended = fd.ExtendedKalmanFilter()
    make = lambda **options: fd.LowRankWeightFilter(extended, weights_of, **options)
    for options, message in (
        (dict(prior_sd=0.0), "`prior_sd` is 0.0; expected numbers > 0"),
        (dict(drift_sd=-1.0), "`drift_sd` is -1.0; expected numbers >= 0"),
        (dict(decay_time=0.0), "`decay_time` is 0.0"),
        (dict(forgetting=1.5), "`forgetting` is 1.5"),
        (dict(rank=0), "`rank` is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(ValueError, match="`filter` has iterations=2"):
        fd.LowRankWeightFilter(fd.ExtendedKalmanFilter(iterations=2), weights_of)
    with pytest.raises(TypeError, match="`filter` is EnsembleKalmanFilter"):
        fd.LowRankWeightFilter(fd.EnsembleKalmanFilter(10), weights_of)
    with pytest.raises(TypeError, match="`where` is str"):
        fd.LowRankWeightFilter(extended, "w")
    model = bent({"w": W})
    for learner, message in (
        (make(rank=4), "`rank` is 4 but `where` picked 3 weights"),
        (
            make(rank=2, prior_sd=[0.1, 0.2]),
            "`prior_sd` has 2 entries; expected one for each of the 1",
        ),
        (make(rank=2, drift_sd=[np.ones(2)]), r"`drift_sd\[0\]` has shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            learner.check(model)
    for where, message in (
        (lambda m: m.dynamics.fn.value, None),
        (lambda m: (), "`where` picked no array"),
        (lambda m: m.initial, "`where` picked numbers of `initial`"),
    ):
        learner = fd.LowRankWeightFilter(extended, where, rank=2)
        if message is None:
            learner.check(model)
            continue
        with pytest.raises(TypeError, match=message):
            learner.check(model)
