"""A name of the package is imported when it is first used, and is then an ordinary name."""

import subprocess
import sys
import textwrap
from importlib import import_module
from types import ModuleType

import pytest

import filterdyn as fd
from filterdyn._lazy import LazyPackage

PACKAGES = ("filterdyn", "filterdyn.dynamics", "filterdyn.filters", "filterdyn.inference")


def printed_by(program):
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_linear_model_loads_neither_solvers_nor_optimisers():
    program = """
        import sys, filterdyn as fd
        assert "filterdyn.filters.kalman" not in sys.modules, "too early"
        fd.KalmanFilter, fd.LinearSDE, fd.LinearObservation, fd.StateSpaceModel, fd.ObservedSeries
        fd.Series, fd.log_likelihood
        assert "filterdyn.filters.kalman" in sys.modules
        others = ("diffrax", "optax", "optimistix", "filterdyn.learning", "filterdyn.diagnostics")
        print([name for name in others if name in sys.modules])
    """
    assert printed_by(program) == "[]"


def test_a_first_use_under_a_trace_makes_nothing_a_part_of_it():
    program = """
        import gc, sys, jax, filterdyn as fd

        def of_solvers(x):
            assert "diffrax" not in sys.modules
            fd.SDE, fd.fit, fd.filter
            assert sys.modules["filterdyn._compile"].inside_a_trace()
            return x

        jax.make_jaxpr(of_solvers)(1.0)
        assert not sys.modules["filterdyn._compile"].inside_a_trace()
        gc.collect()
        print([x for x in gc.get_objects() if issubclass(type(x), jax.core.Tracer)])
    """
    assert printed_by(program) == "[]"


def test_particles_of_several_series_have_a_gradient_where_no_solver_is_loaded():
    program = """
        import sys, jax, jax.numpy as jnp, filterdyn as fd, numpyro.distributions as dist

        def value(q, y, key):
            moves = fd.LinearTransition(jnp.eye(1), q * jnp.eye(1))
            sensor = fd.LinearObservation(jnp.eye(1), jnp.eye(1))
            start = dist.MultivariateNormal(jnp.zeros(1), jnp.eye(1))
            model, times = fd.StateSpaceModel(start, moves, sensor), jnp.arange(3.0)
            return fd.log_likelihood(model, fd.Series(times, y), fd.ParticleFilter(4), key=key)

        ys, keys = jnp.zeros((2, 3, 1)), jax.random.split(jax.random.key(0), 2)
        total = lambda q: jax.vmap(value, (None, 0, 0))(q, ys, keys).sum()
        slope = jax.grad(total)(1.0)
        assert "lineax" not in sys.modules
        print(jnp.isfinite(slope) & (slope != 0))
    """
    assert printed_by(program) == "True"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_that_is_offered_is_found_and_public(package):
    module = import_module(package)
    assert isinstance(module, LazyPackage)
    assert set(module.__all__) <= set(dir(module))
    for name, (source, there) in module._offered.items():
        assert getattr(module, name) is getattr(import_module(source), there)
        assert not isinstance(getattr(module, name), ModuleType)


def test_a_function_keeps_its_name_when_a_submodule_of_that_name_is_imported():
    whole = import_module("filterdyn.inference.random_weights")
    assert fd.inference.random_weights is whole.random_weights


def test_submodules_are_found_without_an_import_of_their_own():
    assert fd.learning is import_module("filterdyn.learning")
    assert fd.filters.kalman is import_module("filterdyn.filters.kalman")


def test_a_name_that_does_not_exist_is_an_attribute_error_that_says_so():
    with pytest.raises(AttributeError, match="'filterdyn' has no attribute 'KalmanFitler'"):
        _ = fd.KalmanFitler
    with pytest.raises(ImportError, match="KalmanFitler"):
        exec("from filterdyn.filters import KalmanFitler")
