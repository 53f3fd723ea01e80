"""Pictures show the numbers they are made from."""

import subprocess
import sys

import arviz_base
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import filterdyn as fd

Z90 = stats.norm.ppf(0.95)
T = 8
KALMAN, EXTENDED = fd.KalmanFilter(), fd.ExtendedKalmanFilter()


@pytest.fixture(autouse=True)
def no_figure_and_no_setting_is_left_behind():
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


def level_model():
    return fd.StateSpaceModel(
        dist.Normal(jnp.array([1000.0]), 300.0).to_event(1),
        fd.LinearTransition([[1.0]], [[1469.0]]),
        fd.LinearObservation([[1.0]], [[15099.0]]),
    )


@pytest.fixture(scope="module")
def nile():
    """A local level over 8 years of the Nile, two of them missing: model, series, result, smoothed."""
    whole = fd.datasets.nile()
    flow = np.array(whole.observations[:T])
    flow[3:5] = np.nan
    series = fd.Series(whole.times[:T], flow, observation_names=("flow",))
    model = level_model()
    return model, series, fd.filter(model, series, KALMAN), fd.smooth(model, series, KALMAN)


def pelts(change=None):
    observations = np.array(fd.datasets.lynx_hare().observations[:T])
    observations[2, 1] = np.nan
    if change is not None:
        observations[change] = -1.0
    return fd.Series(np.arange(1900.0, 1900 + T), observations, observation_names=("hare", "lynx"))


@pytest.fixture(scope="module")
def lynx():
    """Two log-populations that wander, seen with log-normal noise: model, series, result."""
    model = fd.StateSpaceModel(
        dist.Normal(jnp.array([3.4, 1.4]), 0.5).to_event(1),
        fd.LinearTransition(jnp.eye(2), 0.2 * jnp.eye(2)),
        fd.Observation(lambda t, x, u: dist.LogNormal(x, jnp.array([0.2, 0.3])).to_event(1)),
    )
    return model, pelts(), fd.filter(model, pelts(), EXTENDED)


@pytest.fixture(scope="module")
def future(lynx):
    model, _, result = lynx
    return fd.forecast(model, result, np.arange(1908.0, 1912.0))


def band_in(ax, which=0):
    """Times, lower and upper ends of a band in a panel."""
    band = [c for c in ax.collections if hasattr(c, "get_paths") and len(c.get_facecolor())][which]
    vertices = band.get_paths()[0].vertices
    rows = (len(vertices) - 3) // 2
    low, high = vertices[1 : rows + 1], vertices[rows + 2 : 2 * rows + 2][::-1]
    assert np.array_equal(low[:, 0], high[:, 0])
    return low[:, 0], low[:, 1], high[:, 1]


def line_in(ax, label):
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def legend_texts(axes):
    legends = [*axes[0].figure.legends, axes[0].get_legend()]
    return [text.get_text() for one in legends if one is not None for text in one.get_texts()]


def innovations_only(z, names=None, status=0):
    """A result of which only the standardised innovations are looked at."""
    rows = len(z)
    belief = fd.Gaussian(jnp.zeros(1), jnp.eye(1))
    times = np.arange(float(rows))
    zeros, statuses = jnp.zeros(rows), jnp.full(rows, status, jnp.int32)
    z = jnp.asarray(z)
    return fd.FilterResult(
        times,
        belief,
        belief,
        z,
        z,
        z,
        None,
        zeros,
        zeros.sum(),
        statuses,
        None,
        KALMAN,
        False,
        names,
    )


# how it loads


def test_matplotlib_is_imported_when_plots_are_first_used():
    program = (
        "import sys, filterdyn as fd\n"
        "assert 'matplotlib' not in sys.modules, 'too early'\n"
        "assert callable(fd.plots.states) and 'matplotlib' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# states


def test_band_of_a_state_is_its_mean_plus_and_minus_z_standard_deviations(nile):
    _, series, result, smoothed = nile
    for one, label in ((result, "filtered, 90 %"), (smoothed, "smoothed, 90 %")):
        (ax,) = fd.plots.states(one)
        times, low, high = band_in(ax)
        mean, sd = np.asarray(one.mean[:, 0]), np.sqrt(np.asarray(one.cov[:, 0, 0]))
        np.testing.assert_array_equal(times, series.times)
        np.testing.assert_allclose(low, mean - Z90 * sd, rtol=1e-12)
        np.testing.assert_allclose(high, mean + Z90 * sd, rtol=1e-12)
        np.testing.assert_allclose(line_in(ax, label)[1], mean, rtol=1e-12)


def test_width_of_the_band_follows_the_probability(nile):
    result = nile[2]
    for probability in (0.5, 0.99):
        (ax,) = fd.plots.states(result, probability=probability)
        _, low, high = band_in(ax)
        width = 2 * stats.norm.ppf(0.5 + probability / 2) * np.sqrt(np.asarray(result.cov[:, 0, 0]))
        np.testing.assert_allclose(high - low, width, rtol=1e-9)


def test_missing_entries_are_not_drawn(nile):
    model, series, result, _ = nile
    seen = ~np.isnan(np.asarray(series.observations[:, 0]))
    for axes in (fd.plots.states(result, series=series), fd.plots.one_step(model, result, series)):
        times, values = line_in(axes[0], "data")
        np.testing.assert_array_equal(times, series.times[seen])
        np.testing.assert_array_equal(values, np.asarray(series.observations)[seen, 0])


def test_several_results_lie_over_each_other_and_are_told_apart(nile):
    _, series, result, smoothed = nile
    axes = fd.plots.states([result, smoothed], series=series)
    assert legend_texts(axes) == ["filtered, 90 %", "smoothed, 90 %", "data"]
    for which, one in enumerate((result, smoothed)):
        middle = sum(band_in(axes[0], which)[1:]) / 2
        np.testing.assert_allclose(middle, np.asarray(one.mean[:, 0]), rtol=1e-12)
    named = fd.plots.states({"mine": result, "yours": smoothed})
    assert legend_texts(named) == ["mine, 90 %", "yours, 90 %"]
    assert legend_texts(fd.plots.states([result, result])) == [
        "filtered 1, 90 %",
        "filtered 2, 90 %",
    ]


def test_transformed_states_have_transformed_ends_and_data_of_the_same_name(lynx):
    _, series, result = lynx
    axes = fd.plots.states(result, series=series, names=("lynx", "hare"), transform=np.exp)
    for i, ax in enumerate(axes):
        sd = np.sqrt(np.asarray(result.cov[:, i, i]))
        _, low, high = band_in(ax)
        np.testing.assert_allclose(np.log(low), result.mean[:, i] - Z90 * sd, rtol=1e-10)
        np.testing.assert_allclose(np.log(high), result.mean[:, i] + Z90 * sd, rtol=1e-10)
        column = np.asarray(series.observations)[:, 1 - i]
        np.testing.assert_array_equal(line_in(ax, "data")[1], column[~np.isnan(column)])
    assert [ax.get_ylabel() for ax in axes] == ["lynx", "hare"]


def test_panels_are_named_by_the_series_or_by_number(lynx):
    _, series, result = lynx
    labels = lambda axes: [ax.get_ylabel() for ax in axes]
    assert labels(fd.plots.states(result)) == ["x[0]", "x[1]"]
    assert labels(fd.plots.states(result, series=series)) == ["hare", "lynx"]
    axes = fd.plots.states(result, series=series, names=("hare", "other"))
    assert labels(axes) == ["hare", "other"]
    assert not [line for line in axes[1].lines if line.get_label() == "data"]


# one step ahead


def test_one_step_band_is_the_measurement_less_its_innovation_plus_and_minus_z_sd(nile):
    model, series, result, _ = nile
    (ax,) = fd.plots.one_step(model, result, series)
    times, low, high = band_in(ax)
    np.testing.assert_array_equal(times, series.times)  # the missing rows are predicted too
    seen = ~np.isnan(np.asarray(series.observations[:, 0]))
    centre = np.asarray(series.observations - result.innovations)[seen, 0]
    sd = np.sqrt(np.asarray(result.innovation_covs))[seen, 0, 0]
    np.testing.assert_allclose(low[seen], centre - Z90 * sd, rtol=1e-12)
    np.testing.assert_allclose(high[seen], centre + Z90 * sd, rtol=1e-12)
    assert np.all(np.diff((high - low)[3:6]) > 0)  # and get less certain


def test_log_normal_band_is_in_the_units_of_the_data(lynx):
    model, series, result = lynx
    axes = fd.plots.one_step(model, result, series, probability=0.5)
    z = stats.norm.ppf(0.75)
    for j, ax in enumerate(axes):
        y = np.asarray(series.observations)[:, j]
        seen = ~np.isnan(y)
        centre = np.log(y) - np.asarray(result.innovations)[:, j]
        sd = np.sqrt(np.asarray(result.innovation_covs)[:, j, j])
        _, low, high = band_in(ax)
        median = line_in(ax, "one step ahead, 50 %")[1]
        np.testing.assert_allclose(low[seen], np.exp(centre - z * sd)[seen], rtol=1e-10)
        np.testing.assert_allclose(high[seen], np.exp(centre + z * sd)[seen], rtol=1e-10)
        np.testing.assert_allclose(median[seen], np.exp(centre)[seen], rtol=1e-10)


def test_one_step_prediction_sees_the_input_of_its_row():
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition([[0.9]], [[0.1]], B=[[0.5]]),
        fd.LinearObservation([[1.0]], [[0.3]], D=[[10.0]]),
    )
    series = fd.Series(np.arange(4.0), [1.0, 2.0, -3.0, 4.0], inputs=[[0.0], [1.0], [-2.0], [3.0]])
    result = fd.filter(model, series, KALMAN)
    (ax,) = fd.plots.one_step(model, result, series)
    expected = np.asarray(series.observations - result.innovations)[:, 0]
    np.testing.assert_allclose(line_in(ax, "one step ahead, 90 %")[1], expected, rtol=1e-10)


def test_interval_of_a_prediction_is_the_same_inside_jit():
    predicted = fd.PredictedObservation(jnp.zeros((2, 1)), jnp.ones((2, 1, 1)), ())
    low, high = jax.jit(lambda p: p.interval(0.9))(predicted)
    np.testing.assert_allclose(high, Z90, rtol=1e-12)
    np.testing.assert_allclose(low, -Z90, rtol=1e-12)


# forecast


def test_forecast_band_follows_the_history_one_step_ahead(lynx, future):
    model, series, result = lynx
    axes = fd.plots.forecast(future, series=series, result=result, probability=0.8)
    single = fd.plots.one_step(model, result, series, probability=0.8)
    low, high = future.observation_interval(0.8)
    # Column 0 has no missing entry, and its history is what one_step draws.
    np.testing.assert_allclose(band_in(axes[0], 0), band_in(single[0]), rtol=1e-10)
    for j, ax in enumerate(axes):
        times, drawn_low, drawn_high = band_in(ax, 1)
        np.testing.assert_array_equal(times, future.times)
        np.testing.assert_allclose(drawn_low, low[:, j], rtol=1e-12)
        np.testing.assert_allclose(drawn_high, high[:, j], rtol=1e-12)
    assert legend_texts(axes) == ["one step ahead, 80 %", "data", "forecast, 80 %"]
    assert [ax.get_ylabel() for ax in axes] == ["hare", "lynx"]


def test_history_has_a_gap_where_the_measurement_is_missing(lynx, future):
    _, series, result = lynx
    _, ax = fd.plots.forecast(future, series=series, result=result)
    drawn = line_in(ax, "one step ahead, 90 %")[1]
    np.testing.assert_array_equal(np.isnan(drawn), np.isnan(np.asarray(series.observations[:, 1])))


def test_gaussian_forecast_band_is_mean_plus_and_minus_z_sd(nile):
    model, series, result, _ = nile
    future = fd.forecast(model, result, [1879.0, 1880.0])
    (ax,) = fd.plots.forecast(future, series=series[-3:])
    _, low, high = band_in(ax)
    sd = np.sqrt(np.asarray(future.observation_cov[:, 0, 0]))
    np.testing.assert_allclose(low, future.observation_mean[:, 0] - Z90 * sd, rtol=1e-12)
    np.testing.assert_allclose(high, future.observation_mean[:, 0] + Z90 * sd, rtol=1e-12)
    assert len(line_in(ax, "data")[0]) == 3


# posterior predictive


def test_posterior_predictive_bands_are_quantiles_of_the_replicates():
    series = pelts()
    replicated = np.random.default_rng(0).lognormal(3.0, 1.0, (200, T, 2))
    axes = fd.plots.posterior_predictive(series, replicated, probabilities=(0.5, 0.9))
    for j, ax in enumerate(axes):
        for which, tail in enumerate((0.05, 0.25)):
            _, low, high = band_in(ax, which)
            np.testing.assert_allclose(low, np.quantile(replicated[..., j], tail, axis=0))
            np.testing.assert_allclose(high, np.quantile(replicated[..., j], 1 - tail, axis=0))
        median = line_in(ax, "replicated, 50 %")[1]
        np.testing.assert_allclose(median, np.median(replicated[..., j], axis=0))


def test_data_tree_gives_the_same_picture_as_its_array():
    series = pelts()
    draws = np.random.default_rng(1).lognormal(3.0, 1.0, (2, 50, T, 2))
    tree = arviz_base.from_dict({"posterior_predictive": {"y": draws}})
    from_tree = fd.plots.posterior_predictive(series, tree)
    from_array = fd.plots.posterior_predictive(series, draws.reshape(100, T, 2))
    for one, other in zip(from_tree, from_array, strict=True):
        np.testing.assert_array_equal(band_in(one), band_in(other))
    with pytest.raises(KeyError, match=r"`replicated` has no posterior_predictive/z, only \['y'\]"):
        fd.plots.posterior_predictive(series, tree, site="z")


def test_replicates_that_failed_are_left_out():
    series = pelts()
    replicated = np.random.default_rng(2).lognormal(3.0, 1.0, (50, T, 2))
    with_failures = np.concatenate([replicated, np.full((7, T, 2), np.nan)])
    for one, other in zip(
        fd.plots.posterior_predictive(series, with_failures),
        fd.plots.posterior_predictive(series, replicated),
        strict=True,
    ):
        np.testing.assert_allclose(band_in(one), band_in(other))


# innovations


def test_four_pictures_show_the_same_innovations():
    z = np.random.default_rng(3).normal(size=(60, 2))
    z[5:9, 1] = np.nan
    grid = fd.plots.innovations(innovations_only(z, ("left", "right")))
    assert legend_texts(grid[0]) == ["left", "right", "standard normal"]
    for j, name in enumerate(("left", "right")):
        seen = ~np.isnan(z[:, j])
        times, values = line_in(grid[0, 0], name)
        np.testing.assert_array_equal(times, np.flatnonzero(seen))
        np.testing.assert_array_equal(values, z[seen, j])
        expected, quantiles = line_in(grid[1, 0], name)
        n = seen.sum()
        np.testing.assert_array_equal(quantiles, np.sort(z[seen, j]))
        np.testing.assert_allclose(expected, stats.norm.ppf((np.arange(n) + 0.5) / n), atol=1e-12)
    guides = {line.get_ydata()[0] for line in grid[0, 0].lines if len(line.get_xdata()) == 2}
    assert {-2, 2} <= guides
    x, density = line_in(grid[0, 1], "standard normal")
    np.testing.assert_allclose(density, stats.norm.pdf(x), rtol=1e-12)


def test_histogram_has_area_one_even_with_outliers_beyond_its_edge():
    z = np.random.default_rng(4).normal(size=(500, 1))
    z[0] = 40.0
    ax = fd.plots.innovations(innovations_only(z))[0, 1]
    (bars,) = ax.patches
    corners = bars.get_xy()
    x, y = corners[:, 0], corners[:, 1]
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    np.testing.assert_allclose(area, 1.0, rtol=1e-10)
    assert x.max() == 6.0


def bounds_in(ax):
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    return dashed[1].get_ydata()


def test_correlogram_is_the_correlation_of_pairs_of_observed_rows():
    rng = np.random.default_rng(5)
    z = rng.normal(size=(40, 1))
    z[rng.random(40) < 0.2] = np.nan
    ax = fd.plots.innovations(innovations_only(z, ("one",)), lags=5)[1, 1]
    centred = z[:, 0] - np.nanmean(z)
    lags, drawn = line_in(ax, "one")
    np.testing.assert_allclose(lags, np.arange(1, 6))
    for k in range(1, 6):
        pairs = [
            (centred[t], centred[t + k])
            for t in range(40 - k)
            if np.isfinite(centred[t] * centred[t + k])
        ]
        expected = np.mean([a * b for a, b in pairs]) / np.nanmean(centred**2)
        np.testing.assert_allclose(drawn[k - 1], expected, rtol=1e-12)
        np.testing.assert_allclose(
            bounds_in(ax)[k - 1], stats.norm.ppf(0.975) / np.sqrt(len(pairs)), rtol=1e-12
        )


def test_correlogram_of_a_planted_autoregression_exceeds_the_bounds():
    # By Bartlett's formula the first two correlations of the planted one, 0.6 and 0.36, are 12 and
    # 4.5 of their standard deviations above the bound: false alarm below 1e-5. White noise with more
    # than 5 of 25 correlations outside their 95 % bounds: 0.1 % of seeds. The seed is fixed.
    noise = np.random.default_rng(6).normal(size=(400, 2))
    z = noise.copy()
    for t in range(1, 400):
        z[t, 0] = 0.6 * z[t - 1, 0] + 0.8 * noise[t, 0]
    ax = fd.plots.innovations(innovations_only(z, ("planted", "white")), lags=25)[1, 1]
    bounds = bounds_in(ax)
    planted, white = (np.abs(line_in(ax, name)[1]) for name in ("planted", "white"))
    assert np.all(planted[:2] > bounds[:2])
    assert np.sum(white > bounds) <= 5


# what may go wrong


def test_single_row_is_drawn():
    model = level_model()
    series = fd.Series([1871.0], [1120.0], observation_names=("flow",))
    result = fd.filter(model, series, KALMAN)
    for axes in (
        fd.plots.states(result, series=series),
        fd.plots.one_step(model, result, series),
        fd.plots.posterior_predictive(series, np.ones((5, 1, 1))),
        fd.plots.innovations(result),
    ):
        axes.ravel()[0].figure.canvas.draw()
    (ax,) = fd.plots.states(result)
    (bar,) = [c for c in ax.collections if isinstance(c, matplotlib.collections.LineCollection)]
    ends = bar.get_segments()[0][:, 1]
    sd = np.sqrt(result.cov[0, 0, 0])
    np.testing.assert_allclose(ends, result.mean[0, 0] + Z90 * sd * np.array([-1, 1]), rtol=1e-12)


def test_quantity_that_is_never_observed_has_a_prediction_and_no_points(lynx):
    model, series, _ = lynx
    observations = np.array(series.observations)
    observations[:, 1] = np.nan
    blind = fd.Series(series.times, observations, observation_names=("hare", "lynx"))
    result = fd.filter(model, blind, EXTENDED)
    axes = fd.plots.one_step(model, result, blind)
    assert line_in(axes[1], "data")[0].size == 0
    assert np.all(np.isfinite(line_in(axes[1], "one step ahead, 90 %")[1]))
    assert legend_texts(fd.plots.innovations(result)[0]) == ["hare", "standard normal"]
    with pytest.raises(ValueError, match="`result` has no innovations; every observation is miss"):
        fd.plots.innovations(innovations_only(np.full((4, 1), np.nan)))


@pytest.mark.parametrize("count", [1, 3, 7, 15])
def test_many_quantities_have_a_panel_each(count):
    names = tuple(f"sensor {i}" for i in range(count))
    rng = np.random.default_rng(7)
    series = fd.Series(np.arange(5.0), rng.normal(size=(5, count)), observation_names=names)
    axes = fd.plots.posterior_predictive(series, rng.normal(size=(20, 5, count)))
    axes[0].figure.canvas.draw()
    assert [ax.get_ylabel() for ax in axes] == list(names)
    assert axes[0].figure.axes == list(axes)
    grid = fd.plots.innovations(innovations_only(rng.normal(size=(30, count)), names))
    looks = {
        (line.get_color(), line.get_marker())
        for line in grid[1, 0].lines
        if line.get_label() in names
    }
    assert len(looks) == count


def test_float32_results_are_drawn(nile):
    _, series, result, _ = nile
    single = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, result)
    (ax,) = fd.plots.states(single, series=series)
    np.testing.assert_allclose(band_in(ax)[1:], band_in(fd.plots.states(result)[0])[1:], rtol=2e-6)
    fd.plots.innovations(single)


def test_failed_result_is_drawn_up_to_its_failure_and_says_so(lynx):
    model = lynx[0]
    series = pelts(change=4)
    result = fd.filter(model, series, EXTENDED)
    assert int(result.failed_at) == 4
    said = "OBSERVATION_OUT_OF_SUPPORT at row 4"
    axes = fd.plots.states(result)
    assert legend_texts(axes) == [f"filtered, 90 % ({said})"]
    assert len(band_in(axes[0])[0]) == 4
    axes = fd.plots.one_step(model, result, series)
    assert legend_texts(axes)[0] == f"one step ahead, 90 % ({said})"
    fd.plots.innovations(result)


def test_result_without_a_finite_number_is_refused_with_its_status_and_row(lynx):
    model = lynx[0]
    first = fd.filter(model, pelts(change=0), EXTENDED)
    with pytest.raises(ValueError, match="status OBSERVATION_OUT_OF_SUPPORT at row 0"):
        fd.plots.states(first)
    empty = innovations_only(np.full((4, 1), np.nan), status=fd.Status.SINGULAR_INNOVATION)
    with pytest.raises(ValueError, match="status SINGULAR_INNOVATION at row 0"):
        fd.plots.innovations(empty)
    future = fd.forecast(model, first, np.arange(1908.0, 1912.0))
    with pytest.raises(
        ValueError, match=r"`forecast` has nothing finite .* OBSERVATION_OUT_OF_SUP"
    ):
        fd.plots.forecast(future, series=pelts())


def test_given_axes_are_drawn_into(nile):
    model, series, result, _ = nile
    figure, axes = plt.subplots(3, 2)
    for ax, draw in zip(
        axes.ravel(),
        (
            lambda ax: fd.plots.states(result, axes=ax),
            lambda ax: fd.plots.one_step(model, result, series, axes=[ax]),
        ),
        strict=False,
    ):
        assert draw(ax)[0] is ax
        assert ax.get_legend() is not None
    grid = fd.plots.innovations(result, axes=axes[1:])
    assert grid.shape == (2, 2) and grid[0, 0] is axes[1, 0]
    assert plt.get_fignums() == [figure.number]


def fit_result(losses, best_loss, **options):
    """A result as `fd.fit` returns it, with losses that are chosen."""
    nothing = jnp.zeros(())
    state = fd.fitting.FitState([], [], [], jnp.asarray(best_loss), None, None, nothing, nothing)
    arguments = dict(validation_losses=None, skipped=0, stopped_early=False) | options
    return fd.fitting.FitResult(level_model(), KALMAN, np.asarray(losses), state=state, **arguments)


def curve(ax, label):
    """Abscissae and ordinates of the line with a label."""
    [found] = [one for one in ax.lines if one.get_label() == label]
    return found.get_xdata(), found.get_ydata()


def test_learning_curve_is_the_losses_with_a_circle_at_the_model_that_was_returned():
    [ax] = fd.plots.learning_curves(fit_result([5.0, np.nan, 2.0, 2.5], 2.0))
    steps, losses = curve(ax, "loss")
    np.testing.assert_array_equal(steps, range(4))
    np.testing.assert_array_equal(losses, [5.0, np.nan, 2.0, 2.5])
    assert curve(ax, "model returned, after 2 steps") == ([2], [2.0])
    np.testing.assert_array_equal(curve(ax, "steps skipped")[0], [1])


def test_validation_losses_stand_at_the_steps_after_which_they_were_looked_at():
    looks = {"validation_losses": np.array([4.0, 3.0, 3.5]), "validation_steps": [2, 4, 5]}
    [ax] = fd.plots.learning_curves(fit_result(np.arange(5.0)[::-1], 3.0, **looks))
    steps, losses = curve(ax, "validation loss")
    np.testing.assert_array_equal(steps, [2, 4, 5])
    np.testing.assert_array_equal(losses, looks["validation_losses"])
    assert curve(ax, "model returned, after 4 steps") == ([4], [3.0])


def test_of_many_models_the_best_is_drawn_over_the_others():
    losses = np.array([[9.0, 8.0, 7.0], [9.0, 3.0, 1.0], [9.0, 5.0, 6.0]])
    [ax] = fd.plots.learning_curves(fit_result(losses, losses.min(axis=1), best=1))
    np.testing.assert_array_equal(curve(ax, "loss, best of 3")[1], losses[1])
    np.testing.assert_array_equal(curve(ax, "loss, 2 others")[1], losses[0])
    assert curve(ax, "model returned, after 2 steps") == ([2], [1.0])


def test_losses_that_do_not_compare_have_no_circle_and_a_steep_start_is_cut_off():
    losses = np.concatenate([[1e6, 1e3], np.linspace(2.0, 1.0, 38)])
    given = plt.subplots()[1]
    [ax] = fd.plots.learning_curves(fit_result(losses, np.inf), axes=given)
    assert ax is given and len(ax.lines) == 1
    low, high = ax.get_ylim()
    assert 0.8 < low < 1.0 and 1.9 < high < 2.2


REPLICATED = np.ones((3, T, 1))
BAD_ARGUMENTS = {
    "states: a model": (
        TypeError,
        r"`result` is StateSpaceModel; expected fd.FilterResult or fd.SmootherResult",
        lambda p, m, s, r: p.states(m),
    ),
    "states: nothing": (ValueError, "`result` is empty", lambda p, m, s, r: p.states([])),
    "states: names": (
        ValueError,
        r"`names` is \('a', 'b'\); expected 1 names",
        lambda p, m, s, r: p.states(r, names=("a", "b")),
    ),
    "states: no such column": (
        ValueError,
        r"`series` has columns \('flow',\) and `names` is \('level',\); expected a column named",
        lambda p, m, s, r: p.states(r, series=s, names=("level",)),
    ),
    "states: probability": (
        ValueError,
        "plots.states: `probability` is 90; expected a number between 0 and 1",
        lambda p, m, s, r: p.states(r, probability=90),
    ),
    "states: transform": (
        TypeError,
        "`transform` is str; expected a function",
        lambda p, m, s, r: p.states(r, transform="log"),
    ),
    "states: shape of transform": (
        ValueError,
        r"`transform` gave shape \(\) for \(8, 1\)",
        lambda p, m, s, r: p.states(r, transform=np.sum),
    ),
    "states: axes": (
        TypeError,
        "`axes` holds str; expected Matplotlib axes, one for each state",
        lambda p, m, s, r: p.states(r, axes="x"),
    ),
    "states: number of axes": (
        ValueError,
        "`axes` are 2; expected 1, one for each state",
        lambda p, m, s, r: p.states(r, axes=plt.subplots(2)[1]),
    ),
    "states: batch": (
        ValueError,
        r"`result` is a batch of shape \(2,\)",
        lambda p, m, s, r: p.states(jax.tree.map(lambda x: np.stack([x, x]), r)),
    ),
    "one_step: model": (
        TypeError,
        "`model` is FilterResult; expected a StateSpaceModel",
        lambda p, m, s, r: p.one_step(r, r, s),
    ),
    "one_step: series": (
        TypeError,
        "`series` is ArrayImpl; expected fd.Series",
        lambda p, m, s, r: p.one_step(m, r, s.observations),
    ),
    "one_step: rows": (
        ValueError,
        "`series` has 5 rows but `result` has 8 rows",
        lambda p, m, s, r: p.one_step(m, r, s[:5]),
    ),
    "one_step: probability": (
        ValueError,
        "`probability` is 'all'; expected a number between 0 and 1",
        lambda p, m, s, r: p.one_step(m, r, s, probability="all"),
    ),
    "innovations: series": (
        TypeError,
        "`result` is Series; expected fd.FilterResult",
        lambda p, m, s, r: p.innovations(s),
    ),
    "innovations: lags": (
        ValueError,
        "`lags` is 8; expected fewer than the 8 rows",
        lambda p, m, s, r: p.innovations(r, lags=8),
    ),
    "innovations: axes": (
        ValueError,
        "`axes` are 1; expected 4",
        lambda p, m, s, r: p.innovations(r, axes=plt.subplots()[1]),
    ),
    "posterior_predictive: shape": (
        ValueError,
        r"`replicated` has shape \(3, 5, 1\); expected \(S, 8, 1\)",
        lambda p, m, s, r: p.posterior_predictive(s, REPLICATED[:, :5]),
    ),
    "posterior_predictive: kind": (
        TypeError,
        "`replicated` has dtype <U",
        lambda p, m, s, r: p.posterior_predictive(s, REPLICATED.astype(str)),
    ),
    "posterior_predictive: nothing finite": (
        ValueError,
        "`replicated` has no finite entry",
        lambda p, m, s, r: p.posterior_predictive(s, np.nan * REPLICATED),
    ),
    "posterior_predictive: probabilities": (
        ValueError,
        r"`probabilities` is 0.5; expected a sequence",
        lambda p, m, s, r: p.posterior_predictive(s, REPLICATED, probabilities=0.5),
    ),
    "posterior_predictive: batch": (
        ValueError,
        r"`series` is a batch of shape \(2,\)",
        lambda p, m, s, r: p.posterior_predictive(fd.stack([s, s]), REPLICATED),
    ),
    "learning_curves: result": (
        TypeError,
        "`result` is FilterResult; expected fd.FitResult",
        lambda p, m, s, r: p.learning_curves(r),
    ),
    "forecast: result": (
        TypeError,
        "`forecast` is FilterResult; expected fd.Forecast",
        lambda p, m, s, r: p.forecast(r),
    ),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_argument_is_named_with_what_came_and_what_was_expected(case, nile):
    kind, message, call = BAD_ARGUMENTS[case]
    model, series, result, _ = nile
    with pytest.raises(kind, match=message):
        call(fd.plots, model, series, result)


def test_forecast_refuses_a_history_that_is_not_its_own(nile, lynx, future):
    with pytest.raises(ValueError, match="`series` has 1 columns; expected 2, as `forecast` has"):
        fd.plots.forecast(future, series=nile[1])
    with pytest.raises(ValueError, match="`result` is given but `series` is not"):
        fd.plots.forecast(future, result=lynx[2])
