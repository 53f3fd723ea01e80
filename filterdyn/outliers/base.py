"""The protocol of an outlier rule: one scalar measurement."""

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

LOG_TWO_PI = math.log(2 * math.pi)


class ScalarUpdate(NamedTuple):
    """The posterior of z ~ N(0, s2) after a measurement error e = z + noise."""

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    #: log p(e).
    log_evidence: Float[Array, ""]
    #: How much of the measurement was believed: 1 as if the noise were Gaussian, 0 not at all.
    weight: Float[Array, ""]


class AbstractOutlierRule(eqx.Module):
    """How a scalar measurement enters whose noise may not be Gaussian.

    Measurements of a row with correlated noise are made independent first, and taken one after the
    other.
    """

    @abc.abstractmethod
    def __call__(
        self, error: Float[Array, ""], s2: Float[Array, ""], r: Float[Array, ""]
    ) -> ScalarUpdate:
        """`error`: the measurement less its prediction; `s2`: the predicted variance without noise,
        0 for a known state; `r` > 0: the nominal variance of the noise."""


def gaussian_update(error: Array, s2: Array, r: Array) -> ScalarUpdate:
    """Gaussian noise of variance r."""
    total = s2 + r
    log_evidence = -0.5 * (LOG_TWO_PI + jnp.log(total) + error * error / total)
    one = jnp.ones_like(total)
    return ScalarUpdate(s2 / total * error, s2 * r / total, log_evidence, one)


def believed(mean: Array, error: Array, s2: Array, r: Array) -> Array:
    """The gain that was used over that of Gaussian noise."""
    usual = s2 / (s2 + r) * error
    some = usual != 0
    return jnp.where(some, mean / jnp.where(some, usual, 1.0), 1.0)


def check_outliers(owner: str, rule: Any) -> AbstractOutlierRule | None:
    """**Raises:** `TypeError` for what is not an outlier rule."""
    if rule is not None and not isinstance(rule, AbstractOutlierRule):
        raise TypeError(
            f"{owner}: `outliers` is {getattr(rule, '__name__', type(rule).__name__)}; expected a rule "
            "such as fd.Gate() or fd.StudentTNoise(df=4)"
        )
    return rule
