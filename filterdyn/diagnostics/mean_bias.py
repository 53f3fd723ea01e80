"""Are the innovations zero on average?"""

from dataclasses import dataclass

import numpy as np

from filterdyn.diagnostics import chi_square
from filterdyn.diagnostics.residuals import (
    check_one_series,
    check_result,
    scaled,
    sensor_names,
    standardized,
)
from filterdyn.filters import FilterResult


@dataclass(frozen=True)
class MeanBias:
    """The mean of the innovations.

    - `means` (dy,): weighted by one over their standard deviations, in units of the measurement;
    - `z_scores`, `p_values` (dy,): of each sensor, exactly standard normal if the model is right;
    - `p_value`: of all sensors together (chi-square with one degree of freedom each).
    """

    means: np.ndarray
    z_scores: np.ndarray
    p_values: np.ndarray
    p_value: float
    names: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"mean of the innovations: p = {self.p_value:.2g} that all are zero"]
        for j, name in enumerate(self.names):
            lines.append(
                f"  {name}: {self.means[j]:+.3g} ({self.z_scores[j]:+.1f} standard deviations, "
                f"p = {self.p_values[j]:.2g})"
            )
        return "\n".join(lines)


def mean_bias(result: FilterResult) -> MeanBias:
    """Test that innovations have mean zero.

    A filter tracks what it can, so a biased sensor shows here as far as the dynamics and the other
    sensors contradict it.

    **Arguments:** `result` of `fd.filter`.
    """
    check_result("mean_bias", result)
    check_one_series("mean_bias", result)
    z = scaled(result)
    innovations = np.asarray(result.innovations, float)
    count = (~np.isnan(z)).sum(0)
    scores = np.nansum(z, axis=0) / np.sqrt(np.maximum(count, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = z / innovations
    weight = np.where(np.isfinite(weight), weight, 0.0)
    means = np.nansum(z, axis=0) / np.maximum(weight.sum(0), 1e-300)
    independent = standardized(result)
    each = np.nansum(independent, 0) / np.sqrt(np.maximum((~np.isnan(independent)).sum(0), 1))
    together = chi_square.survival((each**2).sum(), int((count > 0).sum()))
    return MeanBias(
        means,
        scores,
        chi_square.normal_two_sided(scores),
        float(together),
        sensor_names(result),
    )
