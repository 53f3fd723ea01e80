"""Products of small matrices, written so that XLA fuses them into the loop around them."""

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
