"""Models and verbs: what is refused, with which message, and which model arguments are taken."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

RTOL = 1e-12 if jnp.result_type(float) == jnp.float64 else 1e-5
EYE = np.eye(2)
start = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
walk = fd.LinearTransition(EYE, EYE)
first_entry = fd.LinearObservation(EYE[:1], 1.0)
series = fd.Series([0, 1, 2], [1, 2, 3])
driven = fd.Series([0, 1, 2], [1, 2, 3], [1, 0, 1])


def model(initial=start, dynamics=walk, observation=first_entry):
    return fd.StateSpaceModel(initial, dynamics, observation)


def filtered(dynamics=walk, observation=first_entry, series=series, filter=None, **options):
    filter = fd.ExtendedKalmanFilter() if filter is None else filter
    return fd.filter(model(start, dynamics, observation), series, filter, **options)


ASYMMETRIC, INDEFINITE = [[1, 0.5], [0.4, 1]], [[1, 2], [2, 1]]
SYMMETRY = "is not symmetric: entry [0, 1] is 0.5 but [1, 0] is 0.4"
DEFINITE = "is not positive semi-definite: its correlation matrix has eigenvalue -1"
NOT_FINITE = "has NaN or infinite entries; expected finite numbers"

REFUSED = {
    "Q that is not symmetric": (
        ValueError,
        f"LinearTransition: `Q` {SYMMETRY}",
        lambda: fd.LinearTransition(EYE, ASYMMETRIC),
    ),
    "Q that is indefinite": (
        ValueError,
        f"LinearTransition: `Q` {DEFINITE}",
        lambda: fd.LinearTransition(EYE, INDEFINITE),
    ),
    "Q with a negative variance": (
        ValueError,
        "LinearTransition: `Q` has a negative variance on its diagonal (-1)",
        lambda: fd.LinearTransition(EYE, np.diag([-1, 1])),
    ),
    "R that is not symmetric": (
        ValueError,
        f"LinearObservation: `R` {SYMMETRY}",
        lambda: fd.LinearObservation(EYE, ASYMMETRIC),
    ),
    "R that is indefinite": (
        ValueError,
        f"GaussianObservation: `R` {DEFINITE}",
        lambda: fd.GaussianObservation(lambda t, x, u: x, INDEFINITE),
    ),
    "R that is negative": (
        ValueError,
        "LinearObservation: `R` holds variances and has a negative entry (-1); expected numbers >= 0",
        lambda: fd.LinearObservation(EYE, -1),
    ),
    "one of several R that is negative": (
        ValueError,
        "LinearObservation: `R` holds variances and has a negative entry (-1)",
        lambda: fd.LinearObservation(EYE, [1, -1]),
    ),
    "belief that is not symmetric": (
        ValueError,
        f"Gaussian: `cov` {SYMMETRY}",
        lambda: fd.Gaussian([0, 0], ASYMMETRIC),
    ),
    "belief that is indefinite": (
        ValueError,
        f"Gaussian: `cov` {DEFINITE}",
        lambda: fd.Gaussian([0, 0], INDEFINITE),
    ),
    "belief of another size": (
        ValueError,
        "Gaussian: `cov` has shape (3, 3); expected (2, 2) (`mean` has dx entries)",
        lambda: fd.Gaussian([0, 0], np.eye(3)),
    ),
    "initial that is indefinite": (
        ValueError,
        "covariance_matrix",
        lambda: model(dist.MultivariateNormal(jnp.zeros(2), jnp.array(INDEFINITE, float))),
    ),
    "initial that is indefinite, unchecked": (
        ValueError,
        "StateSpaceModel: `initial` (MultivariateNormal) has NaN or infinite parameters",
        lambda: model(
            dist.MultivariateNormal(
                jnp.zeros(2), jnp.array(INDEFINITE, float), validate_args=False
            )
        ),
    ),
    "initial without to_event": (
        ValueError,
        "StateSpaceModel: `initial` has batch shape (2,) and event shape (); expected batch shape () and "
        "event shape (dx,): independent entries are declared with `.to_event(1)`",
        lambda: model(dist.Normal(jnp.zeros(2), 1.0)),
    ),
    "initial that is a batch": (
        ValueError,
        "StateSpaceModel: `initial` has batch shape (3,) and event shape (2,); expected one "
        "distribution. To make a batch of models with equinox.filter_vmap(make)(parameters)",
        lambda: model(dist.MultivariateNormal(jnp.zeros((3, 2)), jnp.eye(2))),
    ),
    "initial that is an array": (
        TypeError,
        "StateSpaceModel: `initial` is ndarray; expected a NumPyro distribution (a known state x0 is "
        "dist.Delta(x0, event_dim=1))",
        lambda: model(np.zeros(2)),
    ),
    "dynamics that are a function": (
        TypeError,
        "StateSpaceModel: `dynamics` is function; expected Transition, LinearTransition, ODE, SDE or "
        "LinearSDE",
        lambda: model(dynamics=lambda t, x, u: x),
    ),
    "observation that is a function": (
        TypeError,
        "StateSpaceModel: `observation` is function; expected Observation, GaussianObservation or "
        "LinearObservation",
        lambda: model(observation=lambda t, x, u: x),
    ),
    "F that is not square": (
        ValueError,
        "LinearTransition: `F` has shape (2, 3); expected (2, 2)",
        lambda: fd.LinearTransition(np.ones((2, 3)), EYE),
    ),
    "F with a NaN": (
        ValueError,
        f"LinearTransition: `F` {NOT_FINITE}",
        lambda: fd.LinearTransition([[1, np.nan], [0, 1]], EYE),
    ),
    "H with a NaN": (
        ValueError,
        f"LinearObservation: `H` {NOT_FINITE}",
        lambda: fd.LinearObservation([[np.nan, 1]], 1),
    ),
    "A that is infinite": (
        ValueError,
        f"LinearSDE: `A` {NOT_FINITE}",
        lambda: fd.LinearSDE([[np.inf]], 1),
    ),
    "Q of another size than F": (
        ValueError,
        "LinearTransition: `Q` has shape (3, 3); expected (2, 2) (as `F`)",
        lambda: fd.LinearTransition(EYE, np.eye(3)),
    ),
    "R of another size than H": (
        ValueError,
        "LinearObservation: `R` has shape (3, 3); expected (), (2,) or (2, 2) for 2 observed quantities",
        lambda: fd.LinearObservation(EYE, np.eye(3)),
    ),
    "H with one axis": (
        ValueError,
        "LinearObservation: `H` has shape (2,); expected 2 axes",
        lambda: fd.LinearObservation([1, 0], 1),
    ),
    "B with other rows": (
        ValueError,
        "LinearTransition: `B` has shape (3, 1); its first axis must be dx = 2",
        lambda: fd.LinearTransition(EYE, EYE, B=np.ones((3, 1))),
    ),
    "A that is a function": (
        TypeError,
        "LinearSDE: `A` is a function; expected an array (use fd.SDE)",
        lambda: fd.LinearSDE(lambda t: EYE, 1),
    ),
    "h that is a matrix": (
        TypeError,
        "GaussianObservation: `h` is ndarray; expected a function of (t, x, u)",
        lambda: fd.GaussianObservation(EYE, 1),
    ),
    "iterations that are none": (
        ValueError,
        "ExtendedKalmanFilter: `iterations` is 0; expected an integer >= 1",
        lambda: fd.ExtendedKalmanFilter(iterations=0),
    ),
    "F for another number of states": (
        ValueError,
        "LinearTransition: `F` has shape (3, 3); expected (2, 2) (`initial` has that many states)",
        lambda: filtered(fd.LinearTransition(np.eye(3), np.eye(3))),
    ),
    "H for another number of states": (
        ValueError,
        "LinearObservation: `H` has shape (1, 3); expected (1, 2)",
        lambda: filtered(observation=fd.LinearObservation(np.ones((1, 3)), 1)),
    ),
    "series with another number of columns": (
        ValueError,
        "LinearObservation: `H` has shape (1, 2); expected (2, 2) (rows: columns of the series",
        lambda: filtered(series=fd.Series([0, 1], np.zeros((2, 2)))),
    ),
    "field of another size": (
        ValueError,
        "ODE: `field(t, x, u)` returned shape (1,); expected (2,), as the state",
        lambda: filtered(fd.ODE(lambda t, x, u: x[:1])),
    ),
    "field that returns nothing": (
        TypeError,
        "ODE: `field(t, x, u)` returned NoneType; expected an array of numbers",
        lambda: filtered(fd.ODE(lambda t, x, u: None)),
    ),
    "drift of another size": (
        ValueError,
        "SDE: `drift(t, x, u)` returned shape (); expected (2,), as the state",
        lambda: filtered(fd.SDE(lambda t, x, u: 1.0, 1.0)),
    ),
    "diffusion of another size": (
        ValueError,
        "SDE: `diffusion` has shape (3,); expected (), (2,) or (2, dw) for 2 states",
        lambda: filtered(fd.SDE(lambda t, x, u: x, lambda t, x, u: jnp.ones(3))),
    ),
    "h of another size": (
        ValueError,
        "GaussianObservation: `h(t, x, u)` has shape (2,); expected (1,) (the series has that many "
        "columns)",
        lambda: filtered(observation=fd.GaussianObservation(lambda t, x, u: x, 1)),
    ),
    "h that returns a number": (
        ValueError,
        "GaussianObservation: `h(t, x, u)` returned shape (); expected (dy,)",
        lambda: filtered(observation=fd.GaussianObservation(lambda t, x, u: x[0], 1)),
    ),
    "h that returns nothing": (
        TypeError,
        "GaussianObservation: `h(t, x, u)` returned NoneType; expected an array of numbers",
        lambda: filtered(observation=fd.GaussianObservation(lambda t, x, u: None, 1)),
    ),
    "F(t) of another size": (
        ValueError,
        "LinearTransition: `F` has shape (2, 3); expected (2, 2)",
        lambda: filtered(fd.LinearTransition(lambda t: jnp.ones((2, 3)), EYE)),
    ),
    "R(t) of another size": (
        ValueError,
        "LinearObservation: `R` has shape (2, 2); expected (), (1,) or (1, 1) for 1 observed quantities",
        lambda: filtered(observation=fd.LinearObservation(EYE[:1], lambda t: jnp.eye(2))),
    ),
    "transition that returns an array": (
        TypeError,
        "expected a NumPyro distribution of the next state",
        lambda: filtered(fd.Transition(lambda t, x, u: x)),
    ),
    "transition without to_event": (
        ValueError,
        "Transition: `fn(t, x, u)` returned Normal with batch shape (2,) and event shape (); expected "
        "batch shape () and event shape (2,), as `.to_event(1)` gives",
        lambda: filtered(fd.Transition(lambda t, x, u: dist.Normal(x, 1))),
    ),
    "observation that returns an array": (
        TypeError,
        "expected a NumPyro distribution (for a mean with Gaussian noise use GaussianObservation)",
        lambda: filtered(observation=fd.Observation(lambda t, x, u: x)),
    ),
    "observation without to_event": (
        ValueError,
        "Observation: `fn(t, x, u)` returned Normal with batch shape (1,) and event shape ()",
        lambda: filtered(observation=fd.Observation(lambda t, x, u: dist.Normal(x[:1], 1))),
    ),
    "observation of another size": (
        ValueError,
        "Observation: `fn(t, x, u)` returned a distribution of event shape (2,); expected (1,)",
        lambda: filtered(
            observation=fd.Observation(lambda t, x, u: dist.Normal(x, 1).to_event(1))
        ),
    ),
    "B for other inputs": (
        ValueError,
        "LinearTransition: `B` has shape (2, 2); expected (2, 1) for 1 inputs",
        lambda: filtered(fd.LinearTransition(EYE, EYE, B=EYE), series=driven),
    ),
    "D for other inputs": (
        ValueError,
        "LinearObservation: `D` has shape (1, 2); expected (1, 1) for 1 inputs",
        lambda: filtered(observation=fd.LinearObservation(EYE[:1], 1, D=[[1, 1]]), series=driven),
    ),
    "t0 after the first row": (
        ValueError,
        "filter: `t0` is 0.5 but the first row is at 0.0; the initial distribution cannot hold after it",
        lambda: filtered(t0=0.5),
    ),
    "t0 that is NaN": (ValueError, "filter: `t0` is nan but", lambda: filtered(t0=np.nan)),
    "t0 that is text": (
        TypeError,
        "filter: `t0` has dtype <U3; expected real numbers",
        lambda: filtered(t0="now"),
    ),
    "several t0": (
        ValueError,
        "filter: `t0` has shape (2,); expected one number",
        lambda: filtered(t0=[0, 0]),
    ),
    "u0 that is missing": (
        ValueError,
        "filter: `u0` is missing: `t0` lies before the first row, and ODE needs the input that held "
        "from there to the first row",
        lambda: filtered(fd.ODE(lambda t, x, u: -x * u), series=driven, t0=-1),
    ),
    "u0 of another width": (
        ValueError,
        "filter: `u0` has shape (2,); expected (1,), as the inputs of one row",
        lambda: filtered(series=driven, t0=-1, u0=[1, 2]),
    ),
    "u0 that is NaN": (
        ValueError,
        f"filter: `u0` {NOT_FINITE}",
        lambda: filtered(series=driven, t0=-1, u0=[np.nan]),
    ),
    "u0 without inputs": (
        ValueError,
        "filter: `u0` is given but the series has no inputs",
        lambda: filtered(t0=-1, u0=[1]),
    ),
    "a filter's class": (
        TypeError,
        "filter: `filter` is the class KalmanFilter; expected a filter, such as fd.KalmanFilter()",
        lambda: filtered(filter=fd.KalmanFilter),
    ),
    "no filter": (
        TypeError,
        "log_likelihood: `filter` is str; expected a filter",
        lambda: fd.log_likelihood(model(), series, "kalman"),
    ),
    "observations in place of a series": (
        TypeError,
        "smooth: `series` is ndarray; expected fd.Series(times, observations)",
        lambda: fd.smooth(model(), np.zeros(3), fd.KalmanFilter()),
    ),
    "dynamics in place of a model": (
        TypeError,
        "filter: `model` is LinearTransition; expected a StateSpaceModel",
        lambda: fd.filter(walk, series, fd.KalmanFilter()),
    ),
    "a history of another kind": (
        ValueError,
        "filter: `history` is 'all'; expected 'moments' or 'beliefs'",
        lambda: filtered(history="all"),
    ),
    "nonlinear dynamics for the Kalman filter": (
        TypeError,
        "KalmanFilter: `dynamics` is ODE, which may be nonlinear; KalmanFilter is exact and takes "
        "LinearTransition or LinearSDE (use fd.ExtendedKalmanFilter())",
        lambda: filtered(fd.ODE(lambda t, x, u: x), filter=fd.KalmanFilter()),
    ),
    "nonlinear observation for the Kalman filter": (
        TypeError,
        "KalmanFilter: `observation` is GaussianObservation, which may be nonlinear; KalmanFilter is "
        "exact and takes LinearObservation (use fd.ExtendedKalmanFilter())",
        lambda: filtered(
            observation=fd.GaussianObservation(lambda t, x, u: x[:1], 1), filter=fd.KalmanFilter()
        ),
    ),
    "a start that is not Gaussian for the Kalman filter": (
        TypeError,
        "KalmanFilter: `initial` is Independent; KalmanFilter is exact and takes a Gaussian, Delta or "
        "diffuse start (use fd.ExtendedKalmanFilter(), which matches its moments)",
        lambda: fd.filter(
            model(dist.Gamma(jnp.ones(2), 1.0).to_event(1)), series, fd.KalmanFilter()
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_is_refused_by_name(what):
    kind, message, make = REFUSED[what]
    with pytest.raises(kind) as caught:
        make()
    assert message in str(caught.value)


NESTED = [[1, 0.25], [0, 1]]


@pytest.mark.parametrize("kind", [np.array, jnp.array, list], ids=["NumPy", "JAX", "lists"])
def test_arrays_lists_and_integers_are_the_same_model(kind):
    def numbers(value):
        return kind(value)

    linear = fd.StateSpaceModel(
        dist.MultivariateNormal(np.zeros(2), np.eye(2)),
        fd.LinearTransition(numbers(NESTED), numbers([[1, 0], [0, 2]]), B=numbers([[1], [0]])),
        fd.LinearObservation(numbers([[1, 0]]), 2, d=numbers([3])),
    )
    data = fd.Series(numbers([0, 1, 2]), numbers([1, 2, 3]), numbers([0, 1, 0]))
    value = fd.log_likelihood(linear, data, fd.KalmanFilter(), t0=-1, u0=numbers([1]))
    floats = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        fd.LinearTransition(
            jnp.array(NESTED), jnp.diag(jnp.array([1.0, 2.0])), B=jnp.array([[1.0], [0.0]])
        ),
        fd.LinearObservation(jnp.array([[1.0, 0.0]]), jnp.array(2.0), d=jnp.array([3.0])),
    )
    same = fd.Series(jnp.arange(3.0), jnp.arange(1.0, 4.0), jnp.array([0.0, 1.0, 0.0]))
    expected = fd.log_likelihood(
        floats, same, fd.KalmanFilter(), t0=jnp.array(-1.0), u0=jnp.array([1.0])
    )
    np.testing.assert_allclose(value, expected, rtol=RTOL)


def test_a_known_start_in_whole_numbers_moves():
    """Free fall from (3, 4) for two seconds: the filter's mean is the exact path."""
    fall = fd.ODE(lambda t, x, u: [x[1], -10])
    known = model(dist.Delta(np.array([3, 4]), event_dim=1), fall)
    result = fd.filter(known, fd.Series([0, 2], [3, -9]), fd.ExtendedKalmanFilter())
    np.testing.assert_allclose(result.mean, [[3, 4], [3 + 4 * 2 - 20, 4 - 20]], atol=1e-4)


# Parameters inside closures.
def closure_model(theta):
    rate, noise = theta

    def drift(t, x, u):
        return -rate * x

    return fd.StateSpaceModel(
        dist.Normal(jnp.ones(1), 0.5).to_event(1),
        fd.SDE(drift, noise, substeps=16),
        fd.GaussianObservation(lambda t, x, u: x, 0.1),
    )


def closure_log_likelihood(theta):
    return fd.log_likelihood(
        closure_model(theta), fd.Series([0, 0.5, 1.5], [1, 0.5, 0.4]), fd.ExtendedKalmanFilter()
    )


def exact_log_likelihood(theta):
    """The same Ornstein-Uhlenbeck process by its exact solution."""
    exact = fd.StateSpaceModel(
        dist.Normal(jnp.ones(1), 0.5).to_event(1),
        fd.LinearSDE(-theta[0] * jnp.eye(1), theta[1]),
        fd.LinearObservation(jnp.eye(1), 0.1),
    )
    return fd.log_likelihood(exact, fd.Series([0, 0.5, 1.5], [1, 0.5, 0.4]), fd.KalmanFilter())


def test_a_closure_over_parameters_works_under_jit_grad_and_vmap():
    thetas = jnp.array([[0.5, 0.3], [1.2, 0.8], [0.1, 0.2]])
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(closure_log_likelihood)))(thetas)
    exact, exact_gradients = jax.jit(jax.vmap(jax.value_and_grad(exact_log_likelihood)))(thetas)
    np.testing.assert_allclose(values, exact, rtol=1e-5)
    np.testing.assert_allclose(gradients, exact_gradients, rtol=1e-4, atol=1e-4)


class Decay(eqx.Module):
    """A drift with its parameter as a field, as batches of models need it."""

    rate: jax.Array

    def __call__(self, t, x, u):
        return -self.rate * x


def make(theta):
    return fd.StateSpaceModel(
        dist.Normal(jnp.ones(1), 0.5).to_event(1),
        fd.SDE(Decay(theta[0]), theta[1], substeps=16),
        fd.GaussianObservation(lambda t, x, u: x, 0.1),
    )


THETAS = jnp.array([[0.5, 0.3], [1.2, 0.8]])
Y = jnp.array([[1.0], [0.5], [0.4]])


def test_a_batch_of_models_is_one_distribution_over_several_series():
    batch = eqx.filter_vmap(make)(THETAS)
    assert batch.batch_shape == (2,)
    observed = fd.ObservedSeries(
        batch, [0, 0.5, 1.5], filter=fd.ExtendedKalmanFilter(), batch_shape=(2,)
    )
    each = [closure_log_likelihood(theta) for theta in THETAS]
    np.testing.assert_allclose(observed.log_prob(jnp.stack([Y, Y])), each, rtol=RTOL * 100)


def test_a_batch_of_models_is_mapped_over_or_refused_with_the_recipe():
    batch = eqx.filter_vmap(make)(THETAS)
    data = fd.Series([0, 0.5, 1.5], Y)
    mapped = eqx.filter_vmap(lambda m: fd.log_likelihood(m, data, fd.ExtendedKalmanFilter()))(batch)
    np.testing.assert_allclose(
        mapped, [closure_log_likelihood(theta) for theta in THETAS], rtol=RTOL * 100
    )
    message = r"`model` is a batch of shape \(2,\).*equinox.filter_vmap.*batch_shape"
    for verb in (fd.filter, fd.log_likelihood, fd.smooth):
        with pytest.raises(ValueError, match=message):
            verb(batch, data, fd.ExtendedKalmanFilter())
    with pytest.raises(ValueError, match=message):
        fd.simulate(batch, [0, 1], key=jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"`model` is a batch of shape \(2,\) but `batch_shape` is"
    ):
        fd.ObservedSeries(batch, [0, 0.5, 1.5], filter=fd.ExtendedKalmanFilter())


def test_a_batched_closure_is_refused_with_the_recipe():
    """A closure over a batch of parameters returns a batch of rates."""

    def drift(t, x, u):
        return -THETAS[:, :1] * x

    batched = fd.StateSpaceModel(
        dist.Normal(jnp.ones(1), 0.5).to_event(1),
        fd.SDE(drift, 0.3),
        fd.GaussianObservation(lambda t, x, u: x, 0.1),
    )
    with pytest.raises(ValueError) as caught:
        fd.filter(batched, fd.Series([0, 0.5, 1.5], Y), fd.ExtendedKalmanFilter())
    message = str(caught.value)
    assert "SDE: `drift(t, x, u)` returned shape (2, 1); expected (1,), as the state" in message
    assert "equinox.filter_vmap(make)(parameters)" in message


# Compilation.
def test_a_verb_compiles_once_per_structure_and_shape():
    traces = []

    def drift(t, x, u):
        traces.append(1)
        return -x

    def run(rate, length):
        decay = fd.StateSpaceModel(
            dist.Normal(jnp.full(1, rate), 1.0).to_event(1),
            fd.ODE(drift, substeps=1),
            seen,
        )
        fd.log_likelihood(
            decay, fd.Series(np.arange(length), np.ones(length)), fd.ExtendedKalmanFilter()
        )

    seen = fd.GaussianObservation(lambda t, x, u: x, 0.1)
    run(1.0, 5)
    once = len(traces)
    assert once > 0
    run(2.0, 5)
    assert len(traces) == once
    run(2.0, 6)
    assert len(traces) == 2 * once


def test_a_fresh_lambda_at_every_call_is_warned_of_once_where_the_verb_is_called():
    data = fd.Series([0, 1], [1.0, 2.0])

    def call():
        fresh = fd.StateSpaceModel(
            dist.Normal(jnp.zeros(1), 1.0).to_event(1),
            fd.LinearTransition(np.eye(1), np.eye(1)),
            fd.GaussianObservation(lambda t, x, u: 1.0 * x, 0.1),
        )
        return fd.log_likelihood(fresh, data, fd.ExtendedKalmanFilter())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(8):
            call()
    (warning,) = [w for w in caught if "was compiled" in str(w.message)]
    assert "a new object at every call" in str(warning.message)
    assert "equinox.Module" in str(warning.message)
    assert warning.filename == __file__


def test_filters_with_other_settings_are_no_reason_to_warn():
    """They are compiled anew, and rightly: nothing about the model is a new object."""
    data = fd.Series([0, 1], [1.0, 2.0])
    one = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition(np.eye(1), np.eye(1)),
        fd.GaussianObservation(lambda t, x, u: 2.0 * x, 0.1),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for iterations in range(1, 7):
            fd.log_likelihood(one, data, fd.ExtendedKalmanFilter(iterations=iterations))


def test_a_gradient_outside_of_jit_is_compiled_once():
    data, calls = fd.Series([0, 1, 2], [1.0, 2.0, 0.5]), []

    def seen(t, x, u):
        calls.append(x)
        return 2.0 * x

    def log_likelihood(a):
        model = fd.StateSpaceModel(
            dist.Normal(jnp.zeros(1), 1.0).to_event(1),
            fd.LinearTransition(a * jnp.eye(1), jnp.eye(1)),
            fd.GaussianObservation(seen, 0.1),
        )
        return fd.log_likelihood(model, data, fd.ExtendedKalmanFilter())

    compiled = jax.jit(jax.grad(log_likelihood))
    want = [compiled(a) for a in (0.9, 0.5)]
    gradient, before = jax.grad(log_likelihood)(0.9), len(calls)
    # Of the second nothing is traced again but the check that the shapes agree.
    again, shapes = jax.grad(log_likelihood)(0.5), len(calls) - before
    np.testing.assert_allclose([gradient, again], want, rtol=1e-10)
    assert shapes <= 1 < before


def test_an_observation_closed_over_what_is_differentiated_is_never_an_old_one():
    data = fd.Series([0, 1, 2], [1.0, 2.0, 0.5])

    def log_likelihood(a):
        model = fd.StateSpaceModel(
            dist.Normal(jnp.zeros(1), 1.0).to_event(1),
            fd.LinearTransition(np.eye(1), np.eye(1)),
            fd.GaussianObservation(lambda t, x, u: a * x, 0.1),
        )
        return fd.log_likelihood(model, data, fd.ExtendedKalmanFilter())

    points = jnp.array([0.9, 0.5])
    want = jax.jit(jax.vmap(jax.grad(log_likelihood)))(points)
    np.testing.assert_allclose(jax.vmap(jax.grad(log_likelihood))(points), want, rtol=1e-10)
    np.testing.assert_allclose(jax.grad(log_likelihood)(points[1]), want[1], rtol=1e-10)


def test_every_dynamics_class_is_a_valid_argument_of_jit():
    """Functions, solvers and controllers inside a model are static."""
    dynamics = [
        walk,
        fd.LinearSDE(-EYE, 1.0),
        fd.ODE(lambda t, x, u: -x),
        fd.SDE(lambda t, x, u: -x, lambda t, x, u: jnp.ones(2)),
        fd.Transition(lambda t, x, u: dist.Normal(x, 1.0).to_event(1)),
    ]
    for one in dynamics:
        whole = model(dynamics=one)
        assert jax.jit(lambda m: m.initial.mean)(whole).shape == (2,)
        assert all(eqx.is_array(leaf) for leaf in jax.tree.leaves(whole))


def test_a_start_at_the_first_row_needs_no_earlier_input():
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.SDE(lambda t, x, u: -(x**3) + u, 0.3, substeps=2),
        fd.LinearObservation([[1.0]], 0.1),
    )
    series, filter = fd.Series([0.0, 1.0], [0.1, 0.2], [1.0, 2.0]), fd.ExtendedKalmanFilter()
    at_first = fd.log_likelihood(model, series, filter, t0=0.0)
    np.testing.assert_array_equal(at_first, fd.log_likelihood(model, series, filter))
    with pytest.raises(ValueError, match="`u0` is missing: `t0` lies before the first row"):
        fd.log_likelihood(model, series, filter, t0=-1.0)
