"""Ill-conditioned linear problems against multiple-precision answers.

Two facts set the tolerances. A number x cannot be held better than eps |x|, so a mean is uncertain
by eps |m| / sd posterior deviations whatever the algorithm; and a square-root filter works on
factors, whose condition number is the square root of that of the covariance. `eps` is 2e-16 in
float64 and 1e-7 in float32; each entry below leaves one to three decades above the bound, and names
the quantity that dominates it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from oracles.hard_cases import CASES, MATRICES, loglik_rel, metrics, natural_scale

import filterdyn as fd


class Allowed(NamedTuple):
    loglik_rel: float
    mean_sd: float
    cov_rel: float


PLAIN64, PLAIN32 = (
    Allowed(1e-12, 1e-10, 1e-10),
    Allowed(2e-5, 2e-4, 2e-4),
)  # those of the reference cases

# case: (float64, float32 or None where float32 cannot state or hold the problem, why)
TOLERANCES = {
    "precise sensor, vague prior": (
        Allowed(1e-12, 1e-8, 1e-10),
        Allowed(2e-5, 0.3, 2e-4),
        "means: |m| / sd = 10 / 1e-5",
    ),
    "18 decades between R and P0": (
        Allowed(1e-12, 1e-10, 1e-9),
        Allowed(2e-5, 2e-4, 1e-3),
        "factors differ by 3e9, but graded: harmless in square-root form",
    ),
    "ARMA(2,1) with R = 0": (
        PLAIN64,
        Allowed(2e-5, 5e-3, 5e-3),
        "the last sd is 3e-4 of the first, and a factor is held to eps of its largest entry",
    ),
    "near-collinear sensors": (
        Allowed(1e-9, 1e-7, 1e-8),
        None,
        "innovations: |y| / 1e-6 = 1e6; float32 rounds H to rank one",
    ),
    "40 sensors over ten decades": (
        PLAIN64,
        Allowed(2e-5, 5e-3, 1e-3),
        "means: |m| / sd = 1 / 1e-3; the best sensors have 1e-3",
    ),
    "ordinary units": (PLAIN64, PLAIN32, "well conditioned"),
    "units over 36 decades": (
        PLAIN64,
        None,
        "a diagonal change of units moves no rounding error; in float32 the squares overflow",
    ),
    "Delta start, Q of rank one": (PLAIN64, PLAIN32, "exact zeros lose nothing"),
    "correlated sensors with gaps": (
        Allowed(1e-9, 1e-8, 1e-8),
        None,
        "the Cholesky factor of R loses eps cond(R) = eps 2e6 (in float32 0.2)",
    ),
    "nothing observed": (
        Allowed(0.0, 1e-10, 1e-10),
        Allowed(0.0, 2e-4, 2e-4),
        "no data, no likelihood",
    ),
    "one row": (PLAIN64, PLAIN32, "well conditioned"),
    "discrete, repeated times": (PLAIN64, PLAIN32, "well conditioned"),
    "integrated walk, gaps 1e-6 to 1e3": (
        Allowed(1e-10, 1e-8, 1e-8),
        Allowed(1e-3, 1e-2, 1e-2),
        "those of reference case B01; means: |m| / sd = 1e3 / 0.06",
    ),
    "twice integrated walk": (
        Allowed(1e-10, 1e-8, 1e-8),
        Allowed(1e-3, 1e-2, 1e-2),
        "as the integrated walk",
    ),
    "stiff": (
        Allowed(1e-10, 1e-8, 1e-8),
        Allowed(1e-4, 1e-2, 1e-2),
        "A is triangular: relative rounding of its entries moves each eigenvalue relatively",
    ),
    "stiff, one of two observed": (
        Allowed(1e-10, 1e-8, 1e-8),
        Allowed(1e-4, 1e-2, 1e-2),
        "as with both observed",
    ),
    "stiff exchange": (
        Allowed(1e-7, 1e-6, 1e-6),
        None,
        "exp(A dt) is held to eps |A| dt = 2e-9 (in float32 the slow eigenvalue is lost)",
    ),
    "singular diffusion": (
        Allowed(1e-11, 1e-9, 1e-9),
        Allowed(5e-5, 1e-3, 1e-3),
        "float32 as reference case B02",
    ),
    "Delta start, continuous": (
        Allowed(1e-10, 1e-8, 1e-8),
        Allowed(1e-4, 0.2, 1e-2),
        "means: the first predicted sd is 1e-5 of the state",
    ),
    "repeated times": (
        Allowed(1e-12, 1e-10, 1e-10),
        Allowed(1e-4, 1e-2, 1e-3),
        "means: |m| / sd = 0.4 / 7e-4",
    ),
    "one row, continuous": (PLAIN64, Allowed(2e-5, 5e-3, 2e-4), "means: |m| / sd = 0.4 / 1e-3"),
}
PROBLEMS = [
    (name, precision)
    for name, allowed in TOLERANCES.items()
    for precision, limit in zip(("float64", "float32"), allowed, strict=False)
    if limit is not None
]
every_problem = pytest.mark.parametrize(("name", "precision"), PROBLEMS)
if not jax.config.jax_enable_x64:
    pytest.skip("these compare float64 with float32", allow_module_level=True)


def model_of(case, parts):
    p = parts
    observation = fd.LinearObservation(p["H"], p["R"], d=p.get("d"))
    if case.kind == "discrete":
        dynamics = fd.LinearTransition(p["F"], p["Q"], b=p.get("b"))
    else:
        dynamics = fd.LinearSDE(p["A"], p["L"], b=p.get("b"))
    m0, P0 = (jnp.asarray(case.parts[name]) for name in ("m0", "P0"))
    if not np.any(case.parts["P0"]):
        return fd.StateSpaceModel(dist.Delta(m0, event_dim=1), dynamics, observation)
    # NumPyro's own check takes eigenvalues, which 36 decades of units push below zero.
    initial = dist.MultivariateNormal(m0, P0, validate_args=False)
    return fd.StateSpaceModel(initial, dynamics, observation)


@functools.cache
def problem(name, precision):
    """The library's model and series, and the exact answer of exactly these numbers."""
    case = CASES[name].cast(precision)
    parts = {key: jnp.asarray(value) for key, value in case.parts.items()}
    return model_of(case, parts), fd.Series(case.times, case.y), case.answer()


@functools.cache
def filtered(name, precision):
    model, series, _ = problem(name, precision)
    return fd.filter(model, series, fd.KalmanFilter())


def allowed(name, precision):
    return TOLERANCES[name][("float64", "float32").index(precision)]


def assert_moments(name, precision, mean, cov, exact_mean, exact_cov):
    scale, limit = natural_scale(problem(name, precision)[2]), allowed(name, precision)
    mean_sd, cov_rel = metrics(
        np.asarray(mean, float), np.asarray(cov, float), exact_mean, exact_cov, scale
    )
    assert mean_sd <= limit.mean_sd
    assert cov_rel <= limit.cov_rel


@every_problem
def test_log_likelihood_survives(name, precision):
    model, series, exact = problem(name, precision)
    limit = allowed(name, precision).loglik_rel
    assert (
        loglik_rel(float(filtered(name, precision).log_likelihood), exact.log_likelihood) <= limit
    )
    assert int(filtered(name, precision).status) == int(fd.Status.OK)
    assert (
        loglik_rel(float(fd.log_likelihood(model, series, fd.KalmanFilter())), exact.log_likelihood)
        <= limit
    )


@every_problem
def test_predicted_and_filtered_beliefs_survive(name, precision):
    result, exact = filtered(name, precision), problem(name, precision)[2]
    predicted = result.predicted
    assert_moments(
        name, precision, predicted.mean, predicted.cov, exact.predicted_mean, exact.predicted_cov
    )
    assert_moments(
        name, precision, result.mean, result.cov, exact.filtered_mean, exact.filtered_cov
    )


@every_problem
def test_smoothed_beliefs_survive(name, precision):
    model, series, exact = problem(name, precision)
    result = fd.smooth(model, series, fd.KalmanFilter())
    assert_moments(
        name, precision, result.mean, result.cov, exact.smoothed_mean, exact.smoothed_cov
    )


@every_problem
def test_covariances_stay_positive_semi_definite(name, precision):
    cov = np.asarray(filtered(name, precision).cov, dtype=float)
    sd = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    assert np.all(np.isfinite(sd))
    unit = np.where(sd > 0, sd, 1.0)
    smallest = np.linalg.eigvalsh(cov / (unit[:, :, None] * unit[:, None, :])).min()
    assert smallest >= -10 * np.finfo(precision).eps


#: The derivative is that of the covariance recursion (in Joseph's form), whose rounding is eps P in
#: units of R, or of Q where the first updates bring P from P0 down to Q: 2e-16 * 1e8 / 1e-2.
GRADIENT_LIMITS = {
    "near-collinear sensors": 1e-3,
    "precise sensor, vague prior": 2e-6,
    "18 decades between R and P0": 2e-6,
}


@pytest.mark.parametrize("name", TOLERANCES)
def test_gradient_survives(name):
    """With respect to the logarithm of the scale of each matrix; a decade or two above the value."""
    case = CASES[name]
    parts = {key: jnp.asarray(case.parts[key]) for key in case.parts if key not in ("m0", "P0")}
    series, names = fd.Series(case.times, case.y), MATRICES[case.kind]

    @jax.jit
    def gradient(log_scales, parts):
        def log_likelihood(log_scales):
            scaled = {n: parts[n] * jnp.exp(log_scales[k]) for k, n in enumerate(names)}
            return fd.log_likelihood(model_of(case, parts | scaled), series, fd.KalmanFilter())

        return jax.grad(log_likelihood)(log_scales)

    exact, value = case.gradient(), np.asarray(gradient(jnp.zeros(4), parts))
    limit = GRADIENT_LIMITS.get(name, 100 * max(TOLERANCES[name][0].loglik_rel, 1e-11))
    np.testing.assert_allclose(value, exact, rtol=limit, atol=limit)


def test_a_change_of_units_changes_no_likelihood():
    plain, scaled = (
        filtered(name, "float64").log_likelihood
        for name in ("ordinary units", "units over 36 decades")
    )
    np.testing.assert_allclose(scaled, plain, rtol=1e-13)


def test_nothing_observed_has_a_log_likelihood_of_exactly_zero():
    result = filtered("nothing observed", "float64")
    assert float(result.log_likelihood) == 0.0
    np.testing.assert_array_equal(np.asarray(result.log_likelihoods), 0.0)


def test_a_smoother_of_one_row_is_its_filter():
    model, series, _ = problem("one row", "float64")
    result = fd.smooth(model, series, fd.KalmanFilter())
    np.testing.assert_allclose(result.mean, filtered("one row", "float64").mean, rtol=1e-14)
    np.testing.assert_allclose(result.cov, filtered("one row", "float64").cov, rtol=1e-14)
