"""Simulation-based calibration: right inference passes, planted errors are found."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn.diagnostics import simulation_based_calibration, uniformity

# --- the test of uniformity


def test_the_p_value_is_that_of_all_possible_ranks():
    """Every table of 4 ranks among 3 numbers, of which each is as likely."""
    tables = list(itertools.product(range(3), repeat=4))
    points = uniformity.evaluation_points(2)
    np.testing.assert_array_equal(points, [1, 2])

    def statistic(ranks):
        below = [sum(r < point for r in ranks) for point in points]
        return min(uniformity.two_sided(4, p / 3)[c] for p, c in zip(points, below, strict=True))

    all_values = np.array([statistic(ranks) for ranks in tables])
    for ranks, value in zip(tables, all_values, strict=True):
        expected = np.mean(all_values <= value * (1 + 1e-8))
        np.testing.assert_allclose(uniformity.p_value(np.array(ranks), 2), expected, atol=1e-12)


def test_two_sided_probabilities_are_those_of_a_binomial():
    stats = pytest.importorskip("scipy.stats")
    k = np.arange(51)
    expected = 2 * np.minimum(stats.binom.cdf(k, 50, 0.3), stats.binom.sf(k - 1, 50, 0.3))
    np.testing.assert_allclose(uniformity.two_sided(50, 0.3), expected, rtol=1e-8, atol=1e-14)


def test_uniform_ranks_are_refused_as_often_as_the_rate_says():
    """At most 5 % of 600 tables: more than 54 in 1 of 10,000 runs."""
    rng = np.random.default_rng(0)
    p = np.array([uniformity.p_value(rng.integers(0, 20, 60), 19) for _ in range(600)])
    assert 15 < (p <= 0.05).sum() <= 50
    assert 0.4 < np.mean(p <= 0.5) < 0.56


def test_the_band_is_kept_as_often_as_the_rate_says():
    rng = np.random.default_rng(1)
    z, low, high = uniformity.band(200, 39, 0.1)
    ranks = np.sort(rng.integers(0, 40, (2000, 200)), axis=1)
    below = np.stack([(ranks < point).mean(1) for point in np.round(40 * z)], axis=1)
    kept = ((below >= low) & (below <= high)).all(1).mean()
    assert 0.9 - 0.02 < kept < 0.95


# --- a model whose posterior is known: mean of three measurements


def normal():
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1))


def exact(width=1.0, shift=0.0):
    """Draws of the conjugate posterior, of the data in the model that is handed over; with a width and a
    place that are wrong if asked for."""

    def sampler(key, model, *args, **kwargs):
        from numpyro import handlers

        trace = handlers.trace(handlers.seed(model, jr.key(0))).get_trace(*args, **kwargs)
        mean = trace["y"]["value"].sum() / 4
        return {"mean": mean + shift + width / 2 * jr.normal(key, (99,))}

    return sampler


def calibrate(sampler, **settings):
    settings = {"num_simulations": 500, "rate": 1e-4, **settings}
    return simulation_based_calibration(normal, key=jr.key(1), sampler=sampler, **settings)


def test_the_exact_posterior_passes():
    found = calibrate(exact())
    assert found.ok, str(found)
    assert set(found.ranks) == {"mean", "log density"}
    assert found.ranks["mean"].shape == (500,)
    assert found.ranks["mean"].min() >= 0
    assert found.ranks["mean"].max() <= 99
    assert found.efficiency["mean"] > 0.9
    assert "ok, 500 simulations" in str(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (exact(width=1.6), "the posterior is too wide"),
        (exact(shift=0.3), "the truth lies too low: the posterior is biased"),
    ],
    ids=["wide", "shifted"],
)
def test_a_wrong_posterior_is_found_and_named(sampler, words):
    found = calibrate(sampler)
    assert not found.ok
    assert found.p_values["mean"] < 1e-6
    assert f"mean: p = {found.p_values['mean']:.2g}; {words}" in str(found)


def test_a_posterior_that_is_the_prior_shows_in_the_joint_density_only():
    found = calibrate(lambda key, model: {"mean": jr.normal(key, (99,))})
    assert found.p_values["mean"] > 1e-4
    assert found.p_values["log density"] < 1e-6
    assert not found.ok


@pytest.mark.slow
def test_a_simulator_of_other_data_is_found():
    def noisier():
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mean, 1.6).expand([3]).to_event(1))

    assert not calibrate(exact(), simulator=noisier).ok


@pytest.mark.slow
def test_a_sampler_that_is_not_traced_gives_the_same_ranks():
    some = {"num_simulations": 20}
    compiled = calibrate(exact(), **some)
    plain = calibrate(
        lambda key, model: jax.tree.map(np.asarray, exact()(key, model)), compiled=False, **some
    )
    np.testing.assert_array_equal(plain.ranks["mean"], compiled.ranks["mean"])


@pytest.mark.slow
def test_draws_that_are_not_finite_are_no_ranks():
    def broken(key, model):
        draws = exact()(key, model)["mean"]
        return {"mean": jnp.where(draws[0] > 0.5, jnp.nan, draws)}

    found = calibrate(broken)
    assert 0 < found.failed < 500
    assert not found.ok
    assert len(found.ranks["mean"]) == 500 - found.failed
    assert f"{found.failed} simulations failed" in str(found)


@pytest.mark.slow
def test_draws_that_hang_together_are_pointed_out():
    def repeated(key, model):
        draws = exact()(key, model)["mean"]
        return {"mean": jnp.repeat(draws[::11], 11)}

    text = str(calibrate(repeated))
    assert "are not independent (effective share 0." in text
    assert "raise `thinning`" in text


def test_arguments_of_another_kind_are_errors():
    def fails(error, message, model=normal, **settings):
        with pytest.raises(error, match=message):
            simulation_based_calibration(model, key=jr.key(0), num_simulations=2, **settings)

    fails(KeyError, "no site 'z'; its sites are", site="z")
    fails(KeyError, "`var_names` has 'other'", var_names=["other"])
    fails(ValueError, "`rate`", rate=2.0)
    fails(KeyError, "no draws of 'mean', only", sampler=lambda key, model: {"m": jnp.zeros(99)})
    few = lambda key, model: {"mean": jnp.zeros(5)}
    fails(ValueError, r"shape \(5,\); expected \(99, ...\)", sampler=few)
    known = lambda: numpyro.sample("y", dist.Normal(0.0, 1.0), obs=1.0)
    fails(ValueError, "has data already", model=known)


@pytest.fixture(scope="module")
def narrow():
    return calibrate(exact(width=0.6))


def test_a_posterior_that_is_too_narrow_is_found_and_named(narrow):
    assert not narrow.ok
    assert narrow.p_values["mean"] < 1e-6
    assert "the posterior is too narrow" in str(narrow)


def test_the_picture_has_a_panel_for_every_parameter(tmp_path, narrow):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = fd.plots.calibration_ranks(narrow)
    assert [ax.get_title().split(",")[0] for ax in axes] == ["mean", "log density"]
    axes[0].figure.savefig(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 5_000
    with pytest.raises(TypeError, match="`result` is int"):
        fd.plots.calibration_ranks(3)


# --- NUTS with the likelihood of a filter


def level(times, noise_factor=1.0):
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 0.5))
    step = numpyro.sample("step", dist.LogNormal(-0.5, 0.5))
    one = jnp.eye(1)
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 2.0).to_event(1),
        fd.LinearTransition(one, step**2 * one),
        fd.LinearObservation(one, (noise_factor * noise) ** 2 * one),
    )
    numpyro.sample("y", fd.ObservedSeries(model, times, filter=fd.KalmanFilter()))


settings = dict(num_warmup=150, thinning=3, kernel_settings={"dense_mass": True})
times = np.arange(15.0)


@pytest.mark.slow
def test_nuts_with_a_kalman_filter_is_calibrated():
    """False-alarm rate 1e-4, 1,000 simulations."""
    found = simulation_based_calibration(
        level, times, key=jr.key(0), rate=1e-4, batch_size=500, **settings
    )
    print(found)
    assert found.ok
    assert len(found.ranks["noise"]) == 1000
    assert min(found.efficiency.values()) > 0.7


@pytest.mark.long
@pytest.mark.slow
def test_a_wrong_noise_in_the_likelihood_is_found():
    """Data with 1.5 times the noise that the likelihood is told."""
    simulator = lambda times: level(times, noise_factor=1.5)
    found = simulation_based_calibration(
        level, times, key=jr.key(0), rate=1e-4, simulator=simulator, num_simulations=300,
        batch_size=300, **settings
    )  # fmt: skip
    print(found)
    assert not found.ok
    assert found.p_values["noise"] < 1e-4
