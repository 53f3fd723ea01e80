"""A square factor from a wide one: L L^T = A A^T."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.linalg.products import FUSED


def triangularize(a: Float[Array, "n k"]) -> Float[Array, "n n"]:
    """Lower triangular L with L L^T = A A^T, for any rank of A (zero rows included).

    Small matrices: modified Gram-Schmidt on the rows, whose triangular factor is as backward stable
    as Householder's (Björck, Paige 1992) and which needs no LAPACK call. Large ones: QR. In float32
    rows are scaled first, so that units cannot overflow a square (in float64 a square holds from
    1e-154 to 1e154). Value only: L has no derivative where A is
    rank deficient, so a caller pairs it with a differentiable covariance.
    """
    if a.dtype == jnp.float64:
        return _triangularize(a)
    largest = jnp.max(jnp.abs(a), axis=1, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0)
    return _triangularize(a * (1.0 / scale)) * scale


def _triangularize(rows: Float[Array, "n k"]) -> Float[Array, "n n"]:
    n = rows.shape[0]
    if n > FUSED:
        r = jnp.linalg.qr(rows.T, mode="r")
        padded = jnp.zeros((n, n), r.dtype).at[: r.shape[0]].set(r)
        return jnp.tril(padded.T * jnp.where(jnp.diagonal(padded) < 0, -1.0, 1.0))
    columns = []
    for j in range(n):
        row = rows[0]
        norm = jnp.sqrt((row * row).sum())
        direction = row * (1.0 / jnp.where(norm > 0, norm, 1.0))
        along = (rows[1:] * direction).sum(1)
        rows = rows[1:] - along[:, None] * direction
        columns.append(jnp.concatenate([jnp.zeros(j, rows.dtype), norm[None], along]))
    return jnp.stack(columns, axis=1)
