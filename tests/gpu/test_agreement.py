"""A GPU gives the answers of a CPU: every filter, smoother and derivative, forecasts and draws.

Skipped where JAX sees no GPU. `make test-gpu` runs them; a jaxlib for CUDA comes with
`pip install 'jax[cuda13]'`.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

GPUS = [device for device in jax.devices() if device.platform == "gpu"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPUS, reason="JAX sees no GPU (jax.devices() has none)"),
]

NAN = np.nan
TIMES = np.cumsum([0.0, 0.5, 0.3, 0.0, 1.0, 0.7, 0.2, 1.5])
#: Rounding that a reordered sum makes, on problems that are not ill-conditioned.
TOLERANCE = {"float32": 2e-3, "float64": 1e-8}


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    if request.param == "float64" and not jax.config.jax_enable_x64:
        pytest.skip("without JAX_ENABLE_X64 there is one precision")
    return request.param


def on_both(case, precision):
    """What `case(precision)` gives on the GPU and on the CPU, built from scratch on either."""
    for device in (GPUS[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            found = jax.block_until_ready(case(precision))
        leaves = jax.tree.leaves(found)
        assert leaves and all(leaf.devices() == {device} for leaf in leaves)
        yield [np.asarray(leaf, float) for leaf in leaves]


def agree(case, precision):
    on_gpu, on_cpu = on_both(case, precision)
    for one, other in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        scale = np.nanmax(np.abs(other), initial=1.0)
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE[precision] * scale)


def readings(dy):
    """With a gap in one sensor and a row without any."""
    y = np.random.default_rng(7).normal(size=(len(TIMES), dy))
    y[2, 0], y[5] = NAN, NAN
    return y


def series(precision, dy):
    return fd.Series(TIMES, readings(dy).astype(precision))


def linear(precision, n=2, initial=None, noise=0.3):
    """A damped system of n states, every other one measured."""
    a = lambda value: jnp.asarray(value, precision)
    rng = np.random.default_rng(n)
    A = rng.normal(size=(n, n)) / n - np.eye(n)
    start = dist.MultivariateNormal(a(np.zeros(n)), scale_tril=a(np.eye(n)))
    return fd.StateSpaceModel(
        start if initial is None else initial,
        fd.LinearSDE(a(A), a(0.5 * np.eye(n))),
        fd.LinearObservation(a(np.eye(n)[::2]), a(noise)),
    )


def pendulum(precision, dynamics="SDE", observation="Gaussian", noise=0.1):
    a = lambda value: jnp.asarray(value, precision)
    field = lambda t, x, u: jnp.stack([x[1], -jnp.sin(x[0]) - 0.1 * x[1]])
    move = lambda t, x, u: dist.Normal(x + 0.1 * field(t, x, u), a([0.1, 0.2])).to_event(1)
    moves = {
        "SDE": lambda: fd.SDE(field, a([[0.0], [0.3]]), substeps=3),
        "ODE": lambda: fd.ODE(field, substeps=3),
        "adaptive": lambda: fd.ODE(
            field, stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-6)
        ),
        "Transition": lambda: fd.Transition(move),
    }
    sees = {
        "Gaussian": lambda: fd.GaussianObservation(lambda t, x, u: jnp.sin(x[:1]), a(noise)),
        "angle": lambda: fd.GaussianObservation(
            lambda t, x, u: x[:1], a(noise), lambda y, z: fd.wrap_angle(y - z)
        ),
        "Student t": lambda: fd.Observation(
            lambda t, x, u: dist.StudentT(a(5.0), x[:1], a(0.3)).to_event(1)
        ),
    }
    start = dist.Normal(a([0.5, 0.0]), a(0.4)).to_event(1)
    return fd.StateSpaceModel(start, moves[dynamics](), sees[observation]())


def moments(result):
    return result.mean, result.cov, result.log_likelihood


LINEAR = {
    "Kalman": fd.KalmanFilter(),
    "Kalman, covariance form": fd.KalmanFilter(square_root=False),
    "Kalman, gated": fd.KalmanFilter(outliers=fd.Gate()),
    "Kalman, adaptive": fd.KalmanFilter(adaptive=fd.AdaptiveNoise()),
    "parallel": fd.ParallelKalmanFilter(),
}
NONLINEAR = {
    "extended": fd.ExtendedKalmanFilter(),
    "extended, covariance form": fd.ExtendedKalmanFilter(square_root=False),
    "extended, iterated": fd.ExtendedKalmanFilter(iterations=3),
    "extended, second order": fd.ExtendedKalmanFilter(order=2),
    "unscented": fd.UnscentedKalmanFilter(),
    "cubature": fd.CubatureKalmanFilter(outliers=fd.StudentTNoise(5.0)),
    "cubature, fifth degree": fd.CubatureKalmanFilter(5),
    "Gauss-Hermite": fd.GaussHermiteKalmanFilter(3),
    "extended, all rows at once": fd.ParallelGaussianFilter(),
    "unscented, all rows at once": fd.ParallelGaussianFilter(fd.UnscentedKalmanFilter()),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_filters(name, precision):
    case = lambda p: moments(fd.filter(linear(p), series(p, 1), LINEAR[name]))
    agree(case, precision)


@pytest.mark.parametrize("square_root", [True, False])
def test_a_state_too_large_for_one_kernel(square_root, precision):
    follow = fd.KalmanFilter(square_root=square_root)
    agree(lambda p: moments(fd.filter(linear(p, 16), series(p, 8), follow)), precision)


def test_a_diffuse_start(precision):
    def case(p):
        model = linear(p, initial=fd.Diffuse(2))
        result = fd.filter(model, series(p, 1), fd.KalmanFilter())
        return result.mean[2:], result.log_likelihood

    agree(case, precision)


def trained(filter):
    """With weights that are not those it starts from, at which it is the filter it is built on."""
    some = lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    weights, rest = eqx.partition(filter, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(some, weights), rest)


@pytest.mark.parametrize("kind", [fd.LearnedNoiseFilter, fd.LearnedGainFilter])
def test_learned_filters(kind, precision):
    follow = trained(kind(2, 1, key=jr.key(0)))
    agree(lambda p: moments(fd.filter(pendulum(p), series(p, 1), follow)), precision)


@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_filters(name, precision):
    case = lambda p: moments(fd.filter(pendulum(p), series(p, 1), NONLINEAR[name]))
    agree(case, precision)


@pytest.mark.parametrize(
    "dynamics, observation",
    [("ODE", "angle"), ("adaptive", "Gaussian"), ("Transition", "Student t")],
)
def test_dynamics_and_observations(dynamics, observation, precision):
    model = lambda p: pendulum(p, dynamics, observation)
    case = lambda p: moments(fd.filter(model(p), series(p, 1), fd.ExtendedKalmanFilter()))
    agree(case, precision)


SMOOTHED = {
    "Kalman": (linear, fd.KalmanFilter()),
    "parallel": (linear, fd.ParallelKalmanFilter()),
    "extended": (pendulum, fd.ExtendedKalmanFilter()),
    "unscented": (pendulum, fd.UnscentedKalmanFilter()),
}


@pytest.mark.parametrize("name", SMOOTHED)
def test_smoothers(name, precision):
    make, follow = SMOOTHED[name]
    agree(lambda p: moments(fd.smooth(make(p), series(p, 1), follow)), precision)


@pytest.mark.parametrize("name", ["extended", "unscented"])
def test_iterated_smoothers(name, precision):
    make, follow = SMOOTHED[name]
    case = lambda p: moments(fd.smooth(make(p), series(p, 1), follow, iterations=3))
    agree(case, precision)


def test_an_ensemble(precision):
    """With the same draws on both."""
    follow = fd.EnsembleKalmanFilter(20)
    agree(lambda p: fd.filter(pendulum(p), series(p, 1), follow, key=jr.key(2)).mean, precision)


def test_particles(precision):
    """Without resampling, in which a rounding may choose another particle."""
    follow = fd.ParticleFilter(50, ess_threshold=0.0)
    case = lambda p: fd.filter(pendulum(p), series(p, 1), follow, key=jr.key(2)).mean
    agree(case, precision)


@pytest.mark.parametrize("name", SMOOTHED)
def test_derivatives_of_the_log_likelihood(name, precision):
    make, follow = SMOOTHED[name]

    def case(p):
        value = lambda r: fd.log_likelihood(make(p, noise=jnp.exp(r)), series(p, 1), follow)
        return jax.value_and_grad(value)(jnp.asarray(-1.0, p))

    agree(case, precision)


def test_a_second_derivative(precision):
    def case(p):
        value = lambda r: fd.log_likelihood(
            linear(p, noise=jnp.exp(r)), series(p, 1), fd.KalmanFilter()
        )
        return jax.hessian(value)(jnp.asarray(-1.0, p))

    agree(case, precision)


def test_many_series_at_once(precision):
    def case(p):
        y = jnp.asarray(np.stack([readings(1) * k for k in range(1, 5)]).astype(p))
        return fd.ObservedSeries(linear(p), TIMES, filter=fd.KalmanFilter()).log_prob(y)

    agree(case, precision)


def test_draws_of_the_model_and_of_paths(precision):
    def case(p):
        model = linear(p)
        drawn = fd.simulate(model, TIMES, key=jr.key(0), num_samples=3)
        paths = fd.sample_paths(
            model, series(p, 1), fd.KalmanFilter(), key=jr.key(1), num_samples=3
        )
        return drawn.states, drawn.observations, paths

    agree(case, precision)


def test_forecasts(precision):
    def case(p):
        model = pendulum(p)
        result = fd.filter(model, series(p, 1), fd.ExtendedKalmanFilter())
        ahead = fd.forecast(model, result, TIMES[-1] + np.arange(1.0, 4.0), key=jr.key(0))
        return ahead.state_mean, ahead.observation_mean, ahead.observation_interval(0.9)

    agree(case, precision)


def test_row_by_row(precision):
    """With the state staying on the device."""

    def case(p):
        online = fd.OnlineFilter(linear(p), fd.KalmanFilter())
        state, means = online.init(0.0), []
        for t, y in zip(TIMES, readings(1).astype(p), strict=True):
            state, step = online.step(state, t, y)
            means.append(jnp.asarray(step.mean))  # which is read on the host
        return means, state.vectors

    agree(case, precision)


def test_a_failure_is_the_same_failure(precision):
    """A measurement that a model without noise excludes: status, -inf, no hidden number."""

    def case(p):
        zero = jnp.zeros(2, p)
        model = linear(p, initial=dist.Delta(zero, event_dim=1), noise=0.0)
        result = fd.filter(model, series(p, 1), fd.KalmanFilter())
        return result.status, result.failed_at, jnp.isneginf(result.log_likelihood)

    agree(case, precision)
