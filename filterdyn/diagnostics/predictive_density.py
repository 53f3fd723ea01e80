"""How well a model predicts rows that its parameters have not seen, and which of several does best."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Above this a weight that was made by importance sampling is not to be trusted.
RELIABLE = 0.7


@dataclass(frozen=True)
class PredictiveDensity:
    """The sum of log predictive densities of rows, elpd: the larger the better.

    - `kind`: `"one step"` (of `one_step_elpd`) or `"leave future out"`;
    - `elpd`, and its `standard_error` over rows, as if they were independent;
    - `pointwise` (n,): of every row, and `times` (n,) of those rows;
    - `pareto_k` (n,): how heavy the tail of the importance weights is, 0 where there were none; `reliable`
      if none is above 0.7;
    - `refits`: how often parameters were inferred anew (leave future out);
    - `ahead`: how many rows every density is of.
    """

    kind: str
    elpd: float
    standard_error: float
    pointwise: np.ndarray
    times: np.ndarray
    pareto_k: np.ndarray
    refits: int
    ahead: int = 1

    @property
    def reliable(self) -> bool:
        return bool(np.all(self.pareto_k <= RELIABLE)) and bool(np.isfinite(self.elpd))

    def __str__(self) -> str:
        text = (
            f"{self.kind}: elpd {self.elpd:.1f} +- {self.standard_error:.1f} over "
            f"{len(self.pointwise)} rows"
        )
        if self.kind == "leave future out":
            together = f", {self.ahead} rows together" if self.ahead > 1 else ""
            text += f"{together}, {self.refits} fits"
        bad = int((self.pareto_k > RELIABLE).sum())
        if bad:
            text += f"; not reliable: {bad} rows have Pareto k above {RELIABLE}"
            text += " (use leave_future_out, which fits again)" if self.kind == "one step" else ""
        return text


def estimate(
    kind: str,
    pointwise: np.ndarray,
    times: np.ndarray,
    pareto_k: np.ndarray,
    refits: int,
    ahead: int = 1,
) -> PredictiveDensity:
    """The sum and its error."""
    n = len(pointwise)
    error = float(np.sqrt(n * pointwise.var(ddof=1))) if n > 1 else float("nan")
    return PredictiveDensity(
        kind, float(pointwise.sum()), error, pointwise, times, pareto_k, refits, ahead
    )


def one_step_elpd(datatree: Any, *, site: str = "y") -> PredictiveDensity:
    """Log predictive densities of rows one step ahead, each with its own factor left out of the posterior
    of the parameters, by Pareto-smoothed importance sampling from one fit.

    The factors are p(y_t | y_1:t-1, theta), those of `fd.to_datatree`. With the factor of row t left out,
    y_t still stands among what later rows are predicted from, and later rows still inform the parameters:
    so this is not what leaving out a measurement, nor what knowing only the past, would give. It tells
    models apart that were fitted to one series at the price of one fit; `leave_future_out` is the honest
    measure of prediction.

    **Arguments:** `datatree` of `fd.to_datatree`; `site`: which series in it.

    **Raises:** `KeyError` if it has no pointwise log-likelihood of that name.

    Reference: Vehtari, Gelman, Gabry 2017, "Practical Bayesian model evaluation using leave-one-out
    cross-validation and WAIC"; Bürkner, Gabry, Vehtari 2020 on what it means for time series.
    """
    from arviz_stats import loo  # ArviZ takes as long to import as all the rest

    group = "log_likelihood"
    children = getattr(datatree, "children", None)
    if children is None or group not in children or site not in datatree[group]:
        has = type(datatree).__name__ if children is None else f"groups {sorted(children)}"
        raise KeyError(
            f"one_step_elpd: `datatree` has no {group}/{site}, only {has}; expected what "
            "fd.to_datatree returned"
        )
    found = loo(datatree, pointwise=True, var_name=site)
    times = np.asarray(datatree[group][site]["time"])
    pointwise, k = (np.asarray(x, float).ravel() for x in (found.elpd_i, found.pareto_k))
    return estimate("one step", pointwise, times, k, 1)


@dataclass(frozen=True)
class ModelComparison:
    """Models by their predictive density, the best first.

    - `names`, `elpds`: of every model;
    - `differences`: from the best, 0 for itself and negative for the others, with `standard_errors` of
      the differences, which are those of rows, paired: far smaller than those of the sums;
    - `reliable`: of every model, whether its own figures are.
    """

    names: tuple[str, ...]
    elpds: tuple[float, ...]
    differences: tuple[float, ...]
    standard_errors: tuple[float, ...]
    reliable: tuple[bool, ...]

    def __str__(self) -> str:
        width = max(len(name) for name in self.names)
        lines = []
        for name, elpd, difference, error, fine in zip(
            self.names,
            self.elpds,
            self.differences,
            self.standard_errors,
            self.reliable,
            strict=True,
        ):
            text = f"{name:{width}}  elpd {elpd:.1f}"
            if difference or error:
                text += f"  difference {difference:.1f} +- {error:.1f}"
            lines.append(text + ("" if fine else "  (not reliable)"))
        return "\n".join(lines)


def compare(models: Mapping[str, PredictiveDensity]) -> ModelComparison:
    """Which of several models predicts the same rows best, and is the difference more than chance?

    A difference of a few times its standard error is; one below about 4 in elpd is small whatever its
    error says, which is itself uncertain for few rows and similar models.

    **Arguments:** `models`: by name, what `leave_future_out` or `one_step_elpd` returned.

    **Raises:** `TypeError` for anything else, `ValueError` for fewer than two models and for figures of
    different kinds, rows, or numbers of rows `ahead`.

    Reference: Vehtari, Gelman, Gabry 2017, section 5.2; Sivula, Magnusson, Matamoros, Vehtari 2020,
    "Uncertainty in Bayesian leave-one-out cross-validation based model comparison".
    """
    if len(models) < 2:
        raise ValueError(f"compare: `models` has {len(models)} models; expected two or more")
    first = next(iter(models.values()))
    for name, one in models.items():
        if not isinstance(one, PredictiveDensity):
            raise TypeError(
                f"compare: `models` has {type(one).__name__} at {name!r}; expected what "
                "leave_future_out or one_step_elpd returned"
            )
        same = one.times.shape == first.times.shape and np.array_equal(one.times, first.times)
        if not same or one.kind != first.kind:
            raise ValueError(
                f"compare: {name!r} is {one.kind} over {len(one.times)} rows but the first is "
                f"{first.kind} over {len(first.times)}; expected the same kind and the same rows"
            )
        if one.ahead != first.ahead:
            raise ValueError(
                f"compare: {name!r} predicts {one.ahead} rows ahead but the first {first.ahead}; expected "
                "the same `ahead`"
            )
    ordered = sorted(models.items(), key=lambda item: -item[1].elpd)
    best = ordered[0][1].pointwise
    gaps = [one.pointwise - best for _, one in ordered]
    n = len(best)
    errors = [float(np.sqrt(n * gap.var(ddof=1))) if n > 1 else float("nan") for gap in gaps]
    return ModelComparison(
        tuple(name for name, _ in ordered),
        tuple(one.elpd for _, one in ordered),
        tuple(float(gap.sum()) for gap in gaps),
        tuple(errors),
        tuple(one.reliable for _, one in ordered),
    )
