"""Flow, its Jacobian and its noise over one gap, by an adaptive Diffrax solver."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array

from filterdyn.linalg import mm
from filterdyn.status import Status


def solve_flow(
    field: Callable[[Array, Array], Array],
    diffusion: Callable[[Array, Array], Array] | None,
    x: Array,
    gap: Array,
    *,
    solver: Any,
    controller: Any,
    max_steps: int,
    adjoint: Any,
    jacobian: bool = True,
) -> tuple[Array, Array, Array, Array]:
    """Integrate m' = f(m), Phi' = J Phi and Q' = J Q + Q J^T + L L^T from (x, I, 0) over `gap`.

    Returns the end state, Phi, a status and Q. Time is local, from 0 to `gap`.
    """
    n = x.shape[0]
    eye = jnp.eye(n, dtype=x.dtype)

    def rate(s: Any, state: Any, args: Any) -> Any:
        m, flow, q = state
        if not jacobian:
            return field(s, m), jnp.zeros_like(flow), jnp.zeros_like(q)

        def twice(m: Array) -> tuple[Array, Array]:
            z = field(s, m)
            return z, z

        j, velocity = jax.jacfwd(twice, has_aux=True)(m)
        growth = mm(j, q)
        growth = growth + growth.T
        if diffusion is not None:
            noise = diffusion(s, m)
            growth = growth + mm(noise, noise.T)
        return velocity, mm(j, flow), growth

    # A gap of 0 has nothing to solve; a positive stand-in keeps the solver out of trouble.
    span = jnp.where(gap > 0, gap, 1.0)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(rate),
        solver,
        t0=jnp.zeros_like(gap),
        t1=span,
        dt0=None,
        y0=(x, eye, jnp.zeros_like(eye)),
        stepsize_controller=controller,
        max_steps=max_steps,
        adjoint=diffrax.DirectAdjoint() if adjoint is None else adjoint,
        throw=False,
    )
    m, flow, q = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    failed = (solution.result != diffrax.RESULTS.successful) & (gap > 0)
    status = jnp.where(failed, Status.SOLVER_OUT_OF_STEPS, Status.OK).astype(jnp.int32)
    return m, flow, status, q
