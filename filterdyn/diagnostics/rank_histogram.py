"""Rank histograms: is the truth like one more member of the ensemble?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from filterdyn.beliefs import Ensemble
from filterdyn.diagnostics import chi_square
from filterdyn.diagnostics.residuals import check_result
from filterdyn.filters import FilterResult


@dataclass(frozen=True)
class RankHistogram:
    """How many members lie below the truth, over states and rows.

    - `counts` (N + 1,): how often 0, 1, ..., N members lay below. Flat if the truth is like one more
      member; a U is an ensemble that is too narrow, a hump one that is too wide, a slope a bias;
    - `outside`: the share of truths outside of all members, 2 / (N + 1) if it is right;
    - `p_value`: chi-square, as if all ranks were independent. Neighbouring states and rows are not:
      thin them with `every`, and read a small value as a hint.
    """

    counts: np.ndarray
    outside: float
    p_value: float

    def __str__(self) -> str:
        expected = 2 / len(self.counts)
        shape = "flat within chance"
        if self.p_value < 0.01:
            low, high = self.counts[0] + self.counts[-1], self.counts.sum() * expected
            middle = np.arange(len(self.counts)) @ self.counts / self.counts.sum()
            lean = middle / (len(self.counts) - 1) - 0.5
            if abs(lean) > 0.1:
                shape = "the truth lies " + ("above" if lean > 0 else "below") + " the members"
            elif low > high:
                shape = "too often outside: the ensemble is too narrow"
            else:
                shape = "too seldom outside: the ensemble is too wide"
        return (
            f"Rank histogram: {self.outside:.1%} of truths outside of all members ({expected:.1%} "
            f"expected), p = {self.p_value:.2g}; {shape}"
        )


def rank_histogram(
    result: FilterResult, states: Any, *, skip: int = 0, every: int = 1, predicted: bool = False
) -> RankHistogram:
    """The rank of the truth among the members, state by state and row by row.

    **Arguments:** `result` of `fd.filter(..., history="beliefs")` with an ensemble filter; `states`
    (T, dx), the truth; `skip`: rows to leave out at the beginning; `every`: take one row in so many;
    `predicted`: the members before each measurement in place of those after it.

    **Raises:** `TypeError` for the result of another filter, `ValueError` for states of another shape.

    Reference: Hamill 2001, "Interpretation of rank histograms for verifying ensemble forecasts".
    """
    check_result("rank_histogram", result)
    belief = result.predicted if predicted else result.filtered
    if not isinstance(belief, Ensemble):
        raise TypeError(
            f"rank_histogram: `result` is of {type(result.filter).__name__}; expected one of an ensemble "
            "filter, whose members have equal weights"
        )
    members = np.asarray(belief.members, float)[skip::every]
    states = np.asarray(states, float)
    if states.shape != result.mean.shape:
        raise ValueError(
            f"rank_histogram: `states` has shape {states.shape}; expected {result.mean.shape}"
        )
    truth = states[skip::every]
    fine = np.isfinite(members).all((1, 2))
    ranks = (members[fine] < truth[fine][:, None, :]).sum(1)
    size = members.shape[1]
    counts = np.bincount(ranks.ravel(), minlength=size + 1)
    expected = counts.sum() / (size + 1)
    statistic = ((counts - expected) ** 2 / expected).sum() if expected > 0 else np.nan
    outside = float((counts[0] + counts[-1]) / max(counts.sum(), 1))
    return RankHistogram(counts, outside, float(chi_square.survival(statistic, size)))
