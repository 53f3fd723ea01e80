"""Spread and skill: is an ensemble as wide as its mean is wrong?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from filterdyn.diagnostics.residuals import check_result
from filterdyn.filters import FilterResult


@dataclass(frozen=True)
class SpreadSkill:
    """Root mean squares over states and rows.

    - `spread`: the standard deviation that the filter reports, times sqrt((N + 1) / N) for N members,
      because the truth is like one more of them;
    - `skill`: the error of the mean; `ratio`: spread / skill, 1 if the filter is right, below 1 if it
      is too sure of itself;
    - `spreads`, `skills` (T,): row by row, NaN where the filter failed.
    """

    spread: float
    skill: float
    ratio: float
    spreads: np.ndarray
    skills: np.ndarray

    def __str__(self) -> str:
        verdict = "as wide as it is wrong"
        if self.ratio < 0.8:
            verdict = "too narrow: inflation or more members would help"
        elif self.ratio > 1.25:
            verdict = "too wide: less inflation would do"
        return (
            f"Spread and skill: spread {self.spread:.4g}, error {self.skill:.4g}, ratio "
            f"{self.ratio:.3f}; {verdict}"
        )


def spread_skill(result: FilterResult, states: Any, *, skip: int = 0) -> SpreadSkill:
    """The spread of an ensemble (or what any filter reports) against the error of its mean.

    **Arguments:** `result` of `fd.filter`; `states` (T, dx), the truth, such as `.states` of
    `fd.simulate`; `skip`: how many rows to leave out at the beginning.

    **Raises:** `ValueError` for states of another shape, and for a `skip` that leaves no row.

    Reference: Fortin et al. 2014, "Why should ensemble spread match the RMSE of the ensemble mean?".
    """
    check_result("spread_skill", result)
    mean = np.asarray(result.mean, float)
    variances = np.asarray(result.variances, float)
    states = np.asarray(states, float)
    if states.shape != mean.shape:
        raise ValueError(f"spread_skill: `states` has shape {states.shape}; expected {mean.shape}")
    if not 0 <= skip < len(mean):
        raise ValueError(f"spread_skill: `skip` is {skip}; expected 0 <= skip < {len(mean)} rows")
    size = getattr(result.filter, "size", None)
    one_more = 1.0 if size is None else (size + 1) / size
    squares = ((states - mean) ** 2).mean(-1)
    wide = one_more * variances.mean(-1)
    rows = ~np.isnan(squares[skip:])
    spread, skill = (float(np.sqrt(x[skip:][rows].mean())) for x in (wide, squares))
    ratio = spread / skill if skill > 0 else np.nan
    return SpreadSkill(spread, skill, ratio, np.sqrt(wide), np.sqrt(squares))
