"""The evidence against exact ones."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad
from scipy.stats import gamma, multivariate_normal, norm

import filterdyn as fd
from filterdyn.inference import log_evidence

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 answers", allow_module_level=True)
pytest.importorskip("arviz_stats")

x = np.column_stack([np.ones(12), np.linspace(-1, 1, 12)])
y = x @ [0.5, -1.0] + 0.3 * np.random.default_rng(0).normal(size=12)


def line(y=None):
    b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.asarray(x) @ b, 0.3).to_event(1), obs=y)


@pytest.fixture(scope="module")
def found():
    """Draws of the exact posterior; the evidence is the density of one Gaussian."""
    cov = np.linalg.inv(x.T @ x / 0.09 + np.eye(2) / 4)
    draws = np.random.default_rng(1).multivariate_normal(cov @ x.T @ y / 0.09, cov, 500)
    return log_evidence({"b": draws}, line, y)


def test_the_evidence_of_a_linear_model_is_that_of_one_gaussian(found):
    exact = multivariate_normal(np.zeros(12), 4 * x @ x.T + 0.09 * np.eye(12)).logpdf(y)
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found.standard_error < 0.02
    assert found.reliable
    assert found.effective_draws > 2000
    assert str(found).startswith(f"log evidence {found.value:.3f} +- 0.0")


def test_a_parameter_with_limits_takes_its_jacobian_along():
    def rate(y=None):
        scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, scale).expand([4]).to_event(1), obs=y)

    y = np.array([0.3, -1.2, 0.8, 2.0])
    joint = lambda s: gamma.pdf(s, 2.0) * norm.pdf(y, 0, s).prod()
    exact = np.log(quad(joint, 0, np.inf)[0])
    grid = np.linspace(0.01, 20, 40_001)
    weights = gamma.pdf(grid, 2.0) * norm.pdf(y, 0, grid[:, None]).prod(1)
    draws = np.random.default_rng(0).choice(grid, 1000, p=weights / weights.sum())
    found = log_evidence({"scale": draws}, rate, y)
    assert abs(found.value - exact) < 4 * found.standard_error < 0.08


@pytest.mark.slow
def test_draws_from_elsewhere_make_it_uncertain_and_not_wrong(found):
    """The proposal is off by two standard deviations and too wide by half: unbiased all the same."""
    cov = np.linalg.inv(x.T @ x / 0.09 + np.eye(2) / 4)
    mean = cov @ x.T @ y / 0.09 + 2 * np.sqrt(np.diag(cov))
    draws = np.random.default_rng(1).multivariate_normal(mean, 2.25 * cov, 500)
    off = log_evidence({"b": draws}, line, y)
    assert abs(off.value - found.value) < 4 * np.hypot(off.standard_error, found.standard_error)
    assert off.standard_error > found.standard_error


@pytest.mark.slow
def test_draws_of_the_wrong_place_are_not_reliable():
    draws = 40 + 1e-3 * np.random.default_rng(1).normal(size=(500, 2))
    off = log_evidence({"b": draws}, line, y)
    assert not off.reliable
    assert "not reliable" in str(off)


@pytest.mark.slow
def test_known_parameters_leave_the_likelihood_of_the_filter():
    """A prior of almost no width: the evidence is the sum of the predictive densities of the rows."""
    times, values = np.arange(6.0), np.array([0.1, 0.8, np.nan, 1.5, 1.1, 0.2])[:, None]
    one = jnp.eye(1)

    def walk(step):
        start = dist.Normal(jnp.zeros(1), 1.0).to_event(1)
        moves = fd.LinearTransition(one, step**2 * one)
        return fd.StateSpaceModel(start, moves, fd.LinearObservation(one, 0.25))

    def program(times, y):
        step = numpyro.sample("step", dist.Normal(0.7, 1e-4))
        numpyro.sample("y", fd.ObservedSeries(walk(step), times, filter=fd.KalmanFilter()), obs=y)

    draws = 0.7 + 1e-4 * np.asarray(jr.normal(jr.key(0), (200,)))
    found = log_evidence({"step": draws}, program, times, values, num_samples=2000)
    expected = fd.log_likelihood(walk(0.7), fd.Series(times, values), fd.KalmanFilter())
    assert abs(found.value - float(expected)) < 4 * found.standard_error + 1e-3


def test_other_arguments_are_errors():
    with pytest.raises(KeyError, match="no samples of the site 'b'"):
        log_evidence({"c": np.ones(9)}, line, y)
    with pytest.raises(ValueError, match="2 finite draws of 2 numbers; expected 20 or more"):
        log_evidence({"b": np.ones((2, 2))}, line, y)
    discrete = lambda: numpyro.sample("n", dist.Poisson(3.0))
    with pytest.raises(ValueError, match=r"'n' is discrete \(Poisson\)"):
        log_evidence({"n": np.ones(9)}, discrete)
