"""Stochastic differential equations in the sense of Ito."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, Float, Int

from filterdyn._callables import Function, Held, hold_function
from filterdyn._checks import check_finite, float_array
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics.adaptive import solve_flow
from filterdyn.dynamics.base import AbstractDynamics, Interval, Plan
from filterdyn.dynamics.brownian import GivenIncrement, levy_area_for, numbers_for
from filterdyn.dynamics.diffusion import as_matrix
from filterdyn.dynamics.gaussian import log_density_of
from filterdyn.dynamics.ode import check_field
from filterdyn.dynamics.stepping import (
    check_solver,
    check_stepping,
    loop,
    plan_steps,
    quadrature_weight,
    solver_step,
    steps_in,
    twice_differentiable,
)
from filterdyn.linalg import PSD, congruence, mm, mv, triangularize, with_derivative_of
from filterdyn.linalg.cholesky import cholesky
from filterdyn.linearization import (
    AbstractLinearization,
    AbstractSpreadRule,
    Affine,
    beside,
    squared,
)
from filterdyn.linearization.sigma_points import slope_on
from filterdyn.status import Status


class Drifted(NamedTuple):
    """What a Brownian motion with the drift c met over an interval, noise by noise."""

    shift: Float[Array, " dw"]  # of c dt
    divergence: Float[Array, " dw"]  # of c^2 dt / 2, and of the spreads
    martingale: Float[Array, " dw"]  # of c dW: the log of the densities' ratio, less the divergence


def _check_path_solver(solver: Any, additive: bool) -> None:
    """**Raises:** `ValueError` for a solver that does not simulate this equation."""
    name = type(solver).__name__
    others = (diffrax.AbstractWrappedSolver, diffrax.ALIGN, diffrax.ShOULD, diffrax.QUICSORT)
    if isinstance(solver, others):
        raise ValueError(
            f"SDE: `path_solver` is {name}, which needs more of a path than its increments; expected a "
            "solver itself, of a general SDE, such as diffrax.Euler() or diffrax.SRA1()"
        )
    # With additive noise the solutions of Ito and Stratonovich are the same.
    if not additive and not isinstance(solver, diffrax.AbstractItoSolver):
        raise ValueError(
            f"SDE: `path_solver` is {name}, which does not converge to the Ito solution but to the "
            "Stratonovich solution or none, and `diffusion` is a function; the equation is Ito's (use Euler "
            "or ItoMilstein, or give an array as `diffusion`)"
        )


class SDE(AbstractDynamics):
    """dx = drift(t, x, u) dt + diffusion(t, x, u) dW (Ito), with the input held over each gap.

    A Gaussian filter gets the first-order moments: the mean follows the drift, the covariance its
    linearisation. Per solver step the Jacobian of the flow is taken and the process noise is added in
    factored form by a quadrature with positive weights (Newton-Cotes), so the covariance is positive
    semi-definite whatever the step, and may be singular (a `Delta` start, noise in some states only).
    A sigma-point filter, and an extended one of second order, averages drift and diffusion over the
    belief, so that the mean sees the spread of the state too.
    """

    drift: Held
    diffusion: Held | Array
    solver: Held
    path_solver: Held
    stepsize_controller: Held | None
    adjoint: Held | None
    substeps: int = eqx.field(static=True)
    dt: float | None = eqx.field(static=True)
    max_substeps: int | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        drift: Function,
        diffusion: Any,
        *,
        solver: Any = None,
        substeps: int = 10,
        dt: float | None = None,
        max_substeps: int | None = None,
        stepsize_controller: Any = None,
        max_steps: int = 4096,
        adjoint: Any = None,
        path_solver: Any = None,
    ):
        """**Arguments:**

        - `drift(t, x, u) -> (dx,)`, in state units / time;
        - `diffusion`: a scalar, (dx,) for a diagonal, (dx, dw), or a function `(t, x, u)` of one of
          these, in state units / sqrt(time);
        - `solver`: the Diffrax ODE solver of the moment equations (default `diffrax.Tsit5()`);
        - `substeps`, `dt`, `max_substeps`, `stepsize_controller`, `max_steps`, `adjoint`: as for
          `ODE`; an adaptive controller steps the moment equations;
        - `path_solver`: the Diffrax SDE solver of simulated paths, which take `substeps` (or `dt`) too.
          Default: `diffrax.SRA1()` where the diffusion is an array, `diffrax.Euler()` where it is a
          function. A Stratonovich solver is refused.
        """
        owner = "SDE"
        self.drift = hold_function(owner, "drift", drift)
        if callable(diffusion):
            self.diffusion = hold_function(owner, "diffusion", diffusion)
        else:
            self.diffusion = _constant(owner, diffusion)
        self.max_steps = check_solver(owner, solver, stepsize_controller, dt, max_steps)
        self.solver = Held(twice_differentiable(diffrax.Tsit5() if solver is None else solver))
        additive = not isinstance(self.diffusion, Held)
        if path_solver is None:
            path_solver = diffrax.SRA1() if additive else diffrax.Euler()
        _check_path_solver(path_solver, additive)
        self.path_solver = Held(twice_differentiable(path_solver))
        self.substeps, self.dt, self.max_substeps = check_stepping(
            owner, substeps, dt, max_substeps
        )
        self.stepsize_controller = (
            None if stepsize_controller is None else Held(stepsize_controller)
        )
        self.adjoint = None if adjoint is None else Held(adjoint)

    def plan(self, gaps: Any) -> Plan:
        return plan_steps("SDE", gaps, self.dt, self.max_substeps)

    def tabulate(self, plan: Plan) -> Any:
        return plan.most

    def _drift(self, t: Any, x: Array, u: Any) -> Array:
        return jnp.asarray(self.drift(t, x, u), x.dtype)

    def _noise(self, t: Any, x: Array, u: Any) -> Float[Array, "dx dw"]:
        value = self.diffusion(t, x, u) if isinstance(self.diffusion, Held) else self.diffusion
        return as_matrix("SDE", "diffusion", value, x.shape[0]).astype(x.dtype)

    def moments(
        self, rule: AbstractLinearization, belief: Gaussian, interval: Interval
    ) -> tuple[Affine, Int[Array, ""]]:
        if isinstance(rule, AbstractSpreadRule):
            return self._regressed(rule, belief, interval)
        x, t, u = belief.mean, interval.time, interval.input
        n, dtype = x.shape[0], x.dtype
        if self.stepsize_controller is not None:
            mean, flow, status, q = solve_flow(
                lambda s, x: self._drift(t + s, x, u),
                lambda s, x: self._noise(t + s, x, u),
                x,
                interval.gap,
                solver=self.solver.value,
                controller=self.stepsize_controller.value,
                max_steps=self.max_steps,
                adjoint=None if self.adjoint is None else self.adjoint.value,
            )
            return Affine(mean, flow, PSD.from_matrix(q)), status
        steps = steps_in(interval, self.substeps, interval.table or 0)
        solver = self.solver.value
        terms = diffrax.ODETerm(lambda s, x, u: self._drift(t + s, x, u))

        def weighted(i: Any, length: Array, x: Array) -> tuple[Array, Array]:
            """Columns of process noise at node i, and the covariance they add."""
            weight = length * quadrature_weight(i, steps.count, dtype)
            noise = self._noise(t + i * steps.length, x, u)
            return jnp.sqrt(jax.lax.stop_gradient(weight)) * noise, weight * mm(noise, noise.T)

        def body(carry: Any, i: Any, length: Any) -> Any:
            x, flow, noise, ok = carry

            def step(x: Array) -> tuple[Array, tuple[Array, Array]]:
                z, fine = solver_step(terms, solver, i * steps.length, length, x, u)
                return z, (z, fine)

            slope, (x, fine) = jax.jacfwd(step, has_aux=True)(x)
            columns, added = weighted(i + 1, length, x)
            wide = jnp.concatenate([mm(slope, noise.factor), columns], axis=1)
            factor = triangularize(jax.lax.stop_gradient(wide))
            smooth = mm(mm(slope, noise.matrix), slope.T) + added
            noise = PSD(factor, with_derivative_of(mm(factor, factor.T), smooth))
            return x, mm(slope, flow), noise, ok & fine

        columns, added = weighted(jnp.int32(0), steps.length, x)
        factor = triangularize(jax.lax.stop_gradient(columns))
        start = PSD(factor, with_derivative_of(mm(factor, factor.T), added))
        carry = (x, jnp.eye(n, dtype=dtype), start, jnp.array(True))
        mean, flow, noise, ok = loop(steps, body, carry)
        status = jnp.where(ok, steps.status, Status.SOLVER_OUT_OF_STEPS).astype(jnp.int32)
        return Affine(mean, flow, noise), status

    def _regressed(
        self, rule: AbstractSpreadRule, belief: Gaussian, interval: Interval
    ) -> tuple[Affine, Int[Array, ""]]:
        """The moment equations m' = E f, P' = E[f (x - m)^T] + E[(x - m) f^T] + E[L L^T], with E over
        N(m, P) by the rule: its sigma points (Särkkä 2007), or f to second order around m (Jazwinski
        1970).

        Between two nodes the solver carries m and a factor Y of P: Y' = E[f(m + Y xi) xi^T] has no
        inverse and cannot lose positivity. Noise enters at the nodes, in factored form, as in
        `moments`. A node's noise belongs half to the step before it and half to the one after, and
        each step starts from half of its own: the scheme is of second order in the step (Strang
        1968). So is a diffusion that depends on the state, averaged over the belief with half of the
        node's noise in it.
        """
        if self.stepsize_controller is not None:
            raise ValueError(
                "SDE: `stepsize_controller` steps the moments of an ExtendedKalmanFilter of order 1; a "
                "filter of second order or with sigma points needs fixed steps (give `substeps` or "
                "`dt` in its place)"
            )
        t, u, dtype = interval.time, interval.input, belief.mean.dtype
        n = len(belief.mean)
        steps = steps_in(interval, self.substeps, interval.table or 0)

        def velocity(s: Any, state: Float[Array, "n 1_n"], u: Any) -> Float[Array, "n 1_n"]:
            drift = lambda x: self._drift(t + s, x, u)
            mean, root = rule.project(drift, state[:, 0], state[:, 1:])
            return jnp.concatenate([mean[:, None], root], axis=1)

        terms = diffrax.ODETerm(velocity)

        def average(i: Any, weight: Array, belief: Gaussian) -> PSD:
            cov = lambda x: PSD.from_factor(self._noise(t + i * steps.length, x, u))
            return scaled(weight, rule.average(cov, belief))

        def added(i: Any, length: Array, belief: Gaussian) -> PSD:
            weight = length * quadrature_weight(i, steps.count, dtype)
            first = average(i, weight, belief)
            if not isinstance(self.diffusion, Held):
                return first
            half = squared(beside(belief.spread, scaled(jnp.asarray(0.5, dtype), first)))
            return average(i, weight, Gaussian(belief.mean, spread=half))

        def body(carry: Any, i: Any, length: Any) -> Any:
            belief, flow, noise, ok = carry
            s, inverse = cholesky(belief.spread)
            state = jnp.concatenate([belief.mean[:, None], s], axis=1)
            state, fine = solver_step(terms, self.solver.value, i * steps.length, length, state, u)
            mean, root = state[:, 0], state[:, 1:]
            slope = slope_on(root, s, inverse)
            moved = PSD.from_factor(root)
            new = added(i + 1, length, Gaussian(mean, spread=moved))
            belief = Gaussian(mean, spread=squared(beside(moved, new)))
            return belief, mm(slope, flow), congruence(slope, noise, new), ok & fine

        start = added(jnp.int32(0), steps.length, belief)
        begin = Gaussian(belief.mean, spread=squared(beside(belief.spread, start)))
        carry = (begin, jnp.eye(n, dtype=dtype), start, jnp.array(True))
        end, flow, noise, ok = loop(steps, body, carry)
        status = jnp.where(ok, steps.status, Status.SOLVER_OUT_OF_STEPS).astype(jnp.int32)
        return Affine(end.mean, flow, noise), status

    def sample(self, key: Array, x: Float[Array, " dx"], interval: Interval) -> Float[Array, " dx"]:
        levy_area = levy_area_for(self.path_solver.value)
        width = jax.eval_shape(lambda: self._noise(interval.time, x, interval.input)).shape[1]
        shape = jax.ShapeDtypeStruct((width,), x.dtype)
        path = diffrax.UnsafeBrownianPath(shape, key, levy_area=levy_area)
        step = self._path_step(interval)
        return self._along(interval, x, lambda x, i, length: step(path, x, i * length, length))

    def sample_many(
        self, key: Array, x: Float[Array, "N dx"], interval: Interval
    ) -> Float[Array, "N dx"]:
        levy_area = levy_area_for(self.path_solver.value)
        width = jax.eval_shape(lambda: self._noise(interval.time, x[0], interval.input)).shape[1]
        shape = (len(x), numbers_for(levy_area), width)
        step = self._path_step(interval)

        def body(x: Array, i: Array, length: Array) -> Array:
            normals = jax.random.normal(jax.random.fold_in(key, i), shape, x.dtype)

            def one(x: Array, normals: Array) -> Array:
                return step(GivenIncrement(normals, levy_area), x, i * length, length)

            return jax.vmap(one)(x, normals)

        return self._along(interval, x, body)

    def normals(self, x: Float[Array, " dx"], interval: Interval) -> tuple[int, ...]:
        width = jax.eval_shape(lambda: self._noise(interval.time, x, interval.input)).shape[1]
        steps = steps_in(interval, self.substeps, interval.table or 0)
        return steps.most, numbers_for(levy_area_for(self.path_solver.value)), width

    def driven_by(
        self, x: Float[Array, " dx"], normals: Float[Array, "steps k dw"], interval: Interval
    ) -> Float[Array, " dx"]:
        levy_area, step = levy_area_for(self.path_solver.value), self._path_step(interval)

        def one(x: Array, i: Array, length: Array) -> Array:
            return step(GivenIncrement(normals[i], levy_area), x, i * length, length)

        return self._along(interval, x, one)

    def controlled(
        self,
        x: Float[Array, " dx"],
        normals: Float[Array, "steps k dw"],
        interval: Interval,
        control: Callable[[Array, Array], tuple[Array, Array | None]],
    ) -> tuple[Float[Array, " dx"], Drifted]:
        """`driven_by` where the Brownian motion drifts: over each solver step its increment is
        S dW + c dt, with (c, S) = control(time since the start of the interval, x), (dw,) and lower
        triangular (dw, dw) or `None` for I, held over the step."""
        levy_area, step = levy_area_for(self.path_solver.value), self._path_step(interval)

        def one(carry: tuple[Array, Drifted], i: Array, length: Array) -> tuple[Array, Drifted]:
            x, sums = carry
            root = jnp.sqrt(length)
            c, spread = control(i * length, x)
            mean, noise = root * c, normals[i, 0]
            divergence, martingale = 0.5 * mean * mean, mean * noise
            if spread is not None:
                own, log_scale = mv(spread, noise), jnp.log(jnp.diagonal(spread))
                divergence += 0.5 * ((spread * spread).sum(1) - 1) - log_scale
                martingale = 0.5 * ((mean + own) ** 2 - noise**2) - log_scale - divergence
                noise = own
            moved = normals[i].at[0].set(mean + noise)
            x = step(GivenIncrement(moved, levy_area), x, i * length, length)
            return x, jax.tree.map(jnp.add, sums, Drifted(root * mean, divergence, martingale))

        zero = jnp.zeros(normals.shape[-1], x.dtype)
        return self._along(interval, (x, Drifted(zero, zero, zero)), one)

    def _path_step(self, interval: Interval) -> Callable[..., Array]:
        """One step of the path solver from a state, with the increments of a Brownian path."""
        t, u, solver = interval.time, interval.input, self.path_solver.value

        def noise(s: Any, x: Any, u: Any) -> Any:
            if isinstance(self.diffusion, Held):
                value = jnp.asarray(self.diffusion(t + s, x, u), x.dtype)
            else:
                value = self.diffusion.astype(x.dtype)
            if value.ndim < 2:  # so that no matrix of many states is formed
                return lineax.DiagonalLinearOperator(jnp.broadcast_to(value, x.shape))
            return value

        def step(
            path: diffrax.AbstractBrownianPath, x: Array, start: Array, length: Array
        ) -> Array:
            terms: Any = diffrax.MultiTerm(
                diffrax.ODETerm(lambda s, x, u: self._drift(t + s, x, u)),
                diffrax.ControlTerm(noise, path),
            )
            return solver_step(terms, solver, start, length, x, u)[0]

        return step

    def _along(self, interval: Interval, x: Any, step: Callable[[Any, Array, Array], Any]) -> Any:
        """The path over a gap, step by step; over a gap of 0 it stays where it is."""
        steps = steps_in(interval, self.substeps, interval.table or 0)
        # Gap 0: a positive stand-in, because a Brownian increment needs an interval.
        safe = steps._replace(length=jnp.where(interval.gap > 0, steps.length, 1.0))
        moved = loop(safe, step, x)
        moved = jax.tree.map(lambda m: jnp.where(steps.status == Status.OK, m, jnp.nan), moved)
        return jax.tree.map(lambda m, x: jnp.where(interval.gap > 0, m, x), moved, x)

    def log_density(
        self, x_to: Float[Array, " dx"], x_from: Float[Array, " dx"], interval: Interval
    ) -> Float[Array, ""]:
        """That of one Euler step; only with `substeps=1` and `path_solver=diffrax.Euler()`."""
        one_step = self.substeps == 1 and self.dt is None
        if not one_step or not isinstance(self.path_solver.value, diffrax.Euler):
            return super().log_density(x_to, x_from, interval)
        t, u = interval.time, interval.input
        mean = x_from + self._drift(t, x_from, u) * interval.gap
        noise = PSD.from_factor(self._noise(t, x_from, u) * jnp.sqrt(interval.gap))
        return log_density_of(x_to - mean, noise)

    def check(self, owner: str, t: Any, x: Any, u: Any) -> None:
        check_field(owner, "drift", self.drift, t, x, u)
        jax.eval_shape(lambda t, x, u: self._noise(t, x, u), t, x, u)


def scaled(factor: Float[Array, ""], p: PSD) -> PSD:
    """A multiple >= 0 of P."""
    return PSD(jnp.sqrt(jax.lax.stop_gradient(factor)) * p.root, factor * p.matrix)


def _constant(owner: str, diffusion: Any) -> Array:
    array = float_array(owner, "diffusion", diffusion)
    check_finite(owner, "diffusion", array)
    if array.ndim > 2:
        raise ValueError(
            f"{owner}: `diffusion` has shape {array.shape}; expected (), (dx,) or (dx, dw)"
        )
    return array
