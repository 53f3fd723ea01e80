"""Exact diffuse conditioning: part of the covariance is infinite (Koopman, Durbin 2000).

P = P_star + kappa P_inf with kappa to infinity. A measurement that sees P_inf removes one of its
dimensions; its likelihood is that of Durbin and Koopman (2012, section 7.2).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from filterdyn.linalg.conditioned import Conditioned
from filterdyn.linalg.decorrelate import independent
from filterdyn.linalg.products import mm, mv
from filterdyn.linalg.psd import PSD, DiffusePart
from filterdyn.linalg.sequential import joseph, project, sweep
from filterdyn.linalg.surrogate import accurately
from filterdyn.linalg.triangularize import triangularize


class Measured(NamedTuple):
    """What `measure` gives; `shift` has a column for each column of the residuals."""

    shift: Float[Array, "dx k"]
    cov: PSD
    log_likelihood: Float[Array, ""]
    standardized: Float[Array, " dy"]
    singular: Bool[Array, ""]


def condition_diffusely(
    cov: PSD,
    h: Float[Array, "dy dx"],
    residual: Float[Array, " dy"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
) -> Conditioned:
    """`condition` while part of P is infinite. `standardized` is NaN where the prediction was
    infinitely uncertain."""
    found = measure(cov, h, residual[:, None], noise, observed)
    return Conditioned(
        found.shift[:, 0], found.cov, found.log_likelihood, found.standardized, found.singular
    )


def measure(
    cov: PSD,
    h: Float[Array, "dy dx"],
    residuals: Float[Array, "dy k"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
) -> Measured:
    """Conditioning for several residuals at once, one scalar measurement after the other."""
    h, residuals, noise = independent(h, residuals, noise, observed)
    n, k = h.shape[1], residuals.shape[1]
    sizes = stop_gradient(cov.standard_deviations())

    def scalar(carry: Any, row: Any) -> tuple[Any, Any]:
        return _scalar(carry, row, sizes)

    start = (jnp.zeros((n, k), cov.matrix.dtype), cov)
    (shift, cov), (terms, standardized, zeros) = jax.lax.scan(
        scalar, start, (h, residuals, noise, observed)
    )
    return Measured(shift, cov, terms.sum(), standardized, zeros.any())


def _scalar(carry: Any, row: Any, sizes: Float[Array, " n"]) -> tuple[Any, Any]:
    shift, cov = carry
    h, residual, r, observed = row
    infinite, finite = cov.diffuse, PSD(cov.factor, cov.matrix)
    eps = jnp.finfo(h.dtype).eps
    fixed_h, fixed_r = stop_gradient(h), stop_gradient(r)

    phi = (infinite.factor * fixed_h[:, None]).sum(0)
    swept_infinite, seen, f_value = sweep(infinite.factor, phi, jnp.zeros_like(r))
    reach = (jnp.abs(fixed_h) * infinite.standard_deviations()).sum()
    diffuse = observed & (f_value > (64 * eps * reach) ** 2)
    m = accurately(seen, mv(infinite.matrix, h))
    f = jnp.where(diffuse, accurately(f_value, (h * m).sum()), 1.0)

    ph, a, swept = project(finite, h, r)
    scale = (jnp.abs(fixed_h) * sizes).sum()
    zero = stop_gradient(a) <= jnp.where(fixed_r == 0, (16 * eps * scale) ** 2, 0.0)
    proper = observed & ~diffuse & ~zero
    a = jnp.where(proper, a, 1.0)

    gain = jnp.where(diffuse, m / f, jnp.where(proper, ph / a, 0.0))
    error = jnp.where(diffuse | proper, residual - (h[:, None] * shift).sum(0), 0.0)
    # Joseph's form holds for any gain, and so for both kinds of measurement.
    matrix = joseph(finite.matrix, gain, h, r)
    factor = finite.factor
    if factor is not None and swept is not None:
        fixed = stop_gradient(gain)
        kept = factor - fixed[:, None] * (fixed_h[:, None] * factor).sum(0)[None, :]
        wide = jnp.concatenate([kept, jnp.sqrt(fixed_r) * fixed[:, None]], axis=1)
        factor = jnp.where(diffuse, triangularize(wide), jnp.where(proper, swept, factor))
        matrix = accurately(mm(factor, factor.T), matrix)
    left = infinite.matrix - (m / f)[:, None] * m[None, :]
    factor_infinite = jnp.where(diffuse, swept_infinite, infinite.factor)
    left = jnp.where(diffuse, left, infinite.matrix)
    infinite = DiffusePart(
        factor_infinite,
        accurately(mm(factor_infinite, factor_infinite.T), left),
        infinite.marginal,
    )
    log_two_pi = math.log(2 * math.pi)
    vague = jnp.log(f) + (0.0 if infinite.marginal else log_two_pi)
    usual = jnp.log(a) + log_two_pi + error[0] * error[0] / a
    log_likelihood = -0.5 * jnp.where(diffuse, vague, jnp.where(proper, usual, 0.0))
    standardized = jnp.where(diffuse, jnp.nan, error[0] / jnp.sqrt(a))
    carry = (shift + gain[:, None] * error[None, :], PSD(factor, matrix, infinite))
    return carry, (log_likelihood, standardized, observed & ~diffuse & zero)
