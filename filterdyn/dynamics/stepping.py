"""How many solver steps a gap gets, and one such step with its Jacobian."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from filterdyn._checks import check_count, is_traced
from filterdyn.dynamics.base import Interval, Plan
from filterdyn.status import Status


class Steps(NamedTuple):
    """`count` steps of length `length` make up a gap; the loop over them runs `most` times."""

    count: Int[Array, ""]  # type: ignore[assignment]  # a tuple's `count` method, not used here
    length: Float[Array, ""]
    most: int
    #: Is the count the same in every gap?
    fixed: bool
    status: Int[Array, ""]


def check_stepping(
    owner: str, substeps: Any, dt: Any, max_substeps: Any
) -> tuple[int, float | None, int | None]:
    """**Raises:** `ValueError` unless `substeps` and `max_substeps` are whole numbers >= 1 and `dt` > 0
    where it is given."""
    if dt is not None:
        try:
            length = float(dt)
        except (TypeError, ValueError):
            length = np.nan
        if not np.isfinite(length) or length <= 0:
            raise ValueError(f"{owner}: `dt` is {dt!r}; expected a positive step length")
        dt = length
    if max_substeps is not None:
        max_substeps = check_count(owner, "max_substeps", max_substeps)
    return check_count(owner, "substeps", substeps), dt, max_substeps


def check_solver(owner: str, solver: Any, controller: Any, dt: Any, max_steps: Any) -> int:
    """**Raises:** `TypeError` for what is no Diffrax solver or step size controller, `ValueError` for
    a step size that is set twice and for `max_steps` < 1. Returns `max_steps`."""

    def named(value: Any) -> str:
        return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__

    if solver is not None and not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(
            f"{owner}: `solver` is {named(solver)}; expected a Diffrax solver such as diffrax.Tsit5()"
        )
    if controller is not None:
        fixed = (diffrax.ConstantStepSize, diffrax.StepTo)
        adaptive = isinstance(controller, diffrax.AbstractStepSizeController)
        if not adaptive or isinstance(controller, fixed):
            raise TypeError(
                f"{owner}: `stepsize_controller` is {named(controller)}; expected an adaptive "
                "Diffrax controller such as diffrax.PIDController(rtol=1e-6, atol=1e-8) (fixed steps "
                "are set by `substeps` or `dt`)"
            )
        if dt is not None:
            raise ValueError(
                f"{owner}: `dt` and `stepsize_controller` exclude each other; give one"
            )
    return check_count(owner, "max_steps", max_steps)


def plan_steps(owner: str, gaps: Any, dt: float | None, max_substeps: int | None) -> Plan:
    """The number of steps in every gap when the largest step is `dt`."""
    if dt is None:
        return Plan()
    if is_traced(gaps):
        if max_substeps is None:
            raise ValueError(
                f"{owner}: `dt` with times that are not known beforehand (traced, or arriving online) "
                "needs `max_substeps`, the largest number of steps in one gap"
            )
        counts = jnp.ceil(gaps / dt * (1 - 1e-6)).astype(jnp.int32)
        return Plan(rows=counts, most=max_substeps)
    needed = np.ceil(np.asarray(gaps) / dt * (1 - 1e-12)).astype(np.int64)
    largest = max(int(needed.max()), 1)
    most = 1 << (largest - 1).bit_length() if max_substeps is None else max_substeps
    return Plan(rows=jnp.asarray(np.minimum(needed, most + 1), jnp.int32), most=most)


def steps_in(interval: Interval, substeps: int, most: int) -> Steps:
    """The steps of one gap. `most` 0 means `substeps` of them in every gap."""
    if most == 0:
        count = jnp.int32(substeps)
        return Steps(count, interval.gap / substeps, substeps, True, jnp.int32(Status.OK))
    assert interval.row is not None
    count = jnp.clip(interval.row, 1, most)
    status = jnp.where(interval.row > most, Status.SOLVER_OUT_OF_STEPS, Status.OK)
    length = interval.gap / count.astype(interval.gap.dtype)
    return Steps(count, length, most, False, status.astype(jnp.int32))


def twice_differentiable(solver: Any) -> Any:
    """A Runge-Kutta solver, also a stochastic one, whose loop over stages JAX can differentiate in both
    modes and twice, as `diffrax.DirectAdjoint` asks for; Diffrax's default has a custom rule for reverse
    mode only."""
    if getattr(solver, "scan_kind", "bounded") is None:
        kind = "lax" if isinstance(solver, diffrax.AbstractSRK) else "bounded"
        return eqx.tree_at(lambda s: s.scan_kind, solver, kind, is_leaf=lambda x: x is None)
    return solver


def _largest(tree: Any) -> Array:
    return jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(tree)]).max()


def _with_tolerance(solver: Any, dtype: jnp.dtype) -> Any:
    """An implicit solver, whose root finder by default takes its tolerance from a step size controller.
    Fixed steps have none: the roots are found to a little more than rounding."""
    finder = getattr(solver, "root_finder", None)
    if finder is None or isinstance(finder.rtol, (float, int, np.generic, jax.Array)):
        return solver
    tolerance = float(jnp.finfo(dtype).eps) ** 0.75
    tolerances = lambda s: (s.root_finder.rtol, s.root_finder.atol, s.root_finder.norm)
    return eqx.tree_at(tolerances, solver, (tolerance, tolerance, _largest))


def solver_step(
    terms: Any, solver: Any, start: Array, length: Array, x: Array, u: Any
) -> tuple[Float[Array, " dx"], Bool[Array, ""]]:
    """One step of a Diffrax solver from `start`, and whether it succeeded."""
    if isinstance(solver, diffrax.AbstractERK) and isinstance(terms, diffrax.ODETerm):
        tableau = solver.tableau
        if isinstance(tableau, diffrax.ButcherTableau):
            return _explicit_step(terms, tableau, start, length, x, u), jnp.array(True)
    end = start + length
    solver = _with_tolerance(solver, length.dtype)
    state = solver.init(terms, start, end, x, u)
    x, _, _, _, result = solver.step(terms, start, end, x, u, state, made_jump=False)
    return x.astype(length.dtype), result == diffrax.RESULTS.successful


def _explicit_step(
    term: diffrax.ODETerm,
    tableau: diffrax.ButcherTableau,
    start: Array,
    length: Array,
    x: Array,
    u: Any,
) -> Float[Array, " dx"]:
    """A step of an explicit Runge-Kutta solver, its stages written out: Diffrax's loop over them writes
    into a buffer, and that keeps a filter's step from becoming one kernel."""
    ahead = [0.0 if tableau.c1 is None else float(tableau.c1), *map(float, tableau.c)]
    mix = [np.zeros(0), *tableau.a_lower]
    needed = {i for i, weight in enumerate(tableau.b_sol) if weight != 0}
    for i in reversed(range(len(mix))):
        if i in needed:
            needed |= {j for j, weight in enumerate(mix[i]) if weight != 0}
    rates: dict[int, Array] = {}

    def reached(weights: Any) -> Array:
        terms = [float(w) * rates[j] for j, w in enumerate(weights) if w != 0]
        return x + length * sum(terms[1:], terms[0]) if terms else x

    for i in sorted(needed):
        rates[i] = term.vf(start + ahead[i] * length, reached(mix[i]), u)
    return reached(tableau.b_sol).astype(length.dtype)


def loop(steps: Steps, body: Callable[[Any, Any, Any], Any], carry: Any) -> Any:
    """`carry = body(carry, i, length)` for the steps of one gap.

    Where the count varies, surplus rounds of the loop are skipped; under `vmap`, where nothing can be
    skipped, they have length 0.
    """

    def fixed(carry: Any, i: Any) -> tuple[Any, None]:
        return body(carry, i, steps.length), None

    def counted(carry: Any, i: Any) -> tuple[Any, None]:
        length = jnp.where(i < steps.count, steps.length, 0.0)
        return jax.lax.cond(i < steps.count, body, lambda c, *_: c, carry, i, length), None

    return jax.lax.scan(fixed if steps.fixed else counted, carry, jnp.arange(steps.most))[0]


#: Weights of the closed Newton-Cotes rules over 0 to 7 intervals of length 1: all are positive.
_NEWTON_COTES = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1 / 2, 1 / 2, 0, 0, 0, 0, 0, 0],
        [1 / 3, 4 / 3, 1 / 3, 0, 0, 0, 0, 0],
        [3 / 8, 9 / 8, 9 / 8, 3 / 8, 0, 0, 0, 0],
        [14 / 45, 64 / 45, 24 / 45, 64 / 45, 14 / 45, 0, 0, 0],
        [95 / 288, 375 / 288, 250 / 288, 250 / 288, 375 / 288, 95 / 288, 0, 0],
        [41 / 140, 216 / 140, 27 / 140, 272 / 140, 27 / 140, 216 / 140, 41 / 140, 0],
        list(np.array([751, 3577, 1323, 2989, 2989, 1323, 3577, 751]) * 7 / 17280),
    ]
)


def quadrature_weight(
    i: Int[Array, ""], count: Int[Array, ""], dtype: jnp.dtype
) -> Float[Array, ""]:
    """Weight of node i of 0 .. count, times the step length: a positive rule of sixth order.

    Four steps at a time by the rule of Newton and Cotes (Boole's); the first 5, 6 or 7 in one where
    the number of steps is not a multiple of four, or all of them where there are fewer.
    """
    first = jnp.where(count < 4, count, jnp.where(count % 4 == 0, 0, 4 + count % 4))
    in_first = jnp.asarray(_NEWTON_COTES)[first, jnp.clip(i, 0, 7)]
    past = i - first
    boole = jnp.asarray([28 / 45, 64 / 45, 24 / 45, 64 / 45])[past % 4]
    boole = jnp.where((past == 0) | (i == count), 14 / 45, boole)
    later = (past >= 0) & (count > first)
    weight = jnp.where(i <= first, in_first, 0.0) + jnp.where(later, boole, 0.0)
    return weight.astype(dtype)
