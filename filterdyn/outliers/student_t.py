"""Student-t measurement noise."""

import math

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Array, Float

from filterdyn.outliers.base import LOG_TWO_PI, AbstractOutlierRule, ScalarUpdate, believed

#: Nodes of the trapezoidal rule in the logarithm of the precision.
_NODES = 96


class StudentTNoise(AbstractOutlierRule):
    """Measurement noise with Student's t distribution: scale sqrt(R), `df` degrees of freedom.

    t noise is Gaussian noise of random precision lambda ~ Gamma(df / 2, df / 2) (West 1987). Given
    lambda the update is Gaussian; mean, variance and evidence are integrated over lambda numerically
    (to about 1e-8), and the posterior is matched by its mean and variance. So one update is exact in
    its first two moments and in its likelihood, for an outlier of any size; over time it is assumed
    density filtering.
    """

    df: float = eqx.field(static=True)

    def __init__(self, df: float = 4.0):
        """**Arguments:** `df` > 0: 1 is Cauchy's distribution, infinity the normal one.

        **Raises:** `ValueError` unless it is positive and finite.
        """
        if not 0 < float(df) < float("inf"):
            raise ValueError(f"StudentTNoise: `df` is {df!r}; expected a positive number")
        self.df = float(df)

    def __call__(
        self, error: Float[Array, ""], s2: Float[Array, ""], r: Float[Array, ""]
    ) -> ScalarUpdate:
        nu = self.df
        square = error * error
        # From far below the precision that explains an outlier to far above any that the prior allows.
        lowest = jnp.log((nu + 1) / (nu + square / r)) - 64.0 / (nu + 1) - (128.0 / (nu + 1)) ** 0.5
        highest = math.log1p((70.0 + 12.0 * nu**0.5) / nu)
        step = (highest - lowest) / (_NODES - 1)
        x = lowest + step * jnp.arange(_NODES, dtype=error.dtype)
        precision = jnp.exp(x)
        noise = r / precision
        total = s2 + noise
        half = jnp.asarray(0.5 * nu, error.dtype)
        log_prior = half * jnp.log(half) - gammaln(half) + half * x - half * precision
        log_terms = log_prior - 0.5 * (LOG_TWO_PI + jnp.log(total) + square / total)
        log_evidence = logsumexp(log_terms) + jnp.log(step)
        weights = jnp.exp(log_terms - logsumexp(log_terms))
        means = s2 / total * error
        mean = (weights * means).sum()
        variance = (weights * (s2 * noise / total + (means - mean) ** 2)).sum()
        return ScalarUpdate(mean, variance, log_evidence, believed(mean, error, s2, r))
