"""Conditioning a large Gaussian on all measurements at once, by LAPACK."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from filterdyn.linalg.conditioned import Conditioned
from filterdyn.linalg.products import mm, times
from filterdyn.linalg.psd import PSD, factor_of
from filterdyn.linalg.surrogate import with_derivative_of
from filterdyn.linalg.triangularize import triangularize


class Whitening(NamedTuple):
    """What measurements do to a covariance, all at once: values without a derivative, in which there
    are no data, so that rows which are alike share them."""

    #: A^-1, with A A^T the covariance of the innovation, and (gain) A.
    inverse: Float[Array, "dy dy"]
    gain_root: Float[Array, "dx dy"]
    #: The covariance afterwards, or its factor.
    carrier: Float[Array, "dx dx"]
    log_det: Float[Array, ""]
    singular: Bool[Array, ""]


def condition_in_one(
    cov: PSD,
    h: Float[Array, "dy dx"],
    residual: Float[Array, " dy"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
) -> Conditioned:
    """`condition` by one triangularisation (square-root form) or one Cholesky factorisation
    (covariance form) of the innovation covariance."""
    known = whiten(cov, h, noise, observed)
    return condition_whitened(known, cov, h, residual, noise, observed)


def whiten(
    cov: PSD,
    h: Float[Array, "dy dx"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
) -> Whitening:
    """The covariance's part of conditioning on measurements."""
    h, r = stop_gradient(_masked(h, noise, observed))
    if cov.factor is None:
        return _by_cholesky(stop_gradient(cov.matrix), h, r)
    return _by_triangularization(cov.factor, h, r)


def condition_whitened(
    known: Whitening,
    cov: PSD,
    h: Float[Array, "dy dx"],
    residual: Float[Array, "dy *S"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
) -> Conditioned:
    """Conditioning on measurements whose `whiten` is known. The residual may have a trailing axis:
    several series that share a covariance.

    The derivatives are those of the covariance form, written around E = A^-1 (H P H^T + R) A^-T - I,
    which is zero: (I + E)^-1 = I - E + E^2 and log det(I + E) = tr E - tr E^2 / 2 are right to second
    order.
    """
    h, r = _masked(h, noise, observed)
    residual = jnp.where(observed.reshape(-1, *[1] * (residual.ndim - 1)), residual, 0.0)
    eye = jnp.eye(len(h), dtype=r.dtype)
    cross = mm(cov.matrix, h.T)
    inverse = known.inverse
    e = mm(mm(inverse, mm(h, cross) + r), inverse.T) - eye
    white = times(inverse, residual)
    bent = white - times(e, white - times(e, white))
    whitened_cross = mm(cross, inverse.T)
    shift = with_derivative_of(times(known.gain_root, white), times(whitened_cross, bent))
    quadratic = with_derivative_of((white * white).sum(0), (white * bent).sum(0))
    log_det = with_derivative_of(known.log_det, jnp.trace(e) - 0.5 * (e * e.T).sum())
    less = mm(mm(whitened_cross, eye - e + mm(e, e)), whitened_cross.T)
    factor = None if cov.factor is None else known.carrier
    value = known.carrier if factor is None else mm(factor, factor.T)
    after = PSD(factor, with_derivative_of(value, cov.matrix - less))
    moved = solve_triangular(jnp.linalg.cholesky(eye + e), white, lower=True)
    count = observed.sum()
    log_likelihood = -0.5 * (quadratic + log_det + count * math.log(2 * math.pi))
    return Conditioned(
        shift,
        after,
        jnp.where(count > 0, log_likelihood, 0.0),
        with_derivative_of(white, moved),
        known.singular,
    )


def _masked(h: Array, noise: Array, observed: Array) -> tuple[Array, Array]:
    """A missing entry is a measurement of nothing with noise one: it changes nothing."""
    eye = jnp.eye(h.shape[0], dtype=h.dtype)
    r = noise * eye if noise.ndim == 1 else 0.5 * (noise + noise.T)
    both = observed[:, None] & observed[None, :]
    return jnp.where(observed[:, None], h, 0.0), jnp.where(both, r, eye)


def _by_cholesky(
    p: Float[Array, "dx dx"], h: Float[Array, "dy dx"], r: Float[Array, "dy dy"]
) -> Whitening:
    eye = jnp.eye(len(h), dtype=r.dtype)
    hp = mm(h, p)
    innovation_cov = mm(hp, h.T) + r
    found = jnp.linalg.cholesky(innovation_cov)
    singular = jnp.isnan(found).any() & jnp.isfinite(innovation_cov).all()
    root = jnp.where(singular, eye, found)
    inverse = solve_triangular(root, eye, lower=True)
    gain_root = mm(hp.T, inverse.T)
    gain = mm(gain_root, inverse)
    left = p - mm(gain, hp)
    joseph = left - mm(mm(left, h.T), gain.T) + mm(mm(gain, r), gain.T)
    log_det = 2 * jnp.log(jnp.diagonal(root)).sum()
    return Whitening(inverse, gain_root, 0.5 * (joseph + joseph.T), log_det, singular)


def _by_triangularization(
    factor: Float[Array, "dx dx"], h: Float[Array, "dy dx"], r: Float[Array, "dy dy"]
) -> Whitening:
    """[[H S, R^1/2], [S, 0]] is rotated to [[A, 0], [B, C]]: A A^T is the innovation covariance,
    B A^-1 the gain, C the factor of the posterior. Nothing is subtracted."""
    dy = h.shape[0]
    top = jnp.concatenate([mm(h, factor), factor_of(r)], axis=1)
    bottom = jnp.concatenate([factor, jnp.zeros((len(factor), dy), r.dtype)], axis=1)
    joint = triangularize(jnp.concatenate([top, bottom], axis=0))
    root, gain_root, after = joint[:dy, :dy], joint[dy:, :dy], joint[dy:, dy:]
    pivots = jnp.diagonal(root)
    floor = 16 * jnp.finfo(r.dtype).eps * jnp.sqrt((root * root).sum(1))
    zero = (jnp.diagonal(r) == 0) & (pivots <= floor)
    eye = jnp.eye(dy, dtype=r.dtype)
    inverse = solve_triangular(root + eye * jnp.where(zero, 1.0, 0.0), eye, lower=True)
    log_det = 2 * jnp.log(jnp.where(zero, 1.0, pivots)).sum()
    return Whitening(inverse, gain_root, after, log_det, zero.any())
