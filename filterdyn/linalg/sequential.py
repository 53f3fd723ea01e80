"""Conditioning a small Gaussian, one scalar measurement at a time."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from filterdyn.linalg.conditioned import Conditioned
from filterdyn.linalg.decorrelate import UNROLL, independent
from filterdyn.linalg.products import SMALL, along, mm, mv, outer
from filterdyn.linalg.psd import PSD
from filterdyn.linalg.surrogate import ACCURATE, accurately


class Sweeps(NamedTuple):
    """What scalar measurements do to a covariance, one after the other: values without a derivative,
    in which there are no data, so that rows which are alike share them. Leading axes dy."""

    #: The covariance, or its factor, after each measurement.
    carriers: Float[Array, "dy n n"]
    ph: Float[Array, "dy n"]
    #: 1 / (h^T P h + r), and log (h^T P h + r).
    precisions: Float[Array, " dy"]
    log_variances: Float[Array, " dy"]
    #: Is the measurement used? Is its predictive variance zero though it was observed?
    use: Bool[Array, " dy"]
    zero: Bool[Array, " dy"]

    @property
    def carrier(self) -> Float[Array, "n n"]:
        """The covariance, or its factor, at the end."""
        return self.carriers[-1]

    @property
    def singular(self) -> Bool[Array, ""]:
        return self.zero.any()


def condition_sequentially(
    cov: PSD,
    h: Float[Array, "dy dx"],
    residual: Float[Array, " dy"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
) -> Conditioned:
    """`condition` without a LAPACK call, so that XLA fuses it into the loop around it."""
    h, residuals, noise = independent(h, residual[:, None], noise, observed)
    swept = sweeps(cov, h, noise, observed)
    return condition_by(swept, cov, h, residuals[:, 0], noise)


def sweeps(
    cov: PSD,
    h: Float[Array, "dy dx"],
    noise: Float[Array, " dy"],
    observed: Bool[Array, " dy"],
) -> Sweeps:
    """The covariance's part of conditioning on measurements with independent noise."""
    h, noise = stop_gradient((h, noise))
    square_root = cov.factor is not None
    sizes = stop_gradient(cov.standard_deviations())
    eps = jnp.finfo(h.dtype).eps

    def scalar(carrier: Array, row: Any) -> tuple[Array, Sweeps]:
        h_i, r_i, observed_i = row
        if square_root:
            phi = (carrier * h_i[:, None]).sum(0)
            after, ph, a = sweep(carrier, phi, r_i)
        else:
            ph = mv(carrier, h_i)
            a = (h_i * ph).sum() + r_i
        scale = (jnp.abs(h_i) * sizes).sum()
        zero = a <= jnp.where(r_i == 0, (16 * eps * scale) ** 2, 0.0)
        use = observed_i & ~zero
        a = jnp.where(use, a, 1.0)
        if not square_root:
            after = joseph(carrier, jnp.where(use, ph / a, 0.0), h_i, r_i)
        carrier = jnp.where(use, after, carrier)
        return carrier, Sweeps(carrier, ph, 1.0 / a, jnp.log(a), use, observed_i & zero)

    return _one_by_one(scalar, stop_gradient(cov.carrier), (h, noise, observed))[1]


def condition_by(
    swept: Sweeps,
    cov: PSD,
    h: Float[Array, "dy dx"],
    residual: Float[Array, "dy *S"],
    noise: Float[Array, " dy"],
) -> Conditioned:
    """Conditioning on measurements with independent noise whose `sweeps` are known. The residual may
    have a trailing axis: several series that share a covariance."""
    square_root = cov.factor is not None
    log_two_pi = math.log(2 * math.pi)

    def scalar(carry: Any, row: Any) -> tuple[Any, Any]:
        shift, matrix = carry
        h_i, residual_i, r_i, known = row
        use = checkpoint_name(known.use, ACCURATE)
        ph = mv(matrix, h_i)
        a = jnp.where(use, (h_i * ph).sum() + r_i, 1.0)
        ph = accurately(known.ph, ph)
        precision = accurately(known.precisions, 1.0 / a)
        log_variance = accurately(known.log_variances, jnp.log(a))
        error = jnp.where(use, residual_i - along(h_i, shift), 0.0)
        gain = jnp.where(use, ph * precision, 0.0)
        terms = log_variance + log_two_pi + error * error * precision
        carrier = known.carriers
        value = mm(carrier, carrier.T) if square_root else carrier
        matrix = accurately(value, joseph(matrix, gain, h_i, r_i))
        standardized = error * jnp.sqrt(precision)
        return (shift + outer(gain, error), matrix), (jnp.where(use, terms, 0.0), standardized)

    shift = jnp.zeros((h.shape[1], *residual.shape[1:]), h.dtype)
    rows = (h, residual, noise, swept)
    (shift, matrix), (terms, standardized) = _one_by_one(scalar, (shift, cov.matrix), rows)
    factor = swept.carrier if square_root else None
    after = PSD(factor, matrix)
    return Conditioned(shift, after, -0.5 * terms.sum(0), standardized, swept.singular)


def joseph(
    matrix: Float[Array, "n n"],
    gain: Float[Array, " n"],
    h: Float[Array, " n"],
    r: Float[Array, ""],
) -> Float[Array, "n n"]:
    """(I - K h^T) P (I - K h^T)^T + K r K^T. P - K (h^T P) would be lost to cancellation where r is far
    below h^T P h. In square-root form only its derivative is used."""
    left = matrix - gain[:, None] * mv(matrix, h)[None, :]
    after = left - mv(left, h)[:, None] * gain[None, :] + r * gain[:, None] * gain[None, :]
    return 0.5 * (after + after.T)


def _one_by_one(scalar: Any, carry: Any, rows: Any) -> tuple[Any, Any]:
    """`jax.lax.scan`, unrolled where there are few rows."""
    count = len(jax.tree.leaves(rows)[0])
    if count > UNROLL:
        return jax.lax.scan(scalar, carry, rows)
    each = []
    for i in range(count):
        carry, found = scalar(carry, jax.tree.map(lambda x, i=i: x[i], rows))
        each.append(found)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *each)


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
