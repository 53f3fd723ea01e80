"""The online variational filter: exact where the model is linear and Gaussian, near the grid elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from scipy.special import gammaln
from scipy.stats import norm

import filterdyn as fd
from filterdyn.dynamics import Interval, Plan
from filterdyn.filters.sampling import Measurement
from filterdyn.learning.variational_points import normal_points

KEY = jax.random.key(0)


def matrices(dx, seed=0):
    """A rotation that decays, full noise, and dx + 1 sensors."""
    rng = np.random.default_rng(seed)
    F = 0.9 * np.linalg.qr(rng.normal(size=(dx, dx)))[0]
    half = rng.normal(size=(dx, dx))
    Q = 0.3 * np.eye(dx) + 0.1 * half @ half.T
    H = rng.normal(size=(dx + 1, dx))
    return F, Q, H, 0.3 * np.ones(dx + 1)


def model(dx, dynamics="linear", observation="linear"):
    """The same linear Gaussian model, declared as what is known of it."""
    F, Q, H, sd = (jnp.asarray(a) for a in matrices(dx))
    moves = {
        "linear": fd.LinearTransition(F, Q),
        "general": fd.Transition(lambda t, x, u: dist.MultivariateNormal(F @ x, Q)),
    }
    sees = {
        "linear": fd.LinearObservation(H, jnp.diag(sd**2)),
        "general": fd.Observation(lambda t, x, u: dist.Normal(H @ x, sd).to_event(1)),
    }
    initial = dist.MultivariateNormal(jnp.ones(dx), 2.0 * jnp.eye(dx))
    return fd.StateSpaceModel(initial, moves[dynamics], sees[observation])


def record(dx, rows=120):
    """With a row that is missing, and an entry."""
    F, Q, H, sd = matrices(dx)
    rng, half, x = np.random.default_rng(1), np.linalg.cholesky(Q), np.ones(dx)
    ys = np.empty((rows, dx + 1))
    for row in range(rows):
        ys[row] = H @ x + sd * rng.normal(size=dx + 1)
        x = F @ x + half @ rng.normal(size=dx)
    ys[5], ys[9, 0] = np.nan, np.nan
    return fd.Series(np.arange(float(rows)), ys)


def differences(found, exact):
    """Largest, of means, covariances and increments of the bound."""
    return max(
        float(abs(found.mean - exact.mean).max()),
        float(abs(found.cov - exact.cov).max()),
        float(abs(found.log_likelihoods - exact.log_likelihoods).max()),
    )


slow, long = pytest.mark.slow, [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize(
    ("dx", "dynamics", "observation"),
    [
        (2, "linear", "general"),
        pytest.param(5, "linear", "linear", marks=long),
        pytest.param(1, "general", "general", marks=slow),
        pytest.param(3, "general", "general", marks=long),
        pytest.param(5, "linear", "general", marks=long),
    ],
)
def test_of_a_linear_gaussian_model_it_is_the_kalman_filter(dx, dynamics, observation):
    series = record(dx)
    exact = fd.filter(model(dx), series, fd.KalmanFilter())
    declared = model(dx, dynamics, observation)
    found = fd.filter(declared, series, fd.OnlineVariationalFilter(), key=KEY)
    assert found.status == fd.Status.OK
    assert differences(found, exact) < 1e-9
    assert found.log_likelihoods[5] == 0


@slow
@pytest.mark.parametrize(
    ("optimizer", "steps", "least", "most"),
    [(optax.adam(0.05), 300, 1e-9, 1e-3), (optax.lbfgs(), 20, 0.0, 1e-5)],
    ids=["adam", "lbfgs"],
)
def test_gradients_reach_the_kalman_filter_too(optimizer, steps, least, most):
    series = record(1, 40)
    exact = fd.filter(model(1), series, fd.KalmanFilter())
    filter = fd.OnlineVariationalFilter(steps=steps, optimizer=optimizer)
    found = fd.filter(model(1, "linear", "general"), series, filter, key=KEY)
    assert least <= differences(found, exact) < most
    assert found.log_likelihood < exact.log_likelihood + 1e-6


@slow
def test_too_few_gradient_steps_do_not_reach_it():
    series = record(1, 40)
    exact = fd.filter(model(1), series, fd.KalmanFilter())
    filter = fd.OnlineVariationalFilter(steps=3, optimizer=optax.adam(0.05))
    found = fd.filter(model(1, "linear", "general"), series, filter, key=KEY)
    assert differences(found, exact) > 0.1
    assert found.log_likelihood < exact.log_likelihood - 1.0


@pytest.mark.parametrize(
    "kind", [pytest.param("linear", marks=slow), pytest.param("general", marks=long)]
)
def test_the_backward_kernel_is_that_of_the_smoother(kind):
    F, Q, H, sd = matrices(2)
    declared, filter = model(2, kind, kind), fd.OnlineVariationalFilter()
    belief = filter.init(declared, jnp.float64, KEY)
    table = declared.dynamics.tabulate(Plan())
    interval = Interval(jnp.zeros(()), jnp.ones(()), None, None, table)
    y = jnp.array([1.0, -0.5, 0.3])
    measurement = Measurement(jnp.ones(()), None, y)
    found = jax.jit(filter.backward_kernel)(declared, belief, interval, measurement, KEY)

    m, P = np.ones(2), 2.0 * np.eye(2)
    before, spread = F @ m, F @ P @ F.T + Q
    gain = spread @ H.T @ np.linalg.inv(H @ spread @ H.T + np.diag(sd**2))
    after = before + gain @ (np.asarray(y) - H @ before)
    G = P @ F.T @ np.linalg.inv(spread)
    np.testing.assert_allclose(found.gain, G, atol=1e-9)
    np.testing.assert_allclose(found.mean, m + G @ (after - before), atol=1e-9)
    np.testing.assert_allclose(found.factor @ found.factor.T, P - G @ spread @ G.T, atol=1e-9)


def scaled(p, dx=1, kind="linear"):
    """The model with every part scaled by a parameter."""
    F, Q, H, sd = (jnp.asarray(a) for a in matrices(dx))
    initial = dist.MultivariateNormal(p["move"] * jnp.ones(dx), p["noise"] * jnp.eye(dx))
    F, Q, H, sd = p["move"] * F, p["noise"] * Q, p["gain"] * H, p["sensor"] * sd
    move = fd.LinearTransition(F, Q)
    if kind == "linear":
        return fd.StateSpaceModel(initial, move, fd.LinearObservation(H, jnp.diag(sd**2)))
    if kind == "general":
        move = fd.Transition(lambda t, x, u: dist.MultivariateNormal(F @ x, Q))
    see = fd.Observation(lambda t, x, u: dist.Normal(H @ x, sd).to_event(1))
    return fd.StateSpaceModel(initial, move, see)


POINT = dict(move=0.9, noise=1.3, gain=0.8, sensor=1.2)


def score(dx):
    """Central differences of the Kalman filter's log-likelihood, by name."""
    series, found = record(dx, 40), {}
    of = lambda p: float(fd.log_likelihood(scaled(p, dx), series, fd.KalmanFilter()))
    for name, at in POINT.items():
        up, down = (of({**POINT, name: at + h}) for h in (1e-5, -1e-5))
        found[name] = (up - down) / 2e-5
    return found


@pytest.mark.parametrize(
    ("dx", "kind"),
    [
        (1, "linear"),
        pytest.param(2, "sensors", marks=slow),
        pytest.param(1, "general", marks=long),
    ],
)
def test_what_it_climbs_is_the_score_of_a_linear_gaussian_model(dx, kind):
    # Steps so small that the model stays where it is: their sum is the sum of the increments.
    prior = {name: dist.Normal(value, 1.0) for name, value in POINT.items()}
    learnt = fd.ParametricModel(lambda p: scaled(p, dx, kind), prior)
    filter = fd.OnlineVariationalFilter(parameter_optimizer=optax.sgd(1e-9))
    found = fd.filter(learnt, record(dx, 40), filter, key=KEY).parameters
    for name, slope in score(dx).items():
        moved = (found.mean[name][-1] - POINT[name]) / 1e-9
        np.testing.assert_allclose(moved, slope, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "kind", [pytest.param("linear", marks=slow), pytest.param("sensors", marks=long)]
)
def test_the_gradient_of_its_bound_is_the_score_of_a_linear_gaussian_model(kind):
    filter = fd.OnlineVariationalFilter()
    of = lambda p: fd.log_likelihood(scaled(p, 1, kind), record(1, 40), filter, key=KEY)
    found = jax.grad(of)(POINT)
    for name, slope in score(1).items():
        np.testing.assert_allclose(found[name], slope, rtol=1e-6, err_msg=name)


GRID = np.linspace(-8.0, 8.0, 1601)


def on_grid(transition, observation, initial, ys):
    """Means, variances and the log-likelihood by sums over a grid."""
    step = GRID[1] - GRID[0]
    kernel = transition(GRID[:, None], GRID[None, :]) * step
    weights = initial(GRID)
    means, variances, total = [], [], 0.0
    for row, y in enumerate(ys):
        weights = kernel @ weights if row else weights
        weights = weights / weights.sum()
        seen = weights * observation(y, GRID)
        total += np.log(seen.sum())
        weights = seen / seen.sum()
        means.append(weights @ GRID)
        variances.append(weights @ (GRID - means[-1]) ** 2)
    return np.array(means), np.array(variances), total


def walk(rows, seed, move, sd):
    """States from 0."""
    rng, x = np.random.default_rng(seed), np.zeros(rows)
    for row in range(1, rows):
        x[row] = move(x[row - 1]) + sd * rng.normal()
    return rng, x


def error(found, means):
    return float(np.sqrt(np.mean((found.mean[:, 0] - means) ** 2)))


def autoregression(sd=0.3, phi=0.95):
    at_rest = sd / np.sqrt(1 - phi**2)
    initial = dist.Normal(0.0, at_rest).expand([1]).to_event(1)
    pdf = lambda to, x: norm.pdf(to, phi * x, sd)
    dynamics = fd.LinearTransition([[phi]], [[sd**2]])
    return initial, dynamics, pdf, lambda x: norm.pdf(x, 0, at_rest)


def volatility(scale):
    initial, dynamics, pdf, start = autoregression()
    see = lambda t, x, u: dist.Normal(0.0, scale * jnp.exp(x / 2)).to_event(1)
    density = lambda y, x: norm.pdf(y, 0, scale * np.exp(x / 2))
    return fd.StateSpaceModel(initial, dynamics, fd.Observation(see)), (pdf, density, start)


def test_of_stochastic_volatility_it_is_near_the_grid_where_gaussian_filters_learn_nothing():
    seen, densities = volatility(0.7)
    rng, x = walk(150, 2, lambda x: 0.95 * x, 0.3)
    ys = 0.7 * np.exp(x / 2) * rng.normal(size=150)
    means, variances, total = on_grid(*densities, ys)
    series = fd.Series(np.arange(150.0), ys)
    found = fd.filter(seen, series, fd.OnlineVariationalFilter(), key=KEY)
    extended = fd.filter(seen, series, fd.ExtendedKalmanFilter())
    assert error(found, means) < 0.03 < 0.3 < error(extended, means)
    assert np.mean(abs(found.cov[:, 0, 0] / variances - 1)) < 0.06
    assert abs(found.log_likelihood - total) < 2.0


@slow
def test_of_poisson_counts_it_is_nearer_the_grid_than_gaussian_filters():
    initial, dynamics, pdf, start = autoregression()
    see = lambda t, x, u: dist.Poisson(jnp.exp(x + 1)).to_event(1)
    density = lambda y, x: np.exp(y * (x + 1) - np.exp(x + 1) - gammaln(y + 1))
    seen = fd.StateSpaceModel(initial, dynamics, fd.Observation(see))
    rng, x = walk(300, 3, lambda x: 0.95 * x, 0.3)
    ys = rng.poisson(np.exp(x + 1)).astype(float)
    means, _, total = on_grid(pdf, density, start, ys)
    series = fd.Series(np.arange(300.0), ys)
    found = fd.filter(seen, series, fd.OnlineVariationalFilter(), key=KEY)
    assert error(found, means) < 0.02
    for other in (fd.ExtendedKalmanFilter(), fd.UnscentedKalmanFilter()):
        assert error(fd.filter(seen, series, other), means) > 2 * error(found, means)
    assert abs(found.log_likelihood - total) < 2.0


@slow
def test_of_nonlinear_dynamics_and_a_cubic_sensor_it_is_nearer_the_grid_than_gaussian_filters():
    move = lambda x, xp: 0.9 * x + 0.5 * xp.sin(2 * x)
    see = lambda x: x + 0.3 * x**3
    seen = fd.StateSpaceModel(
        dist.Normal(0.0, 1.0).expand([1]).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(move(x, jnp), 0.4).to_event(1)),
        fd.Observation(lambda t, x, u: dist.Normal(see(x), 0.7).to_event(1)),
    )
    rng, x = walk(300, 4, lambda x: move(x, np), 0.4)
    ys = see(x) + 0.7 * rng.normal(size=300)
    means, _, total = on_grid(
        lambda to, x: norm.pdf(to, move(x, np), 0.4),
        lambda y, x: norm.pdf(y, see(x), 0.7),
        norm.pdf,
        ys,
    )
    series = fd.Series(np.arange(300.0), ys)
    found = fd.filter(seen, series, fd.OnlineVariationalFilter(), key=KEY)
    for other in (fd.ExtendedKalmanFilter(), fd.UnscentedKalmanFilter()):
        assert error(fd.filter(seen, series, other), means) > 2 * error(found, means)
    assert found.log_likelihood < total


@slow
def test_dynamics_without_a_density_enter_by_their_moments():
    # An ODE that is linear, for which the moments are all there is.
    a = jnp.array([[0.0, 1.0], [-1.0, -0.1]])
    initial = dist.Normal(jnp.ones(2), 0.5).to_event(1)
    ode = fd.ODE(lambda t, x, u: a @ x, substeps=4)
    times = np.arange(0.0, 10.0, 0.25)
    sensor = fd.LinearObservation([[1.0, 0.0]], 0.01)
    general = fd.Observation(lambda t, x, u: dist.Normal(x[:1], 0.1).to_event(1))
    ys = np.cos(times) + 0.1 * np.random.default_rng(5).normal(size=len(times))
    series = fd.Series(times, ys)
    exact = fd.filter(fd.StateSpaceModel(initial, ode, sensor), series, fd.ExtendedKalmanFilter())
    found = fd.filter(
        fd.StateSpaceModel(initial, ode, general), series, fd.OnlineVariationalFilter(), key=KEY
    )
    assert differences(found, exact) < 1e-8


@slow
def test_it_learns_the_scale_of_a_volatility():
    rng, x = walk(4000, 6, lambda x: 0.95 * x, 0.3)
    ys = 0.7 * np.exp(x / 2) * rng.normal(size=4000)
    learnt = fd.ParametricModel(
        lambda p: volatility(p["scale"])[0], dict(scale=dist.LogNormal(0.5, 0.5))
    )
    found = fd.filter(
        learnt, fd.Series(np.arange(4000.0), ys), fd.OnlineVariationalFilter(), key=KEY
    )
    assert abs(found.parameters.mean["scale"][0] - 0.7) > 0.3
    # What is known of the logarithm after 4000 rows is about 0.1: the level wanders over 20 rows.
    np.testing.assert_allclose(found.parameters.mean["scale"][-1], 0.7, rtol=0.2)
    with pytest.raises(ValueError, match="claims no posterior"):
        found.parameters.interval(0.9)


@slow
def test_a_forecast_is_that_of_the_model_at_the_estimate():
    prior = {name: dist.LogNormal(np.log(value), 0.3) for name, value in POINT.items()}
    learnt, series = fd.ParametricModel(scaled, prior), record(1, 40)
    found = fd.filter(learnt, series, fd.OnlineVariationalFilter(), key=KEY)
    ahead = fd.forecast(learnt, found, [41.0, 42.0], key=KEY, num_samples=2000)
    estimate = {name: float(value[-1]) for name, value in found.parameters.mean.items()}
    assert abs(estimate["gain"] / POINT["gain"] - 1) > 0.01
    F, Q, H, sd = matrices(1)
    m, P = np.asarray(found.mean[-1]), np.asarray(found.cov[-1])
    F, H = estimate["move"] * F, estimate["gain"] * H
    for row in range(2):
        m, P = F @ m, F @ P @ F.T + estimate["noise"] * Q
        cov = H @ P @ H.T + np.diag((estimate["sensor"] * sd) ** 2)
        np.testing.assert_allclose(ahead.observation_mean[row], H @ m, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(ahead.observation_cov[row], cov, rtol=1e-9, atol=1e-12)
        spread = np.sqrt(np.diagonal(cov) / 2000)
        np.testing.assert_allclose(ahead.samples[:, row].mean(0), H @ m, atol=4 * spread.max())


@slow
def test_float32_is_the_kalman_filter_to_its_precision():
    series = record(2)
    exact = fd.filter(model(2), series, fd.KalmanFilter())
    half = lambda tree: jax.tree.map(
        lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
    F, Q, H, sd = (jnp.asarray(a, jnp.float32) for a in matrices(2))
    declared = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.ones(2, jnp.float32), 2.0 * jnp.eye(2, dtype=jnp.float32)),
        fd.LinearTransition(F, Q),
        fd.Observation(lambda t, x, u: dist.Normal(H @ x, sd).to_event(1)),
    )
    narrow = fd.Series(series.times, series.observations.astype(np.float32))
    found = fd.filter(half(declared), narrow, fd.OnlineVariationalFilter(), key=KEY)
    assert found.mean.dtype == jnp.float32
    assert differences(found, exact) < 2e-4


@pytest.mark.parametrize("shift", [0.0, 0.37, 0.999])
def test_points_have_mean_zero_and_unit_covariance(shift):
    points = np.asarray(normal_points(jnp.array([shift, 0.2, 0.5]), 32, jnp.float64))
    np.testing.assert_allclose(points.mean(0), 0.0, atol=1e-14)
    np.testing.assert_allclose(points.T @ points / 32, np.eye(3), atol=1e-13)
    fourth = (points**4).mean(0)
    assert (abs(fourth - 3) < 1.5).all()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (dict(points=7), ValueError, "`points` is 7; expected an even number"),
        (dict(steps=0), ValueError, "`steps`"),
        (dict(optimizer="adam"), TypeError, "`optimizer` is str; expected an Optax optimiser"),
        (dict(prediction=fd.ParticleFilter(10)), TypeError, "`prediction` is ParticleFilter"),
        (
            dict(prediction=fd.KalmanFilter(adaptive=fd.AdaptiveNoise())),
            ValueError,
            "`prediction` has AdaptiveNoise",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        fd.OnlineVariationalFilter(**options)


def test_models_that_it_cannot_treat_are_refused():
    flat = fd.StateSpaceModel(
        fd.Diffuse(1), fd.LinearTransition([[1.0]], [[1.0]]), fd.LinearObservation([[1.0]], [[1.0]])
    )
    series = fd.Series([0.0, 1.0], [0.0, 1.0])
    filter = lambda model, **options: fd.filter(
        model, series, fd.OnlineVariationalFilter(**options), key=KEY
    )
    with pytest.raises(TypeError, match="`initial` is Diffuse"):
        filter(flat)
    with pytest.raises(TypeError, match="`prediction` is KalmanFilter"):
        filter(model(1, "general"), prediction=fd.KalmanFilter())
    with pytest.raises(ValueError, match="`points` is 2 and 2 numbers are fitted"):
        filter(model(2, "linear", "general"), points=2)
    learnt = fd.ParametricModel(
        lambda p: flat, dict(a=dist.Normal(0.0, 1.0)), evolution=fd.RandomWalk(0.1)
    )
    proper = fd.ParametricModel(
        lambda p: model(1), dict(a=dist.Normal(0.0, 1.0)), evolution=fd.RandomWalk(0.1)
    )
    with pytest.raises(TypeError, match="`initial` is Diffuse"):
        filter(learnt)
    with pytest.raises(ValueError, match="`parameter_optimizer` climbs by its own rule"):
        filter(proper, parameter_optimizer=optax.sgd(0.1))
