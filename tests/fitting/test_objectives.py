"""Objectives, windows, segments and batches of a fit: each is the number that a plain loop gives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import filterdyn as fd
from filterdyn.fitting.objectives import OBJECTIVES, Run, Setting, over_all
from filterdyn.fitting.records import lay_out, stacked, windows_of

pytestmark = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="compared in float64")
EKF = fd.ExtendedKalmanFilter()
RNG = np.random.default_rng(4)


class Decay(eqx.Module):
    """x' = -rate x + u, in steps of 0.2."""

    rate: jax.Array

    def __call__(self, t, x, u):
        mean = x + 0.2 * (u - self.rate * x)
        return dist.MultivariateNormal(mean, scale_tril=0.05 * jnp.eye(1))


class Single(Decay):
    """The same, in single precision throughout."""

    def __call__(self, t, x, u):
        mean = x + 0.2 * (u - self.rate * x)
        return dist.MultivariateNormal(mean, scale_tril=0.05 * jnp.eye(1, dtype=x.dtype))


def tank(rate=1.0, initial=None):
    initial = dist.Normal(jnp.zeros(1), 2.0).to_event(1) if initial is None else initial
    return fd.StateSpaceModel(
        initial,
        fd.Transition(Decay(jnp.asarray(rate))),
        fd.LinearObservation(jnp.eye(1), 0.05**2),
    )


def record(rows, seed, rate=1.0):
    rng = np.random.default_rng(seed)
    u = np.repeat(rng.normal(size=rows // 5 + 1), 5)[:rows]
    states = np.zeros((rows, 1))
    for k in range(1, rows):
        mean = states[k - 1] + 0.2 * (u[k - 1] - rate * states[k - 1])
        states[k] = mean + 0.05 * rng.normal()
    y = states + 0.05 * rng.normal(size=(rows, 1))
    y[rng.random(rows) < 0.1] = np.nan
    return fd.Series(0.2 * np.arange(rows), y, u), states


LONG, STATES = record(40, 0)
SHORT, FEWER = record(25, 1)
RATE = lambda m: m.dynamics.fn.value.rate


def mean_loss(name, series=(LONG, SHORT), setting=(0, 1, None), states=None):
    """The loss of the model as it is."""
    parts, plan = lay_out(tank(), series, states)
    found = over_all(OBJECTIVES[name], tank(), stacked(parts), plan, EKF, None, Setting(*setting))
    return found.total / found.number


def test_prediction_three_rows_ahead_is_scored_by_what_predict_says():
    squares = [np.asarray(fd.predict(tank(), s, EKF, ahead=3).residuals)[5:] for s in (LONG, SHORT)]
    expected = np.nanmean(np.concatenate(squares) ** 2)
    found = mean_loss("prediction", setting=(5, 3, None))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_simulation_is_scored_by_what_free_run_says():
    free = fd.free_run(tank(), LONG, EKF, burn_in=6)
    found = mean_loss("simulation", [LONG], (6, 1, None))
    np.testing.assert_allclose(found, free.scores().rmse[0] ** 2, rtol=1e-10)


@pytest.mark.slow
def test_states_are_scored_where_they_are_known():
    known = [STATES.copy(), FEWER.copy()]
    known[0][::2] = np.nan
    errors = [
        (k - np.asarray(fd.filter(tank(), s, EKF).mean))[4:]
        for s, k in zip((LONG, SHORT), known, strict=True)
    ]
    found = mean_loss("states", setting=(4, 1, None), states=known)
    np.testing.assert_allclose(found, np.nanmean(np.concatenate(errors) ** 2), rtol=1e-10)


def test_a_window_is_the_slice_of_a_series():
    model = tank()
    parts, plan = lay_out(model, [LONG, SHORT], None)
    windows = windows_of(parts, 12)
    setting = Setting(4, 1, None)
    # (From one experiment to the next no window reaches.)
    assert len(windows.starts) == 29 + 14
    for start, series, first in ((7, LONG, 7), (42, SHORT, 2)):
        assert start in windows.starts
        window = windows.at(jnp.int32(start), 12)
        score = OBJECTIVES["likelihood"](Run(model, window, plan, EKF, None, setting))
        one = fd.filter(model, series[first : first + 12], EKF)
        np.testing.assert_allclose(score.total, -one.log_likelihoods[4:].sum(), rtol=1e-10)
        assert score.number == (~np.isnan(series.observations[first + 4 : first + 12])).sum()


@pytest.mark.slow
def test_windows_have_the_loss_of_the_record_in_the_mean():
    # 400 steps of 16 windows: the mean loss has a standard error of a hundredth of its spread.
    losses = fd.fit(
        tank(),
        [LONG, SHORT],
        EKF,
        optimizer=optax.sgd(0.0),
        steps=400,
        key=jr.key(0),
        window=8,
        burn_in=4,
        chunk=400,
    ).losses
    model = tank()
    parts, plan = lay_out(model, [LONG, SHORT], None)
    windows = windows_of(parts, 12)
    each = jax.vmap(
        lambda start: OBJECTIVES["likelihood"](
            Run(model, windows.at(start, 12), plan, EKF, None, Setting(4, 1, None))
        )
    )(windows.starts)
    expected = each.total.sum() / each.number.sum()
    assert abs(losses.mean() - expected) < 4 * losses.std() / 20


@pytest.mark.slow
def test_a_truncated_gradient_is_that_of_beliefs_that_are_known_at_every_cut():
    model = tank(0.7)
    parts, plan = lay_out(model, [LONG[:12]], None)

    def loss(rate, truncation):
        candidate = eqx.tree_at(lambda m: m.dynamics.fn.arrays[0], model, rate)
        setting = Setting(0, 1, truncation)
        run = Run(candidate, parts[0], plan, EKF, None, setting)
        return OBJECTIVES["likelihood"](run).total

    value, slope = jax.value_and_grad(loss)(jnp.asarray(0.7), 4)
    np.testing.assert_allclose(value, loss(jnp.asarray(0.7), None), rtol=1e-12)
    # By hand: three pieces, each from the belief that the whole run has there.
    whole = fd.filter(model, LONG[:12], EKF)
    total = 0.0
    for start in (0, 4, 8):
        before = max(start - 1, 0)
        initial = dist.MultivariateNormal(whole.mean[before], whole.cov[before])
        piece = LONG[before : start + 4]
        if start:
            y = piece.observations.at[0].set(jnp.nan)
            piece = fd.Series(piece.times, y, piece.inputs)
        begin = initial if start else model.initial
        total += jax.grad(lambda r, b=begin, p=piece: -fd.log_likelihood(tank(r, b), p, EKF))(0.7)
    np.testing.assert_allclose(slope, total, rtol=1e-6)
    assert abs(slope / jax.grad(loss)(jnp.asarray(0.7), None) - 1) > 1e-4


@pytest.mark.slow
def test_segments_that_meet_are_one_simulation():
    # Noise there is none: the segments end where the next ones start, and fit the rate.
    x, u = np.ones(41), np.sin(np.arange(41.0))
    for k in range(40):
        x[k + 1] = x[k] + 0.2 * (u[k] - 1.3 * x[k])
    times, y = 0.2 * np.arange(41), x[:, None]
    start = tank(0.5)
    found = fd.fit(
        start,
        fd.Series(times, y, u),
        EKF,
        optimizer=optax.lbfgs(),
        steps=60,
        objective="simulation",
        shooting=8,
    )
    np.testing.assert_allclose(RATE(found.model), 1.3, rtol=1e-4)
    assert found.losses[-1] < 1e-8 < found.losses[0]
    states = found.state.best[-1]
    assert states.shape == (6, 1)
    np.testing.assert_allclose(states[:, 0], y[::8, 0], atol=1e-3)


@pytest.mark.slow
def test_a_batch_of_models_is_trained_as_each_of_them_alone():
    rates = jnp.array([0.4, 1.0, 2.5])
    models = eqx.filter_vmap(tank)(rates)
    options = {"optimizer": optax.adam(0.1), "steps": 6, "chunk": 3, "validation": SHORT}
    together = fd.fit(models, LONG, EKF, **options)
    alone = [fd.fit(tank(rate), LONG, EKF, **options) for rate in rates]
    for i, one in enumerate(alone):
        np.testing.assert_allclose(together.losses[i], one.losses, rtol=1e-10)
        np.testing.assert_allclose(together.validation_losses[i], one.validation_losses, rtol=1e-10)
        np.testing.assert_allclose(RATE(together.models)[i], RATE(one.model), rtol=1e-10)
    assert together.best == np.argmin([one.validation_losses.min() for one in alone])
    np.testing.assert_array_equal(RATE(together.model), RATE(together.models)[together.best])
    assert together.model.batch_shape == ()


@pytest.mark.slow
def test_a_fit_with_validation_and_a_line_search_goes_on_as_if_not_stopped():
    options = {"optimizer": optax.lbfgs(), "chunk": 2, "validation": SHORT}
    whole = fd.fit(tank(0.3), LONG, EKF, steps=6, **options)
    half = fd.fit(tank(0.3), LONG, EKF, steps=4, **options)
    rest = fd.fit(tank(0.3), LONG, EKF, steps=2, resume=half, **options)
    np.testing.assert_array_equal(rest.losses, whole.losses)
    np.testing.assert_array_equal(rest.validation_losses, whole.validation_losses)
    np.testing.assert_array_equal(rest.validation_steps, [2, 4, 6])
    np.testing.assert_array_equal(RATE(rest.model), RATE(whole.model))


@pytest.mark.slow
def test_windows_go_on_with_the_draws_that_a_fit_without_a_stop_makes():
    options = {"optimizer": optax.adam(0.1), "chunk": 2, "window": 8, "batch": 3}
    options |= {"key": jr.key(5)}
    whole = fd.fit(tank(), [LONG, SHORT], EKF, steps=4, **options)
    half = fd.fit(tank(), [LONG, SHORT], EKF, steps=2, **options)
    rest = fd.fit(tank(), [LONG, SHORT], EKF, steps=2, resume=half, **options)
    np.testing.assert_array_equal(rest.losses, whole.losses)
    assert len(set(whole.losses)) == 4


@pytest.mark.parametrize(
    "filter", [fd.EnsembleKalmanFilter(60), fd.ParticleFilter(200)], ids=["ensemble", "particles"]
)
@pytest.mark.slow
def test_filters_that_sample_find_the_rate_that_the_extended_filter_finds(filter):
    series, _ = record(80, 3)
    options = {"steps": 60, "optimizer": optax.adam(0.05)}
    exact = fd.fit(tank(0.5), series, EKF, **options)
    found = fd.fit(tank(0.5), series, filter, key=jr.key(0), **options)
    assert found.skipped == 0
    # Losses with other draws do not compare: the model is the last one.
    np.testing.assert_array_equal(RATE(found.model), found.state.parameters[0])
    # The rate has a standard error of 0.05; noise of the draws is well below it.
    np.testing.assert_allclose(RATE(found.model), RATE(exact.model), atol=0.1)


@pytest.mark.slow
def test_the_line_of_progress_says_how_far_it_is(capsys):
    fd.fit(
        tank(),
        LONG,
        EKF,
        optimizer=optax.adam(0.1),
        steps=4,
        chunk=2,
        progress=True,
        validation=SHORT,
    )
    lines = capsys.readouterr().err.splitlines()
    assert "2/4 steps" in lines[0] and "4/4 steps" in lines[-1] and "validation" in lines[-1]
    fd.fit(tank(), LONG, EKF, optimizer=optax.adam(0.1), steps=2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 8}, "`window` is given without `key`"),
        ({"window": 60, "key": jr.key(0)}, "ask for 60 rows but no series is that long"),
        ({"objective": "states"}, "`states` is missing"),
        ({"objective": "states", "states": [STATES]}, "1 entries for 2 series"),
        ({"objective": "states", "states": [STATES, STATES]}, "for a series of 25 rows"),
        ({"ahead": 2}, "`ahead` is 2 with objective='likelihood'"),
        ({"shooting": 5}, '`shooting` is given without `objective="simulation"`'),
        ({"shooting": 5, "objective": "simulation", "burn_in": 2}, "`shooting` excludes"),
        ({"truncation": 0}, "`truncation` is 0"),
    ],
)
def test_errors_name_argument_value_and_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        fd.fit(tank(), [LONG, SHORT], EKF, **({"optimizer": optax.sgd(0.1), "steps": 1} | options))


@pytest.mark.slow
def test_a_window_of_irregular_times_takes_the_steps_that_its_gaps_need():
    drift = lambda t, x, u: u - x
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 2.0).to_event(1),
        fd.SDE(drift, 0.1, dt=0.05),
        fd.LinearObservation(jnp.eye(1), 0.05**2),
    )
    times = np.cumsum(np.random.default_rng(3).uniform(0.02, 0.5, len(LONG)))
    series = fd.Series(times, LONG.observations, LONG.inputs)
    parts, plan = lay_out(model, [series[:15], series[15:]], None)
    windows = windows_of(parts, 10)
    score = OBJECTIVES["likelihood"](
        Run(model, windows.at(jnp.int32(20), 10), plan, EKF, None, Setting(0, 1, None))
    )
    expected = -fd.log_likelihood(model, series[20:30], EKF)
    np.testing.assert_allclose(score.total, expected, rtol=1e-10)


@pytest.mark.slow
def test_single_precision_stays_single_and_finds_the_rate_of_double_precision():
    narrow = lambda tree: jax.tree.map(
        lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, tree
    )
    options = {"optimizer": optax.adam(0.1), "steps": 30, "chunk": 30}
    wide = fd.fit(tank(0.3), LONG, EKF, **options)
    series = fd.Series(LONG.times, *narrow((LONG.observations, LONG.inputs)))
    single = Single(jnp.float32(0.3))
    model = narrow(
        fd.StateSpaceModel(
            tank().initial, fd.Transition(single), fd.LinearObservation(jnp.eye(1), 0.05**2)
        )
    )
    found = fd.fit(model, series, EKF, **options)
    assert found.losses.dtype == np.float32 and RATE(found.model).dtype == jnp.float32
    np.testing.assert_allclose(found.losses, wide.losses, rtol=1e-3)
    np.testing.assert_allclose(RATE(found.model), RATE(wide.model), rtol=1e-3)
