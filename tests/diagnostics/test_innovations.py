"""Tests of innovations: formulas against loops in NumPy and SciPy, and 300 runs of a right model, on
which p-values must be uniform.

Stochastic tests compare p-values with the uniform distribution by Kolmogorov-Smirnov at level 1e-4 on
a fixed seed: that is their rate of false alarms over seeds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import filterdyn as fd
from filterdyn import diagnostics

if not jax.config.jax_enable_x64:
    pytest.skip("compared in float64", allow_module_level=True)

T, RUNS = 120, 300
TIMES = np.arange(T)
INPUTS = np.sign(np.sin(TIMES / 5.0))[:, None]
F = jnp.array([[0.9, 0.3], [-0.3, 0.8]])


def model(R=0.5, B=1.0, d=(0.0, 0.0)):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        fd.LinearTransition(F, 0.2 * jnp.eye(2), B=jnp.array([[0.0], [B]])),
        fd.LinearObservation(jnp.array([[1.0, 0.2], [0.0, 1.0]]), R, d=jnp.asarray(d)),
    )


def with_gaps(observations):
    """Without rows 10 .. 19, and without entry 1 of every third row."""
    return observations.at[..., 10:20, :].set(jnp.nan).at[..., ::3, 1].set(jnp.nan)


@pytest.fixture(scope="module")
def runs():
    """Results of a right model over simulated series with gaps, the series, and the true states."""
    right = model()
    simulated = fd.simulate(right, TIMES, INPUTS, key=jax.random.key(1), num_samples=RUNS)
    observations = with_gaps(simulated.observations)
    one = lambda y: fd.filter(right, fd.Series(TIMES, y, INPUTS), fd.KalmanFilter())
    results = jax.jit(jax.vmap(one))(observations)
    return results, observations, simulated.states


@pytest.fixture(scope="module")
def each(runs):
    """The runs one by one."""
    results, observations, _ = runs
    concrete = jax.tree.map(np.asarray, results)
    return [
        (jax.tree.map(lambda x, i=i: x[i], concrete), fd.Series(TIMES, observations[i], INPUTS))
        for i in range(RUNS)
    ]


def assert_uniform(p_values):
    assert stats.kstest(np.asarray(p_values), "uniform").pvalue > 1e-4


def filtered(wrong, observations):
    series = fd.Series(TIMES, observations, INPUTS)
    return fd.filter(wrong, series, fd.KalmanFilter()), series


def test_nis_has_one_degree_of_freedom_per_observed_entry_and_the_bounds_of_chi_square(each):
    result, series = each[0]
    found = diagnostics.nis(result, level=0.9)
    seen = ~np.isnan(np.asarray(series.observations))
    np.testing.assert_array_equal(found.degrees_of_freedom, seen.sum(1))
    for t in range(T):
        if not seen[t].any():
            assert np.isnan([found.values[t], found.lower[t], found.upper[t]]).all()
            continue
        rows = np.ix_(seen[t], seen[t])
        v = np.asarray(result.innovations)[t][seen[t]]
        S = np.asarray(result.innovation_covs)[t][rows]
        np.testing.assert_allclose(found.values[t], v @ np.linalg.solve(S, v), rtol=1e-9)
        bounds = stats.chi2.ppf([0.05, 0.95], len(v))
        np.testing.assert_allclose([found.lower[t], found.upper[t]], bounds, rtol=1e-8)
    total = seen.sum()
    np.testing.assert_allclose(found.mean, np.nansum(found.values) / total)
    bounds = stats.chi2.ppf([0.05, 0.95], total) / total
    np.testing.assert_allclose([found.mean_lower, found.mean_upper], bounds, rtol=1e-8)


def test_nis_of_a_right_model_is_chi_square(runs, each):
    assert_uniform([diagnostics.nis(result).p_value for result, _ in each])
    found = diagnostics.nis(runs[0])
    # 300 runs of 110 rows: a share has standard error 0.0012, the bound is four of them (6e-5).
    assert abs(found.outside - 0.05) < 0.005
    assert found.mean_lower < found.mean < found.mean_upper


def test_nis_of_a_model_that_trusts_its_sensors_too_much_is_above_its_bounds(runs):
    result, _ = filtered(model(R=0.125), runs[1][0])
    found = diagnostics.nis(result)
    assert found.mean > found.mean_upper and "overconfident" in str(found)


def ljung_box(z, lags):
    """Q = N (N + 2) sum_k rho_k^2 / (N - k) with rho_k = sum_t z_t z_(t-k) / sum_t z_t^2."""
    n = len(z)
    rho = [sum(z[t] * z[t - k] for t in range(k, n)) / (z @ z) for k in range(1, lags + 1)]
    return n * (n + 2) * sum(r**2 / (n - k) for k, r in enumerate(rho, 1)), rho


def test_whiteness_without_gaps_is_ljung_box():
    observations = fd.simulate(model(), TIMES, INPUTS, key=jax.random.key(3)).observations
    result, _ = filtered(model(), observations)
    found = diagnostics.whiteness(result, lags=7)
    S = np.asarray(result.innovation_covs)
    for j in range(2):
        z = np.asarray(result.innovations)[:, j] / np.sqrt(S[:, j, j])
        statistic, rho = ljung_box(z, 7)
        np.testing.assert_allclose(found.statistics[j], statistic, rtol=1e-10)
        np.testing.assert_allclose(found.p_values[j], stats.chi2.sf(statistic, 7), rtol=1e-8)
        scale = T / (T - np.arange(1, 8))
        np.testing.assert_allclose(found.autocorrelations[:, j], rho * scale, rtol=1e-10)
    assert found.degrees_of_freedom == 28


def test_whiteness_with_gaps_counts_the_pairs_that_were_seen(each):
    result, _ = each[0]
    found = diagnostics.whiteness(result, lags=4)
    z = np.asarray(result.standardized_innovations)
    total = 0.0
    for i in range(2):
        for j in range(2):
            ni, nj = (~np.isnan(z[:, i])).sum(), (~np.isnan(z[:, j])).sum()
            vi, vj = np.nanmean(z[:, i] ** 2), np.nanmean(z[:, j] ** 2)
            for k in range(1, 5):
                products = [z[t, i] * z[t - k, j] for t in range(k, T)]
                products = [p for p in products if not np.isnan(p)]
                r = np.mean(products) / np.sqrt(vi * vj)
                n = np.sqrt(ni * nj)
                total += (n + 2) / n * len(products) * r**2
    np.testing.assert_allclose(found.statistic, total, rtol=1e-10)


def test_whiteness_of_a_right_model_is_chi_square(each):
    found = [diagnostics.whiteness(result, lags=5) for result, _ in each]
    assert_uniform([one.p_value for one in found])
    assert_uniform([one.p_values[0] for one in found])


def test_innovations_of_a_model_with_too_little_process_noise_are_not_white(runs):
    slow = fd.StateSpaceModel(
        model().initial,
        fd.LinearTransition(F, 0.002 * jnp.eye(2), B=jnp.array([[0.0], [1.0]])),
        model().observation,
    )
    result, _ = filtered(slow, runs[1][0])
    assert diagnostics.whiteness(result).p_value < 1e-6


def test_mean_bias_of_a_right_model_is_standard_normal(each):
    found = [diagnostics.mean_bias(result) for result, _ in each]
    assert_uniform([one.p_value for one in found])
    assert stats.kstest([one.z_scores[1] for one in found], "norm").pvalue > 1e-4


def test_mean_bias_sees_a_biased_sensor_in_its_units(runs):
    # Bias of a constant: without dynamics all of it stays in the innovations.
    still = fd.StateSpaceModel(
        dist.Delta(jnp.zeros(1), event_dim=1),
        fd.LinearTransition(jnp.eye(1), jnp.zeros((1, 1))),
        fd.LinearObservation(jnp.eye(1), 0.25),
    )
    y = 0.7 + 0.5 * np.random.default_rng(0).standard_normal(200)
    found = diagnostics.mean_bias(fd.filter(still, fd.Series(np.arange(200), y), fd.KalmanFilter()))
    np.testing.assert_allclose(found.means[0], y.mean(), rtol=1e-10)
    np.testing.assert_allclose(found.z_scores[0], y.mean() / 0.5 * np.sqrt(200), rtol=1e-10)


def test_input_correlation_of_a_right_model_is_chi_square(each):
    found = [diagnostics.input_correlation(result, series) for result, series in each]
    assert_uniform([one.p_values[0] for one in found])
    assert_uniform([one.p_values[1] for one in found])


def test_input_correlation_is_a_projection_on_the_inputs_of_rows_before(each):
    result, series = each[0]
    found = diagnostics.input_correlation(result, series, lags=3)
    S = np.asarray(result.innovation_covs)
    z = np.asarray(result.innovations)[:, 1] / np.sqrt(S[:, 1, 1])
    use = ~np.isnan(z) & (TIMES >= 3)
    u = np.asarray(series.inputs)[:, 0]
    X = np.stack([np.roll(u, k) for k in range(4)], axis=1)[use]
    X = X - X.mean(0)
    fitted = X @ np.linalg.lstsq(X, z[use], rcond=None)[0]
    np.testing.assert_allclose(found.statistics[1], fitted @ fitted, rtol=1e-8)
    assert found.degrees_of_freedom[1] == 4


def test_input_correlation_finds_an_input_that_the_model_takes_for_half(runs):
    result, series = filtered(model(B=0.5), runs[1][0])
    found = diagnostics.input_correlation(result, series)
    assert found.p_value < 1e-6
    with pytest.raises(ValueError, match="has no inputs"):
        diagnostics.input_correlation(result, fd.Series(TIMES, runs[1][0]))


def test_pit_is_the_normal_distribution_function_and_kolmogorov_smirnov_is_that_of_scipy(each):
    result, _ = each[0]
    found = diagnostics.pit(result)
    z = np.asarray(result.standardized_innovations)
    np.testing.assert_allclose(found.values, stats.norm.cdf(z), rtol=1e-12, atol=1e-15)
    expected = stats.kstest(found.values[~np.isnan(found.values)], "uniform")
    np.testing.assert_allclose(found.statistic, expected.statistic, rtol=1e-10)
    np.testing.assert_allclose(found.p_value, expected.pvalue, rtol=0.05)


def test_pit_and_coverage_of_a_right_model_are_calibrated(runs, each):
    assert_uniform([diagnostics.pit(result).p_value for result, _ in each])
    together = diagnostics.coverage(runs[0])
    # Binomial p-values of one fixed draw each: false alarm 2e-4.
    assert min(together.p_values) > 1e-4
    assert diagnostics.pit(runs[0]).p_value > 1e-4


def test_coverage_counts_and_its_p_values_are_binomial(each):
    result, _ = each[0]
    found = diagnostics.coverage(result, (0.5, 0.8))
    u = diagnostics.pit(result).values
    u = u[~np.isnan(u)]
    for p, count, value in zip((0.5, 0.8), found.counts, found.p_values, strict=True):
        assert count == (np.abs(u - 0.5) <= p / 2).sum()
        law = stats.binom(len(u), p)
        expected = min(1.0, 2 * min(law.cdf(count), law.sf(count - 1)))
        np.testing.assert_allclose(value, expected, rtol=1e-8)


def test_predictions_that_are_too_wide_are_called_so(runs):
    result, _ = filtered(model(R=8.0), runs[1][0])
    assert "too wide" in str(diagnostics.pit(result))
    assert diagnostics.coverage(result).shares[0] > 0.7


def test_nees_is_the_quadratic_form_of_the_error(runs):
    results, _, states = runs
    found = diagnostics.nees(results, states)
    error = np.asarray(states) - np.asarray(results.mean)
    expected = np.einsum("sti,stij,stj->st", error, np.linalg.inv(np.asarray(results.cov)), error)
    np.testing.assert_allclose(found.values, expected, rtol=1e-8)
    np.testing.assert_allclose(found.upper, stats.chi2.ppf(0.975, 2), rtol=1e-8)
    assert found.singular_rows == 0 and found.off_range == 0


def test_nees_of_a_right_model_is_chi_square_at_every_time(runs, each):
    results, _, states = runs
    found = diagnostics.nees(results, states)
    for t in (0, 15, T - 1):
        assert stats.kstest(found.values[:, t], stats.chi2(2).cdf).pvalue > 1e-4
    assert found.mean_lower < found.mean < found.mean_upper
    # Bounds of single runs allow for errors that last over rows: 5 % of runs are outside, and with
    # 300 runs more than 11 % would be a chance of 1e-5.
    single = [diagnostics.nees(result, states[i]) for i, (result, _) in enumerate(each)]
    outside = np.mean([not one.mean_lower < one.mean < one.mean_upper for one in single])
    assert 0.005 < outside < 0.11


def test_nees_of_an_overconfident_filter_is_above_its_bounds(runs):
    result, _ = filtered(model(R=0.05), runs[1][0])
    found = diagnostics.nees(result, runs[2][0])
    assert found.mean > found.mean_upper


def test_nees_of_a_singular_covariance_is_judged_on_its_range_and_says_so():
    known = fd.StateSpaceModel(
        dist.Delta(jnp.array([0.0, 1.0]), event_dim=1),
        fd.LinearTransition(jnp.eye(2), jnp.diag(jnp.array([1.0, 0.0]))),
        fd.LinearObservation(jnp.array([[1.0, 0.0]]), 1.0),
    )
    result = fd.filter(known, fd.Series(np.arange(5), np.ones(5)), fd.KalmanFilter())
    states = np.asarray(result.mean) + np.array([0.5, 0.25])
    found = diagnostics.nees(result, states)
    np.testing.assert_array_equal(found.degrees_of_freedom, [0, 1, 1, 1, 1])
    variance = np.asarray(result.cov)[1:, 0, 0]
    np.testing.assert_allclose(found.values[1:], 0.25 / variance, rtol=1e-10)
    assert found.singular_rows == 5 and found.off_range == 0.5
    assert "singular" in str(found)


def test_diagnostics_refuse_what_they_cannot_judge(each):
    result, series = each[0]
    with pytest.raises(TypeError, match="expected fd"):
        diagnostics.nis(series)
    with pytest.raises(ValueError, match="`level` is 95"):
        diagnostics.nis(result, level=95)
    with pytest.raises(ValueError, match="`lags` is 500"):
        diagnostics.whiteness(result, lags=500)
    with pytest.raises(ValueError, match="`states` has shape"):
        diagnostics.nees(result, np.zeros((T, 3)))
