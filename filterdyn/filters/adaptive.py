"""Noise that is learnt while filtering: factors on Q and on the variance of each sensor."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.linalg import PSD


class AdaptiveNoise(eqx.Module):
    """Factors on the process noise and on the noise of each sensor, learnt row by row.

    Recursive maximum likelihood (Ljung, Söderström 1983, section 3.4; LeGland, Mevel 1997): beside the
    belief the filter carries its exact derivative with respect to the logarithms of the factors (the
    tangent filter), which gives the score of every row; the factors move by the score over the forgetful
    sum of its outer products. Unlike matching the innovations' covariance alone this tells process noise
    from sensor noise. Factors are recorded in `FilterResult.noise_factors`, and follow noise that
    changes.
    """

    forgetting: float = eqx.field(static=True)
    weight: float = eqx.field(static=True)
    process: bool = eqx.field(static=True)
    sensors: bool = eqx.field(static=True)

    def __init__(
        self,
        forgetting: float = 0.99,
        *,
        weight: float = 10.0,
        process: bool = True,
        sensors: bool = True,
    ):
        """**Arguments:**

        - `forgetting` in (0, 1]: the past counts this much less with every row: about
          1 / (1 - forgetting) rows are remembered; 1 forgets nothing;
        - `weight` > 0: how many fully informative rows the nominal values (factors of 1) count for at the
          start;
        - `process`, `sensors`: what is adapted.

        **Raises:** `ValueError` for values outside these ranges.
        """
        if not 0 < forgetting <= 1:
            raise ValueError(f"AdaptiveNoise: `forgetting` is {forgetting!r}; expected 0 < f <= 1")
        if not 0 < weight < float("inf"):
            raise ValueError(f"AdaptiveNoise: `weight` is {weight!r}; expected a positive number")
        self.forgetting = float(forgetting)
        self.weight = float(weight)
        self.process = bool(process)
        self.sensors = bool(sensors)


#: No row moves the logarithm of a factor further than this.
_LARGEST_STEP = 0.25
#: The most that one row can say about the logarithm of a variance.
_MOST_INFORMATION = 0.5


class NoiseFactors(eqx.Module):
    """What is known of the noise: logarithms of the factors (that of the process first), the information
    behind them, and the derivatives of the belief's mean and covariance by each."""

    logs: Float[Array, "*T k"]
    information: Float[Array, "*T k k"]
    mean_slopes: Float[Array, "*T k dx"]
    cov_slopes: Float[Array, "*T k dx dx"]
    rule: AdaptiveNoise

    @staticmethod
    def start(rule: AdaptiveNoise, dx: int, dy: int, dtype: jnp.dtype) -> "NoiseFactors":
        """Factors of 1."""
        k = 1 + dy
        return NoiseFactors(
            jnp.zeros(k, dtype),
            rule.weight * _MOST_INFORMATION * jnp.eye(k, dtype=dtype),
            jnp.zeros((k, dx), dtype),
            jnp.zeros((k, dx, dx), dtype),
            rule,
        )

    @property
    def process(self) -> Float[Array, "*T"]:
        """The factor on the process noise covariance."""
        return jnp.exp(self.logs[..., 0])

    @property
    def sensors(self) -> Float[Array, "*T dy"]:
        """The factors on the sensors' noise variances."""
        return jnp.exp(self.logs[..., 1:])

    def of_process(self, noise: PSD) -> PSD:
        """The process noise as it is believed to be."""
        factor = None if noise.factor is None else noise.factor * jnp.sqrt(self.process)
        return PSD(factor, noise.matrix * self.process)

    def of_sensors(self, noise: Array) -> Array:
        """R, or its diagonal, as it is believed to be."""
        root = jnp.sqrt(self.sensors)
        return noise * (self.sensors if noise.ndim == 1 else root[:, None] * root[None, :])

    def slopes(self, function: Callable[..., Any], mean: Array, matrix: Array) -> Any:
        """Derivatives of `function(mean, matrix, logs)` along each of the logarithms."""

        def along(direction: Array, mean_slope: Array, cov_slope: Array) -> Any:
            tangents = (mean_slope, cov_slope, direction)
            return jax.jvp(function, (mean, matrix, self.logs), tangents)[1]

        directions = jnp.eye(len(self.logs), dtype=mean.dtype)
        return jax.vmap(along)(directions, self.mean_slopes, self.cov_slopes)

    def with_slopes(self, mean_slopes: Array, cov_slopes: Array) -> "NoiseFactors":
        """The same factors, for another belief."""
        return NoiseFactors(self.logs, self.information, mean_slopes, cov_slopes, self.rule)

    def learned(self, scores: Float[Array, " k"]) -> "NoiseFactors":
        """After a measurement whose log-likelihood has these derivatives."""
        rule, k = self.rule, len(scores)
        adapted = jnp.array([rule.process, *(rule.sensors for _ in range(k - 1))])
        scores = jnp.where(adapted & jnp.isfinite(scores), scores, 0.0)
        seen = (scores != 0).any()
        information = rule.forgetting * self.information + scores[:, None] * scores[None, :]
        step = jnp.clip(jnp.linalg.solve(information, scores), -_LARGEST_STEP, _LARGEST_STEP)
        return NoiseFactors(
            jnp.where(seen & adapted, self.logs + step, self.logs),
            jnp.where(seen, information, self.information),
            self.mean_slopes,
            self.cov_slopes,
            rule,
        )


def check_adaptive(owner: str, rule: Any) -> AdaptiveNoise | None:
    """**Raises:** `TypeError` for anything but an `AdaptiveNoise`."""
    if rule is not None and not isinstance(rule, AdaptiveNoise):
        raise TypeError(
            f"{owner}: `adaptive` is {getattr(rule, '__name__', type(rule).__name__)}; expected "
            "fd.AdaptiveNoise(...)"
        )
    return rule
