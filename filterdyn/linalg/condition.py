"""Conditioning a Gaussian on noisy linear measurements, one scalar at a time, in square-root form."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from filterdyn.linalg.products import SMALL, mm, mv
from filterdyn.linalg.psd import PSD
from filterdyn.linalg.surrogate import ACCURATE, accurately

#: Up to this many measurements the loop over them is unrolled.
_UNROLL = 8


class Conditioned(NamedTuple):
    """What `condition` gives."""

    shift: Float[Array, " dx"]
    cov: PSD
    log_likelihood: Float[Array, ""]
    #: Innovations made independent and of variance one, 0 where there is none.
    standardized: Float[Array, " dy"]
    singular: Bool[Array, ""]


def _sweep(
    factor: Float[Array, "n n"], phi: Float[Array, " n"], r: Float[Array, ""]
) -> tuple[Float[Array, "n n"], Float[Array, " n"], Float[Array, ""]]:
    """Rotate the row (sqrt r, phi^T) of the pre-array [[sqrt r, phi^T], [0, S]] into its first entry.

    Returns S_plus, S phi and a = r + phi^T phi. These are n Givens rotations. After j of them the
    first column is e_j / sqrt(a_j), with a_j = r + phi_1^2 + .. + phi_j^2 and
    e_j = phi_1 S_1 + .. + phi_j S_j, so that column j of S becomes
    sqrt(a_{j-1} / a_j) S_j - phi_j e_{j-1} / sqrt(a_{j-1} a_j) (Carlson 1973). Unlike Potter's
    S - K phi^T / (1 + sqrt(r / a)) no digit cancels when r is far below phi^T phi, and r = 0 is exact.
    """
    n = factor.shape[1]
    if n > SMALL:
        squares, gains = jnp.cumsum(phi * phi), jnp.cumsum(factor * phi, axis=1)
    else:
        up_to = jnp.tri(n, dtype=factor.dtype)
        squares, gains = mv(up_to, phi * phi), mm(factor * phi, up_to.T)
    after = r + squares
    before = jnp.concatenate([r[None], after[:-1]])
    earlier = jnp.concatenate([jnp.zeros_like(gains[:, :1]), gains[:, :-1]], axis=1)
    keep, mix = _rotation(before, after, phi)
    return keep * factor - mix * earlier, gains[:, -1], after[-1]


def _rotation(before: Array, after: Array, phi: Array) -> tuple[Array, Array]:
    some = after > 0
    root = jnp.sqrt(jnp.where(some, after, 1.0))
    root_before = jnp.sqrt(before)
    keep = jnp.where(some, root_before / root, 1.0)
    mixed = some & (before > 0)
    mix = jnp.where(mixed, phi / (jnp.where(mixed, root_before, 1.0) * root), 0.0)
    return keep, mix


def _decorrelate(
    r: Float[Array, "dy dy"], rows: Float[Array, "dy k"], observed: Bool[Array, " dy"]
) -> tuple[Float[Array, "dy k"], Float[Array, " dy"]]:
    """Measurements with independent noise, U^-1 `rows`, and their variances d, where R = U diag(d) U^T
    with U unit lower triangular.

    Missing entries are decoupled first, so an observed entry is never mixed with a missing one; a zero
    pivot of a singular R eliminates nothing. A negative one (R is indefinite) becomes NaN.
    """
    dy = r.shape[0]
    both = observed[:, None] & observed[None, :]
    rest = jnp.where(both | jnp.eye(dy, dtype=bool), r, 0.0)
    floor = dy * jnp.finfo(r.dtype).eps * jnp.abs(jnp.diagonal(stop_gradient(r)))

    def ratios(column: Array, pivot: Array, keep: Array) -> Array:
        return jnp.where(keep, column / jnp.where(keep, pivot, 1.0), 0.0)

    def variance(pivot: Array, floor: Array) -> Array:
        return jnp.where(pivot > floor, pivot, jnp.where(pivot < -1e3 * floor, jnp.nan, 0.0))

    if dy <= _UNROLL:
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


def condition(
    cov: PSD,
    h: Float[Array, "dy dx"],
    residual: Float[Array, " dy"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
) -> Conditioned:
    """The posterior of x = m + delta, delta ~ N(0, P), given residual = H delta + v, v ~ N(0, R).

    `noise` is the diagonal of R or R itself (it may be singular). Entries with `observed` False change
    nothing and add exactly 0. `shift` is the posterior mean of delta: working with differences keeps
    the digits when m is large. `singular` says that an observed entry has predictive variance zero.
    `standardized` are the errors of each entry given the ones before it (and missing ones left out),
    over their standard deviations: L^-1 (innovation) with L the Cholesky factor of its covariance.
    """
    if noise.ndim == 2:
        rows = jnp.concatenate([h, jnp.where(observed, residual, 0.0)[:, None]], axis=1)
        rows, noise = _decorrelate(noise, rows, observed)
        h, residual = rows[:, :-1], rows[:, -1]
    sizes = stop_gradient(jnp.sqrt((cov.factor * cov.factor).sum(1)))
    dtype = cov.factor.dtype
    eps = jnp.finfo(dtype).eps
    log_two_pi = math.log(2 * math.pi)

    def scalar(carry: Any, row: Any) -> tuple[Any, tuple[Array, Array, Array]]:
        shift, factor, matrix = carry
        h_i, residual_i, r_i, observed_i = row
        fixed_h, fixed_r = stop_gradient(h_i), stop_gradient(r_i)
        phi = (factor * fixed_h[:, None]).sum(0)
        swept, gain_value, a_value = _sweep(factor, phi, fixed_r)
        ph = accurately(gain_value, mv(matrix, h_i))
        a = accurately(a_value, (h_i * ph).sum() + r_i)
        scale = (jnp.abs(fixed_h) * sizes).sum()
        zero = a_value <= jnp.where(fixed_r == 0, (16 * eps * scale) ** 2, 0.0)
        use = checkpoint_name(observed_i & ~zero, ACCURATE)
        a = jnp.where(use, a, 1.0)
        error = jnp.where(use, residual_i - (h_i * shift).sum(), 0.0)
        log_likelihood = jnp.where(use, -0.5 * (jnp.log(a) + log_two_pi + error * error / a), 0.0)
        gain = jnp.where(use, ph / a, 0.0)
        shift = shift + gain * error
        new_factor = jnp.where(use, swept, factor)
        # Joseph's form, of which only the derivative is used: in P - K (H P) it would be lost to
        # cancellation where r is far below H P H^T.
        left = matrix - gain[:, None] * mv(matrix, h_i)[None, :]
        smooth = left - mv(left, h_i)[:, None] * gain[None, :] + r_i * gain[:, None] * gain[None, :]
        new_matrix = accurately(mm(new_factor, new_factor.T), smooth)
        standardized = error / jnp.sqrt(a)
        return (shift, new_factor, new_matrix), (log_likelihood, standardized, observed_i & zero)

    carry: Any = (jnp.zeros(h.shape[1], dtype), cov.factor, cov.matrix)
    measurements = (h, residual, noise, observed)
    dy = h.shape[0]
    if dy <= _UNROLL:
        each = []
        for i in range(dy):
            carry, found = scalar(carry, tuple(x[i] for x in measurements))
            each.append(found)
        terms, standardized, zeros = (jnp.stack(x) for x in zip(*each, strict=True))
    else:
        carry, (terms, standardized, zeros) = jax.lax.scan(scalar, carry, measurements)
    shift, factor, matrix = carry
    return Conditioned(shift, PSD(factor, matrix), terms.sum(), standardized, zeros.any())
