"""The Cholesky factor of a belief's covariance, with its derivative and its generalised inverse."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from filterdyn.linalg.products import FUSED, mm
from filterdyn.linalg.psd import PSD
from filterdyn.linalg.surrogate import accurately


class Cholesky(NamedTuple):
    """P = S S^T with S lower triangular; a zero column where a state is a linear combination of the
    ones before it."""

    factor: Float[Array, "n n"]
    #: S^+, the inverse of S without the rows and columns of zero pivots. It carries no derivative.
    inverse: Float[Array, "n n"]


def cholesky(p: PSD) -> Cholesky:
    """S and S^+ of P, from the factor of P: no covariance is squared, and P may be singular.

    The derivative is that of Cholesky's factor, dS = S Phi(S^-1 dP S^-T) with Phi the lower triangle
    and half of the diagonal (Murray 2016), written as

        dS = dP S^+T - S Phi(X)^T,    X = S^+ dP S^+T,

    which at a singular P keeps the part of dP that turns its range. (A dP within the null space is
    where P leaves the boundary of the semi-definite matrices; S has no derivative there.) One such
    step is right to first order; the second step corrects what it left, so that second derivatives
    are right where P is regular.
    """
    s = _semidefinite(stop_gradient(p.root))
    inverse = _inverse(s)
    n = len(s)
    lower = jnp.tri(n, k=-1, dtype=s.dtype) + 0.5 * jnp.eye(n, dtype=s.dtype)
    smooth = s
    for _ in range(2):
        change = only_derivative(p.matrix - mm(smooth, smooth.T))
        half = mm(change, inverse.T)
        smooth = smooth + half - mm(s, (lower * mm(inverse, half)).T)
    return Cholesky(accurately(s, smooth), inverse)


def only_derivative(zero: Float[Array, "..."]) -> Array:
    """Something that is zero but for rounding, as zero with the same derivatives."""
    return zero - stop_gradient(zero)


def _semidefinite(rows: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """`triangularize` by modified Gram-Schmidt, in which a remainder at rounding level counts as
    zero: what is left of such a row has a direction that means nothing, and a later row that leans on
    it would make S^+ wrong."""
    if rows.dtype == jnp.float64:
        return _gram_schmidt(rows)
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0)
    return _gram_schmidt(rows * (1.0 / scale)) * scale


def _gram_schmidt(rows: Float[Array, "n n"]) -> Float[Array, "n n"]:
    n = rows.shape[0]
    floor = 32 * n * jnp.finfo(rows.dtype).eps * jnp.sqrt((rows * rows).sum(1))

    def pivot(row: Array, floor: Array) -> tuple[Array, Array]:
        norm = jnp.sqrt((row * row).sum())
        # (A NaN is kept.)
        dropped = norm <= floor
        norm = jnp.where(dropped, 0.0, norm)
        return norm, row * jnp.where(dropped, 0.0, 1.0 / jnp.where(dropped, 1.0, norm))

    if n <= FUSED:
        columns = []
        for j in range(n):
            norm, direction = pivot(rows[0], floor[j])
            along = (rows[1:] * direction).sum(1)
            rows = rows[1:] - along[:, None] * direction
            columns.append(jnp.concatenate([jnp.zeros(j, rows.dtype), norm[None], along]))
        return jnp.stack(columns, axis=1)

    index = jnp.arange(n)

    def eliminate(rows: Array, j: Array) -> tuple[Array, Array]:
        norm, direction = pivot(rows[j], floor[j])
        along = jnp.where(index > j, rows @ direction, 0.0)
        rest = rows - along[:, None] * direction
        return rest, jnp.where(index == j, norm, along)

    return jax.lax.scan(eliminate, rows, index)[1].T


def _inverse(s: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The inverse of a lower triangular S without the rows and columns of zero pivots."""
    n = s.shape[0]
    eye = jnp.eye(n, dtype=s.dtype)
    keep = (s * eye).sum(1) != 0
    both = keep[:, None] & keep[None, :]
    regular = jnp.where(both, s, 0.0) + eye * jnp.where(keep, 0.0, 1.0)
    if n > FUSED:
        return jnp.where(both, solve_triangular(regular, eye, lower=True), 0.0)
    rows: list[Array] = []
    for i in range(n):
        row = eye[i]
        for k in range(i):
            row = row - regular[i, k] * rows[k]
        rows.append(row / regular[i, i])
    return jnp.where(both, jnp.stack(rows), 0.0)
