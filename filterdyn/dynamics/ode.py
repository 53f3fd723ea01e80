"""Deterministic flow of an ordinary differential equation."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn._callables import Function, Held, hold_function
from filterdyn._checks import batch_hint, returned
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics.adaptive import solve_flow
from filterdyn.dynamics.base import AbstractDynamics, Interval, Plan
from filterdyn.dynamics.stepping import (
    check_solver,
    check_stepping,
    loop,
    plan_steps,
    solver_step,
    steps_in,
    twice_differentiable,
)
from filterdyn.linalg import PSD, mm
from filterdyn.linearization import AbstractLinearization, AbstractSpreadRule, Affine
from filterdyn.status import Status


class ODE(AbstractDynamics):
    """x' = field(t, x, u), with the input held over each gap.

    With a `Delta` initial state the likelihood of a Gaussian filter is the exact regression likelihood.
    """

    field: Held
    solver: Held
    stepsize_controller: Held | None
    adjoint: Held | None
    substeps: int = eqx.field(static=True)
    dt: float | None = eqx.field(static=True)
    max_substeps: int | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        field: Function,
        *,
        solver: Any = None,
        substeps: int = 10,
        dt: float | None = None,
        max_substeps: int | None = None,
        stepsize_controller: Any = None,
        max_steps: int = 4096,
        adjoint: Any = None,
    ):
        """**Arguments:**

        - `field(t, x, u) -> (dx,)`, in state units / time;
        - `solver`: a Diffrax ODE solver, explicit or implicit (default `diffrax.Tsit5()`);
        - `substeps`: solver steps in every gap, or `dt`: the largest step, so that long gaps get more
          (the number per gap comes from concrete times; traced times need `max_substeps`), or
          `stepsize_controller`: a Diffrax controller for adaptive steps, at most `max_steps` per gap. With
          `substeps` a step is as long as its gap: where gaps differ much take `dt`, or a fit makes up for
          the errors of the long ones;
        - `adjoint`: how adaptive solves are differentiated. Default `diffrax.DirectAdjoint()`, in every
          mode and order; `diffrax.RecursiveCheckpointAdjoint()` is faster for a `vmap` over gradients,
          and has nothing but those: no gradient of a `vmap`, no forward mode, no second derivative.

        A gap that needs more steps than allowed fails its own series with
        `Status.SOLVER_OUT_OF_STEPS`.
        """
        self.field = hold_function("ODE", "field", field)
        self.max_steps = check_solver("ODE", solver, stepsize_controller, dt, max_steps)
        self.solver = Held(twice_differentiable(diffrax.Tsit5() if solver is None else solver))
        self.substeps, self.dt, self.max_substeps = check_stepping(
            "ODE", substeps, dt, max_substeps
        )
        self.stepsize_controller = (
            None if stepsize_controller is None else Held(stepsize_controller)
        )
        self.adjoint = None if adjoint is None else Held(adjoint)

    def plan(self, gaps: Any) -> Plan:
        return plan_steps("ODE", gaps, self.dt, self.max_substeps)

    def tabulate(self, plan: Plan) -> Any:
        return plan.most

    def _term(self, t: Any) -> diffrax.ODETerm:
        # Local time: in float32 a step of 0.1 at t = 1900 would lose four digits.
        return diffrax.ODETerm(lambda s, x, u: jnp.asarray(self.field(t + s, x, u), x.dtype))

    def _solve(self, x: Array, interval: Interval, jacobian: bool) -> tuple[Array, Array, Array]:
        """The state at the end of the gap, the Jacobian of the flow, and a status."""
        eye = jnp.eye(x.shape[0], dtype=x.dtype)
        if self.stepsize_controller is not None:
            return solve_flow(
                lambda s, x: jnp.asarray(self.field(interval.time + s, x, interval.input), x.dtype),
                None,
                x,
                interval.gap,
                solver=self.solver.value,
                controller=self.stepsize_controller.value,
                max_steps=self.max_steps,
                adjoint=None if self.adjoint is None else self.adjoint.value,
                jacobian=jacobian,
            )[:3]
        steps = steps_in(interval, self.substeps, interval.table or 0)
        terms, solver = self._term(interval.time), self.solver.value

        def body(carry: Any, i: Any, length: Any) -> Any:
            x, flow, ok = carry

            def step(x: Array) -> tuple[Array, tuple[Array, Array]]:
                z, fine = solver_step(terms, solver, i * steps.length, length, x, interval.input)
                return z, (z, fine)

            if jacobian:
                slope, (z, fine) = jax.jacfwd(step, has_aux=True)(x)
                return z, mm(slope, flow), ok & fine
            z, (_, fine) = step(x)
            return z, flow, ok & fine

        x, flow, ok = loop(steps, body, (x, eye, jnp.array(True)))
        status = jnp.where(ok, steps.status, Status.SOLVER_OUT_OF_STEPS).astype(jnp.int32)
        return x, flow, status

    def moments(
        self, rule: AbstractLinearization, belief: Gaussian, interval: Interval
    ) -> tuple[Affine, Int[Array, ""]]:
        if not isinstance(rule, AbstractSpreadRule):
            x, flow, status = self._solve(belief.mean, interval, jacobian=True)
            return Affine(x, flow, PSD.zeros(x.shape[0], x.dtype)), status

        def end(x: Array) -> tuple[Array, Array]:
            z, _, status = self._solve(x, interval, jacobian=False)
            return z, status

        found = rule(end, belief, has_aux=True)
        return found.to_affine(), found.aux.max()

    def sample(self, key: Array, x: Float[Array, " dx"], interval: Interval) -> Float[Array, " dx"]:
        return self.driven_by(x, jnp.zeros(0, x.dtype), interval)

    def sample_many(
        self, key: Array, x: Float[Array, "N dx"], interval: Interval
    ) -> Float[Array, "N dx"]:
        return jax.vmap(lambda x: self.sample(key, x, interval))(x)

    def normals(self, x: Float[Array, " dx"], interval: Interval) -> tuple[int, ...]:
        return (0,)

    def driven_by(
        self, x: Float[Array, " dx"], normals: Float[Array, " 0"], interval: Interval
    ) -> Float[Array, " dx"]:
        z, _, status = self._solve(x, interval, jacobian=False)
        return jnp.where(interval.gap > 0, jnp.where(status == Status.OK, z, jnp.nan), x)

    def check(self, owner: str, t: Any, x: Any, u: Any) -> None:
        check_field(owner, "field", self.field, t, x, u)


def check_field(owner: str, name: str, field: Held, t: Any, x: Any, u: Any) -> None:
    """**Raises:** `ValueError` unless the field gives a rate for every state, `TypeError` if it gives no
    numbers."""

    def rate(t: Any, x: Any, u: Any) -> Array:
        return returned(owner, f"{name}(t, x, u)", field(t, x, u))

    value = jax.eval_shape(rate, t, x, u)
    if value.shape != x.shape:
        raise ValueError(
            f"{owner}: `{name}(t, x, u)` returned shape {value.shape}; expected {x.shape}, as the state"
            f"{batch_hint(value.size > x.size)}"
        )
