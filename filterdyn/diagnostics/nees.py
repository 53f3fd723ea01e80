"""Normalised estimation error squared: are the errors as large as the filter says?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from filterdyn.diagnostics import chi_square
from filterdyn.diagnostics.residuals import check_level, check_result, size_in_words
from filterdyn.filters import FilterResult


@dataclass(frozen=True)
class NEES:
    """(x - m)^T P^-1 (x - m) row by row: chi-square with rank(P) degrees of freedom if the model is
    right.

    - `values`, `degrees_of_freedom`, `lower`, `upper` (..., T): where P is singular, on its range only;
    - `outside`: share of rows outside their bounds (about 1 - `level`);
    - `mean` per degree of freedom, 1 if the model is right, `mean_lower`, `mean_upper` and `p_value`:
      estimation errors of one series depend on each other, so the bounds are widened to the
      `effective_rows` that the correlation of the errors leaves (an estimate; exact where every
      series of a batch has one row);
    - `singular_rows`: in how many rows P was singular;
    - `off_range`: the largest error in a direction in which P says there is none (0 if all P are
      regular), in units of the state.
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
    effective_rows: float
    singular_rows: int
    off_range: float
    level: float

    def __str__(self) -> str:
        verdict = size_in_words("errors", self.mean, self.p_value, 1 - self.level)
        text = (
            f"NEES: {self.mean:.3f} per degree of freedom ({self.level:.0%} bounds {self.mean_lower:.3f} "
            f"to {self.mean_upper:.3f} for about {self.effective_rows:.0f} independent rows, "
            f"p = {self.p_value:.2g}), {self.outside:.1%} of rows outside their own bounds; {verdict}"
        )
        if self.singular_rows:
            text += (
                f"\n{self.singular_rows} rows have a singular covariance and are judged on its range "
                f"only; the largest error outside of it is {self.off_range:.3g}"
            )
        return text


def nees(result: FilterResult, states: Any, *, level: float = 0.95) -> NEES:
    """The normalised estimation error squared of every row, given the true states.

    **Arguments:** `result` of `fd.filter`; `states` (T, dx), the truth, such as `.states` of
    `fd.simulate`; a batch of both has leading axes. `level`: probability of the two-sided bounds.

    **Raises:** `ValueError` for states of another shape.

    Reference: Bar-Shalom, Li, Kirubarajan 2001, section 5.4.
    """
    check_result("nees", result)
    check_level("nees", "level", level)
    mean, cov = np.asarray(result.mean, float), np.asarray(result.cov, float)
    states = np.asarray(states, float)
    if states.shape != mean.shape:
        raise ValueError(f"nees: `states` has shape {states.shape}; expected {mean.shape}")
    error = states - mean
    broken = ~(np.isfinite(cov).all((-2, -1)) & np.isfinite(error).all(-1))
    cov = np.where(broken[..., None, None], 0.0, cov)
    error = np.where(broken[..., None], 0.0, error)
    # Of each variable in units of its own standard deviation, so that units do not decide on rank.
    sd = np.sqrt(np.maximum(np.diagonal(cov, axis1=-2, axis2=-1), 0))
    unit = np.where(sd > 0, sd, 1.0)
    size, axes = np.linalg.eigh(cov / (unit[..., :, None] * unit[..., None, :]))
    eps = float(np.finfo(np.asarray(result.cov).dtype).eps)
    regular = size > 100 * size.shape[-1] * eps
    along = np.einsum("...ji,...j->...i", axes, error / unit)
    white = np.where(regular, along / np.sqrt(np.where(regular, size, 1.0)), 0.0)
    beyond = np.einsum("...ij,...j->...i", axes, np.where(regular, 0.0, along)) * unit
    dof = np.where(broken, 0, regular.sum(-1))
    judged = dof > 0
    values = np.where(judged, (white**2).sum(-1), np.nan)
    tail = 0.5 * (1 - level)
    bound = lambda p: np.where(judged, chi_square.quantile(p, dof), np.nan)
    lower, upper = bound(tail), bound(1 - tail)
    outside = ((values < lower) | (values > upper))[judged]
    total = int(dof.sum())
    share = _independent_share(error / unit, judged)
    effective = max(total * share, 1e-9)
    average = float(np.nansum(values)) / max(total, 1)
    singular = ~broken & (dof < size.shape[-1])
    return NEES(
        values,
        dof,
        lower,
        upper,
        float(outside.mean()) if outside.size else 0.0,
        average if total else np.nan,
        float(chi_square.quantile(tail, effective)) / effective,
        float(chi_square.quantile(1 - tail, effective)) / effective,
        float(chi_square.two_sided(average * effective, effective)) if total else 1.0,
        share * float(judged.sum()),
        int(singular.sum()),
        float(np.abs(beyond[singular]).max()) if singular.any() else 0.0,
        level,
    )


def _independent_share(errors: np.ndarray, judged: np.ndarray) -> float:
    """Of T rows, the share that would be independent.

    Squares of Gaussians with autocorrelation r_k have autocorrelation r_k^2, so the variance of their
    mean is that of independent ones times 1 + 2 sum r_k^2, summed until r_k sinks into its noise. The
    entry of the state with the most slowly changing error decides.
    """
    rows = errors.shape[-2]
    if rows < 3:
        return 1.0
    flat = np.where(judged[..., None], errors, 0.0).reshape(-1, rows, errors.shape[-1])
    worst = 1.0
    for j in range(flat.shape[-1]):
        e = flat[..., j]
        power = (e * e).sum()
        total = 1.0
        for k in range(1, rows - 1):
            r = (e[:, k:] * e[:, :-k]).sum() / power if power > 0 else 0.0
            if r < 2 / np.sqrt(e.size):
                break
            total += 2 * r * r
        worst = max(worst, total)
    return 1.0 / worst
