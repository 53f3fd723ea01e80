"""Sequentially thresholded least squares: few terms, and how sure their coefficients are."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.scipy.special import betainc, ndtri
from jaxtyping import Array, Float

from filterdyn._checks import check_count, check_key
from filterdyn.inference.found_terms import FoundTerms
from filterdyn.inference.term_regression import Equation, TermRegression
from filterdyn.inference.term_selection import (
    Reduced,
    Support,
    best,
    cross_validation,
    information,
    refined,
    smallest_near_best,
    thresholded,
)

_NAME = "inference.thresholded_least_squares"
#: What is tried where neither thresholds nor ridges are given.
THRESHOLDS = tuple(float(x) for x in np.geomspace(1e-3, 1.0, 25))
RIDGES = (0.0, 1e-6, 1e-3, 1e-1)
#: Where the covariance of the errors depends on the coefficients, so many rounds at most.
_ROUNDS = 10

Selection = Literal["extended_bic", "bic", "cross_validation"]


def thresholded_least_squares(
    regression: TermRegression,
    *,
    threshold: float | Sequence[float] | None = None,
    ridge: float | Sequence[float] | None = None,
    selection: Selection = "extended_bic",
    refine: bool | None = None,
    folds: int = 5,
    level: float = 0.9,
    bootstrap: int = 0,
    key: Array | None = None,
) -> FoundTerms:
    """Terms by sequentially thresholded least squares (Brunton, Proctor, Kutz 2016), an equation at a time.

    Columns are scaled to norm 1, and the share of a term is the size of its column times its coefficient
    over the size of the rate. Terms whose share is below the threshold are dropped and the rest fitted
    again, until none is. This is done for several thresholds and ridges (with a ridge, terms that are
    nearly alike do not cancel each other in the first fit); a criterion selects among the supports, and
    the coefficients are those of least squares without any ridge.

    **Arguments:**

    - `regression`: from `pointwise_regression` or `weak_regression`;
    - `threshold`, between 0 and 1: one, or several to choose from (default 25 from 0.001 to 1);
      `ridge` >= 0, likewise (default 0, 1e-6, 1e-3, 0.1), on columns of norm 1;
    - `selection`: `"bic"`, Schwarz's criterion; `"extended_bic"`, which counts how many supports there
      are to choose from (Chen, Chen 2008): with BIC alone a large library has some term that fits noise;
      `"cross_validation"` by `folds` parts, contiguous rows where errors may be alike: the fewest
      terms whose error is within one standard error of the least;
    - `refine`: add, drop and exchange single terms while a BIC falls (default: where the thresholds are not
      given);
    - `level`: the probability of the intervals. Without `bootstrap` they are those of the linear model
      with these terms (normal, or Student's t where the variance of the errors is unknown), as if no
      selection had been made;
    - `bootstrap`: so many repetitions of the whole selection on what was found with new errors, by their
      covariance where it is known, else drawn from the residuals: intervals are then quantiles of the
      coefficients (0 where a term is not selected), and `inclusion` how often it is selected; `key`: their
      random key.

    **Returns:** `FoundTerms`; `settings` has the selection and, by state, `misfit`: the mean squared residual
    (in units of the known covariance it should be about 1).

    **Raises:** `ValueError` for settings out of range, `TypeError` for another kind of `regression`.
    """
    check_regression(_NAME, regression)
    thresholds = _candidates("threshold", threshold, THRESHOLDS, 1.0)
    ridges = _candidates("ridge", ridge, RIDGES, np.inf)
    if selection not in ("extended_bic", "bic", "cross_validation"):
        raise ValueError(
            f"{_NAME}: `selection` is {selection!r}; expected 'extended_bic', 'bic' or "
            "'cross_validation'"
        )
    folds = check_count(_NAME, "folds", folds)
    if selection == "cross_validation" and not 2 <= folds <= len(regression.targets):
        raise ValueError(
            f"{_NAME}: `folds` is {folds}; expected 2 to the {len(regression.targets)} rows"
        )
    check_level(_NAME, level)
    if bootstrap:
        check_count(_NAME, "bootstrap", bootstrap)
        if key is None:
            raise ValueError(f"{_NAME}: `key` is None; `bootstrap` needs a random key")
        check_key(_NAME, key)
    refine = threshold is None if refine is None else bool(refine)

    def select(equation: Equation) -> Support:
        reduced = Reduced(equation)
        candidates = {thresholded(reduced, t, r) for t in thresholds for r in ridges}
        if selection == "cross_validation":
            if len(candidates) == 1:
                return candidates.pop()
            return smallest_near_best(candidates, cross_validation(equation, folds))
        score = information(reduced, selection == "extended_bic")
        found = best(candidates, score)
        return refined(found, reduced.usable, score) if refine else found

    solved = [_solve(regression, i, select) for i in range(regression.targets.shape[1])]
    equations, supports = [s[0] for s in solved], [s[1] for s in solved]
    parts = [Reduced(equation) for equation in equations]
    pairs = list(zip(parts, supports, strict=True))
    coefficients = np.stack([part.coefficients(support) for part, support in pairs])
    misfit = {
        state: part.squares(support) / max(part.rows - len(support), 1)
        for state, (part, support) in zip(regression.library.state_names, pairs, strict=True)
    }
    settings: dict[str, Any] = {"selection": selection, "misfit": misfit}
    if bootstrap:
        assert key is not None
        seeds = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
        samples = np.stack(
            [
                np.stack([_again(equation, c, select, seeds) for _ in range(bootstrap)])
                for equation, c in zip(equations, coefficients, strict=True)
            ],
            axis=1,
        )
        tail = 0.5 * (1.0 - level)
        low, high = np.quantile(samples, [tail, 1.0 - tail], axis=0)
        inclusion = (samples != 0).mean(0)
    else:
        samples = None
        half = np.stack([_half_width(part, support, level) for part, support in pairs])
        low, high = coefficients - half, coefficients + half
        inclusion = (coefficients != 0).astype(float)
    return FoundTerms(
        regression.library, coefficients, low, high, inclusion, samples, level, settings
    )


def _solve(regression: TermRegression, i: int, select: Any) -> tuple[Equation, Support]:
    """One equation, and the terms it needs.

    Errors whose covariance depends on the coefficients are weighted by that of the coefficients found
    before, from two starts; of the supports on the way that of the highest likelihood is kept.
    """
    if regression.errors is None or not regression.errors.depends:
        equation = regression.equation(i)
        return equation, select(equation)
    plain = Reduced(Equation(regression.design, regression.targets[:, i], False))
    smooth = np.zeros(plain.terms)
    usable = list(plain.usable)
    smooth[usable] = plain.normalised(plain.usable, ridge=1e-3) / plain.scale[usable]
    found: dict[Support, tuple[float, Equation]] = {}
    for coefficients in (np.zeros(plain.terms), smooth):
        for _ in range(_ROUNDS):
            support = select(regression.equation(i, coefficients))
            if support in found:
                break
            equation = _own_weights(regression, i, support, coefficients)
            reduced = Reduced(equation)
            coefficients = reduced.coefficients(support)
            score = information(reduced, extended=True)(support) + equation.log_det
            found[support] = (score, equation)
    support = min(found, key=lambda s: found[s][0])
    return found[support][1], support


def _own_weights(
    regression: TermRegression, i: int, support: Support, coefficients: Float[np.ndarray, " p"]
) -> Equation:
    """The equation, weighted by the covariance of the errors at its own solution on a support."""
    for _ in range(_ROUNDS):
        equation = regression.equation(i, coefficients)
        before, coefficients = coefficients, Reduced(equation).coefficients(support)
        if np.allclose(before, coefficients, rtol=1e-5, atol=1e-12):
            break
    return equation


def _again(
    equation: Equation, coefficients: Array, select: Any, random: np.random.Generator
) -> Float[np.ndarray, " p"]:
    """The coefficients of one repetition."""
    A, b, unit, _ = equation
    fit = A @ coefficients
    if unit:
        errors = random.standard_normal(len(b))
    else:
        residuals = b - fit
        freedom = max(len(b) - int(np.count_nonzero(coefficients)), 1)
        residuals = (residuals - residuals.mean()) * np.sqrt(len(b) / freedom)
        errors = random.choice(residuals, len(b))
    repeated = Equation(A, fit + errors, unit)
    return Reduced(repeated).coefficients(select(repeated))


def _half_width(part: Reduced, support: Support, level: float) -> Float[np.ndarray, " p"]:
    """Half the width of the intervals of the linear model, 0 for terms that are not in it."""
    found = np.zeros(part.terms)
    if not support:
        return found
    freedom = part.rows - len(support)
    if part.unit:
        quantile, variance = float(ndtri(0.5 * (1.0 + level))), 1.0
    elif freedom < 1:
        quantile, variance = np.inf, 1.0
    else:
        quantile = student_t_bound(level, freedom)
        variance = part.squares(support) / freedom
    found[list(support)] = quantile * np.sqrt(variance * np.diag(part.covariance(support)))
    return found


def student_t_bound(level: float, freedom: int) -> float:
    """What the absolute value of a Student's t of these degrees of freedom stays below with probability
    `level`, from P(|T| < t) = I_u(1/2, freedom / 2) with u = t^2 / (freedom + t^2)."""
    low, high = 0.0, 1.0
    for _ in range(4):
        u = np.linspace(low, high, 1001)
        i = int(np.searchsorted(np.asarray(betainc(0.5, 0.5 * freedom, u)), level))
        low, high = float(u[max(i - 1, 0)]), float(u[min(i, 1000)])
    middle = 0.5 * (low + high)
    return float(np.sqrt(freedom * middle / (1.0 - middle)))


def check_regression(owner: str, regression: Any) -> None:
    """**Raises:** `TypeError` for anything else."""
    if not isinstance(regression, TermRegression):
        raise TypeError(
            f"{owner}: `regression` is {type(regression).__name__}; expected what "
            "inference.pointwise_regression or inference.weak_regression returns"
        )


def check_level(owner: str, level: float) -> None:
    """**Raises:** `ValueError` for what is no probability."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"{owner}: `level` is {level!r}; expected a number between 0 and 1")


def _candidates(
    name: str, value: Any, default: tuple[float, ...], most: float
) -> tuple[float, ...]:
    if value is None:
        return default
    given = tuple(float(x) for x in np.atleast_1d(np.asarray(value, float)))
    if not given or not all(0.0 <= x <= most and np.isfinite(x) for x in given):
        between = "0 or more" if most == np.inf else f"between 0 and {most:g}"
        raise ValueError(f"{_NAME}: `{name}` is {value!r}; expected numbers {between}")
    return given
