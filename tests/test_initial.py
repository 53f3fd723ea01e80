"""Diffuse and stationary starts against statsmodels' exact diffuse filter and SciPy's Lyapunov
solvers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.linalg as sl
from statsmodels.tsa.statespace.initialization import Initialization
from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("the oracles are float64", allow_module_level=True)

NAN = np.nan
CONVENTIONS = json.loads(
    (Path(__file__).parent / "reference" / "nile_conventions.json").read_text()
)


def local_level(noise, walk, **options):
    return fd.StateSpaceModel(
        fd.Diffuse(1, **options),
        fd.LinearTransition(jnp.eye(1), walk * jnp.eye(1)),
        fd.LinearObservation(jnp.eye(1), noise * jnp.eye(1)),
    )


@pytest.mark.parametrize(("marginal", "convention"), [(False, "100 log2pi"), (True, "t=2..100")])
def test_nile_has_the_published_diffuse_likelihood_and_its_maximum(marginal, convention):
    (known,) = (v for k, v in CONVENTIONS.items() if "exact_diffuse" in k and convention in k)

    def value(variances):
        model = local_level(*variances, marginal=marginal)
        return fd.log_likelihood(model, fd.datasets.nile(), fd.KalmanFilter())

    at = value((15099.0, 1469.1))
    assert abs(float(at) - known["loglik_at_15099_1469_1"]) < 1e-9
    best, slope = jax.value_and_grad(value)(tuple(known["mle_var_eps_var_eta"]))
    assert abs(float(best) - known["loglik_mle"]) < 1e-9
    assert np.abs(slope).max() < 1e-8


# A local linear trend with a season of four: five diffuse states, one of three directions at a time.
F = sl.block_diag([[1.0, 1.0], [0.0, 1.0]], [[-1.0, -1.0, -1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
Q = np.diag([0.5, 0.1, 0.2, 0.0, 0.0])
H = np.array([[1.0, 0.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.0, 1.0, 0.0]])
R = np.array([[0.4, 0.1], [0.1, 0.6]])


def observed(columns):
    y = np.cumsum(np.random.default_rng(0).normal(size=(14, 2)), axis=0)
    y[1] = y[4, 0] = y[2, 1] = y[9] = NAN
    return y[:, :columns]


def statsmodels_answer(y, proper=()):
    """The exact diffuse filter and smoother; states in `proper` start from N(1, 2)."""
    dy = y.shape[1]
    oracle = KalmanSmoother(dy, 5, 5)
    oracle.bind(np.ascontiguousarray(y))
    oracle["design"], oracle["obs_cov"] = H[:dy], R[:dy, :dy]
    oracle["transition"], oracle["state_cov"], oracle["selection"] = F, Q, np.eye(5)
    start = Initialization(5)
    for k in range(5):
        if k in proper:
            start.set(k, "known", constant=[1.0], stationary_cov=[[2.0]])
        else:
            start.set(k, "diffuse")
    oracle.initialize(start)
    oracle.filter_univariate = True
    return oracle.smooth()


def model_of(columns, proper=()):
    base = dist.Normal(
        jnp.array([1.0 if k in proper else 0.0 for k in range(5)]),
        jnp.array([2.0**0.5 if k in proper else 0.0 for k in range(5)]),
        validate_args=False,
    )
    diffuse = fd.Diffuse(
        5, directions=[k not in proper for k in range(5)], base=base.to_event(1) if proper else None
    )
    return fd.StateSpaceModel(
        diffuse,
        fd.LinearTransition(F, Q),
        fd.LinearObservation(H[:columns], R[:columns, :columns]),
    )


@pytest.mark.parametrize("square_root", [True, False], ids=["factor", "covariance"])
@pytest.mark.parametrize(("columns", "proper"), [(1, ()), (2, ()), (2, (1, 3))])
def test_trend_and_season_with_missing_rows_meet_statsmodels(columns, proper, square_root):
    y, model = observed(columns), model_of(columns, proper)
    series, filter = fd.Series(np.arange(14), y), fd.KalmanFilter(square_root=square_root)
    exact, smooth = statsmodels_answer(y, proper), fd.smooth(model, series, filter)
    assert abs(float(smooth.log_likelihood) - exact.llf) < 1e-8
    np.testing.assert_allclose(smooth.mean, exact.smoothed_state.T, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(
        smooth.cov, np.moveaxis(exact.smoothed_state_cov, -1, 0), rtol=1e-7, atol=1e-7
    )
    result = fd.filter(model, series, filter)
    np.testing.assert_allclose(result.mean[-1], exact.filtered_state[:, -1], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(
        result.cov[-1], exact.filtered_state_cov[..., -1], rtol=1e-8, atol=1e-8
    )


def test_variances_are_infinite_until_the_data_have_said_something():
    result = fd.filter(local_level(2.0, 1.0), fd.Series([0, 1], [NAN, 1.0]), fd.KalmanFilter())
    np.testing.assert_array_equal(np.isinf(result.predicted.cov).ravel(), [True, True])
    np.testing.assert_array_equal(np.isinf(result.cov).ravel(), [True, False])
    np.testing.assert_array_equal(np.isinf(result.innovation_covs).ravel(), [True, True])
    np.testing.assert_array_equal(result.log_likelihoods[0], 0.0)
    assert int(result.status) == fd.Status.OK


def test_paths_of_a_diffuse_start_have_the_smoothed_moments():
    """False-alarm rate 1e-6: 5 standard errors over a few numbers."""
    series = fd.Series(np.arange(4), [1.0, NAN, 3.0, 2.5])
    model = local_level(0.5, 0.3)
    paths = fd.sample_paths(model, series, fd.KalmanFilter(), key=jr.key(0), num_samples=20_000)
    smooth = fd.smooth(model, series, fd.KalmanFilter())
    sd = np.sqrt(smooth.cov[:, 0])
    assert np.abs((paths.mean(0) - smooth.mean) / sd).max() < 5 / np.sqrt(20_000)
    assert np.abs(paths.var(0) / sd**2 - 1).max() < 5 * np.sqrt(2 / 20_000)


def test_a_stream_from_a_diffuse_start_is_the_batch():
    y, model = observed(2), model_of(2)
    result = fd.filter(model, fd.Series(np.arange(14), y), fd.KalmanFilter())
    online = fd.OnlineFilter(model, fd.KalmanFilter())
    state = online.init(0)
    for t, row in enumerate(y):
        state, step = online.step(state, t, row)
        np.testing.assert_allclose(step.cov, result.cov[t], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(state.log_likelihood, result.log_likelihood, rtol=1e-12)


def test_gradient_of_a_diffuse_likelihood_meets_finite_differences():
    series = fd.Series(np.arange(14), observed(2))

    @jax.jit
    def value(theta):
        model = model_of(2)
        dynamics = fd.LinearTransition(F + theta[0] * jnp.eye(5), jnp.exp(theta[1]) * Q)
        return fd.log_likelihood(
            fd.StateSpaceModel(model.initial, dynamics, model.observation),
            series,
            fd.KalmanFilter(),
        )

    theta, h = jnp.array([0.01, 0.2]), 1e-5
    numeric = [(value(theta + h * e) - value(theta - h * e)) / (2 * h) for e in np.eye(2)]
    np.testing.assert_allclose(jax.grad(value)(theta), numeric, rtol=1e-6)


def test_a_diffuse_start_cannot_be_simulated():
    with pytest.raises(ValueError, match="Diffuse: a flat distribution cannot be sampled"):
        fd.simulate(local_level(1.0, 1.0), [0.0, 1.0], key=jr.key(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(directions=np.ones((3, 1))), r"`directions` has shape \(3, 1\); expected \(2, k\)"),
        (dict(directions=np.ones((2, 3))), "`directions` has 3 columns for 2 states"),
        (dict(base=dist.Normal(0, 1).expand([3]).to_event(1)), r"`base` has shape \(3,\)"),
    ],
)
def test_shapes_of_a_diffuse_start_must_agree(arguments, message):
    with pytest.raises(ValueError, match=message):
        fd.Diffuse(2, **arguments)


def test_the_stationary_covariance_solves_the_lyapunov_equation():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 4)) * 0.4
    noise = rng.normal(size=(4, 2))
    found = fd.stationary(fd.LinearTransition(a, noise @ noise.T, b=np.ones(4)))
    np.testing.assert_allclose(
        found.covariance_matrix, sl.solve_discrete_lyapunov(a, noise @ noise.T), rtol=1e-9
    )
    np.testing.assert_allclose(found.mean, np.linalg.solve(np.eye(4) - a, np.ones(4)), rtol=1e-9)
    rate = a - 2 * np.eye(4)
    found = fd.stationary(fd.LinearSDE(rate, noise, b=np.ones(4)))
    np.testing.assert_allclose(
        found.covariance_matrix, sl.solve_continuous_lyapunov(rate, -noise @ noise.T), rtol=1e-9
    )
    np.testing.assert_allclose(found.mean, -np.linalg.solve(rate, np.ones(4)), rtol=1e-9)


def test_the_stationary_variance_of_an_autoregression_has_its_derivative():
    """sigma^2 / (1 - phi^2), close to a unit root too."""

    def variance(phi):
        return fd.stationary(fd.LinearTransition(phi[None, None], jnp.eye(1))).covariance_matrix[
            0, 0
        ]

    phi = jnp.array(1 - 1e-6)
    value, slope = jax.value_and_grad(variance)(phi)
    np.testing.assert_allclose(value, 1 / (1 - phi**2), rtol=1e-9)
    np.testing.assert_allclose(slope, 2 * phi / (1 - phi**2) ** 2, rtol=1e-8)


def test_unstable_dynamics_have_no_stationary_distribution():
    with pytest.raises(ValueError, match=r"not stable .the spectral radius of F is 1,"):
        fd.stationary(fd.LinearTransition(np.eye(2), np.eye(2)))
    with pytest.raises(ValueError, match="not stable"):
        fd.stationary(fd.LinearSDE(np.array([[0.1]]), 1.0))
    with pytest.raises(TypeError, match="expected LinearTransition or LinearSDE"):
        fd.stationary(fd.Transition(lambda t, x, u: dist.Normal(x, 1.0).to_event(1)))
