"""Inflation: an ensemble that is too narrow is made wider."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from filterdyn._checks import is_traced


class AdaptiveInflation(eqx.Module):
    """A factor on the spread that is learnt from the innovations as the filter runs.

    With d the innovation, A the spread seen through the observation and R its noise, E d^T R^-1 d =
    alpha tr(R^-1 A A^T) + p for p entries; each row gives such an estimate of the variance factor
    alpha, whose own variance is known for Gaussians, and a scalar Kalman filter follows it
    (Miyoshi 2011, one factor for all states).
    """

    initial: Float[Array, ""]
    change: Float[Array, ""]
    lowest: Float[Array, ""]

    def __init__(self, initial: float = 1.0, *, change: float = 0.04, lowest: float = 1.0):
        """**Arguments:**

        - `initial` > 0: the first factor on the spread (a standard deviation, as `inflation`);
        - `change` >= 0: how far alpha may move from row to row, a standard deviation;
        - `lowest` > 0: the factor on the spread does not fall below this.

        **Raises:** `ValueError` for numbers out of these ranges.
        """
        for name, value, low in (
            ("initial", initial, 0.0),
            ("change", change, -1e-300),
            ("lowest", lowest, 0.0),
        ):
            if not is_traced(value) and not (np.isfinite(value) and value > low):
                raise ValueError(
                    f"AdaptiveInflation: `{name}` is {value}; expected a positive number"
                )
        self.initial = jnp.asarray(initial, float)
        self.change = jnp.asarray(change, float)
        self.lowest = jnp.asarray(lowest, float)

    def learned(
        self,
        factor: Float[Array, ""],
        innovation: Float[Array, " dy"],
        variances: Float[Array, " dy"],
        noise: Float[Array, " dy"],
        observed: Array,
    ) -> Float[Array, ""]:
        """The factor on the spread after a row, from the innovation, the variances of the predicted
        measurement (without the factor) and those of its noise."""
        use = observed & (noise > 0)
        safe = jnp.where(use, noise, 1.0)
        trace = jnp.where(use, variances / safe, 0.0).sum()
        count = use.sum()
        known = (count > 0) & (trace > 0)
        trace, count = jnp.where(known, trace, 1.0), jnp.where(known, count, 1)
        misfit = jnp.where(use, innovation**2 / safe, 0.0).sum()
        alpha = factor**2
        seen = (misfit - count) / trace
        uncertainty = 2.0 / count * ((alpha * trace + count) / trace) ** 2
        gain = self.change**2 / (self.change**2 + uncertainty)
        new = alpha + gain.astype(alpha.dtype) * (seen - alpha)
        lowest = (self.lowest**2).astype(alpha.dtype)
        return jnp.where(known, jnp.sqrt(jnp.maximum(new, lowest)), factor)


class Carried(NamedTuple):
    """What an ensemble Kalman filter carries beside the members."""

    #: The factor on the spread that is learnt.
    inflation: Float[Array, ""]
    #: Has the ensemble had a spread? One that starts from a known state has none yet.
    spread: Array


def relaxed(
    anomalies: Float[Array, "N dx"], before: Float[Array, " dx"], relaxation: Array | float
) -> Float[Array, "N dx"]:
    """Relaxation to the prior spread (Whitaker, Hamill 2012): each state's standard deviation is moved
    a share `relaxation` of the way back to its variance `before`."""
    after = (anomalies**2).sum(0) / (len(anomalies) - 1)
    both = (after > 0) & (before > 0)
    ratio = jnp.sqrt(jnp.where(both, before, 1.0) / jnp.where(both, after, 1.0))
    return anomalies * jnp.where(both, 1.0 + relaxation * (ratio - 1.0), 1.0)
