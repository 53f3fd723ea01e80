"""Conditioning a Gaussian on scalar measurements whose noise is not Gaussian, matched by moments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from filterdyn.linalg.conditioned import Conditioned
from filterdyn.linalg.decorrelate import independent
from filterdyn.linalg.products import mm, mv
from filterdyn.linalg.psd import PSD
from filterdyn.linalg.sequential import joseph
from filterdyn.linalg.surrogate import accurately
from filterdyn.linalg.triangularize import triangularize


class Robustly(NamedTuple):
    """What was found, and how much of each measurement was believed."""

    found: Conditioned
    weights: Float[Array, " dy"]


def condition_robustly(
    cov: PSD,
    h: Float[Array, "dy dx"],
    residual: Float[Array, " dy"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
    rule: Callable[[Array, Array, Array], Any],
) -> Robustly:
    """`condition`, in which `rule(error, s2, r)` says what a measurement does to z = h x.

    Given z the rest of the state is as before: with K = P h / s2 the posterior covariance is
    (I - K h) P (I - K h)^T + K v K^T, v being the posterior variance of z (which noise with heavy tails
    may increase).
    """
    h, residuals, noise = independent(h, residual[:, None], noise, observed)
    residual = residuals[:, 0]

    if cov.diffuse is not None:
        raise ValueError(
            "a filter with an outlier rule needs a proper initial distribution; with fd.Diffuse there "
            "is nothing yet that a measurement could fit"
        )

    def scalar(carry: Any, row: Any) -> tuple[Any, Any]:
        shift, cov = carry
        h_i, residual_i, r_i, observed_i = row
        ph, s2 = _project(cov, h_i)
        some = s2 > 0
        singular = observed_i & (stop_gradient(s2 + r_i) <= 0)
        use = observed_i & ~singular
        error = jnp.where(use, residual_i - (h_i * shift).sum(), 0.0)
        r_safe = jnp.where(use & (r_i > 0), r_i, 1.0)
        update = rule(error, jnp.where(use, s2, 1.0), r_safe)
        # Noise of variance 0 has no tails: the measurement is exact.
        exact = r_i <= 0
        total = jnp.where(use, s2 + r_i, 1.0)
        log_normal = -0.5 * (jnp.log(2 * jnp.pi * total) + error * error / total)
        mean = jnp.where(exact, error, update.mean)
        variance = jnp.where(exact, 0.0, update.variance)
        log_evidence = jnp.where(use, jnp.where(exact, log_normal, update.log_evidence), 0.0)
        moved = use & some
        gain = jnp.where(moved, ph / jnp.where(some, s2, 1.0), 0.0)
        variance = jnp.where(moved, variance, 0.0)
        matrix = joseph(cov.matrix, gain, h_i, variance)
        if cov.factor is None:
            cov = PSD(None, matrix)
        else:
            fixed = stop_gradient(gain)
            kept = cov.factor - fixed[:, None] * (stop_gradient(h_i)[:, None] * cov.factor).sum(0)
            added = jnp.sqrt(stop_gradient(variance)) * fixed
            wide = jnp.concatenate([kept, added[:, None]], axis=1)
            factor = jnp.where(moved, triangularize(wide), cov.factor)
            cov = PSD(factor, accurately(mm(factor, factor.T), matrix))
        shift = shift + gain * jnp.where(moved, mean, 0.0)
        standardized = error / jnp.sqrt(total)
        weight = jnp.where(use, jnp.where(exact, 1.0, update.weight), jnp.nan)
        return (shift, cov), (log_evidence, standardized, singular, weight)

    start = (jnp.zeros(h.shape[1], cov.matrix.dtype), cov)
    (shift, cov), (terms, standardized, singular, weights) = jax.lax.scan(
        scalar, start, (h, residual, noise, observed)
    )
    found = Conditioned(shift, cov, terms.sum(), standardized, singular.any())
    return Robustly(found, weights)


def _project(cov: PSD, h: Float[Array, " n"]) -> tuple[Array, Array]:
    """P h and h^T P h."""
    ph = mv(cov.matrix, h)
    if cov.factor is None:
        return ph, (h * ph).sum()
    phi = (cov.factor * stop_gradient(h)[:, None]).sum(0)
    ph = accurately((cov.factor * phi).sum(1), ph)
    return ph, accurately((phi * phi).sum(), (h * ph).sum())
