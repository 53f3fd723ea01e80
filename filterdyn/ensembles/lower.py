"""Inverses of triangular matrices by small solves and products."""

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from filterdyn.ensembles.inverse_root import product

#: Up to this size LAPACK solves; above it starts threads, which cost more than they bring.
_LEAF = 32


def inverse_lower(root: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The inverse of a regular lower triangular matrix, by halves: that of [[A, 0], [B, C]] is
    [[A^-1, 0], [-C^-1 B A^-1, C^-1]]. Several times faster than one triangular solve on a CPU."""
    n = len(root)
    if n <= _LEAF:
        return solve_triangular(root, jnp.eye(n, dtype=root.dtype), lower=True)
    half = n // 2
    top = inverse_lower(root[:half, :half])
    bottom = inverse_lower(root[half:, half:])
    corner = -product(bottom, root[half:, :half], top)
    zero = jnp.zeros((half, n - half), root.dtype)
    return jnp.block([[top, zero], [corner, bottom]])
