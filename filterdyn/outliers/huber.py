"""Noise with Huber's density: normal in the middle, exponential in the tails."""

import math

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, logsumexp
from jaxtyping import Array, Float

from filterdyn.outliers.base import LOG_TWO_PI, AbstractOutlierRule, ScalarUpdate, believed

#: Terms of a continued fraction that has converged beyond 5 standard deviations.
_FRACTION = 40


class HuberNoise(AbstractOutlierRule):
    """Measurement noise with Huber's (1964) least favourable density: normal up to `threshold` standard
    deviations, exponential beyond.

    Under it the posterior is a mixture of three truncated normal distributions, whose mean, variance
    and evidence are known in closed form; it is matched by the first two. The influence of an outlier
    is bounded, but unlike that of `StudentTNoise` it does not fall back to zero.
    """

    threshold: float = eqx.field(static=True)

    def __init__(self, threshold: float = 1.345):
        """**Arguments:** `threshold` > 0, in standard deviations; 1.345 keeps 95 % of the efficiency
        under normal noise.

        **Raises:** `ValueError` unless it is positive and finite.
        """
        if not 0 < float(threshold) < float("inf"):
            raise ValueError(
                f"HuberNoise: `threshold` is {threshold!r}; expected a positive number"
            )
        self.threshold = float(threshold)

    def __call__(
        self, error: Float[Array, ""], s2: Float[Array, ""], r: Float[Array, ""]
    ) -> ScalarUpdate:
        k, sigma = self.threshold, jnp.sqrt(r)
        normal_mass = math.sqrt(2 * math.pi) * math.erf(k / math.sqrt(2))
        log_constant = -math.log(normal_mass + 2 * math.exp(-0.5 * k * k) / k) - jnp.log(sigma)
        # With a known state (s2 = 0) the limit of a very small variance is taken.
        prior = jnp.maximum(s2, (1e3 * jnp.finfo(r.dtype).eps) ** 2 * r)
        sd = jnp.sqrt(prior)
        lower, upper = error - k * sigma, error + k * sigma

        total = prior + r
        mean, variance = prior / total * error, prior * r / total
        log_middle = 0.5 * (LOG_TWO_PI + jnp.log(r)) - 0.5 * (
            LOG_TWO_PI + jnp.log(total) + error * error / total
        )
        slope = k / sigma
        tilt = 0.5 * k * k + 0.5 * slope * slope * prior
        parts = (
            _between(mean, jnp.sqrt(variance), lower, upper, log_middle),
            _below(slope * prior, sd, lower, tilt - slope * error),
            _mirrored(_below(slope * prior, sd, -upper, tilt + slope * error)),
        )
        log_masses, means, variances = (jnp.stack(x) for x in zip(*parts, strict=True))
        log_total = logsumexp(log_masses)
        weights = jnp.exp(log_masses - log_total)
        mean = (weights * means).sum()
        variance = (weights * (variances + (means - mean) ** 2)).sum()
        mean = jnp.where(s2 > 0, mean, 0.0)
        variance = jnp.where(s2 > 0, variance, 0.0)
        weight = believed(mean, error, s2, r)
        return ScalarUpdate(mean, variance, log_total + log_constant, weight)


def _below(mean: Array, sd: Array, end: Array, log_scale: Array) -> tuple[Array, Array, Array]:
    """Log mass, mean and variance of N(mean, sd^2) below `end`, its density scaled."""
    b = (end - mean) / sd
    log_mass = log_ndtr(b)
    hazard = _hazard(b, log_mass)
    shrink = jnp.clip(1.0 - b * hazard - hazard * hazard, 0.0, 1.0)
    return log_scale + log_mass, mean - sd * hazard, sd * sd * shrink


def _hazard(b: Array, log_mass: Array) -> Array:
    """The normal density at b over the mass below it; far out by Laplace's continued fraction, because
    `log_ndtr` has nine digits there."""
    far = b < -5.0
    x = jnp.where(far, -b, 5.0)
    tail = x
    for k in range(_FRACTION, 0, -1):
        tail = x + k / tail
    return jnp.where(far, tail, jnp.exp(-0.5 * (LOG_TWO_PI + b * b) - log_mass))


def _mirrored(part: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    log_mass, mean, variance = part
    return log_mass, -mean, variance


def _between(
    mean: Array, sd: Array, lower: Array, upper: Array, log_scale: Array
) -> tuple[Array, Array, Array]:
    """Log mass, mean and variance of N(mean, sd^2) between two ends."""
    a, b = (lower - mean) / sd, (upper - mean) / sd
    # On the side of the mean where both tails are small, so that their difference keeps its digits.
    flip = a + b > 0
    low, high = jnp.where(flip, -b, a), jnp.where(flip, -a, b)
    log_high, log_low = log_ndtr(high), log_ndtr(low)
    log_mass = log_high + jnp.log1p(-jnp.exp(jnp.minimum(log_low - log_high, -1e-300)))
    at_low = jnp.exp(-0.5 * (LOG_TWO_PI + low * low) - log_mass)
    at_high = jnp.exp(-0.5 * (LOG_TWO_PI + high * high) - log_mass)
    shift = at_low - at_high
    spread = 1.0 + low * at_low - high * at_high - shift * shift
    centre = jnp.where(flip, -shift, shift)
    return log_scale + log_mass, mean + sd * centre, sd * sd * jnp.clip(spread, 0.0, 1.0)
