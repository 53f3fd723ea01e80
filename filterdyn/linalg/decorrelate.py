"""Measurements with correlated noise as measurements with independent noise."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

#: Up to this many measurements a loop over them is unrolled.
UNROLL = 8


def decorrelate(
    r: Float[Array, "dy dy"], rows: Float[Array, "dy k"], observed: Bool[Array, " dy"]
) -> tuple[Float[Array, "dy k"], Float[Array, " dy"]]:
    """Measurements with independent noise, U^-1 `rows`, and their variances d, where R = U diag(d) U^T
    with U unit lower triangular.

    Missing entries are decoupled first, so an observed entry is never mixed with a missing one; a zero
    pivot of a singular R eliminates nothing. A negative one (R is indefinite) becomes NaN.
    """
    dy = r.shape[0]
    r = 0.5 * (r + r.T)
    both = observed[:, None] & observed[None, :]
    rest = jnp.where(both | jnp.eye(dy, dtype=bool), r, 0.0)
    floor = dy * jnp.finfo(r.dtype).eps * jnp.abs(jnp.diagonal(stop_gradient(r)))

    def ratios(column: Array, pivot: Array, keep: Array) -> Array:
        return jnp.where(keep, column / jnp.where(keep, pivot, 1.0), 0.0)

    def variance(pivot: Array, floor: Array) -> Array:
        return jnp.where(pivot > floor, pivot, jnp.where(pivot < -1e3 * floor, jnp.nan, 0.0))

    if dy <= UNROLL:
        done, variances = [], []
        for j in range(dy):
            pivot, row = rest[0, 0], rows[0]
            keep = pivot > floor[j]
            lower = ratios(rest[1:, 0], pivot, keep)[:, None]
            rest = rest[1:, 1:] - lower * rest[None, 0, 1:]
            rows = rows[1:] - lower * row
            done.append(row)
            variances.append(variance(pivot, floor[j]))
        return jnp.stack(done), jnp.stack(variances)

    index = jnp.arange(dy)

    def eliminate(carry: tuple[Array, Array], j: Array) -> tuple[tuple[Array, Array], Array]:
        rest, rows = carry
        is_j = index == j
        column = jnp.where(is_j, rest, 0.0).sum(1)
        pivot = jnp.where(is_j, column, 0.0).sum()
        least = jnp.where(is_j, floor, 0.0).sum()
        keep = pivot > least
        lower = jnp.where(index > j, ratios(column, pivot, keep), 0.0)[:, None]
        row = jnp.where(is_j[:, None], rows, 0.0).sum(0)
        return (rest - lower * column, rows - lower * row), variance(pivot, least)

    (_, rows), pivots = jax.lax.scan(eliminate, (rest, rows), index)
    return rows, pivots


def independent(
    h: Float[Array, "dy dx"],
    residuals: Float[Array, "dy k"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
) -> tuple[Float[Array, "dy dx"], Float[Array, "dy k"], Float[Array, " dy"]]:
    """The measurements, their residuals and variances, made independent where `noise` is a matrix."""
    if noise.ndim == 1:
        return h, residuals, noise
    rows = jnp.concatenate([h, jnp.where(observed[:, None], residuals, 0.0)], axis=1)
    rows, variances = decorrelate(noise, rows, observed)
    return rows[:, : h.shape[1]], rows[:, h.shape[1] :], variances
