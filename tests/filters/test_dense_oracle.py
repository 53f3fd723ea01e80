"""Linear-Gaussian models against dense conditioning: inputs, offsets, missing entries, irregular
and repeated times."""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from oracles import dense, high_precision
from scipy.stats import norm

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("the oracle is float64", allow_module_level=True)

NAN = np.nan
m0, P0 = np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 2.0]])
H, R = np.array([[1.0, 0.5], [0.0, 1.0]]), np.array([[0.3, 0.1], [0.1, 0.4]])
D, d = np.array([[0.2], [-0.5]]), np.array([0.1, -0.2])
F, Q = np.array([[0.9, 0.3], [-0.2, 0.8]]), np.array([[0.2, 0.05], [0.05, 0.1]])
A, L = np.array([[-0.3, 1.0], [-1.5, -0.4]]), np.array([[0.3, 0.0], [0.1, 0.5]])
B, b = np.array([[0.5], [1.0]]), np.array([0.1, -0.3])
y = np.array([
    [0.3, -0.8], [1.1, NAN], [NAN, NAN], [NAN, 0.4],
    [-0.7, 0.9], [0.2, -0.1], [NAN, NAN], [1.5, 0.6],
])  # fmt: skip
inputs = np.array([[1.0], [0.0], [-2.0], [0.5], [1.5], [-1.0], [0.0], [2.0]])
whole = np.arange(8.0)
irregular = np.array([0.0, 0.3, 0.35, 1.2, 1.2, 2.0, 3.7, 4.0])
table = dict(
    F=np.array([F + 0.1 * k * np.array([[-1, 0.5], [0.2, 0]]) for k in range(12)]),
    Q=np.array([Q * (1 + 0.3 * k) for k in range(12)]),
    B=np.array([B * (-1) ** k for k in range(12)]),
    b=np.array([b * k for k in range(12)]),
    H=np.array([H + 0.1 * k for k in range(12)]),
    R=np.array([R * (1 + 0.2 * k) for k in range(12)]),
    D=np.array([D * np.cos(k) for k in range(12)]),
    d=np.array([d * np.sin(k) for k in range(12)]),
)


def at(name):
    rows = jnp.asarray(table[name])
    return lambda t: rows[jnp.asarray(t).astype(int)]


@dataclass(frozen=True)
class Setup:
    """One model, both as the library is given it and as rows for the oracle."""

    dynamics: object
    observation: object
    to_rows: object  # (y, times, inputs) -> dense.Rows
    times: np.ndarray
    start: dict  # t0 and u0

    @property
    def model(self):
        initial = dist.MultivariateNormal(jnp.asarray(m0), jnp.asarray(P0))
        return fd.StateSpaceModel(initial, self.dynamics, self.observation)

    @property
    def series(self):
        return fd.Series(self.times, y, inputs)

    @property
    def rows(self):
        return self.to_rows(y, self.times, inputs)


def discrete(times, **start):
    def to_rows(y, times, inputs):
        return dense.discrete_rows(
            m0, P0, F, Q, H, R, y, B=B, b=b, D=D, d=d, inputs=inputs, times=times, **start
        )

    dynamics = fd.LinearTransition(F, Q, B=B, b=b)
    return Setup(dynamics, fd.LinearObservation(H, R, D=D, d=d), to_rows, times, start)


def varying():
    def to_rows(y, times, inputs):
        p = {name: rows[: len(y)] for name, rows in table.items()}
        return dense.discrete_rows(
            m0, P0, p["F"], p["Q"], p["H"], p["R"], y,
            B=p["B"], b=p["b"], D=p["D"], d=p["d"], inputs=inputs, times=times,
        )  # fmt: skip

    dynamics = fd.LinearTransition(at("F"), at("Q"), B=at("B"), b=at("b"))
    return Setup(
        dynamics, fd.LinearObservation(at("H"), at("R"), D=at("D"), d=at("d")), to_rows, whole, {}
    )


def continuous(**start):
    def to_rows(y, times, inputs):
        rows = high_precision.continuous_rows(
            m0, P0, A, L, H, R, y, times, B=B, b=b, D=D, d=d, inputs=inputs, **start
        )
        return high_precision.as_float(rows)

    dynamics = fd.LinearSDE(A, L, B=B, b=b)
    return Setup(dynamics, fd.LinearObservation(H, R, D=D, d=d), to_rows, irregular, start)


SETUPS = {
    "discrete": discrete(whole),
    "discrete, prior one transition early": discrete(whole, t0=-1.0, u0=np.array([0.7])),
    "discrete, repeated times": discrete(np.array([0.0, 1, 1, 2, 3, 3, 3, 4])),
    "discrete, varying in time": varying(),
    "continuous": continuous(),
    "continuous, prior early": continuous(t0=-0.4, u0=np.array([0.7])),
}
every_setup = pytest.mark.parametrize("name", SETUPS)


@functools.cache
def exact(name):
    return dense.answer(SETUPS[name].rows)


@functools.cache
def filtered(name):
    s = SETUPS[name]
    return fd.filter(s.model, s.series, fd.KalmanFilter(), **s.start)


def close(value, answer, rtol=1e-10):
    np.testing.assert_allclose(np.asarray(value), answer, rtol=rtol, atol=rtol)


def agrees(model, series, filter, answer, rtol=1e-10, **start):
    """Log-likelihood and its terms, predicted, filtered and smoothed beliefs."""
    result, smooth = (
        fd.filter(model, series, filter, **start),
        fd.smooth(model, series, filter, **start),
    )
    close(fd.log_likelihood(model, series, filter, **start), answer.log_likelihood, rtol)
    close(result.log_likelihoods, answer.log_likelihoods, rtol)
    close(result.predicted.mean, answer.predicted_mean, rtol)
    close(result.predicted.cov, answer.predicted_cov, rtol)
    close(result.mean, answer.filtered_mean, rtol)
    close(result.cov, answer.filtered_cov, rtol)
    close(smooth.mean, answer.smoothed_mean, rtol)
    close(smooth.cov, answer.smoothed_cov, rtol)
    close(smooth.log_likelihood, answer.log_likelihood, rtol)


@every_setup
def test_log_likelihood_is_the_density_of_the_observed_entries(name):
    s = SETUPS[name]
    close(
        fd.log_likelihood(s.model, s.series, fd.KalmanFilter(), **s.start),
        exact(name).log_likelihood,
    )
    close(filtered(name).log_likelihoods, exact(name).log_likelihoods)
    close(filtered(name).log_likelihood, exact(name).log_likelihood)


@every_setup
def test_predicted_beliefs_condition_on_the_rows_before(name):
    close(filtered(name).predicted.mean, exact(name).predicted_mean)
    close(filtered(name).predicted.cov, exact(name).predicted_cov)


@every_setup
def test_filtered_beliefs_condition_on_the_rows_up_to_now(name):
    close(filtered(name).mean, exact(name).filtered_mean)
    close(filtered(name).cov, exact(name).filtered_cov)


@every_setup
def test_smoothed_beliefs_condition_on_all_rows(name):
    s = SETUPS[name]
    result = fd.smooth(s.model, s.series, fd.KalmanFilter(), **s.start)
    close(result.mean, exact(name).smoothed_mean)
    close(result.cov, exact(name).smoothed_cov)
    close(result.log_likelihood, exact(name).log_likelihood)


@every_setup
def test_innovations_have_the_predicted_mean_and_covariance_of_the_data(name):
    rows, answer = SETUPS[name].rows, exact(name)
    mean, cov = dense.observation_moments(rows, answer.predicted_mean, answer.predicted_cov)
    seen = ~np.isnan(y)
    both = seen[:, :, None] & seen[:, None, :]
    close(np.asarray(filtered(name).innovations)[seen], (y - mean)[seen])
    close(np.asarray(filtered(name).innovation_covs)[both], cov[both])


FUTURE = {
    "discrete": whole[-1] + np.array([1.0, 2.0, 3.0]),
    "continuous": irregular[-1] + np.array([0.2, 0.9, 5.0]),
}


@pytest.mark.parametrize(
    "future_inputs", [None, np.array([[0.3], [-1.2], [0.8]])], ids=["held", "given"]
)
@pytest.mark.parametrize(
    "name", ["discrete", "discrete, varying in time", "continuous", "continuous, prior early"]
)
def test_forecast_continues_the_joint_distribution(name, future_inputs):
    s = SETUPS[name]
    times = FUTURE[name.split(",")[0]]
    forecast = fd.forecast(s.model, filtered(name), times, inputs=future_inputs)
    ahead = np.repeat(inputs[-1:], 3, axis=0) if future_inputs is None else future_inputs
    rows = s.to_rows(
        np.concatenate([y, np.full((3, 2), NAN)]),
        np.concatenate([s.times, times]),
        np.concatenate([inputs, ahead]),
    )
    answer = dense.answer(rows)
    mean, cov = dense.observation_moments(rows, answer.filtered_mean, answer.filtered_cov)
    close(forecast.times, times)
    close(forecast.state_mean, answer.filtered_mean[-3:])
    close(forecast.state_cov, answer.filtered_cov[-3:])
    close(forecast.observation_mean, mean[-3:])
    close(forecast.observation_cov, cov[-3:])


FALSE_ALARM = 1e-6  # of each of the tests of sampled moments, by Bonferroni over all entries


def assert_sampled_from(paths, mean, cov):
    """Means and all covariances, those across times included, of `paths` (n, T dx) are those of
    N(mean, cov).

    The mean of n draws has variance S_ii / n, that of the products of two centred entries (S_ii
    S_jj + S_ij^2) / n; both are close to Gaussian at n = 20,000.
    """
    count, size = paths.shape
    centred = paths - mean
    variance = np.diag(cov)
    score_mean = centred.mean(0) / np.sqrt(variance / count)
    products = centred.T @ centred / count
    score_cov = (products - cov) / np.sqrt((np.outer(variance, variance) + cov**2) / count)
    bound = norm.isf(FALSE_ALARM / 2 / (size + size * (size + 1) / 2))
    assert np.abs(score_mean).max() < bound
    assert np.abs(score_cov).max() < bound


@pytest.mark.parametrize(
    "name", ["discrete", "discrete, varying in time", "continuous, prior early"]
)
def test_sampled_paths_have_the_moments_of_the_joint_posterior(name):
    s = SETUPS[name]
    paths = fd.sample_paths(
        s.model, s.series, fd.KalmanFilter(), key=jr.key(1), num_samples=20_000, **s.start
    )
    assert paths.shape == (20_000, 8, 2)
    mean, cov, _ = dense.path(s.rows)
    keep = slice(2 * s.rows.lead, None)
    assert_sampled_from(np.asarray(paths).reshape(20_000, 16), mean[keep], cov[keep, keep])


def test_sampled_paths_pass_through_a_repeated_time_unchanged():
    s = SETUPS["discrete, repeated times"]
    paths = np.asarray(
        fd.sample_paths(s.model, s.series, fd.KalmanFilter(), key=jr.key(2), num_samples=20_000)
    )
    np.testing.assert_allclose(paths[:, 1], paths[:, 2], rtol=0, atol=1e-7)
    np.testing.assert_allclose(paths[:, 4], paths[:, 6], rtol=0, atol=1e-7)
    mean, cov, _ = dense.path(s.rows)
    distinct = np.concatenate([[2 * k, 2 * k + 1] for k in (0, 1, 3, 4, 7)])
    assert_sampled_from(
        paths.reshape(20_000, 16)[:, distinct], mean[distinct], cov[np.ix_(distinct, distinct)]
    )


def test_sampled_paths_leave_from_a_known_start():
    s = SETUPS["discrete"]
    model = fd.StateSpaceModel(dist.Delta(jnp.asarray(m0), event_dim=1), s.dynamics, s.observation)
    paths = np.asarray(
        fd.sample_paths(model, s.series, fd.KalmanFilter(), key=jr.key(3), num_samples=20_000)
    )
    np.testing.assert_array_equal(paths[:, 0], np.broadcast_to(m0, (20_000, 2)))
    mean, cov, _ = dense.path(replace(s.rows, P0=np.zeros((2, 2))))
    assert_sampled_from(paths.reshape(20_000, 16)[:, 2:], mean[2:], cov[2:, 2:])


@pytest.mark.parametrize("name", ["discrete", "continuous"])
def test_known_start_is_a_prior_of_zero_covariance(name):
    s = SETUPS[name]
    model = fd.StateSpaceModel(dist.Delta(jnp.asarray(m0), event_dim=1), s.dynamics, s.observation)
    agrees(model, s.series, fd.KalmanFilter(), dense.answer(replace(s.rows, P0=np.zeros((2, 2)))))


@pytest.mark.parametrize("name", ["discrete", "continuous, prior early"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_extended_filter_is_exact_on_linear_parts(name, iterations):
    s = SETUPS[name]
    agrees(
        s.model, s.series, fd.ExtendedKalmanFilter(iterations=iterations), exact(name), **s.start
    )


def see(t, x, u):
    return H @ x + D @ u + d


NONLINEAR_OBSERVATIONS = {
    "GaussianObservation": fd.GaussianObservation(see, R),
    "Observation": fd.Observation(
        lambda t, x, u: dist.MultivariateNormal(see(t, x, u), jnp.asarray(R))
    ),
}


@pytest.mark.parametrize("observation", NONLINEAR_OBSERVATIONS)
@pytest.mark.parametrize("name", ["discrete", "discrete, prior one transition early"])
def test_extended_filter_is_exact_on_functions_that_happen_to_be_linear(name, observation):
    s = SETUPS[name]
    dynamics = fd.Transition(
        lambda t, x, u: dist.MultivariateNormal(jnp.asarray(F) @ x + B @ u + b, jnp.asarray(Q))
    )
    model = replace(s, dynamics=dynamics, observation=NONLINEAR_OBSERVATIONS[observation]).model
    agrees(model, s.series, fd.ExtendedKalmanFilter(), exact(name), **s.start)


def drift(t, x, u):
    return jnp.asarray(A) @ x + B @ u + b


def sde_model(substeps, diffusion=L):
    dynamics = fd.SDE(drift, diffusion, substeps=substeps)
    return replace(SETUPS["continuous"], dynamics=dynamics).model


@pytest.mark.parametrize("name", ["continuous", "continuous, prior early"])
def test_moment_equations_of_a_linear_drift_reach_the_exact_answer(name):
    s = SETUPS[name]
    agrees(sde_model(40), s.series, fd.ExtendedKalmanFilter(), exact(name), rtol=1e-5, **s.start)


def test_moment_equations_converge_at_second_order_or_better():
    s = SETUPS["continuous"]
    errors = [
        abs(
            float(fd.log_likelihood(sde_model(n), s.series, fd.ExtendedKalmanFilter()))
            - exact("continuous").log_likelihood
        )
        for n in (4, 8)
    ]
    assert errors[1] < errors[0] / 3.5


def test_forecast_of_the_moment_equations_reaches_the_exact_answer():
    s, model = SETUPS["continuous"], sde_model(40)
    result = fd.filter(model, s.series, fd.ExtendedKalmanFilter())
    ahead = fd.forecast(model, result, irregular[-1] + np.array([0.2, 0.9]))
    known = fd.forecast(s.model, filtered("continuous"), irregular[-1] + np.array([0.2, 0.9]))
    close(ahead.state_mean, known.state_mean, 1e-5)
    close(ahead.observation_cov, known.observation_cov, 1e-5)


@pytest.mark.parametrize(
    "diffusion",
    [
        jnp.array([0.4, 0.4]),
        0.4 * jnp.eye(2),
        lambda t, x, u: 0.4,
        lambda t, x, u: 0.4 * jnp.eye(2),
    ],
    ids=["diagonal", "matrix", "function of a scalar", "function of a matrix"],
)
def test_a_diffusion_means_the_same_in_every_form(diffusion):
    s = SETUPS["continuous"]
    scalar, other = (
        fd.log_likelihood(sde_model(3, form), s.series, fd.ExtendedKalmanFilter())
        for form in (0.4, diffusion)
    )
    close(other, float(scalar), 1e-12)


def test_an_ode_is_an_sde_without_noise():
    s = SETUPS["continuous"]
    model = replace(s, dynamics=fd.ODE(drift, substeps=20)).model
    rows = high_precision.continuous_rows(
        m0, P0, A, np.zeros((2, 1)), H, R, y, irregular, B=B, b=b, D=D, d=d, inputs=inputs
    )
    agrees(model, s.series, fd.ExtendedKalmanFilter(), high_precision.answer(rows), rtol=1e-6)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_an_observation_counts_once_however_often_it_is_linearised(iterations):
    one = jnp.eye(1)
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(1), one),
        fd.LinearTransition(one, one),
        fd.GaussianObservation(lambda t, x, u: x, one),
    )
    result = fd.filter(
        model, fd.Series([0.0], [[1.0]]), fd.ExtendedKalmanFilter(iterations=iterations)
    )
    close(result.cov, [[[0.5]]], 1e-14)
    close(result.mean, [[0.5]], 1e-14)


@pytest.mark.parametrize("name", ["discrete", "continuous"])
def test_float32_arrays_give_float32_answers(name):
    s, single = SETUPS[name], np.float32
    observation = fd.LinearObservation(
        *(v.astype(single) for v in (H, R)), D=D.astype(single), d=d.astype(single)
    )
    parts = [v.astype(single) for v in ((F, Q) if name == "discrete" else (A, L))]
    kind = fd.LinearTransition if name == "discrete" else fd.LinearSDE
    dynamics = kind(*parts, B=B.astype(single), b=b.astype(single))
    initial = dist.MultivariateNormal(jnp.asarray(m0, single), jnp.asarray(P0, single))
    model = fd.StateSpaceModel(initial, dynamics, observation)
    series = fd.Series(s.times, y.astype(single), inputs.astype(single))
    assert fd.smooth(model, series, fd.KalmanFilter()).cov.dtype == single
    agrees(model, series, fd.KalmanFilter(), exact(name), rtol=2e-5)
