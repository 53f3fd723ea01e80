"""How good is a prediction? Errors of a mean, and scores of a Gaussian."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from filterdyn._checks import as_numbers
from filterdyn.diagnostics.calibration import _erfc
from filterdyn.diagnostics.residuals import check_level


@dataclass(frozen=True)
class Scores:
    """Scores of predictions, one for each column; NaN entries of what was measured are left out.

    - `rmse`: root mean squared error, in units of the measurement; `nrmse`: over the standard deviation
      of what was measured; `fit`: 100 (1 - `nrmse`), in percent; `r2`: 1 - `nrmse`^2;
    - `nll`: mean negative log density; `crps`: mean continuous ranked probability score, in units of the
      measurement; `coverage`: share inside the central interval of `probability`. `None` without a variance.
    """

    rmse: np.ndarray
    nrmse: np.ndarray
    fit: np.ndarray
    r2: np.ndarray
    nll: np.ndarray | None
    crps: np.ndarray | None
    coverage: np.ndarray | None
    probability: float


def scores(measured: Any, mean: Any, variance: Any = None, *, probability: float = 0.9) -> Scores:
    """Score predictions of what was measured.

    Whatever was predicted, one step ahead, k steps ahead (`fd.forecast`) or in free simulation, has scores
    of its own: say which.

    **Arguments:**

    - `measured` (T, d) or (T,), NaN where missing; `mean`, and `variance` >= 0 if there is one: of the
      same shape;
    - `probability`: of the interval that `coverage` counts.

    **Raises:** `ValueError` for shapes that disagree, for a column without measurements and for variances
    that are negative.

    Reference: Gneiting, Raftery 2007 (section 4.2 has the CRPS of a Gaussian).
    """
    check_level("scores", "probability", probability)
    y = as_numbers("scores", "measured", measured).astype(float)
    m = as_numbers("scores", "mean", mean).astype(float)
    v = None if variance is None else as_numbers("scores", "variance", variance).astype(float)
    if y.ndim not in (1, 2):
        raise ValueError(f"scores: `measured` has shape {y.shape}; expected (T, d) or (T,)")
    for name, array in (("mean", m), ("variance", v)):
        if array is not None and array.shape != y.shape:
            raise ValueError(
                f"scores: `{name}` has shape {array.shape}; expected {y.shape}, as `measured`"
            )
    y, m = y.reshape(len(y), -1), m.reshape(len(y), -1)
    seen = ~np.isnan(y)
    if not seen.any(axis=0).all():
        raise ValueError("scores: `measured` has a column of NaN only; expected measurements")
    average = lambda x: np.where(seen, x, 0.0).sum(axis=0) / seen.sum(axis=0)
    error = y - m
    # What was measured and not predicted must not count as met.
    rmse = np.sqrt(average(error**2))
    with np.errstate(divide="ignore", invalid="ignore"):
        nrmse = rmse / np.nanstd(y, axis=0)
    nll = crps = coverage = None
    if v is not None:
        v = v.reshape(len(y), -1)
        if (v < 0).any():
            raise ValueError(
                f"scores: `variance` has a negative entry ({np.nanmin(v):.6g}); expected numbers >= 0"
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            sd = np.sqrt(v)
            z = error / sd
            nll = average(0.5 * (np.log(2 * np.pi * v) + z**2))
            density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
            # z (2 Phi(z) - 1), with Phi by the complementary error function.
            skew = z * (1 - _erfc(z / math.sqrt(2)))
            exact = sd * (skew + 2 * density - 1 / math.sqrt(math.pi))
            crps = average(np.where(v == 0, np.abs(error), exact))
        width = NormalDist().inv_cdf(0.5 + 0.5 * probability) * sd
        coverage = average(np.abs(error) <= width)
    return Scores(
        rmse, nrmse, 100 * (1 - nrmse), 1 - nrmse**2, nll, crps, coverage, float(probability)
    )
