"""How states move: adaptive and implicit solvers, largest steps, and what is refused."""

import diffrax
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd
from filterdyn import Status

if not jax.config.jax_enable_x64:
    pytest.skip("solvers are compared in float64", allow_module_level=True)

NAN = np.nan
EKF = fd.ExtendedKalmanFilter()
TIMES = np.array([0.0, 0.3, 1.1, 1.1, 2.0])
Y = np.array([[1.1], [NAN], [0.7], [0.6], [-0.4]])
INPUTS = np.array([[1.0], [0.0], [-2.0], [0.5], [1.5]])
PID = diffrax.PIDController(rtol=1e-9, atol=1e-11)


def rate_matrix(stiffness, damping):
    return jnp.array([[0.0, 1.0], [0.0, 0.0]]) + jnp.array([[0.0], [1.0]]) * jnp.array(
        [-stiffness, -damping]
    )


def oscillator(dynamics):
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.array([1.0, 0.0]), 0.3 * jnp.eye(2)),
        dynamics,
        fd.LinearObservation([[1.0, 0.0]], 0.1),
    )


def exact_dynamics(theta):
    stiffness, damping, noise = theta
    diffusion = jnp.array([[0.0], [1.0]]) * noise
    return fd.LinearSDE(rate_matrix(stiffness, damping), diffusion, B=[[0.0], [1.0]])


def numerical_dynamics(kind, theta, **stepping):
    stiffness, damping, noise = theta

    def field(t, x, u):
        return rate_matrix(stiffness, damping) @ x + jnp.array([0.0, 1.0]) * u[0]

    if kind == "ODE":
        return fd.ODE(field, **stepping)
    return fd.SDE(field, jnp.array([[0.0], [1.0]]) * noise, **stepping)


def log_likelihood(dynamics, times=TIMES, t0=-0.4):
    series = fd.Series(times, Y, INPUTS)
    return fd.log_likelihood(oscillator(dynamics), series, EKF, t0=t0, u0=[0.7])


THETA = jnp.array([2.0, 0.3, 0.5])
NO_NOISE = THETA.at[2].set(0.0)


@pytest.fixture(scope="module")
def exact():
    """Value and gradient of the exactly discretised process, with and without noise."""
    function = jax.jit(jax.value_and_grad(lambda theta: log_likelihood(exact_dynamics(theta))))
    with_noise, without = function(THETA), function(NO_NOISE)
    # d / d(noise) at 0 is 0: the likelihood depends on its square.
    return {"SDE": with_noise, "ODE": without}


STEPPING = {
    "adaptive": dict(stepsize_controller=PID),
    "adaptive, implicit": dict(stepsize_controller=PID, solver=diffrax.Kvaerno5()),
    "adaptive, another adjoint": dict(
        stepsize_controller=PID, adjoint=diffrax.RecursiveCheckpointAdjoint()
    ),
    "largest step": dict(dt=0.03),
    "substeps": dict(substeps=20),
    "another solver": dict(substeps=40, solver=diffrax.Dopri5()),
    "fixed, implicit": dict(substeps=20, solver=diffrax.Kvaerno5()),
}
#: SDE steps add the noise by a quadrature of fourth order, ODE steps have the order of their solver.
TOLERANCE = {"ODE": 1e-7, "SDE": 1e-5}


@pytest.mark.parametrize("kind", ["ODE", "SDE"])
@pytest.mark.parametrize(
    "stepping",
    [
        pytest.param(k, marks=pytest.mark.slow if "adaptive" in k or ", " in k else ())
        for k in STEPPING
    ],
)
def test_every_way_to_step_meets_the_exact_linear_answer_and_its_gradient(kind, stepping, exact):
    theta = THETA if kind == "SDE" else NO_NOISE
    value, gradient = jax.jit(
        jax.value_and_grad(
            lambda theta: log_likelihood(numerical_dynamics(kind, theta, **STEPPING[stepping]))
        )
    )(theta)
    tolerance = TOLERANCE[kind]
    np.testing.assert_allclose(value, exact[kind][0], rtol=tolerance)
    np.testing.assert_allclose(gradient, exact[kind][1], rtol=10 * tolerance, atol=tolerance)


@pytest.mark.long
@pytest.mark.slow
def test_an_adaptive_solve_has_a_hessian():
    def numerical(theta):
        stepping = dict(stepsize_controller=PID, max_steps=64)
        return log_likelihood(numerical_dynamics("ODE", theta, **stepping))

    hessian = jax.jit(jax.hessian(numerical))(NO_NOISE)
    exact = jax.jit(jax.hessian(lambda theta: log_likelihood(exact_dynamics(theta))))(NO_NOISE)
    np.testing.assert_allclose(hessian[:2, :2], exact[:2, :2], rtol=1e-6, atol=1e-6)


# dt: the largest step.
@pytest.mark.parametrize("kind", ["ODE", "SDE"])
def test_traced_times_with_max_substeps_give_the_steps_of_concrete_times(kind):
    theta = THETA if kind == "SDE" else NO_NOISE
    concrete = log_likelihood(numerical_dynamics(kind, theta, dt=0.1))
    traced = jax.jit(
        lambda times, t0: log_likelihood(
            numerical_dynamics(kind, theta, dt=0.1, max_substeps=16), times, t0
        )
    )(jnp.asarray(TIMES), jnp.asarray(-0.4))
    np.testing.assert_allclose(traced, concrete, rtol=1e-12)


def test_a_largest_step_gives_long_gaps_more_steps():
    """One step in each of ten gaps and ten in one gap are the same ten steps."""
    field = lambda t, x, u: jnp.sin(t) - x**3
    ends = []
    for times in (np.linspace(0, 1, 11), np.array([0.0, 1.0])):
        model = fd.StateSpaceModel(
            dist.Delta(jnp.array([1.0]), event_dim=1),
            fd.ODE(field, dt=0.1, solver=diffrax.Heun()),
            fd.GaussianObservation(lambda t, x, u: x, 1.0),
        )
        ends.append(fd.filter(model, fd.Series(times, np.full(len(times), NAN)), EKF).mean[-1])
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-13)


def test_a_step_that_divides_the_gap_up_to_rounding_takes_no_extra_step():
    """0.3 / 0.1 is a little below, 0.6 / 0.2 a little above a whole number."""
    for dt, gap in ((0.1, 0.3), (0.2, 0.6), (0.1, 0.1 + 0.2)):
        plan = fd.ODE(lambda t, x, u: x, dt=dt).plan(np.array([0.0, gap]))
        assert list(plan.rows) == [0, 3]


def test_traced_times_without_max_substeps_are_refused():
    with pytest.raises(ValueError, match="ODE: `dt` with times that are not known beforehand"):
        jax.jit(lambda times: log_likelihood(numerical_dynamics("ODE", THETA, dt=0.1), times))(
            jnp.asarray(TIMES)
        )


def test_a_stacked_batch_of_series_shares_one_largest_step():
    def run(series):
        dynamics = numerical_dynamics("SDE", THETA, dt=0.1, max_substeps=16)
        return fd.log_likelihood(oscillator(dynamics), series, EKF)

    parts = [fd.Series(TIMES, Y, INPUTS), fd.Series(TIMES[:3], Y[:3], INPUTS[:3])]
    batch = jax.jit(jax.vmap(run))(fd.stack(parts))
    np.testing.assert_allclose(batch, [run(one) for one in parts], rtol=1e-12)


# Stiff systems.
STIFF = np.array([[-1.0, 0.0], [1e5, -1e5]])  # x2 follows x1 within 10 microseconds


@pytest.mark.parametrize(
    ("stepping", "tolerance"),
    [
        (dict(solver=diffrax.Kvaerno5(), stepsize_controller=PID), 1e-6),
        (dict(solver=diffrax.Kvaerno5(), substeps=20), 1e-6),
        (dict(solver=diffrax.ImplicitEuler(), substeps=400), 5e-3),
    ],
    ids=["adaptive Kvaerno5", "Kvaerno5", "implicit Euler"],
)
def test_an_implicit_solver_takes_a_stiff_equation_in_long_steps(stepping, tolerance):
    times, y = np.array([0.0, 0.5, 2.0]), np.array([[1.0], [0.7], [NAN]])

    def result(dynamics):
        model = fd.StateSpaceModel(
            dist.MultivariateNormal(jnp.array([1.0, 0.5]), 0.1 * jnp.eye(2)),
            dynamics,
            fd.LinearObservation([[0.0, 1.0]], 0.1),
        )
        return fd.filter(model, fd.Series(times, y), EKF)

    stiff = result(fd.ODE(lambda t, x, u: jnp.asarray(STIFF) @ x, **stepping))
    exact = result(fd.LinearSDE(STIFF, 0.0))
    assert stiff.status == Status.OK
    np.testing.assert_allclose(stiff.mean, exact.mean, rtol=tolerance)
    np.testing.assert_allclose(stiff.cov, exact.cov, rtol=tolerance, atol=tolerance * 0.1)
    np.testing.assert_allclose(stiff.log_likelihood, exact.log_likelihood, rtol=tolerance)


def test_an_explicit_solver_on_a_stiff_equation_fails_instead_of_lying():
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.array([1.0, 0.5]), 0.1 * jnp.eye(2)),
        fd.ODE(lambda t, x, u: jnp.asarray(STIFF) @ x, stepsize_controller=PID, max_steps=100),
        fd.LinearObservation([[0.0, 1.0]], 0.1),
    )
    result = fd.filter(model, fd.Series([0.0, 0.5], [1.0, 1.0]), EKF)
    assert (result.status, result.failed_at) == (Status.SOLVER_OUT_OF_STEPS, 1)


def test_time_and_input_reach_the_field_as_the_contract_says():
    """x' = t u with the input held from the row that is left: an integral that is known."""
    model = fd.StateSpaceModel(
        dist.Delta(jnp.zeros(1), event_dim=1),
        fd.ODE(lambda t, x, u: t * u, substeps=1),
        fd.GaussianObservation(lambda t, x, u: x, 1.0),
    )
    series = fd.Series([1.0, 2.0, 4.0], [NAN] * 3, [1.0, -1.0, 5.0])
    result = fd.filter(model, series, EKF, t0=0.0, u0=3.0)
    expected = np.cumsum([3 * (1 - 0), 1 * (4 - 1), -1 * (16 - 4)]) / 2
    np.testing.assert_allclose(result.mean[:, 0], expected, rtol=1e-12)


def test_the_flow_of_a_linear_field_has_the_matrix_exponential_as_its_covariance_map():
    A = np.array([[0.1, 1.0], [-2.0, -0.3]])
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        fd.ODE(lambda t, x, u: jnp.asarray(A) @ x, stepsize_controller=PID),
        fd.LinearObservation([[1.0, 0.0]], 1.0),
    )
    result = fd.filter(model, fd.Series([0.0, 1.7], [NAN, NAN]), EKF)
    flow = jsl.expm(1.7 * A)
    np.testing.assert_allclose(result.cov[1], flow @ flow.T, rtol=1e-7)


# What is refused.
still = lambda t, x, u: 0 * x
REFUSED = {
    "no substeps": (ValueError, "ODE: `substeps` is 0; expected an integer >= 1", dict(substeps=0)),
    "substeps as text": (
        ValueError, "ODE: `substeps` is 'ten'; expected an integer >= 1", dict(substeps="ten")
    ),
    "a negative step": (
        ValueError, "ODE: `dt` is -1; expected a positive step length", dict(dt=-1)
    ),
    "a step as text": (
        ValueError, "ODE: `dt` is 'day'; expected a positive step length", dict(dt="day")
    ),
    "a step that is NaN": (
        ValueError, "ODE: `dt` is nan; expected a positive step length", dict(dt=NAN)
    ),
    "no max_substeps": (
        ValueError, "ODE: `max_substeps` is 0; expected an integer >= 1",
        dict(dt=1, max_substeps=0),
    ),
    "no max_steps": (
        ValueError, "ODE: `max_steps` is None; expected an integer >= 1", dict(max_steps=None)
    ),
    "a solver by name": (
        TypeError, "ODE: `solver` is str; expected a Diffrax solver such as diffrax.Tsit5()",
        dict(solver="Tsit5"),
    ),
    "a solver's class": (
        TypeError, "ODE: `solver` is the class Tsit5; expected a Diffrax solver",
        dict(solver=diffrax.Tsit5),
    ),
    "a tolerance for a controller": (
        TypeError, "ODE: `stepsize_controller` is float; expected an adaptive Diffrax controller",
        dict(stepsize_controller=1e-6),
    ),
    "a controller of constant steps": (
        TypeError, "ODE: `stepsize_controller` is ConstantStepSize; expected an adaptive Diffrax "
        "controller such as diffrax.PIDController(rtol=1e-6, atol=1e-8) (fixed steps are set by "
        "`substeps` or `dt`)",
        dict(stepsize_controller=diffrax.ConstantStepSize()),
    ),
    "two step sizes": (
        ValueError, "ODE: `dt` and `stepsize_controller` exclude each other; give one",
        dict(dt=0.1, stepsize_controller=PID),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_stepping_is_refused_by_name(what):
    kind, message, options = REFUSED[what]
    for owner, make in (("ODE", fd.ODE), ("SDE", lambda f, **options: fd.SDE(f, 1.0, **options))):
        with pytest.raises(kind) as caught:
            make(still, **options)
        assert message.replace("ODE:", f"{owner}:") in str(caught.value)


@pytest.mark.parametrize(
    ("diffusion", "message"),
    [
        (NAN, "SDE: `diffusion` has NaN or infinite entries; expected finite numbers"),
        (
            np.ones((1, 2, 3)),
            "SDE: `diffusion` has shape (1, 2, 3); expected (), (dx,) or (dx, dw)",
        ),
    ],
)
def test_a_diffusion_is_refused_by_name(diffusion, message):
    with pytest.raises(ValueError) as caught:
        fd.SDE(still, diffusion)
    assert message in str(caught.value)


@pytest.mark.parametrize("solver", [diffrax.Heun(), diffrax.Tsit5()], ids=["Heun", "Tsit5"])
def test_a_solver_without_the_ito_solution_is_refused_for_a_diffusion_of_the_state(solver):
    with pytest.raises(ValueError, match="which does not converge to the Ito solution"):
        fd.SDE(still, lambda t, x, u: x, path_solver=solver)
    fd.SDE(still, 0.1, path_solver=solver)


@pytest.mark.parametrize("solver", [diffrax.HalfSolver(diffrax.Euler()), diffrax.ALIGN(0.1)])
def test_a_solver_that_needs_more_than_increments_is_refused(solver):
    with pytest.raises(ValueError, match="which needs more of a path than its increments"):
        fd.SDE(still, 0.1, path_solver=solver)
