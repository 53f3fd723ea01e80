"""Predictive distributions: series anew, rows one ahead, rows to come; and those of the prior."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.inference import posterior_predictive, prior_predictive

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 answers", allow_module_level=True)
pytest.importorskip("arviz_base")

STEP, DRAWS = 0.7, 4000
times, ahead = 1900.0 + np.arange(8.0), np.array([1909.0, 1910.5])
y = np.array([
    [-2.2, -0.1], [-1.0, 0.3], [np.nan, np.nan], [1.5, 1.1], [0.9, np.nan], [-1.3, 0.4], [1.6, 2.7],
    [2.1, 3.0],
])  # fmt: skip


def walk(step, start=0.0):
    one = jnp.eye(1)
    return fd.StateSpaceModel(
        dist.Normal(start * jnp.ones(1), 2.0).to_event(1),
        fd.LinearTransition(one, step**2 * one),
        fd.LinearObservation(jnp.ones((2, 1)), 1.0),
    )


def program(times, y=None):
    step = numpyro.sample("step", dist.LogNormal(0.0, 0.5))
    numpyro.deterministic("variance", step**2)
    numpyro.sample("y", fd.ObservedSeries(walk(step), times, filter=fd.KalmanFilter()), obs=y)


def textbook(step, y, last):
    """Means and variances of the state before every row, and after the last one, sensor by sensor."""
    mean, variance, predicted = 0.0, 4.0, []
    for k, row in enumerate(y):
        variance = variance + (step**2 if k else 0.0)
        predicted.append((mean, variance))
        for value in row[~np.isnan(row)]:
            gain = variance / (variance + 1)
            mean, variance = mean + gain * (value - mean), gain
    return np.array(predicted), [(mean, variance + k * step**2) for k in range(1, last + 1)]


@pytest.fixture(scope="module")
def tree():
    samples = {"step": np.full(DRAWS, STEP)}
    names = ("left", "right")
    return posterior_predictive(
        samples, program, times, y, times=ahead, observation_names=names, batch_size=1000
    )


def draws_of(tree, group, name="y"):
    return tree[group][name].values[0]


def test_three_questions_have_three_groups(tree):
    groups = {"posterior_predictive", "one_step_predictive", "predictions", "observed_data"}
    assert set(tree.children) == groups
    for group, clock in (
        ("posterior_predictive", times),
        ("one_step_predictive", times),
        ("predictions", ahead),
    ):
        drawn = tree[group]["y"]
        assert drawn.dims == ("chain", "draw", "time", "observation")
        np.testing.assert_array_equal(drawn["time"], clock)
        assert list(drawn["observation"].values) == ["left", "right"]
        assert np.isfinite(drawn).all()
    np.testing.assert_array_equal(tree["observed_data"]["y"], y)


def assert_moments(drawn, mean, variance):
    """Means and variances within 5 standard errors of 4,000 Gaussian draws."""
    error = np.sqrt(variance / DRAWS)
    assert (np.abs(drawn.mean(0) - mean[:, None]) < 5 * error[:, None]).all()
    assert (np.abs(drawn.var(0) / variance[:, None] - 1) < 5 * np.sqrt(2 / DRAWS)).all()


def test_replicated_series_know_nothing_of_the_states_of_the_data(tree):
    """N(0, 4 + k step^2 + 1) in row k, rows correlated as the walk is."""
    drawn = draws_of(tree, "posterior_predictive")
    assert_moments(drawn, np.zeros(8), 5 + STEP**2 * np.arange(8))
    shared = np.cov(drawn[:, 0, 0], drawn[:, 7, 1])[0, 1]
    assert abs(shared - 4.0) < 5 * np.sqrt((5 * (5 + 7 * STEP**2) + 16) / DRAWS)


def test_rows_one_ahead_are_those_of_the_textbook_recursion(tree):
    predicted, _ = textbook(STEP, y, 0)
    assert_moments(draws_of(tree, "one_step_predictive"), predicted[:, 0], predicted[:, 1] + 1)
    mean, sd = (draws_of(tree, "one_step_predictive", n)[0] for n in ("y_mean", "y_sd"))
    np.testing.assert_allclose(mean, np.repeat(predicted[:, :1], 2, 1), atol=1e-10)
    np.testing.assert_allclose(sd**2, np.repeat(predicted[:, 1:] + 1, 2, 1), rtol=1e-10)


def test_forecasts_go_on_from_the_last_belief(tree):
    """A discrete transition for each of the two rows, whatever the gap."""
    mean, variance = np.array(textbook(STEP, y, 2)[1]).T
    assert_moments(draws_of(tree, "predictions"), mean, variance + 1)


@pytest.mark.slow
def test_a_kind_is_the_same_alone_and_among_others(tree):
    samples = {"step": np.full(DRAWS, STEP)}
    alone = posterior_predictive(samples, program, times, y, kind="one_step", batch_size=1000)
    assert set(alone.children) == {"one_step_predictive", "observed_data"}
    np.testing.assert_allclose(
        alone["one_step_predictive"]["y"], tree["one_step_predictive"]["y"], atol=1e-12
    )


def test_replicates_need_no_data():
    samples = {"step": np.array([0.5, 0.9])}
    tree = posterior_predictive(samples, program, times)
    assert set(tree.children) == {"posterior_predictive"}


def test_the_prior_predictive_draws_parameters_and_series():
    tree = prior_predictive(program, times, y, num_samples=DRAWS, batch_size=1000)
    assert set(tree.children) == {"prior", "prior_predictive", "observed_data"}
    step = tree["prior"]["step"].values[0]
    np.testing.assert_allclose(tree["prior"]["variance"].values[0], step**2)
    assert abs(np.log(step).mean()) < 5 * 0.5 / np.sqrt(DRAWS)
    assert abs(np.log(step).std() - 0.5) < 5 * 0.5 / np.sqrt(2 * DRAWS)
    # A step and its series belong together: squares of increments follow the step.
    drawn = tree["prior_predictive"]["y"].values[0]
    large = step > np.median(step)
    increments = np.square(drawn[:, 7] - drawn[:, 0]).mean(1)
    expected = [(7 * step[w] ** 2 + 2).mean() for w in (large, ~large)]
    np.testing.assert_allclose([increments[w].mean() for w in (large, ~large)], expected, rtol=0.2)


def test_a_name_with_a_scope_is_one_with_a_dot_in_the_prior():
    def scoped(times, y=None):
        with numpyro.handlers.scope(prefix="net"):
            numpyro.sample("w", dist.Normal())
        program(times, y)

    assert "net.w" in prior_predictive(scoped, times, y, num_samples=3)["prior"]


# --- several series, other filters, paths

both = np.stack([y, np.where(np.arange(8)[:, None] < 5, y + 1.0, np.nan)])


def two_series(times, y=None):
    with numpyro.plate("series", 2):
        step = numpyro.sample("step", dist.LogNormal(0.0, 0.5))
        models = eqx.filter_vmap(walk)(step, jnp.zeros(2))
        site = fd.ObservedSeries(models, times, filter=fd.KalmanFilter(), batch_shape=(2,))
        numpyro.sample("y", site, obs=y)


def shared(times, y=None):
    step = numpyro.sample("step", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("series", 2):
        numpyro.sample("y", fd.ObservedSeries(walk(step), times, filter=fd.KalmanFilter()), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "steps"),
    [(two_series, np.array([[0.5, 0.9], [0.7, 1.1]])), (shared, np.array([0.5, 0.9]))],
    ids=["a batch of models", "one model in a plate"],
)
def test_every_series_of_a_batch_is_predicted_by_its_own_past(model, steps):
    tree = posterior_predictive({"step": steps}, model, times, both, times=ahead)
    one_step = tree["one_step_predictive"]
    assert one_step["y"].dims == ("chain", "draw", "series", "time", "observation")
    assert tree["predictions"]["y"].shape == (1, 2, 2, 2, 2)
    for draw in range(2):
        for series, step in enumerate(np.broadcast_to(steps[draw], 2)):
            predicted, _ = textbook(step, both[series], 0)
            mean = one_step["y_mean"].values[0, draw, series, :, 0]
            np.testing.assert_allclose(mean, predicted[:, 0], atol=1e-10)


@pytest.mark.slow
def test_ragged_series_go_on_from_their_own_last_rows():
    batch = fd.stack([fd.Series(times, y), fd.Series(times[:3] + 0.5, y[:3])])

    def ragged(y=None):
        step = numpyro.sample("step", dist.LogNormal(0.0, 0.5))
        one = jnp.eye(1)
        model = fd.StateSpaceModel(
            dist.Normal(jnp.zeros(1), 2.0).to_event(1),
            fd.LinearSDE(jnp.zeros((1, 1)), step * one),
            fd.LinearObservation(jnp.ones((2, 1)), 1.0),
        )
        clock = batch.times
        site = fd.ObservedSeries(model, clock, filter=fd.KalmanFilter(), batch_shape=(2,))
        with numpyro.plate("series", 2):
            numpyro.sample("y", site, obs=y)

    samples = {"step": np.full(DRAWS, STEP)}
    kind = "forecast"
    tree = posterior_predictive(samples, ragged, batch.observations, kind=kind, times=[1908.0])
    drawn = tree["predictions"]["y"].values[0]
    for series, rows, gap in ((0, y, 1.0), (1, y[:3], 1908 - 1902.5)):
        mean, variance = textbook(STEP, rows, 1)[1][0]
        variance = variance + (gap - 1) * STEP**2
        assert_moments(drawn[:, series], np.array([mean]), np.array([variance + 1]))
    assert tree["predictions"]["clock"].dims == ("series", "time")


@pytest.mark.slow
def test_a_particle_filter_predicts_what_the_exact_filter_does():
    """Fresh particles for every draw; 300 of them have a bias far below the Monte Carlo error."""

    def by_particles(times, y=None):
        step = numpyro.sample("step", dist.LogNormal(0.0, 0.5))
        filter = fd.ParticleFilter(300)
        site = fd.ObservedSeries(walk(step), times, filter=filter, key=jr.key(3))
        numpyro.sample("y", site, obs=y)

    samples = {"step": np.full(DRAWS, STEP)}
    tree = posterior_predictive(samples, by_particles, times, y, times=ahead)
    assert "y_mean" not in tree["one_step_predictive"]
    predicted, later = textbook(STEP, y, 2)
    assert_moments(draws_of(tree, "one_step_predictive"), predicted[:, 0], predicted[:, 1] + 1)
    mean, variance = np.array(later).T
    assert_moments(draws_of(tree, "predictions"), mean, variance + 1)


@pytest.mark.slow
def test_a_path_is_replicated_from_its_start_and_forecast_from_its_end():
    def with_path(times, y=None):
        step = numpyro.sample("step", dist.LogNormal(0.0, 0.5))
        x = numpyro.sample("x", fd.LatentPath(walk(step), times))
        numpyro.sample("y", fd.PathObservations(walk(step), times, x), obs=y)

    samples = {"step": np.full(DRAWS, STEP), "x": np.full((DRAWS, 8, 1), 9.0)}
    tree = posterior_predictive(samples, with_path, times, y, times=ahead)
    assert set(tree.children) == {"posterior_predictive", "predictions", "observed_data"}
    variance = 5 + STEP**2 * np.arange(8)
    assert_moments(draws_of(tree, "posterior_predictive"), np.zeros(8), variance)
    later = 1 + STEP**2 * np.arange(1, 3)
    assert_moments(draws_of(tree, "predictions"), np.full(2, 9.0), later)
    with pytest.raises(TypeError, match="needs a filter; the site is a PathObservations"):
        posterior_predictive(samples, with_path, times, y, kind="one_step")


# --- errors

good = {"step": np.array([0.5, 0.9])}


def fails(error, message, *args, **kwargs):
    with pytest.raises(error, match=message):
        posterior_predictive(*args, **kwargs)


def test_arguments_of_another_kind_are_errors():
    fails(ValueError, "`kind` is 'smoothed'", good, program, times, y, kind="smoothed")
    fails(ValueError, "`times` is missing", good, program, times, y, kind="forecast")
    kind = "replicated"
    fails(ValueError, "`times` is given", good, program, times, y, kind=kind, times=ahead)
    fails(ValueError, "`inputs` is given", good, program, times, y, inputs=np.ones((2, 1)))
    fails(ValueError, "before the last row", good, program, times, y, times=[1901.0])
    fails(ValueError, "`batch_size` is 0", good, program, times, y, batch_size=0)
    fails(KeyError, "no samples of the site 'step'", {"pace": np.ones(2)}, program, times, y)
    fails(TypeError, "pass the data as the model was run", good, program, times, times=ahead)
