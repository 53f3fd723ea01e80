"""Sums over a few numbers written out, for a step that is called again and again.

XLA's runtime for CPUs prepares three buffers at every call for each reduction in a program, of whatever
size. For a filter of a few states that is a quarter of what a call costs.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

from filterdyn.online.known import bind

#: Reductions of more terms stay.
_MOST_TERMS = 16
_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "reduce_sum": lax.add,
    "reduce_prod": lax.mul,
    "reduce_max": lax.max,
    "reduce_min": lax.min,
    "reduce_and": lax.bitwise_and,
    "reduce_or": lax.bitwise_or,
}
#: Calls that are no more than their bodies, and where they keep them.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr"}


def unrolled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays, with its small reductions written out. It is not to be differentiated."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        found = _run(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), found)

    return call


def _run(closed: Any, values: list[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else env[v]
    for equation in jaxpr.eqns:
        found = _equation(equation, [read(v) for v in equation.invars])
        env.update(zip(equation.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _equation(equation: Any, values: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        return _run(params[_CALLS[name]], values)
    if name in _OPERATIONS:
        terms = _terms(jnp.asarray(values[0]), tuple(params["axes"]))
        if terms:
            return [functools.reduce(_OPERATIONS[name], terms)]
    return bind(equation, *values)


def _terms(value: Any, axes: tuple[int, ...]) -> list[Any]:
    """What is reduced over these axes, one by one; nothing if that is too much (or nothing)."""
    sizes = [value.shape[a] for a in axes]
    if not 0 < math.prod(sizes) <= _MOST_TERMS:
        return []
    parts = [value]
    for axis in sorted(axes, reverse=True):
        parts = [lax.index_in_dim(p, i, axis, False) for p in parts for i in range(p.shape[axis])]
    return parts
