"""Are one-step predictions calibrated? PIT values, and how often intervals hold the measurement."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from filterdyn.diagnostics.residuals import check_level, check_result, standardized
from filterdyn.filters import FilterResult

_erfc = np.vectorize(math.erfc, otypes=[float])


@dataclass(frozen=True)
class PIT:
    """Probability integral transforms: where in its one-step prediction each measurement fell.

    - `values` (..., T, dy): independent and uniform on (0, 1) if the model is right, NaN where
      missing. Entry j is predicted from earlier rows and entries 0 .. j - 1 of its own row;
    - `statistic`, `p_value`: Kolmogorov-Smirnov, the largest distance between their distribution
      function and the uniform one.
    """

    values: np.ndarray
    statistic: float
    p_value: float

    def __str__(self) -> str:
        seen = self.values[~np.isnan(self.values)]
        shape = "uniform within chance"
        if self.p_value < 0.01:
            tails = np.mean((seen < 0.1) | (seen > 0.9))
            middle = float(seen.mean()) - 0.5
            if abs(middle) * math.sqrt(12 * len(seen)) > 4:
                shape = (
                    "measurements lie "
                    + ("above" if middle > 0 else "below")
                    + " what is predicted"
                )
            elif tails > 0.2:
                shape = "too many in the tails: predictions are too narrow"
            else:
                shape = "too few in the tails: predictions are too wide"
        return (
            f"PIT: Kolmogorov-Smirnov distance {self.statistic:.3f} over {len(seen)} measurements, "
            f"p = {self.p_value:.2g}; {shape}"
        )


def pit(result: FilterResult) -> PIT:
    """One-step predictive PIT values and a test that they are uniform.

    **Arguments:** `result` of `fd.filter` (or a batch of them).

    Reference: Dawid 1984; Diebold, Gunther, Tay 1998.
    """
    check_result("pit", result)
    z = standardized(result)
    values = np.where(np.isnan(z), np.nan, 0.5 * _erfc(-np.nan_to_num(z) / math.sqrt(2)))
    ordered = np.sort(values[~np.isnan(values)])
    n = len(ordered)
    if n == 0:
        return PIT(values, 0.0, 1.0)
    steps = np.arange(n + 1) / n
    distance = float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))
    return PIT(values, distance, _kolmogorov(distance, n))


def _kolmogorov(distance: float, n: int) -> float:
    """P(D > distance), with the correction of Stephens 1970 for finite n."""
    x = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    if x < 0.3:
        return 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, sum(terms)))


@dataclass(frozen=True)
class Coverage:
    """How often central one-step prediction intervals hold the measurement.

    - `probabilities`: what the intervals promise; `shares`: how often they keep it;
    - `counts`, `total`: how many measurements were inside, and how many there are;
    - `p_values`: two-sided, binomial, of each probability.
    """

    probabilities: tuple[float, ...]
    shares: tuple[float, ...]
    counts: tuple[int, ...]
    total: int
    p_values: tuple[float, ...]

    def __str__(self) -> str:
        parts = [
            f"{p:.0%} intervals hold {share:.1%} (p = {value:.2g})"
            for p, share, value in zip(self.probabilities, self.shares, self.p_values, strict=True)
        ]
        return f"coverage of {self.total} measurements: " + ", ".join(parts)


def coverage(result: FilterResult, probabilities: Sequence[float] = (0.5, 0.9)) -> Coverage:
    """Count how often central one-step prediction intervals hold the measurement.

    Each entry is predicted from earlier rows and the earlier entries of its row, so that the counts
    are binomial if the model is right.

    **Arguments:** `result` of `fd.filter` (or a batch of them); `probabilities` of the intervals.

    **Raises:** `ValueError` for a probability outside of (0, 1).
    """
    check_result("coverage", result)
    z = np.abs(standardized(result))
    z = z[~np.isnan(z)]
    counts, p_values = [], []
    for p in probabilities:
        check_level("coverage", "probabilities", p)
        counts.append(int((z <= NormalDist().inv_cdf(0.5 + 0.5 * p)).sum()))
        p_values.append(_binomial(counts[-1], len(z), p))
    return Coverage(
        tuple(probabilities),
        tuple(count / max(len(z), 1) for count in counts),
        tuple(counts),
        len(z),
        tuple(p_values),
    )


def _binomial(count: int, total: int, p: float) -> float:
    """Twice the smaller tail of a binomial count."""
    k = np.arange(total + 1)
    choose = np.concatenate([[0.0], np.cumsum(np.log((total - k[:-1]) / (k[:-1] + 1.0)))])
    mass = np.exp(choose + k * math.log(p) + (total - k) * math.log1p(-p))
    lower, upper = mass[: count + 1].sum(), mass[count:].sum()
    return float(min(1.0, 2 * min(lower, upper)))
