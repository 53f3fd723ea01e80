"""What a long series costs, and what its length and its units must not change."""

import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd


def tracking(theta, dtype=None):
    """Position and velocity, the position measured; irregular gaps."""
    noise, r = theta
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2, dtype), jnp.eye(2, dtype=dtype)),
        fd.LinearSDE(
            jnp.array([[0.0, 1.0], [0.0, 0.0]], dtype), jnp.array([[0.0], [1.0]], dtype) * noise
        ),
        fd.LinearObservation(jnp.array([[1.0, 0.0]], dtype), r),
    )


def predator_and_prey(theta, dtype=None):
    a, sigma = theta

    def drift(t, x, u):
        return jnp.array([a - 0.03 * jnp.exp(x[1]), -0.8 + 0.02 * jnp.exp(x[0])])

    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.array([3.0, 1.5]), 0.1 * jnp.eye(2)),
        fd.SDE(drift, sigma, substeps=3),
        fd.Observation(lambda t, x, u: dist.LogNormal(x[:1], 0.3).to_event(1)),
    )


MODELS = {
    "linear": (tracking, fd.KalmanFilter()),
    "nonlinear": (predator_and_prey, fd.ExtendedKalmanFilter()),
}
THETA = jnp.array([0.5, 0.3])


def record(length):
    rng = np.random.default_rng(0)
    return np.cumsum(rng.uniform(0.1, 1.0, length)), np.exp(rng.normal(size=length))


def equations(jaxpr):
    """All equations of a jaxpr, those inside of loops and branches included."""
    count = 0
    for equation in jaxpr.eqns:
        count += 1
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    count += equations(inner)
    return count


@pytest.mark.parametrize("name", MODELS)
def test_what_is_compiled_does_not_grow_with_the_length_of_the_series(name):
    make, filter = MODELS[name]

    def traced(length):
        times, y = record(length)
        function = lambda theta: fd.log_likelihood(make(theta), fd.Series(times, y), filter)
        return equations(jax.make_jaxpr(jax.value_and_grad(function))(THETA).jaxpr)

    # (Up to 32 distinct gaps are discretised beforehand, so 50 rows are the shortest long series.)
    assert traced(50) == traced(5000)


def test_results_are_stacked_arrays():
    times, y = record(40)
    result = fd.filter(tracking(THETA), fd.Series(times, y), fd.KalmanFilter())
    smoothed = fd.smooth(tracking(THETA), fd.Series(times, y), fd.KalmanFilter())
    assert result.mean.shape == smoothed.mean.shape == (40, 2)
    assert len(jax.tree.leaves((result, smoothed))) < 40


def test_new_numbers_of_the_same_shapes_compile_nothing():
    times, y = record(60)

    def run(theta, times, y):
        data = fd.Series(times, y)
        fd.filter(tracking(theta), data, fd.KalmanFilter())
        fd.log_likelihood(tracking(theta), data, fd.KalmanFilter())

    other = (2 * THETA, 2 * times, y + 1)
    run(THETA, times, y)
    with count_compilations() as compilations:
        run(*other)
    assert compilations() == 0
    with count_compilations() as compilations:
        run(THETA, times[:-1], y[:-1])
    assert compilations() > 0


class count_compilations:
    """How many programs XLA compiles inside a `with` block."""

    def __enter__(self):
        self.count = 0
        self.active = True
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return lambda: self.count

    def _hear(self, event, duration, **_):
        if self.active and event == "/jax/core/compile/backend_compile_duration":
            self.count += 1

    def __exit__(self, *_):
        self.active = False


def test_a_shift_of_data_and_prior_by_a_thousand_changes_a_float32_likelihood_by_nothing():
    """A tracked target of R >= 1 over 1,000 rows; the data are multiples of 1/16, exact in float32."""
    rng = np.random.default_rng(1)
    path = np.cumsum(np.cumsum(0.05 * rng.normal(size=1000)))
    y = np.round(16 * (path + rng.normal(size=1000))) / 16

    def value(shift):
        f32 = lambda x: jnp.asarray(x, jnp.float32)
        model = fd.StateSpaceModel(
            dist.MultivariateNormal(f32([shift, 0.0]), f32(np.diag([4.0, 1.0]))),
            fd.LinearTransition(f32([[1, 1], [0, 1]]), f32([[0.25, 0.5], [0.5, 1.0]]) * 0.0025),
            fd.LinearObservation(f32([[1, 0]]), f32(1.0)),
        )
        series = fd.Series(np.arange(1000), f32(y + shift))
        assert np.all(np.asarray(series.observations, float)[:, 0] == y + shift)
        found = fd.log_likelihood(model, series, fd.KalmanFilter())
        assert found.dtype == jnp.float32
        return float(found)

    assert abs(value(1000.0) - value(0.0)) < 0.01


PEAK = """
    import jax, numpyro
    numpyro.enable_x64()
    import jax.numpy as jnp, numpy as np, numpyro.distributions as dist
    import filterdyn as fd

    T = 100_000
    rng = np.random.default_rng(0)
    times, y = np.cumsum(rng.uniform(0.1, 1.0, T)), rng.normal(size=(T, 2))

    def log_likelihood(theta):
        A = jnp.array([[0.0, 1, 0, 0], [-1, -0.2, 0, 0], [0, 0, 0, 1], [0.1, 0, -2, -0.3]]) * theta[0]
        model = fd.StateSpaceModel(
            dist.MultivariateNormal(jnp.zeros(4), jnp.eye(4)),
            fd.LinearSDE(A, theta[1]),
            fd.LinearObservation(jnp.eye(4)[::2], theta[2]),
        )
        return fd.log_likelihood(model, fd.Series(times, y), fd.KalmanFilter())

    value, gradient = jax.jit(jax.value_and_grad(log_likelihood))(jnp.array([1.0, 0.5, 0.8]))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # Not ru_maxrss: Linux hands the peak of the process that started this one down to it.
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def run_python(code):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc"
)
def test_a_gradient_over_a_hundred_thousand_rows_takes_less_than_two_gigabytes():
    """Four states, two sensors, irregular gaps: the peak of the whole process, in KiB."""
    assert float(run_python(PEAK)) < 2048 * 1024


def test_importing_filterdyn_loads_no_slow_package():
    slow = ("arviz", "arviz_base", "arviz_stats", "arviz_plots", "matplotlib", "pandas", "xarray")
    loaded = run_python(
        f"""
        import sys
        import filterdyn
        print([name for name in {slow!r} if name in sys.modules])
        """
    )
    assert loaded == "[]"
