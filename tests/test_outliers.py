"""Outlier rules against integration on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from scipy.integrate import quad

import filterdyn as fd
from filterdyn.outliers import Gate, HuberNoise, StudentTNoise
from filterdyn.outliers.base import gaussian_update

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 quadrature", allow_module_level=True)


def huber_logpdf(v, k):
    a = np.abs(v)
    mass = np.sqrt(2 * np.pi) * (2 * st.norm.cdf(k) - 1) + 2 * np.exp(-0.5 * k * k) / k
    return np.where(a <= k, -0.5 * a * a, -k * a + 0.5 * k * k) - np.log(mass)


def by_grid(error, s2, r, log_density):
    """Mean, variance and log evidence of z ~ N(0, s2) after error = z + noise."""
    wide = 12 * np.sqrt(s2) + abs(error)
    points = sorted({0.0, error, error - 1.345 * np.sqrt(r), error + 1.345 * np.sqrt(r)})
    sigma = np.sqrt(r)

    def moment(power):
        def integrand(z):
            log = st.norm.logpdf(z, 0, np.sqrt(s2)) + log_density((error - z) / sigma)
            return z**power * np.exp(log) / sigma

        return quad(integrand, -wide, wide, points=points, limit=1000, epsabs=0, epsrel=1e-11)[0]

    total, first, second = moment(0), moment(1), moment(2)
    return first / total, second / total - (first / total) ** 2, np.log(total)


CASES = [(0.3, 1.0, 0.5), (4.0, 1.0, 0.25), (-9.0, 0.5, 1.0), (6.0, 30.0, 0.1), (0.5, 1e-3, 2.0)]


@pytest.mark.parametrize("df", [1.0, 3.0, 30.0])
@pytest.mark.parametrize(("error", "s2", "r"), CASES)
def test_student_update_has_the_moments_and_the_evidence_of_the_integral(error, s2, r, df):
    found = jax.jit(StudentTNoise(df))(*map(jnp.asarray, (error, s2, r)))
    exact = by_grid(error, s2, r, lambda v: st.t.logpdf(v, df))
    np.testing.assert_allclose(found[:3], exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("threshold", [0.7, 1.345, 3.0])
@pytest.mark.parametrize(("error", "s2", "r"), CASES)
def test_huber_update_has_the_moments_and_the_evidence_of_the_integral(error, s2, r, threshold):
    found = jax.jit(HuberNoise(threshold))(*map(jnp.asarray, (error, s2, r)))
    exact = by_grid(error, s2, r, lambda v: huber_logpdf(v, threshold))
    np.testing.assert_allclose(found[:3], exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("rule", "log_density"),
    [
        (StudentTNoise(3.0), lambda v: st.t.logpdf(v, 3.0)),
        (HuberNoise(), lambda v: huber_logpdf(v, 1.345)),
    ],
)
def test_a_known_state_gives_the_density_of_the_noise(rule, log_density):
    for error in (0.1, 2.0, -7.0):
        found = rule(*map(jnp.asarray, (error, 0.0, 0.25)))
        assert float(found.mean) == 0.0 and float(found.variance) == 0.0
        np.testing.assert_allclose(
            found.log_evidence, log_density(error / 0.5) - np.log(0.5), rtol=1e-7
        )


def test_the_t_update_forgets_a_gross_outlier_and_the_huber_update_bounds_it():
    far, farther = (jnp.asarray(e) for e in (50.0, 5000.0))
    one, r = jnp.asarray(1.0), jnp.asarray(0.25)
    assert abs(StudentTNoise(4.0)(farther, one, r).mean) < 1e-2
    means = [float(HuberNoise()(e, one, r).mean) for e in (far, farther)]
    np.testing.assert_allclose(means[0], means[1], rtol=1e-6)
    np.testing.assert_allclose(means[0], 1.345 / 0.5, rtol=1e-6)


def test_a_gate_lets_good_measurements_through_unchanged():
    parts = tuple(map(jnp.asarray, (1.0, 1.0, 0.5)))
    for action in ("reject", "inflate"):
        np.testing.assert_allclose(Gate(0.99, action)(*parts), gaussian_update(*parts), rtol=1e-14)


def test_a_gate_rejects_or_inflates_what_lies_outside():
    error, s2, r = map(jnp.asarray, (9.0, 1.0, 0.5))
    rejected = Gate(0.99)(error, s2, r)
    assert float(rejected.mean) == 0.0 and float(rejected.variance) == 1.0
    assert float(rejected.weight) == 0.0
    np.testing.assert_allclose(rejected.log_evidence, st.norm.logpdf(9.0, 0, np.sqrt(1.5)))
    inflated = Gate(0.99, "inflate")(error, s2, r)
    # Just inside: the innovation's variance is error^2 / quantile.
    total = 81.0 / st.chi2.ppf(0.99, 1)
    np.testing.assert_allclose(inflated.mean, 9.0 / total)
    np.testing.assert_allclose(inflated.log_evidence, st.norm.logpdf(9.0, 0, np.sqrt(total)))


def local_level():
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), jnp.ones(1)).to_event(1),
        fd.LinearTransition(jnp.eye(1), 0.1 * jnp.eye(1)),
        fd.LinearObservation(jnp.ones((2, 1)), jnp.array([0.5, 0.2])),
    )


Y = np.array([[0.1, 0.3], [0.2, np.nan], [40.0, 0.5], [0.4, 0.6], [np.nan, np.nan], [0.5, 0.2]])


@pytest.mark.parametrize("square_root", [True, False])
def test_a_gate_that_rejects_filters_as_if_the_outlier_were_missing(square_root):
    series = fd.Series(np.arange(6), Y)
    gated = fd.filter(
        local_level(), series, fd.KalmanFilter(square_root=square_root, outliers=Gate())
    )
    without = Y.copy()
    without[2, 0] = np.nan
    plain = fd.filter(local_level(), fd.Series(np.arange(6), without), fd.KalmanFilter())
    np.testing.assert_allclose(gated.mean, plain.mean, rtol=1e-12)
    np.testing.assert_allclose(gated.cov, plain.cov, rtol=1e-12)
    np.testing.assert_array_equal(gated.outlier_weights[2], [0.0, 1.0])
    assert np.isnan(gated.outlier_weights[4]).all()


def test_heavy_tails_with_many_degrees_of_freedom_are_gaussian():
    quiet = np.where(Y > 10, 0.4, Y)
    series = fd.Series(np.arange(6), quiet)
    robust = fd.filter(local_level(), series, fd.KalmanFilter(outliers=StudentTNoise(1e7)))
    plain = fd.filter(local_level(), series, fd.KalmanFilter())
    np.testing.assert_allclose(robust.mean, plain.mean, rtol=1e-5)
    np.testing.assert_allclose(robust.log_likelihood, plain.log_likelihood, rtol=1e-5)


@pytest.mark.parametrize("rule", [StudentTNoise(3.0), HuberNoise(), Gate(0.99, "inflate")])
def test_gradient_of_a_robust_likelihood_meets_finite_differences(rule):
    series = fd.Series(np.arange(6), Y)

    @jax.jit
    def value(theta):
        model = fd.StateSpaceModel(
            dist.Normal(jnp.zeros(1), jnp.ones(1)).to_event(1),
            fd.LinearTransition(jnp.eye(1), jnp.exp(theta[0]) * jnp.eye(1)),
            fd.LinearObservation(jnp.ones((2, 1)), jnp.exp(theta[1]) * jnp.array([0.5, 0.2])),
        )
        return fd.log_likelihood(model, series, fd.KalmanFilter(outliers=rule))

    theta, h = jnp.array([-2.0, 0.3]), 1e-5
    numeric = [(value(theta + h * e) - value(theta - h * e)) / (2 * h) for e in np.eye(2)]
    np.testing.assert_allclose(jax.jit(jax.grad(value))(theta), numeric, rtol=1e-6, atol=1e-7)


def test_a_robust_filter_smooths_past_an_outlier():
    series = fd.Series(np.arange(6), Y)
    robust = fd.smooth(local_level(), series, fd.KalmanFilter(outliers=StudentTNoise(3.0)))
    assert np.abs(robust.mean).max() < 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gate(1.5), "Gate: `probability` is 1.5"),
        (lambda: Gate(0.9, "drop"), "Gate: `action` is 'drop'; expected 'reject' or 'inflate'"),
        (lambda: StudentTNoise(-1), "StudentTNoise: `df` is -1"),
        (lambda: HuberNoise(0), "HuberNoise: `threshold` is 0"),
    ],
)
def test_a_rule_says_what_is_wrong_with_its_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
