"""Posterior samples as an ArviZ tree."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, log_likelihood
from scipy.special import logsumexp
from scipy.stats import lognorm, norm

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 answers", allow_module_level=True)

az = pytest.importorskip("arviz_stats")
GROUPS = {"posterior", "posterior_predictive", "log_likelihood", "observed_data"}
times = 1900.0 + np.arange(12.0)
y = np.array([
    [-2.2, -0.1], [-1.0, 0.3], [0.4, 1.9], [np.nan, np.nan], [1.5, 1.1], [0.9, np.nan],
    [0.2, -0.8], [-1.3, 0.4], [1.6, 2.7], [3.1, 1.0], [2.2, 2.9], [0.1, 0.6],
])  # fmt: skip
seen = ~np.isnan(y).all(1)


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


def terms(steps, y=y):
    """log p(y_t | y_1:t-1) for every step size, (draw, T): the scalar recursion, sensor by sensor."""
    mean, variance = np.zeros_like(steps), np.full_like(steps, 4.0)
    out = np.zeros((len(steps), len(y)))
    for k, row in enumerate(y):
        variance = variance + (steps**2 if k else 0.0)
        for value in row[~np.isnan(row)]:
            out[:, k] += norm.logpdf(value, mean, np.sqrt(variance + 1))
            gain = variance / (variance + 1)
            mean, variance = mean + gain * (value - mean), gain
    return out


DRAWS = 2000


@pytest.fixture(scope="module")
def posterior():
    """A grid over the step, its posterior weights, and draws that are its quantiles, shuffled."""
    grid = np.exp(np.linspace(-3.0, 2.5, 20_001))
    log_weights = lognorm.logpdf(grid, 0.5) + terms(grid).sum(1) + np.log(grid)
    weights = np.exp(log_weights - logsumexp(log_weights))
    levels = np.random.default_rng(0).permutation((np.arange(DRAWS) + 0.5) / DRAWS)
    return grid, weights, np.interp(levels, weights.cumsum(), grid)


@pytest.fixture(scope="module")
def tree(posterior):
    names = ("left", "right")
    return fd.to_datatree({"step": posterior[2]}, program, times, y, observation_names=names)


@pytest.fixture(scope="module")
def mcmc():
    mcmc = MCMC(
        NUTS(program),
        num_warmup=200,
        num_samples=250,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    fields = ("potential_energy", "num_steps", "accept_prob", "energy", "adapt_state.step_size")
    mcmc.run(jr.key(0), times, y, extra_fields=fields)
    return mcmc


@pytest.fixture(scope="module")
def sampled(mcmc):
    return fd.to_datatree(mcmc, program, times, y)


def test_a_dictionary_of_samples_is_one_chain(tree, posterior):
    assert set(tree.children) == GROUPS
    assert tree["posterior"]["step"].dims == ("chain", "draw")
    assert tree["posterior"]["step"].shape == (1, DRAWS)
    np.testing.assert_array_equal(tree["posterior"]["step"][0], posterior[2])


def test_series_have_a_time_axis_with_the_times(tree):
    for group, lead in (("posterior_predictive", ("chain", "draw")), ("observed_data", ())):
        series = tree[group]["y"]
        assert series.dims == (*lead, "time", "observation")
        np.testing.assert_array_equal(series["time"], times)
        assert list(series["observation"].values) == ["left", "right"]
    np.testing.assert_array_equal(tree["observed_data"]["y"], y)
    assert tree["posterior_predictive"]["y"].shape == (1, DRAWS, 12, 2)


def test_replicated_series_are_complete_and_differ(tree):
    replicated = tree["posterior_predictive"]["y"].values
    assert np.isfinite(replicated).all()
    assert len(np.unique(replicated[0, :, 0, 0])) == DRAWS


def test_replicated_series_have_the_moments_of_the_posterior_predictive(tree, posterior):
    """Of N(0, 4 + k step^2 + 1) with the step integrated out; 5 standard errors of 2,000 draws."""
    grid, weights, _ = posterior
    variance = 5.0 + np.arange(12) * (weights @ grid**2)
    replicated = tree["posterior_predictive"]["y"].values[0]
    assert np.abs(replicated.mean(0) / np.sqrt(variance)[:, None]).max() < 5 / np.sqrt(DRAWS)
    # The square of a Gaussian with a random variance has kurtosis below 6 here.
    assert np.abs(replicated.var(0) / variance[:, None] - 1).max() < 5 * np.sqrt(5 / DRAWS)


def test_missing_rows_are_left_out_of_the_pointwise_log_likelihood(tree):
    pointwise = tree["log_likelihood"]["y"]
    assert pointwise.dims == ("chain", "draw", "time")
    np.testing.assert_array_equal(pointwise["time"], times[seen])


def test_pointwise_log_likelihoods_are_those_of_a_textbook_recursion(tree, posterior):
    expected = terms(posterior[2])[:, seen]
    np.testing.assert_allclose(tree["log_likelihood"]["y"][0], expected, rtol=0, atol=1e-8)


def test_pointwise_log_likelihoods_sum_to_that_of_numpyro(tree, posterior):
    some = {"step": posterior[2][:20]}
    whole = log_likelihood(program, some, times, y)["y"]
    pointwise = tree["log_likelihood"]["y"].values[0, :20]
    np.testing.assert_allclose(pointwise.sum(-1), whole, rtol=0, atol=1e-8)


def test_leave_one_out_is_that_of_quadrature(tree, posterior):
    """elpd_t = -log E[1 / p_t] over the posterior, here by 20,001 nodes. The first row does not
    depend on the step at all: its weights are equal, which no Pareto distribution fits."""
    grid, weights, _ = posterior
    exact = -logsumexp(-terms(grid)[:, seen], b=weights[:, None], axis=0)
    loo = az.loo(tree, pointwise=True)
    np.testing.assert_allclose(loo.elpd_i, exact, atol=0.02)
    np.testing.assert_allclose(loo.elpd, exact.sum(), atol=0.05)
    assert loo.pareto_k.max() < 0.7


def test_leave_one_out_of_known_parameters_is_the_log_likelihood(posterior):
    known = {
        "step": 0.8 + 1e-4 * np.linspace(-1, 1, 400)[np.random.default_rng(0).permutation(400)]
    }
    loo = az.loo(fd.to_datatree(known, program, times, y))
    expected = fd.log_likelihood(walk(0.8), fd.Series(times, y), fd.KalmanFilter())
    np.testing.assert_allclose(loo.elpd, expected, atol=1e-3)
    assert abs(loo.p) < 1e-3


def test_an_mcmc_brings_its_chains_and_statistics(sampled, mcmc):
    assert set(sampled.children) == {*GROUPS, "sample_stats"}
    assert sampled["posterior"]["step"].shape == (2, 250)
    np.testing.assert_array_equal(
        sampled["posterior"]["step"], mcmc.get_samples(group_by_chain=True)["step"]
    )
    statistics = sampled["sample_stats"]
    wanted = {"diverging", "lp", "n_steps", "acceptance_rate", "energy", "step_size", "tree_depth"}
    assert wanted <= set(statistics.data_vars)
    energy = mcmc.get_extra_fields(group_by_chain=True)["potential_energy"]
    np.testing.assert_array_equal(statistics["lp"], -energy)
    assert statistics["diverging"].dtype == bool
    np.testing.assert_array_equal(
        statistics["tree_depth"], np.ceil(np.log2(statistics["n_steps"] + 1))
    )
    assert sampled.attrs["inference_library"] == "numpyro"


def test_a_summary_of_the_tree_is_that_of_the_posterior(sampled, posterior):
    """The mean to 5 of its own standard errors."""
    grid, weights, _ = posterior
    summary = az.summary(sampled, round_to="none")
    assert list(summary.index) == ["step", "variance"]
    row = summary.loc["step"]
    assert abs(row["mean"] - weights @ grid) < 5 * row["mcse_mean"]
    assert row["r_hat"] < 1.05
    assert row["ess_bulk"] > 50


def test_leave_one_out_of_an_mcmc_is_close_to_that_of_quadrature(sampled, posterior):
    grid, weights, _ = posterior
    exact = -logsumexp(-terms(grid)[:, seen], b=weights[:, None], axis=0)
    np.testing.assert_allclose(az.loo(sampled).elpd, exact.sum(), atol=0.3)


def test_the_posterior_predictive_plot_of_arviz_takes_the_tree(sampled, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    plots = pytest.importorskip("arviz_plots")
    matplotlib.use("Agg")
    collection = plots.plot_ppc_dist(sampled, backend="matplotlib")
    collection.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000


# --- several series


def make(step, start):
    return walk(step, start)


def two_series(times, y=None):
    with numpyro.plate("series", 2):
        step = numpyro.sample("step", dist.LogNormal(0.0, 0.5))
        models = eqx.filter_vmap(make)(step, jnp.zeros(2))
        site = fd.ObservedSeries(models, times, filter=fd.KalmanFilter(), batch_shape=(2,))
        numpyro.sample("y", site, obs=y)


def shared(times, y=None):
    step = numpyro.sample("step", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("series", 2):
        numpyro.sample("y", fd.ObservedSeries(walk(step), times, filter=fd.KalmanFilter()), obs=y)


both = np.stack([y, np.where(np.arange(12)[:, None] < 5, y + 1.0, np.nan)])
several = pytest.mark.parametrize(
    ("model", "steps"),
    [(two_series, np.array([[0.5, 0.9], [0.7, 1.1]])), (shared, np.array([0.5, 0.9]))],
    ids=["a batch of models", "one model in a plate"],
)


@several
def test_a_batch_of_series_has_an_axis_of_series(model, steps):
    tree = fd.to_datatree({"step": steps}, model, times, both)
    assert tree["posterior_predictive"]["y"].dims == (
        "chain", "draw", "series", "time", "observation",
    )  # fmt: skip
    np.testing.assert_array_equal(tree["observed_data"]["y"], both)


def test_parameters_in_a_plate_have_its_axis():
    def model(times, y=None):
        with numpyro.plate("series", 2):
            step = numpyro.sample("step", dist.LogNormal(0.0, 0.5))
            numpyro.sample("pair", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            numpyro.deterministic("twice", 2 * step)
            models = eqx.filter_vmap(make)(step, jnp.zeros(2))
            site = fd.ObservedSeries(models, times, filter=fd.KalmanFilter(), batch_shape=(2,))
            numpyro.sample("y", site, obs=y)

    draws = {"step": np.full((4, 2), 0.5), "pair": np.zeros((4, 2, 3)), "twice": np.ones((4, 2))}
    tree = fd.to_datatree(draws, model, times, both)
    assert tree["posterior"]["step"].dims == ("chain", "draw", "series")
    assert tree["posterior"]["twice"].dims == ("chain", "draw", "series")
    assert tree["posterior"]["pair"].dims == ("chain", "draw", "series", "pair_dim_1")
    assert tree["posterior_predictive"]["y"].dims[2] == "series"


@several
def test_rows_of_a_batch_say_which_series_and_when(model, steps):
    pointwise = fd.to_datatree({"step": steps}, model, times, both)["log_likelihood"]["y"]
    assert pointwise.dims == ("chain", "draw", "row")
    rows = np.argwhere(~np.isnan(both).all(-1))
    np.testing.assert_array_equal(pointwise["series"], rows[:, 0])
    np.testing.assert_array_equal(pointwise["time"], times[rows[:, 1]])
    for draw in range(2):
        per_series = np.broadcast_to(steps[draw], 2)
        expected = [terms(per_series[[s]], both[s])[0, k] for s, k in rows]
        np.testing.assert_allclose(pointwise[0, draw], expected, atol=1e-8)


def test_ragged_series_keep_their_own_times():
    batch = fd.stack([fd.Series(times, y), fd.Series(times[:3] + 0.5, y[:3])])

    def ragged(y=None):
        step = numpyro.sample("step", dist.LogNormal(0.0, 0.5))
        site = fd.ObservedSeries(
            walk(step), batch.times, filter=fd.KalmanFilter(), batch_shape=(2,)
        )
        with numpyro.plate("series", 2):
            numpyro.sample("y", site, obs=y)

    tree = fd.to_datatree({"step": np.array([0.5, 0.9])}, ragged, batch.observations)
    pointwise = tree["log_likelihood"]["y"]
    expected = np.concatenate([times[seen], times[:3] + 0.5])
    np.testing.assert_array_equal(pointwise["time"], expected)
    np.testing.assert_array_equal(pointwise["series"], [0] * seen.sum() + [1] * 3)


# --- errors

good = {"step": np.array([0.5, 0.9])}


def fails(error, message, *args, **kwargs):
    with pytest.raises(error, match=message):
        fd.to_datatree(*args, **kwargs)


def test_a_model_without_its_data_says_what_is_missing():
    message = r"site 'y' is an unobserved ObservedSeries; .*pass the data as the model was run"
    fails(TypeError, message, good, program, times)


def test_a_site_that_is_not_there_or_not_a_series_is_an_error():
    fails(KeyError, "no site 'z'; its sites are", good, program, times, y, site="z")
    fails(TypeError, "site 'step' is an unobserved", good, program, times, y, site="step")


def test_samples_of_another_kind_are_errors():
    fails(TypeError, "is int; expected numpyro.infer.MCMC", 3, program, times, y)
    fails(ValueError, "is empty", {}, program, times, y)
    fails(ValueError, "expected one axis of draws", {"step": 0.5}, program, times, y)
    uneven = {**good, "other": np.ones(3)}
    fails(ValueError, "of the same length for every name", uneven, program, times, y)


def test_a_parameter_without_samples_is_not_drawn_from_its_prior():
    message = "no samples of the site 'step'"
    fails(KeyError, message, {"pace": np.array([0.5])}, program, times, y)


def test_names_must_fit_the_columns():
    names = ("left", "middle", "right")
    message = "has 3 names for 2 columns"
    fails(ValueError, message, good, program, times, y, observation_names=names)
