"""Conditioning a small Gaussian, one scalar measurement at a time."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from filterdyn.linalg.conditioned import Conditioned
from filterdyn.linalg.decorrelate import UNROLL, independent
from filterdyn.linalg.products import SMALL, mm, mv
from filterdyn.linalg.psd import PSD
from filterdyn.linalg.surrogate import ACCURATE, accurately


def condition_sequentially(
    cov: PSD,
    h: Float[Array, "dy dx"],
    residual: Float[Array, " dy"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
) -> Conditioned:
    """`condition` without a LAPACK call, so that XLA fuses it into the loop around it."""
    h, residuals, noise = independent(h, residual[:, None], noise, observed)
    residual = residuals[:, 0]
    sizes = stop_gradient(cov.standard_deviations())
    dtype = cov.matrix.dtype
    eps = jnp.finfo(dtype).eps
    log_two_pi = math.log(2 * math.pi)

    def scalar(carry: Any, row: Any) -> tuple[Any, tuple[Array, Array, Array]]:
        shift, cov = carry
        h_i, residual_i, r_i, observed_i = row
        ph, a, swept = project(cov, h_i, r_i)
        fixed_r, fixed_a = stop_gradient(r_i), stop_gradient(a)
        scale = (jnp.abs(stop_gradient(h_i)) * sizes).sum()
        zero = fixed_a <= jnp.where(fixed_r == 0, (16 * eps * scale) ** 2, 0.0)
        use = checkpoint_name(observed_i & ~zero, ACCURATE)
        a = jnp.where(use, a, 1.0)
        error = jnp.where(use, residual_i - (h_i * shift).sum(), 0.0)
        log_likelihood = jnp.where(use, -0.5 * (jnp.log(a) + log_two_pi + error * error / a), 0.0)
        gain = jnp.where(use, ph / a, 0.0)
        # Joseph's form: P - K (H P) would be lost to cancellation where r is far below H P H^T. In
        # square-root form only its derivative is used.
        left = cov.matrix - gain[:, None] * mv(cov.matrix, h_i)[None, :]
        matrix = left - mv(left, h_i)[:, None] * gain[None, :] + r_i * gain[:, None] * gain[None, :]
        if swept is None:
            cov = PSD(None, 0.5 * (matrix + matrix.T))
        else:
            factor = jnp.where(use, swept, cov.factor)
            cov = PSD(factor, accurately(mm(factor, factor.T), matrix))
        standardized = error / jnp.sqrt(a)
        return (shift + gain * error, cov), (log_likelihood, standardized, observed_i & zero)

    carry: Any = (jnp.zeros(h.shape[1], dtype), cov)
    measurements = (h, residual, noise, observed)
    dy = h.shape[0]
    if dy <= UNROLL:
        each = []
        for i in range(dy):
            carry, found = scalar(carry, tuple(x[i] for x in measurements))
            each.append(found)
        terms, standardized, zeros = (jnp.stack(x) for x in zip(*each, strict=True))
    else:
        carry, (terms, standardized, zeros) = jax.lax.scan(scalar, carry, measurements)
    shift, cov = carry
    return Conditioned(shift, cov, terms.sum(), standardized, zeros.any())


def project(
    cov: PSD, h: Float[Array, " n"], r: Float[Array, ""]
) -> tuple[Array, Array, Float[Array, "n n"] | None]:
    """P h, h^T P h + r and the factor after the measurement, if there is a factor."""
    ph = mv(cov.matrix, h)
    if cov.factor is None:
        return ph, (h * ph).sum() + r, None
    phi = (cov.factor * stop_gradient(h)[:, None]).sum(0)
    swept, ph_value, a_value = sweep(cov.factor, phi, stop_gradient(r))
    ph = accurately(ph_value, ph)
    return ph, accurately(a_value, (h * ph).sum() + r), swept


def sweep(
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
