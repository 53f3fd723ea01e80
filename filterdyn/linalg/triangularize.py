"""A square factor from a wide one: L L^T = A A^T."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.linalg.products import FUSED


def triangularize(a: Float[Array, "n k"], rank_revealing: int = 0) -> Float[Array, "n n"]:
    """Lower triangular L with L L^T = A A^T, for any rank of A (zero rows included).

    Small matrices: modified Gram-Schmidt on the rows, whose triangular factor is as backward stable as
    Householder's (Björck, Paige 1992) and which needs no LAPACK call. Large ones: QR. In float32 rows
    are scaled first, so that units cannot overflow a square (in float64 a square holds from 1e-154 to
    1e154). Value only: L has no derivative where A is rank deficient, so a caller pairs it with a
    differentiable covariance.

    Of the first `rank_revealing` rows one that is a combination of those above it, to rounding, has an
    exactly zero column in L. Otherwise what rounding left of it is taken for a direction, which later
    rows then have a part in: harmless in L L^T, but not where columns of L are told apart. (Of the
    other rows only what is left at the level of single roundings is dropped: a compiler that computes
    it in two places gets two different numbers, of which one then divides the other.)
    """
    if a.dtype == jnp.float64:
        return _triangularize(a, rank_revealing)
    largest = jnp.max(jnp.abs(a), axis=1, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0)
    return _triangularize(a * (1.0 / scale), rank_revealing) * scale


def _triangularize(rows: Float[Array, "n k"], rank_revealing: int) -> Float[Array, "n n"]:
    n = rows.shape[0]
    floors = jnp.zeros(n, rows.dtype)
    if rank_revealing:
        roundings = jnp.where(jnp.arange(n) < rank_revealing, 20.0 * n, 4.0).astype(rows.dtype)
        floors = roundings * jnp.finfo(rows.dtype).eps * jnp.sqrt((rows * rows).sum(1))
    if n > FUSED:
        return _by_loop(rows, floors) if rank_revealing else _by_qr(rows)
    columns = []
    for j in range(n):
        row = rows[0]
        norm = jnp.sqrt((row * row).sum())
        norm = jnp.where(norm > floors[j], norm, 0.0) if rank_revealing else norm
        some = norm > 0
        direction = row * jnp.where(some, 1.0 / jnp.where(some, norm, 1.0), 0.0)
        along = (rows[1:] * direction).sum(1)
        rows = rows[1:] - along[:, None] * direction
        columns.append(jnp.concatenate([jnp.zeros(j, rows.dtype), norm[None], along]))
    return jnp.stack(columns, axis=1)


def _by_qr(rows: Float[Array, "n k"]) -> Float[Array, "n n"]:
    n = rows.shape[0]
    r = jnp.linalg.qr(rows.T, mode="r")
    padded = jnp.zeros((n, n), r.dtype).at[: r.shape[0]].set(r)
    return jnp.tril(padded.T * jnp.where(jnp.diagonal(padded) < 0, -1.0, 1.0))


def _by_loop(rows: Float[Array, "n k"], floors: Float[Array, " n"]) -> Float[Array, "n n"]:
    index = jnp.arange(rows.shape[0])

    def one(rows: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        j, floor = at
        row = rows[j]
        norm = jnp.sqrt((row * row).sum())
        some = norm > floor
        direction = row * jnp.where(some, 1.0 / jnp.where(some, norm, 1.0), 0.0)
        along = jnp.where(index > j, (rows * direction).sum(1), 0.0)
        column = jnp.where(index == j, jnp.where(some, norm, 0.0), along)
        return rows - along[:, None] * direction, column

    return jax.lax.scan(one, rows, (index, floors))[1].T
