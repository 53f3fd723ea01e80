"""Normalised innovation squared: are the innovations as large as the filter says?"""

from dataclasses import dataclass

import numpy as np

from filterdyn.diagnostics import chi_square
from filterdyn.diagnostics.residuals import check_level, check_result, size_in_words
from filterdyn.filters import FilterResult


@dataclass(frozen=True)
class NIS:
    """v^T S^-1 v row by row: chi-square with one degree of freedom per observed entry if the model is
    right.

    - `values`, `degrees_of_freedom`, `lower`, `upper` (..., T): NaN, and 0 degrees, where a row is all
      missing;
    - `outside`: share of the observed rows outside their bounds (about 1 - `level` if the model is
      right);
    - `mean`: the sum of all over the sum of the degrees, 1 if the model is right; `mean_lower` and
      `mean_upper` bound it with probability `level`, exactly, because rows are independent;
    - `p_value`: two-sided, of the mean.
    """

    values: np.ndarray
    degrees_of_freedom: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    outside: float
    mean: float
    mean_lower: float
    mean_upper: float
    p_value: float
    level: float

    def __str__(self) -> str:
        verdict = size_in_words("innovations", self.mean, self.p_value, 1 - self.level)
        return (
            f"NIS: {self.mean:.3f} per degree of freedom ({self.level:.0%} bounds {self.mean_lower:.3f} to "
            f"{self.mean_upper:.3f}, p = {self.p_value:.2g}), {self.outside:.1%} of rows outside their "
            f"own bounds; {verdict}"
        )


def nis(result: FilterResult, *, level: float = 0.95) -> NIS:
    """The normalised innovation squared of every row, with its chi-square bounds.

    **Arguments:** `result` of `fd.filter` (or a batch of them); `level`: probability of the two-sided
    bounds.

    **Raises:** `TypeError` for another `result`, `ValueError` for a `level` outside of (0, 1).

    Reference: Bar-Shalom, Li, Kirubarajan 2001, section 5.4.
    """
    check_result("nis", result)
    check_level("nis", "level", level)
    seen = ~np.isnan(np.asarray(result.standardized_innovations))
    dof = seen.sum(-1)
    values = np.where(dof > 0, np.asarray(result.nis, float), np.nan)
    tail = 0.5 * (1 - level)
    bound = lambda p: np.where(dof > 0, chi_square.quantile(p, dof), np.nan)
    lower, upper = bound(tail), bound(1 - tail)
    judged = dof > 0
    outside = ((values < lower) | (values > upper))[judged]
    total = int(dof.sum())
    summed = float(np.nansum(values))
    over = max(total, 1)
    return NIS(
        values,
        dof,
        lower,
        upper,
        float(outside.mean()) if outside.size else 0.0,
        summed / over if total else np.nan,
        float(chi_square.quantile(tail, total)) / over,
        float(chi_square.quantile(1 - tail, total)) / over,
        float(chi_square.two_sided(summed, total)) if total else 1.0,
        level,
    )
