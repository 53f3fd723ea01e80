"""One number computed in two ways: the value of the accurate way, the derivative of the other."""

from typing import Any

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float


def with_derivative_of(value: Float[Array, "..."], smooth: Float[Array, "..."]) -> Array:
    """`value`, with the derivatives (of every order and in both modes) of `smooth`.

    The two are the same function of the same arguments. `value` is accurate but has no usable
    derivative (a triangularisation at a singular factor has none); `smooth` is differentiable but
    loses digits (a covariance recursion). Where nothing is differentiated `smooth` is dead code.

    A primitive and not a `jax.custom_jvp`: partial evaluation forgets a custom rule and would
    differentiate the body, so that forward over reverse mode through a scan came out wrong.
    """
    dtype = jnp.result_type(value, smooth)
    return _with_derivative_of.bind(jnp.asarray(value, dtype), jnp.asarray(smooth, dtype))


#: The values that a derivative needs of an accurate computation.
ACCURATE = "filterdyn.accurate"


def accurately(value: Float[Array, "..."], smooth: Float[Array, "..."]) -> Array:
    """`with_derivative_of`, its value being one that a reverse pass may keep instead of repeating the
    accurate computation."""
    return with_derivative_of(checkpoint_name(value, ACCURATE), smooth)


_with_derivative_of = Primitive("with_derivative_of")
_with_derivative_of.def_impl(lambda value, smooth: value)
_with_derivative_of.def_abstract_eval(lambda value, smooth: value)
mlir.register_lowering(_with_derivative_of, lambda context, value, smooth: [value])


def _jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    return _with_derivative_of.bind(*primals), tangents[1]


def _batch(args: Any, axes: Any) -> tuple[Any, int]:
    (size,) = {x.shape[a] for x, a in zip(args, axes, strict=True) if a is not None}
    moved = [
        jnp.broadcast_to(x, (size, *x.shape)) if a is None else jnp.moveaxis(x, a, 0)
        for x, a in zip(args, axes, strict=True)
    ]
    return _with_derivative_of.bind(*moved), 0


ad.primitive_jvps[_with_derivative_of] = _jvp
batching.primitive_batchers[_with_derivative_of] = _batch
