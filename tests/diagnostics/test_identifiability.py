"""Information and likelihood intervals against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import filterdyn as fd
from filterdyn.diagnostics import identifiability, profile_likelihood

if not jax.config.jax_enable_x64:
    pytest.skip("compared in float64", allow_module_level=True)

T = 60
TIMES = np.arange(T)
INPUTS = np.sin(TIMES / 3.0)[:, None]
AT = dict(actuator=2.0, decay=0.8, sensor=3.0, log_noise=-1.0)
KALMAN = fd.KalmanFilter()


def plant(p):
    """A state driven by `actuator` times the input, seen through `sensor`: only their product shows."""
    return fd.StateSpaceModel(
        dist.Delta(jnp.zeros(1), event_dim=1),
        fd.LinearTransition(
            p["decay"] * jnp.eye(1), jnp.zeros((1, 1)), B=p["actuator"] * jnp.eye(1)
        ),
        fd.LinearObservation(p["sensor"] * jnp.eye(1), jnp.exp(p["log_noise"])),
    )


@pytest.fixture(scope="module")
def series():
    observations = fd.simulate(plant(AT), TIMES, INPUTS, key=jax.random.key(0)).observations
    return fd.Series(TIMES, observations.at[20:25].set(jnp.nan), INPUTS)


def assert_product_is_named(found):
    (direction,) = found.directions
    assert set(direction) == {"actuator", "sensor"}
    # d(a b) = 0 along (a, -b).
    np.testing.assert_allclose(direction["actuator"], AT["actuator"], rtol=1e-5)
    np.testing.assert_allclose(direction["sensor"], -AT["sensor"], rtol=1e-5)
    assert found.rank == 3 and not found.identifiable
    errors = dict(zip(found.names, found.standard_errors, strict=True))
    assert errors["sensor"] == errors["actuator"] == np.inf
    assert np.isfinite([errors["decay"], errors["log_noise"]]).all()


def test_two_gains_of_which_only_the_product_shows_are_named(series):
    found = identifiability(plant, AT, series, KALMAN)
    assert_product_is_named(found)
    assert "actuator +1.00%, sensor -1.00% together change nothing" in str(found)


def test_row_wise_log_likelihoods_name_them_too(series):
    rows = lambda p: fd.filter(plant(p), series, KALMAN).log_likelihoods
    assert_product_is_named(identifiability(rows, AT))


def test_information_is_that_of_the_regression_that_the_model_is(series):
    """Without process noise y_t = m_t(theta) + e_t, so I = sum of dm dm^T / r, and n / 2 for log r."""

    def mean(decay, actuator):
        x, out = 0.0, []
        for t in range(T):
            out.append(3.0 * x)
            x = decay * x + actuator * INPUTS[t, 0]
        return np.array(out)

    free = lambda p: plant({**AT, **p})
    point = dict(actuator=2.0, decay=0.8, log_noise=-1.0)
    found = identifiability(free, point, series, KALMAN)
    step = 1e-6
    slopes = np.stack(
        [
            (mean(0.8, 2 + step) - mean(0.8, 2 - step)) / (2 * step),
            (mean(0.8 + step, 2) - mean(0.8 - step, 2)) / (2 * step),
        ]
    )
    slopes = np.delete(slopes, np.arange(20, 25), axis=1)
    expected = np.zeros((3, 3))
    expected[:2, :2] = slopes @ slopes.T * np.exp(1.0)
    expected[2, 2] = (T - 5) / 2
    assert found.names == ("actuator", "decay", "log_noise")
    np.testing.assert_allclose(found.information, expected, rtol=1e-6, atol=1e-6)
    assert found.identifiable and found.rank == 3
    errors = np.sqrt(np.diag(np.linalg.inv(expected)))
    np.testing.assert_allclose(found.standard_errors, errors, rtol=1e-5)


def test_information_of_a_long_series_is_that_of_its_spectrum():
    """A stochastic state: per row, the information tends to the integral of (d log f)(d log f)^T over
    frequencies, over 4 pi (Whittle 1953), with f the spectral density of the series.

    At 20,000 rows the two differ by a standard deviation of about 1 % (over seeds): 5 % is a false
    alarm of 6e-7.
    """

    def model(p):
        return fd.StateSpaceModel(
            dist.Normal(jnp.zeros(1), 1.0).to_event(1),
            fd.LinearTransition(p["decay"] * jnp.eye(1), jnp.exp(p["log_q"]) * jnp.eye(1)),
            fd.LinearObservation(jnp.eye(1), 0.3),
        )

    def log_spectrum(v, w):
        return jnp.log(jnp.exp(v[1]) / (1 - 2 * v[0] * jnp.cos(w) + v[0] ** 2) + 0.3)

    at, rows = dict(decay=0.7, log_q=-1.0), np.arange(20_000)
    y = fd.simulate(model(at), rows, key=jax.random.key(1)).observations
    found = identifiability(model, at, fd.Series(rows, y), KALMAN)
    w = np.linspace(-np.pi, np.pi, 4001)[:-1]
    d = jax.vmap(jax.grad(log_spectrum), (None, 0))(jnp.array([0.7, -1.0]), w)
    expected = np.einsum("wi,wj->ij", d, d) / len(w) / 2
    np.testing.assert_allclose(found.information / len(rows), expected, rtol=0.05)


def test_parameter_without_influence_is_named(series):
    found = identifiability(lambda p: plant(p), {**AT, "idle": 1.0}, series, KALMAN)
    assert {"idle": 1.0} in found.directions
    assert "idle has no influence" in str(found)


def test_hessian_at_the_maximum_is_the_information_of_a_gaussian_mean():
    y = np.random.default_rng(0).normal(1.0, 2.0, 50)
    found = identifiability(
        lambda p: dist.Normal(p["mu"], 2.0).log_prob(y).sum(), dict(mu=y.mean())
    )
    np.testing.assert_allclose(found.information, [[50 / 4.0]], rtol=1e-12)
    np.testing.assert_allclose(found.standard_errors, [2 / np.sqrt(50)], rtol=1e-12)


def test_hessian_away_from_a_maximum_is_refused():
    f = lambda p: -jnp.log(1 + p["a"] ** 2)
    with pytest.raises(ValueError, match="not at a maximum"):
        identifiability(f, dict(a=3.0))


def test_entries_of_arrays_have_names():
    f = lambda p: -((p["k"][0] - p["k"][1]) ** 2)
    found = identifiability(f, dict(k=jnp.array([1.0, 1.0])))
    assert found.names == ("k[0]", "k[1]")
    (direction,) = found.directions
    np.testing.assert_allclose([direction["k[0]"], direction["k[1]"]], [1.0, 1.0], rtol=1e-6)


def test_profile_interval_of_a_gaussian_mean_is_the_exact_one():
    """With the variance unknown, n log(1 + n (m - mu)^2 / S) <= chi2."""
    y = np.random.default_rng(0).normal(1.0, 2.0, 50)
    n, m, S = len(y), y.mean(), ((y - y.mean()) ** 2).sum()
    f = lambda p: dist.Normal(p["mu"], jnp.exp(p["log_sd"])).log_prob(y).sum()
    start = dict(mu=0.0, log_sd=0.0)
    found = profile_likelihood(f, start, "mu", np.linspace(-1, 3, 21), level=0.9)
    half = np.sqrt(S / n * np.expm1(stats.chi2.ppf(0.9, 1) / n))
    np.testing.assert_allclose([found.lower, found.upper], [m - half, m + half], rtol=1e-6)
    np.testing.assert_allclose(found.estimate, m, rtol=1e-6)
    variance = S / n + (m - found.grid) ** 2
    np.testing.assert_allclose(found.log_likelihoods, -n / 2 * (np.log(2 * np.pi * variance) + 1))
    np.testing.assert_allclose(found.parameters["log_sd"], 0.5 * np.log(variance), atol=1e-6)


def test_profile_of_a_parameter_alone_is_the_likelihood():
    y = np.random.default_rng(0).normal(1.0, 2.0, 50)
    f = lambda p: dist.Normal(p["mu"], 2.0).log_prob(y).sum()
    found = profile_likelihood(f, dict(mu=0.0), "mu", [-1.0, 0.5, 2.0, 3.0])
    half = stats.norm.ppf(0.975) * 2 / np.sqrt(50)
    np.testing.assert_allclose([found.lower, found.upper], y.mean() + np.array([-half, half]))


def test_profile_of_one_of_two_gains_is_flat_and_its_interval_open(series):
    f = lambda p: fd.log_likelihood(plant({**AT, **p}), series, KALMAN)
    start = dict(actuator=2.0, sensor=2.5)
    found = profile_likelihood(f, start, "actuator", np.linspace(1.0, 4.0, 7))
    np.testing.assert_allclose(found.log_likelihoods, found.log_likelihood, atol=1e-6)
    np.testing.assert_allclose(
        found.parameters["actuator"] * found.parameters["sensor"],
        (found.parameters["actuator"] * found.parameters["sensor"])[0],
        rtol=1e-5,
    )
    assert (found.lower, found.upper) == (-np.inf, np.inf) and "open" in str(found)


def test_profile_refuses_names_and_grids_that_are_not_there():
    with pytest.raises(ValueError, match="`name` is 'sigma'"):
        profile_likelihood(lambda p: p["mu"], dict(mu=0.0), "sigma", [0.0, 1.0])
    with pytest.raises(ValueError, match="`grid`"):
        profile_likelihood(lambda p: p["mu"], dict(mu=0.0), "mu", [1.0, 0.0])
