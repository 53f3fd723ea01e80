"""Changes are noticed, told apart, and answered."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

import filterdyn as fd

#: A mass on a spring, driven by a force that steps every 5 rows.
DT, ROWS, CHANGE = 0.2, 150, 80
TIMES = np.arange(float(ROWS))
FORCE = np.repeat(np.random.default_rng(0).normal(size=(ROWS // 5, 1)), 5, 0)


def spring(p, sensors=1):
    k = p["stiffness"]
    F = jnp.array([[1 - DT * DT * k, DT * (1 - 0.3 * DT)], [-DT * k, 1 - 0.3 * DT]])
    g = jnp.array([DT, 1.0])
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        fd.LinearTransition(F, 0.004 * jnp.outer(g, g) + 1e-9 * jnp.eye(2), B=DT * g[:, None]),
        fd.LinearObservation(jnp.tile(jnp.array([[1.0, 0.0]]), (sensors, 1)), R=0.01),
    )


KNOWN = spring(dict(stiffness=2.0))
LEARNT = fd.ParametricModel(
    spring,
    prior=dict(stiffness=dist.LogNormal(np.log(2.0), 0.5)),
    evolution=fd.RandomWalk(dict(stiffness=0.01)),
)


def record(seed, *, stiffness=2.0, noise=1.0, outlier=0.0, sensors=1, rows=ROWS):
    """Measurements with a change in row CHANGE: of the stiffness, of the noise of the last sensor, or an
    outlier of so many standard deviations."""
    rng = np.random.default_rng(seed)
    before, after = (spring(dict(stiffness=k)).dynamics for k in (2.0, stiffness))
    B, root = np.asarray(before.B), np.linalg.cholesky(before.Q)
    x, ys = rng.normal(size=2), np.zeros((rows, sensors))
    for i in range(rows):
        if i:
            F = np.asarray((before if i < CHANGE else after).F)
            x = F @ x + B @ FORCE[i - 1] + root @ rng.normal(size=2)
        ys[i] = (
            x[0]
            + 0.1
            * rng.normal(size=sensors)
            * np.r_[np.ones(sensors - 1), noise if i >= CHANGE else 1.0]
        )
    ys[CHANGE, -1] += 0.1 * outlier
    return ys


def filtered(model, ys, **options):
    inner = (
        fd.KalmanFilter() if model is not LEARNT else fd.AugmentedFilter(fd.ExtendedKalmanFilter())
    )
    series = fd.Series(TIMES[: len(ys)], ys, FORCE[: len(ys)])
    return fd.filter(model, series, fd.WatchedFilter(inner, **options))


def decisions(result):
    kinds = np.asarray(result.alarms.kind)
    return [(int(i), fd.ChangeKind(int(kinds[i]))) for i in np.flatnonzero(kinds)]


def test_while_nothing_changes_it_is_the_filter_itself():
    ys = record(0)
    ys[7] = np.nan
    result = filtered(KNOWN, ys)
    plain = fd.filter(KNOWN, fd.Series(TIMES, ys, FORCE), fd.KalmanFilter())
    assert decisions(result) == []
    np.testing.assert_allclose(result.mean, plain.mean, atol=1e-12)
    np.testing.assert_allclose(result.log_likelihood, plain.log_likelihood, rtol=1e-13)
    evidence = np.asarray(result.alarms.evidence)
    np.testing.assert_array_equal(evidence[7], evidence[6])


def test_evidence_is_the_cusum_of_log_likelihood_ratios():
    """Of a state that is known only noise can change: Page's recursion, written out."""
    model = fd.StateSpaceModel(
        dist.Delta(jnp.zeros(1), event_dim=1),
        fd.LinearTransition(jnp.eye(1), jnp.zeros((1, 1))),
        fd.LinearObservation(jnp.eye(1), R=1.0),
    )
    ys = np.random.default_rng(3).normal(size=(40, 1))
    ys[30:] *= 1.6
    watched = fd.WatchedFilter(fd.KalmanFilter(), noise_factors=(1.7, 0.6))
    found = fd.filter(model, fd.Series(np.arange(40.0), ys), watched).alarms.evidence
    for j, factor in enumerate((1.7, 0.6)):
        g, expected = 0.0, []
        for y in ys[:, 0]:
            g = max(0.0, g + norm.logpdf(y, scale=factor) - norm.logpdf(y))
            expected.append(g)
        np.testing.assert_allclose(found[:, j], expected, atol=1e-12)
    assert found[-1, 0] > 1
    assert watched.threshold(1) == pytest.approx(np.log(3 * 10_000))


@pytest.mark.slow
def test_more_noise_of_one_sensor_is_known_as_that_and_taken_over():
    model = spring(dict(stiffness=2.0), 2)
    result = filtered(model, record(1, noise=4.0, sensors=2))
    (row, kind), *others = decisions(result)
    alarms = result.alarms
    assert kind is fd.ChangeKind.SENSOR_NOISE and not others
    assert int(alarms.sensor[row]) == 1 and alarms.noise_factor[row] == pytest.approx(5.0)
    assert CHANGE <= row < CHANGE + 20
    assert abs(row + 1 - int(alarms.rows[row]) - CHANGE) <= 6
    np.testing.assert_allclose(alarms.noise_scales[-1], [1.0, 5.0])
    one = jax.tree.map(lambda x: x[row], alarms)
    assert one.in_words == "noise of sensor 1: 5 times as large"
    # From then on it is the filter of that noise.
    noisy = fd.LinearObservation(model.observation.H, R=jnp.diag(jnp.array([0.01, 0.25])))
    start = dist.MultivariateNormal(result.mean[row], result.cov[row])
    rest = fd.Series(TIMES[row + 1 :], record(1, noise=4.0, sensors=2)[row + 1 :], FORCE[row + 1 :])
    expected = fd.filter(
        fd.StateSpaceModel(start, model.dynamics, noisy),
        rest,
        fd.KalmanFilter(),
        t0=TIMES[row],
        u0=FORCE[row],
    )
    np.testing.assert_allclose(result.mean[row + 1 :], expected.mean, atol=1e-9)


@pytest.mark.slow
def test_a_step_of_a_parameter_is_known_and_learnt_at_once():
    ys = record(2, stiffness=4.0)
    result = filtered(LEARNT, ys)
    (row, kind), *_ = decisions(result)
    assert kind is fd.ChangeKind.DYNAMICS and CHANGE <= row < CHANGE + 50
    before, after = (result.parameters.mean["stiffness"][i] for i in (row - 1, row))
    assert abs(after - 4.0) < 0.5 * abs(before - 4.0)
    variances = result.parameters.unconstrained_cov[:, 0, 0]
    assert variances[row] > 1.5 * variances[row - 1], "the gain was not reset"


def test_an_outlier_is_no_change():
    result = filtered(KNOWN, record(3, outlier=9.0))
    assert [kind for _, kind in decisions(result)] == [fd.ChangeKind.OUTLIER]
    np.testing.assert_array_equal(result.alarms.noise_scales[-1], 1.0)
    without = record(3, outlier=9.0)
    without[CHANGE] = np.nan
    expected = fd.filter(KNOWN, fd.Series(TIMES, without, FORCE), fd.KalmanFilter())
    np.testing.assert_allclose(result.mean[-1], expected.mean[-1], atol=0.01)


@pytest.mark.slow
def test_over_many_runs_alarms_are_right_soon_and_seldom_false():
    """50 runs without a change, 50 with twice the stiffness, 50 with three times the noise."""
    runs = 50
    changes = (dict(), dict(stiffness=4.0), dict(noise=3.0))
    ys = np.stack([record(k, **change) for change in changes for k in range(runs)])
    watched = fd.WatchedFilter(fd.KalmanFilter())

    @jax.jit
    @jax.vmap
    def told(ys):
        found = fd.filter(KNOWN, fd.Series(jnp.asarray(TIMES), ys, jnp.asarray(FORCE)), watched)
        return found.alarms.raised, found.alarms.kind, found.alarms.evidence

    raised, kinds, evidence = (np.asarray(x).reshape(3, runs, ROWS, -1) for x in told(ys))
    calm = evidence[0, :, :, :-1].max(-1)
    for every in (10.0, 100.0):
        beyond = calm >= np.log(4 * every)
        at_risk = np.where(beyond.any(1), beyond.argmax(1) + 1, ROWS).sum()
        assert at_risk >= every * beyond.any(1).sum()
    assert (calm >= np.log(4 * 10.0)).any(), "nothing is ever beyond: the bound was not tried"
    for i, right, within in (
        (1, fd.ChangeKind.DYNAMICS, 25.0),
        (2, fd.ChangeKind.SENSOR_NOISE, 12.0),
    ):
        after, decided = raised[i, :, CHANGE:, 0] > 0, kinds[i, :, CHANGE:, 0]
        noticed = after.any(1)
        assert noticed.mean() >= 0.95
        assert after.argmax(1)[noticed].mean() < within
        first = decided[np.arange(runs), (decided > 0).argmax(1)]
        assert np.mean((first == right)[noticed]) >= 0.9


@pytest.mark.slow
@pytest.mark.long
def test_it_only_tells_if_it_is_not_to_respond():
    ys = record(1, noise=4.0)
    told = filtered(KNOWN, ys, responds=False)
    assert len(decisions(told)) >= 1
    plain = fd.filter(KNOWN, fd.Series(TIMES, ys, FORCE), fd.KalmanFilter())
    np.testing.assert_allclose(told.mean, plain.mean, atol=1e-12)


@pytest.mark.slow
def test_a_stream_tells_what_the_batch_tells_and_goes_on_from_a_file(tmp_path):
    ys = record(1, noise=4.0)
    whole = filtered(KNOWN, ys)
    online = fd.OnlineFilter(KNOWN, fd.WatchedFilter(fd.KalmanFilter()))
    state = online.init(0.0, FORCE[0])
    kinds = []
    for i, (t, y, u) in enumerate(zip(TIMES, ys, FORCE, strict=True)):
        if i == CHANGE + 3:
            online.save(tmp_path / "state", state)
            state, _ = online.load(tmp_path / "state")
        state, step = online.step(state, t, y, u)
        kinds.append(float(step.alarm.kind))
    np.testing.assert_array_equal(kinds, whole.alarms.kind)
    np.testing.assert_allclose(state.mean, whole.mean[-1], rtol=1e-12)


def test_a_result_without_a_watch_has_no_alarms():
    ys = record(0)[:5]
    result = fd.filter(KNOWN, fd.Series(TIMES[:5], ys, FORCE[:5]), fd.KalmanFilter())
    with pytest.raises(ValueError, match="does not look for changes"):
        _ = result.alarms


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            dict(filter=fd.ParticleFilter(10)),
            TypeError,
            "ParticleFilter; expected a Gaussian filter",
        ),
        (dict(noise_factors=(1.0,)), ValueError, "`noise_factors`"),
        (dict(fading=0.9), ValueError, "`fading`"),
        (dict(false_alarm_every=0), ValueError, "`false_alarm_every`"),
        (dict(patience=0), ValueError, "`patience`"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        fd.WatchedFilter(**{"filter": fd.KalmanFilter(), **options})


def test_a_filter_that_adapts_its_noise_cannot_be_watched():
    inner = fd.KalmanFilter(adaptive=fd.AdaptiveNoise())
    with pytest.raises(TypeError, match="NoiseFactors"):
        fd.filter(KNOWN, fd.Series(TIMES, record(0), FORCE), fd.WatchedFilter(inner))
