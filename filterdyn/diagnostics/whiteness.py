"""Are the innovations independent from row to row? The portmanteau test of Ljung and Box."""

from dataclasses import dataclass

import numpy as np

from filterdyn.diagnostics import chi_square
from filterdyn.diagnostics.residuals import (
    check_lags,
    check_one_series,
    check_result,
    scaled,
    sensor_names,
    standardized,
)
from filterdyn.filters import FilterResult


@dataclass(frozen=True)
class Whiteness:
    """Autocorrelations of the innovations and their Ljung-Box statistics.

    - `autocorrelations` (lags, dy): of each sensor, at lags 1, 2, ... rows;
    - `statistics`, `p_values` (dy,): of each sensor, chi-square with `lags` degrees of freedom;
    - `statistic`, `p_value`, `degrees_of_freedom`: of all sensors together, the correlations between
      them included.
    """

    autocorrelations: np.ndarray
    statistics: np.ndarray
    p_values: np.ndarray
    statistic: float
    p_value: float
    degrees_of_freedom: int
    lags: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"whiteness (Ljung-Box, {self.lags} lags): all sensors together {self.statistic:.1f} on "
            f"{self.degrees_of_freedom} degrees of freedom, p = {self.p_value:.2g}"
        ]
        for j, name in enumerate(self.names):
            lines.append(
                f"  {name}: {self.statistics[j]:.1f}, p = {self.p_values[j]:.2g}, "
                f"autocorrelation at lag 1: {self.autocorrelations[0, j]:+.2f}"
            )
        return "\n".join(lines)


def whiteness(result: FilterResult, *, lags: int | None = None) -> Whiteness:
    """Test that innovations do not depend on earlier ones.

    With z the innovations of a sensor over their standard deviations, N of them, and n_k pairs that
    are k rows apart, r_k = (sum of z_t z_(t-k) / n_k) / (sum of z_t^2 / N), and the statistic is
    (N + 2) / N sum_k n_k r_k^2: the one of Ljung and Box where nothing is missing (then n_k = N - k).
    Innovations have mean zero by the model, so no mean is subtracted. For all sensors together, z are
    the standardised innovations and the sum runs over all pairs of sensors.

    **Arguments:** `result` of `fd.filter`; `lags`: how many, by default min(10, T / 5).

    **Raises:** `ValueError` for a number of lags that the series does not have.

    Reference: Ljung, Box 1978; for missing rows Stoffer, Toloi 1992; for several columns Hosking 1980.
    """
    check_result("whiteness", result)
    check_one_series("whiteness", result)
    rows = result.innovations.shape[0]
    lags = check_lags("whiteness", max(1, min(10, rows // 5)) if lags is None else lags, rows)
    z = scaled(result)
    terms = [_terms(z[:, [j]], lags) for j in range(z.shape[1])]
    correlations = np.stack([r[:, 0, 0] for r, _ in terms], axis=1)
    statistics = np.array([t.sum() for _, t in terms])
    together = float(_terms(standardized(result), lags)[1].sum())
    dof = lags * z.shape[1] ** 2
    return Whiteness(
        correlations,
        statistics,
        chi_square.survival(statistics, lags),
        together,
        float(chi_square.survival(together, dof)),
        dof,
        lags,
        sensor_names(result),
    )


def _terms(z: np.ndarray, lags: int) -> tuple[np.ndarray, np.ndarray]:
    """r_k and what each adds to the statistic, (lags, d, d)."""
    seen = ~np.isnan(z)
    z = np.where(seen, z, 0.0)
    count = seen.sum(0)
    mean_square = (z**2).sum(0) / np.maximum(count, 1)
    scale = np.sqrt(np.where(mean_square > 0, mean_square, 1.0))
    scale = scale[:, None] * scale
    pairs = np.sqrt(count[:, None] * count)
    correlations, terms = [], []
    for k in range(1, lags + 1):
        n = seen[k:].T.astype(float) @ seen[:-k]
        r = z[k:].T @ z[:-k] / np.maximum(n, 1) / scale
        correlations.append(r)
        terms.append((pairs + 2) / np.maximum(pairs, 1) * n * r**2)
    return np.stack(correlations), np.stack(terms)
