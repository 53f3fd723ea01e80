"""Do the innovations still know the inputs? Then the model makes too little, or too much, of them."""

from dataclasses import dataclass

import numpy as np

from filterdyn.diagnostics import chi_square
from filterdyn.diagnostics.residuals import (
    check_lags,
    check_one_series,
    check_result,
    scaled,
    sensor_names,
)
from filterdyn.filters import FilterResult
from filterdyn.series import Series


@dataclass(frozen=True)
class InputCorrelation:
    """Correlations of the innovations with inputs of the same row and of earlier ones.

    - `z_scores` (dy, du, lags + 1): standard normal if the model is right, NaN for an input that does
      not change;
    - `statistics`, `p_values`, `degrees_of_freedom` (dy,): of each sensor with all inputs at all lags;
    - `p_value`: the smallest of them times their number.
    """

    z_scores: np.ndarray
    statistics: np.ndarray
    p_values: np.ndarray
    degrees_of_freedom: np.ndarray
    p_value: float
    names: tuple[str, ...]
    input_names: tuple[str, ...]

    def __str__(self) -> str:
        lags = self.z_scores.shape[2] - 1
        lines = [f"correlation with inputs, lags 0 to {lags}: p = {self.p_value:.2g}"]
        for j, name in enumerate(self.names):
            line = f"  {name}: {self.statistics[j]:.1f} on {self.degrees_of_freedom[j]} degrees of freedom"
            scores = np.nan_to_num(np.abs(self.z_scores[j]), nan=-1.0)
            if scores.max() > 0:
                i, k = np.unravel_index(int(scores.argmax()), scores.shape)
                line += (
                    f", p = {self.p_values[j]:.2g}; strongest with input {self.input_names[int(i)]} at "
                    f"lag {k} ({self.z_scores[j, i, k]:+.1f} standard deviations)"
                )
            lines.append(line)
        return "\n".join(lines)


def input_correlation(
    result: FilterResult, series: Series, *, lags: int | None = None
) -> InputCorrelation:
    """Test that innovations do not depend on inputs.

    Inputs are known, so sums of (input - its mean) times innovation are Gaussian with a known
    covariance, exactly, if the model is right and its inputs are not made from its observations
    (no feedback).

    **Arguments:** `result` of `fd.filter` over `series`, which has inputs; `lags`: how many rows back,
    by default min(5, T / 10).

    **Raises:** `ValueError` for a series without inputs or of another length.
    """
    check_result("input_correlation", result)
    check_one_series("input_correlation", result)
    if series.inputs is None:
        raise ValueError("input_correlation: `series` has no inputs")
    z, u = scaled(result), np.asarray(series.inputs, float)
    rows, sensors, columns = len(u), z.shape[1], u.shape[1]
    if len(z) != rows:
        raise ValueError(f"input_correlation: `series` has {rows} rows but `result` has {len(z)}")
    lags = check_lags(
        "input_correlation", max(1, min(5, rows // 10)) if lags is None else lags, rows
    )
    past = np.full((rows, columns, lags + 1), np.nan)
    for k in range(lags + 1):
        past[k:, :, k] = u[: rows - k]
    design = past.reshape(rows, -1)
    scores = np.full((sensors, design.shape[1]), np.nan)
    statistics, dof = np.zeros(sensors), np.zeros(sensors, int)
    for j in range(sensors):
        use = ~np.isnan(z[:, j]) & ~np.isnan(design).any(1)
        if not use.any():
            continue
        x = design[use] - design[use].mean(0)
        size = np.sqrt((x * x).sum(0))
        moves = size > 1e-9 * (np.abs(design[use]).max(0) + 1e-300) * np.sqrt(use.sum())
        if not moves.any():
            continue
        x = x[:, moves] / size[moves]
        scores[j, moves] = x.T @ z[use, j]
        left, values, _ = np.linalg.svd(x, full_matrices=False)
        left = left[:, values > 1e-8 * values[0]]
        dof[j] = left.shape[1]
        statistics[j] = ((left.T @ z[use, j]) ** 2).sum()
    p_values = np.where(dof > 0, chi_square.survival(statistics, dof), 1.0)
    names = series.input_names
    return InputCorrelation(
        scores.reshape(sensors, columns, lags + 1),
        statistics,
        p_values,
        dof,
        float(min(1.0, p_values.min() * sensors)),
        sensor_names(result),
        tuple(repr(n) for n in names) if names else tuple(str(i) for i in range(columns)),
    )
