"""What a user's function computes from its own constants alone, computed once instead of in every row.

`MultivariateNormal(f(x), covariance_matrix=Q)` factors Q whenever it is made, and a filter makes it in
every row. XLA does not move that out of a loop.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import Literal

from filterdyn._callables import Held


class _Hoisted(eqx.Module):
    """The rest of a function whose constant part is done."""

    known: list[Any]
    rest: Callable[..., Any] = eqx.field(static=True)

    def __call__(self, *args: Any) -> Any:
        return self.rest(self.known, *args)


def hoisted(function: Held, *example: Any) -> Held:
    """`function`, traced for arguments like `example` (by which it must not decide anything). Where
    nothing is gained it is returned as it is."""
    flat, tree = jax.tree.flatten(example)
    output: list[Any] = []

    def flattened(*flat: Any) -> list[Any]:
        leaves, structure = jax.tree.flatten(function(*jax.tree.unflatten(tree, flat)))
        output.append(structure)
        return leaves if all(eqx.is_array_like(x) for x in leaves) else []

    closed = jax.make_jaxpr(flattened)(*flat)
    jaxpr = closed.jaxpr
    if len(jaxpr.outvars) < output[0].num_leaves:
        # A distribution that JAX cannot take apart.
        return function
    known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    later, gain = [], False
    for equation in jaxpr.eqns:
        inputs = [v for v in equation.invars if not isinstance(v, Literal)]
        if equation.effects or not inputs or any(v not in known for v in inputs):
            later.append(equation)
        else:
            _evaluate(equation, known)
            gain = gain or _is_costly(equation)
    if not gain:
        return function
    needed = {v for e in later for v in e.invars if not isinstance(v, Literal)}
    needed |= {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    names = [v for v in known if v in needed]

    def rest(values: list[Any], *args: Any) -> Any:
        env = dict(zip(names, values, strict=True))
        leaves = jax.tree.leaves(args)
        env.update(zip(jaxpr.invars, leaves, strict=True))
        for equation in later:
            _evaluate(equation, env)
        read = lambda v: v.val if isinstance(v, Literal) else env[v]
        return jax.tree.unflatten(output[0], [read(v) for v in jaxpr.outvars])

    return Held(_Hoisted([known[v] for v in names], rest))


def _evaluate(equation: Any, env: dict[Any, Any]) -> None:
    values = [v.val if isinstance(v, Literal) else env[v] for v in equation.invars]
    params = equation.primitive.get_bind_params(equation.params)
    with equation.ctx.manager:
        out = equation.primitive.bind(*values, **params)
    several = equation.primitive.multiple_results
    env.update(zip(equation.outvars, out if several else [out], strict=True))


def _is_costly(equation: Any) -> bool:
    """Worth a second way through the function: a factorisation, or a call that may hold one."""
    cheap = ("broadcast_in_dim", "convert_element_type", "reshape", "slice", "squeeze", "transpose")
    return equation.primitive.name not in cheap
