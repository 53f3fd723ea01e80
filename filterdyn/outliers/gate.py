"""A chi-square gate on the innovation."""

from statistics import NormalDist
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.outliers.base import AbstractOutlierRule, ScalarUpdate, gaussian_update


class Gate(AbstractOutlierRule):
    """Measurements whose squared standardised innovation is beyond the chi-square quantile are
    rejected, or their noise is inflated until they are just inside (Bar-Shalom et al. 2001, section
    5.4).

    Each entry of a row is gated by itself, given the entries before it, with one degree of freedom. A
    rejected entry changes no state; its log-likelihood stays the Gaussian one, so that no parameter
    gains by rejecting data.
    """

    threshold: float = eqx.field(static=True)
    action: Literal["reject", "inflate"] = eqx.field(static=True)

    def __init__(self, probability: float = 0.999, action: Literal["reject", "inflate"] = "reject"):
        """**Arguments:** `probability` that a good measurement passes; `action`: `"reject"` or
        `"inflate"`.

        **Raises:** `ValueError` unless 0 < `probability` < 1 and for another `action`.
        """
        if not 0 < probability < 1:
            raise ValueError(f"Gate: `probability` is {probability!r}; expected 0 < p < 1")
        if action not in ("reject", "inflate"):
            raise ValueError(f"Gate: `action` is {action!r}; expected 'reject' or 'inflate'")
        self.threshold = NormalDist().inv_cdf(0.5 + 0.5 * probability) ** 2
        self.action = action

    def __call__(
        self, error: Float[Array, ""], s2: Float[Array, ""], r: Float[Array, ""]
    ) -> ScalarUpdate:
        usual = gaussian_update(error, s2, r)
        outside = error * error > self.threshold * (s2 + r)
        if self.action == "reject":
            zero = jnp.zeros_like(s2)
            return ScalarUpdate(
                jnp.where(outside, zero, usual.mean),
                jnp.where(outside, s2, usual.variance),
                usual.log_evidence,
                jnp.where(outside, 0.0, 1.0).astype(s2.dtype),
            )
        inflated = jnp.where(outside, error * error / self.threshold - s2, r)
        moved = gaussian_update(error, s2, inflated)
        return moved._replace(weight=(s2 + r) / (s2 + inflated))
