"""Products of small matrices, written so that XLA fuses them into the loop around them."""

import functools
import operator

import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

#: Up to this size a product is a multiply-and-sum (fused by XLA), above it a BLAS call.
SMALL = 16
#: Up to this many states a filter's step holds no LAPACK call and becomes one kernel.
FUSED = 12


def mm(a: Float[Array, "n k"], b: Float[Array, "k m"]) -> Float[Array, "n m"]:
    """Matrix times matrix."""
    if max(*a.shape, *b.shape) <= SMALL:
        return (a[:, :, None] * b[None, :, :]).sum(1)
    return jnp.matmul(a, b, precision=Precision.HIGHEST)


def mv(a: Float[Array, "n k"], x: Float[Array, " k"]) -> Float[Array, " n"]:
    """Matrix times vector."""
    if max(a.shape) <= SMALL:
        return (a * x).sum(1)
    return jnp.matmul(a, x, precision=Precision.HIGHEST)


def by_columns(a: Float[Array, "n k"], x: Float[Array, " k"]) -> Float[Array, " n"]:
    """Matrix times vector as a sum of columns: under `vmap` over many x XLA vectorises it along those,
    which it does not for a sum over an axis."""
    if max(a.shape) > SMALL:
        return mv(a, x)
    return functools.reduce(operator.add, [a[:, k] * x[k] for k in range(a.shape[1])])


def along(h: Float[Array, " n"], x: Float[Array, "n *S"]) -> Float[Array, "*S"]:
    """h^T x, for every column of x where there are several."""
    return ((h if x.ndim == 1 else h[:, None]) * x).sum(0)


def outer(gain: Float[Array, " n"], error: Float[Array, "*S"]) -> Float[Array, "n *S"]:
    """gain error, for every error where there are several."""
    return gain * error if error.ndim == 0 else gain[:, None] * error[None, :]


def times(a: Float[Array, "m n"], x: Float[Array, "n *S"]) -> Float[Array, "m *S"]:
    """A x, for every column of x where there are several."""
    if x.ndim == 1:
        return mv(a, x)
    if max(a.shape) <= SMALL:
        return (a[:, :, None] * x[None, :, :]).sum(1)
    return jnp.matmul(a, x, precision=Precision.HIGHEST)
