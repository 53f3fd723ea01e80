"""A failed step lets no derivative through: it stays in its own series."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad

from filterdyn.linalg.surrogate import ACCURATE

# A linearised step may apply `stop_gradient` to what is linear (jax-ml/jax#22011), and JAX cannot transpose
# it. Lineax can, but not everyone who filters has imported it.
ad.primitive_transposes.setdefault(jax.lax.stop_gradient_p, lambda cotangent, _: (cotangent,))


def gated(step: Callable[..., Any], ok: Callable[[Any], Any], *example: Any) -> Callable[..., Any]:
    """`step(*args)` whose derivatives, where `ok(output)` is False, are zero instead of NaN.

    A `where` around the output is not enough: below it a user's sqrt(a - x) has derivative NaN, and
    0 * NaN reaches the parameter `a`, which under `vmap` other series share. Here the tangents are
    masked on both sides of the linearised step. The mask on the inputs is, transposed, a mask on the
    cotangents that leave the step, those of everything `step` closes over included: closed-over
    arrays are made explicit arguments first. (By Equinox: `jax.closure_convert` leaves out what is
    not being differentiated, and the batched arrays of a `vmap` would leak.)
    """
    closed = eqx.filter_closure_convert(step, *example)
    captured, static = eqx.partition(closed, eqx.is_array)

    def explicit(args: Any, captured: Any) -> Any:
        return eqx.combine(captured, static)(*args)

    @jax.custom_jvp
    def run(args: Any, captured: Any) -> Any:
        output = explicit(args, captured)
        return _mapped_as(ok(output), output)

    @run.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        output, derivative = jax.linearize(explicit, *primals)
        fine = checkpoint_name(ok(output), ACCURATE)
        return _mapped_as(fine, output), _mask(derivative(*_mask(tangents, fine)), fine)

    return lambda *args: run(args, captured)


def _mapped_as(fine: Any, output: Any) -> Any:
    """`output`, mapped over wherever `fine` is. Tangents are, because of the mask, and under `vmap` JAX
    takes a value and its tangent for mapped alike."""
    return jax.tree.map(lambda x: jnp.where(fine, x, x), output)


def _is_float0(t: Any) -> bool:
    """The tangent of an integer. (That of a number may be a Python float.)"""
    return getattr(t, "dtype", None) == jax.dtypes.float0


def _mask(tangents: Any, fine: Any) -> Any:
    return jax.tree.map(
        lambda t: t if _is_float0(t) else jnp.where(fine, t, jnp.zeros_like(t)),
        tangents,
    )


def either(condition: Any, yes: Callable[..., Any], no: Callable[..., Any], *args: Any) -> Any:
    """`jax.lax.cond(condition, yes, no, *args)` whose derivative is that of the branch that was taken.

    Inside a gated step, differentiated after a `vmap`, JAX's own lets the other branch have a derivative
    too, with zeros in place of its intermediate values: 0 / 0 is NaN, which reaches what both share. So
    each branch has a conditional and a gate of its own.
    """
    return only_if(condition, yes, only_if(~jnp.asarray(condition), no, None, *args), *args)


def only_if(condition: Any, yes: Callable[..., Any], otherwise: Any, *args: Any) -> Any:
    """`yes(*args)` where the condition holds, and else `otherwise` (`None`: zeros), which costs nothing;
    with the derivative of the one that it is, as `either`."""
    condition = jnp.asarray(condition)
    found = jax.eval_shape(yes, *args)
    nothing = lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)
    taken = lambda condition, *args: (jax.lax.cond(condition, yes, nothing, *args), condition)
    value = gated(taken, lambda out: out[1], condition, *args)(condition, *args)[0]
    if otherwise is None:
        return value
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), value, otherwise)
