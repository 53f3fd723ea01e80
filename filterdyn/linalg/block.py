"""Conditioning a large Gaussian on all measurements at once, by LAPACK."""

import math

import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from filterdyn.linalg.conditioned import Conditioned
from filterdyn.linalg.products import mm, mv
from filterdyn.linalg.psd import PSD, factor_of
from filterdyn.linalg.surrogate import with_derivative_of
from filterdyn.linalg.triangularize import triangularize


def condition_in_one(
    cov: PSD,
    h: Float[Array, "dy dx"],
    residual: Float[Array, " dy"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
) -> Conditioned:
    """`condition` by one triangularisation (square-root form) or one Cholesky factorisation
    (covariance form) of the innovation covariance.

    A missing entry is a measurement of nothing with noise one: it changes nothing.
    """
    eye = jnp.eye(h.shape[0], dtype=cov.matrix.dtype)
    both = observed[:, None] & observed[None, :]
    r = noise * eye if noise.ndim == 1 else 0.5 * (noise + noise.T)
    r = jnp.where(both, r, eye)
    h = jnp.where(observed[:, None], h, 0.0)
    residual = jnp.where(observed, residual, 0.0)
    form = _covariance_form if cov.factor is None else _square_root_form
    shift, after, whitened, minus_two, singular = form(cov, h, residual, r)
    count = observed.sum()
    log_likelihood = -0.5 * (minus_two + count * math.log(2 * math.pi))
    return Conditioned(shift, after, jnp.where(count > 0, log_likelihood, 0.0), whitened, singular)


def _covariance_form(
    cov: PSD, h: Float[Array, "dy dx"], residual: Float[Array, " dy"], r: Float[Array, "dy dy"]
) -> tuple[Array, PSD, Array, Array, Array]:
    cross = mm(cov.matrix, h.T)
    innovation_cov = mm(h, cross) + r
    eye = jnp.eye(h.shape[0], dtype=r.dtype)
    singular = jnp.isnan(jnp.linalg.cholesky(stop_gradient(innovation_cov))).any()
    singular = singular & jnp.isfinite(innovation_cov).all()
    root = jnp.linalg.cholesky(jnp.where(singular, eye, innovation_cov))
    whitened = solve_triangular(root, residual, lower=True)
    gain_root = solve_triangular(root, cross.T, lower=True).T
    gain = solve_triangular(root, gain_root.T, lower=True, trans=1).T
    keep = jnp.eye(h.shape[1], dtype=r.dtype) - mm(gain, h)
    joseph = mm(mm(keep, cov.matrix), keep.T) + mm(mm(gain, r), gain.T)
    minus_two = (whitened * whitened).sum() + 2 * jnp.log(jnp.diagonal(root)).sum()
    after = PSD(None, 0.5 * (joseph + joseph.T))
    return mv(gain_root, whitened), after, whitened, minus_two, singular


def _square_root_form(
    cov: PSD, h: Float[Array, "dy dx"], residual: Float[Array, " dy"], r: Float[Array, "dy dy"]
) -> tuple[Array, PSD, Array, Array, Array]:
    """[[H S, R^1/2], [S, 0]] is rotated to [[A, 0], [B, C]]: A A^T is the innovation covariance,
    B A^-1 the gain, C the factor of the posterior. Nothing is subtracted.

    The derivatives are those of the covariance form, written around E = A^-1 (H P H^T + R) A^-T - I,
    which is zero: (I + E)^-1 = I - E + E^2 and log det(I + E) = tr E - tr E^2 / 2 are right to second
    order.
    """
    assert cov.factor is not None
    dy = h.shape[0]
    fixed_h = stop_gradient(h)
    top = jnp.concatenate([mm(fixed_h, cov.factor), factor_of(stop_gradient(r))], axis=1)
    bottom = jnp.concatenate([cov.factor, jnp.zeros((len(cov.factor), dy), r.dtype)], axis=1)
    joint = triangularize(jnp.concatenate([top, bottom], axis=0))
    root, gain_root, factor = joint[:dy, :dy], joint[dy:, :dy], joint[dy:, dy:]
    pivots = jnp.diagonal(root)
    floor = 16 * jnp.finfo(r.dtype).eps * jnp.sqrt((root * root).sum(1))
    exact = jnp.diagonal(stop_gradient(r)) == 0
    zero = exact & (pivots <= floor)
    eye = jnp.eye(dy, dtype=r.dtype)
    inverse = solve_triangular(root + eye * jnp.where(zero, 1.0, 0.0), eye, lower=True)

    cross = mm(cov.matrix, h.T)
    e = mm(mm(inverse, mm(h, cross) + r), inverse.T) - eye
    white = mv(inverse, residual)
    bent = white - mv(e, white - mv(e, white))
    whitened_cross = mm(cross, inverse.T)
    shift = with_derivative_of(mv(gain_root, white), mv(whitened_cross, bent))
    quadratic = with_derivative_of((white * white).sum(), (white * bent).sum())
    log_det = with_derivative_of(
        2 * jnp.log(jnp.where(zero, 1.0, pivots)).sum(), jnp.trace(e) - 0.5 * (e * e.T).sum()
    )
    less = mm(mm(whitened_cross, eye - e + mm(e, e)), whitened_cross.T)
    after = PSD(factor, with_derivative_of(mm(factor, factor.T), cov.matrix - less))
    moved = solve_triangular(jnp.linalg.cholesky(eye + e), white, lower=True)
    whitened = with_derivative_of(white, moved)
    return shift, after, whitened, quadratic + log_det, zero.any()
