"""Predictive densities of rows to come, against quadrature over the one parameter of the model."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy.special import logsumexp
from scipy.stats import lognorm, norm

import filterdyn as fd
from filterdyn.diagnostics import PredictiveDensity, compare, leave_future_out, one_step_elpd

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 answers", allow_module_level=True)
pytest.importorskip("arviz_stats")

times = np.arange(14.0)
rng = np.random.default_rng(5)
y = np.cumsum(0.9 * rng.normal(size=14)) + rng.normal(size=14)
y[6] = np.nan
y = y[:, None]
seen = np.flatnonzero(~np.isnan(y[:, 0]))
START = 4


def walk(step):
    one = jnp.eye(1)
    start = dist.Normal(jnp.zeros(1), 2.0).to_event(1)
    moves = fd.LinearTransition(one, step**2 * one)
    return fd.StateSpaceModel(start, moves, fd.LinearObservation(one, one))


def program(times, y=None):
    step = numpyro.sample("step", dist.LogNormal(0.0, 0.7))
    numpyro.sample("y", fd.ObservedSeries(walk(step), times, filter=fd.KalmanFilter()), obs=y)


def terms(steps, y):
    """log p(y_t | y_1:t-1) for every step size, (steps, T): the scalar recursion."""
    mean, variance = np.zeros_like(steps), np.full_like(steps, 4.0)
    out = np.zeros((len(steps), len(y)))
    for k, value in enumerate(y[:, 0]):
        variance = variance + (steps**2 if k else 0.0)
        if not np.isnan(value):
            out[:, k] = norm.logpdf(value, mean, np.sqrt(variance + 1))
            gain = variance / (variance + 1)
            mean, variance = mean + gain * (value - mean), gain
    return out


grid = np.exp(np.linspace(-4.0, 3.0, 8001))
prior = lognorm.logpdf(grid, 0.7) + np.log(grid)
of_grid = terms(grid, y)


def exact(t):
    """log p(y_t | y_1:t-1) with the step integrated out."""
    weights = prior + of_grid[:, :t].sum(1)
    return logsumexp(weights + of_grid[:, t]) - logsumexp(weights)


def quantiles(key, model, times, y=None):
    """4,000 quantiles of the exact posterior of the data in place, in any order."""
    trace = handlers.trace(handlers.seed(model, jr.key(0))).get_trace(times, y)
    weights = np.exp(prior + terms(grid, np.asarray(trace["y"]["value"])).sum(1))
    levels = (np.arange(4000) + 0.5) / 4000
    found = np.interp(levels, weights.cumsum() / weights.sum(), grid)
    return {"step": np.random.default_rng(0).permutation(found)}


def by_quantiles(**settings):
    return leave_future_out(
        program, times, y, key=jr.key(0), sampler=quantiles, compiled=False, batch_size=4000, **settings
    )  # fmt: skip


@pytest.fixture(scope="module")
def approximate():
    return by_quantiles(start=START)


def test_reweighted_draws_predict_as_quadrature_does(approximate):
    rows = seen[seen >= START]
    np.testing.assert_array_equal(approximate.times, times[rows])
    np.testing.assert_allclose(approximate.pointwise, [exact(t) for t in rows], atol=0.01)
    np.testing.assert_allclose(approximate.elpd, approximate.pointwise.sum())
    assert approximate.refits < len(rows)
    assert approximate.reliable
    assert "leave future out: elpd" in str(approximate)


@pytest.mark.slow
def test_a_low_threshold_fits_again(approximate):
    again = by_quantiles(start=START, threshold=-99.0)
    assert again.refits == (seen >= START).sum()
    np.testing.assert_allclose(again.pointwise, approximate.pointwise, atol=0.01)


def test_from_the_first_row_on_the_sum_is_the_evidence():
    found = by_quantiles(start=0, exact=True)
    evidence = logsumexp(prior + of_grid.sum(1)) - logsumexp(prior)
    np.testing.assert_allclose(found.elpd, evidence, atol=0.01)
    assert found.refits == len(seen)
    assert (found.pareto_k == 0).all()


def test_several_rows_ahead_are_predicted_together():
    found = by_quantiles(start=10, ahead=3, exact=True)
    weights = lambda t: prior + of_grid[:, :t].sum(1)
    joint = lambda t: logsumexp(weights(t + 3)) - logsumexp(weights(t))
    np.testing.assert_allclose(found.pointwise, [joint(10), joint(11)], atol=0.01)


def test_one_step_densities_leave_out_their_own_factor():
    """elpd_t = -log E[1 / p_t] under the posterior of all rows."""
    draws = quantiles(None, program, times, y)
    found = one_step_elpd(fd.to_datatree(draws, program, times, y))
    weights = prior + of_grid.sum(1)
    expected = [logsumexp(weights) - logsumexp(weights - of_grid[:, t]) for t in seen]
    np.testing.assert_allclose(found.pointwise, expected, atol=0.02)
    np.testing.assert_array_equal(found.times, times[seen])
    assert found.kind == "one step"
    assert found.reliable


def density(pointwise, kind="leave future out", k=0.0, ahead=1):
    n, pointwise = len(pointwise), np.asarray(pointwise)
    total, k = float(pointwise.sum()), np.full(n, k)
    return PredictiveDensity(kind, total, 1.0, pointwise, np.arange(n), k, 1, ahead)


def test_models_are_compared_row_by_row():
    a, b = np.random.default_rng(0).normal(size=(2, 40))
    found = compare({"a": density(a), "b": density(a + 0.5 + 0.1 * b)})
    assert found.names == ("b", "a")
    gap = -(0.5 + 0.1 * b)
    np.testing.assert_allclose(found.differences, [0.0, gap.sum()])
    np.testing.assert_allclose(found.standard_errors, [0.0, np.sqrt(40) * gap.std(ddof=1)])
    assert str(found).splitlines()[1].startswith("a  elpd")
    doubtful = compare({"a": density(a), "b": density(b, k=0.9)})
    assert "(not reliable)" in str(doubtful)


def test_what_cannot_be_compared_is_an_error():
    a = density(np.ones(5))
    with pytest.raises(ValueError, match="expected the same kind and the same rows"):
        compare({"a": a, "b": density(np.ones(6))})
    with pytest.raises(
        ValueError, match="is one step over 5 rows but the first is leave future out"
    ):
        compare({"a": a, "b": density(np.ones(5), "one step")})
    with pytest.raises(
        ValueError, match="'b' predicts 2 rows ahead but the first 1; expected the same"
    ):
        compare({"a": a, "b": density(np.ones(5), ahead=2)})
    assert "5 rows, 2 rows together, 1 fits" in str(density(np.ones(5), ahead=2))
    with pytest.raises(ValueError, match="`models` has 1 models"):
        compare({"a": a})
    with pytest.raises(TypeError, match="`models` has float at 'b'"):
        compare({"a": a, "b": 1.0})


def test_arguments_of_another_kind_are_errors():
    def fails(error, message, model=program, start=3, **settings):
        with pytest.raises(error, match=message):
            leave_future_out(model, times, y, start=start, key=jr.key(0), **settings)

    fails(ValueError, "`start` is 14; expected a whole number from 0 to 13", start=14)
    fails(KeyError, "no site 'z'", site="z")
    fails(TypeError, "site 'step' is an unobserved", site="step")
    with pytest.raises(KeyError, match="no log_likelihood/y, only dict"):
        one_step_elpd({})


@pytest.mark.long
@pytest.mark.slow
def test_nuts_fits_of_every_row_agree_with_quadrature_and_with_reweighting():
    """2,000 draws of one parameter: a density is known to about 0.01."""
    rows = seen[seen >= START]
    settings = dict(start=START, key=jr.key(1), num_warmup=200)
    whole = leave_future_out(program, times, y, exact=True, **settings)
    assert whole.refits == len(rows)
    np.testing.assert_allclose(whole.pointwise, [exact(t) for t in rows], atol=0.06)
    np.testing.assert_allclose(whole.elpd, sum(exact(t) for t in rows), atol=0.12)
    some = leave_future_out(program, times, y, **settings)
    assert some.refits < len(rows) / 2
    np.testing.assert_allclose(some.elpd, whole.elpd, atol=0.15)
