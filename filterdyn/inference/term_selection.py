"""Which terms an equation needs: sequential thresholding, and criteria by which supports are compared."""

from collections.abc import Callable, Iterable
from math import lgamma

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from filterdyn.inference.term_regression import Equation

Support = tuple[int, ...]
Criterion = Callable[[Support], float]


class Reduced:
    """An equation whose rows are reduced to as many as it has terms, with columns of norm 1."""

    def __init__(self, equation: Equation):
        A, b, self.unit, _ = equation
        self.rows, self.terms = A.shape
        norms = np.linalg.norm(A, axis=0)
        self.usable = tuple(int(j) for j in np.flatnonzero(norms > 0))
        self.scale = np.where(norms > 0, norms, 1.0)
        q, self.R = np.linalg.qr(A / self.scale)
        self.b = q.T @ b
        self.size = float(np.linalg.norm(b))
        self.rest = max(self.size**2 - float(self.b @ self.b), 0.0)
        # What rounding leaves of an exact fit is no measure of anything.
        self.floor = (1e3 * float(jnp.finfo(jnp.result_type(float)).eps) * self.size) ** 2

    def normalised(self, support: Support, ridge: float = 0.0) -> Float[np.ndarray, " k"]:
        """The coefficients of the columns of norm 1."""
        X, b = self.R[:, support], self.b
        if ridge:
            X = np.concatenate([X, np.sqrt(ridge) * np.eye(len(support))])
            b = np.concatenate([b, np.zeros(len(support))])
        return np.linalg.lstsq(X, b, rcond=1e-13)[0]

    def squares(self, support: Support) -> float:
        """The sum of squared residuals."""
        found = self.b
        if support:
            found = found - self.R[:, support] @ self.normalised(support)
        return float(found @ found) + self.rest

    def coefficients(self, support: Support) -> Float[np.ndarray, " p"]:
        """Least squares, 0 outside the support."""
        found = np.zeros(self.terms)
        if support:
            found[list(support)] = self.normalised(support) / self.scale[list(support)]
        return found

    def covariance(self, support: Support) -> Float[np.ndarray, "k k"]:
        """Of the coefficients on the support, where the variance of the errors is 1."""
        r = np.linalg.qr(self.R[:, support], mode="r")
        inverse = np.linalg.pinv(r) / self.scale[list(support)][:, None]
        return inverse @ inverse.T

    @property
    def resolved(self) -> int:
        """How many terms the rows can tell apart at most."""
        return min(self.rows - (0 if self.unit else 1), self.terms)


def thresholded(equation: Reduced, threshold: float, ridge: float) -> Support:
    """Least squares, without the terms whose share is below the threshold, again until none is
    (Brunton, Proctor, Kutz 2016)."""
    support = equation.usable
    while support:
        shares = np.abs(equation.normalised(support, ridge)) / max(equation.size, 1e-300)
        kept = tuple(j for j, share in zip(support, shares, strict=True) if share >= threshold)
        if kept == support:
            break
        support = kept
    return support


def information(equation: Reduced, extended: bool) -> Criterion:
    """Schwarz's criterion; extended by the number of supports of the same size (Chen, Chen 2008)."""
    n, p = equation.rows, equation.terms
    choices = lambda k: lgamma(p + 1) - lgamma(k + 1) - lgamma(p - k + 1)

    def score(support: Support) -> float:
        k = len(support)
        if k > equation.resolved:
            return np.inf
        squares = equation.squares(support)
        misfit = squares if equation.unit else n * np.log((squares + equation.floor) / n)
        return float(misfit + k * np.log(n) + (2.0 * choices(k) if extended else 0.0))

    return score


def cross_validation(
    equation: Equation, folds: int
) -> Callable[[Support], Float[np.ndarray, " folds"]]:
    """The mean squared error in rows that were left out, part by part: contiguous ones, whose errors may be
    alike, or every so many where errors have been made independent."""
    A, b, unit, _ = equation
    rows = np.arange(len(b))
    groups = [rows[i::folds] for i in range(folds)] if unit else np.array_split(rows, folds)
    parts = [
        (Reduced(Equation(np.delete(A, g, 0), np.delete(b, g), unit)), A[g], b[g]) for g in groups
    ]
    floor = 1e3 * float(jnp.finfo(jnp.result_type(float)).eps) * np.linalg.norm(b)

    def errors(support: Support) -> Float[np.ndarray, " folds"]:
        if any(len(support) > part.resolved for part, _, _ in parts):
            return np.full(folds, np.inf)
        squares = [np.mean((y - X @ part.coefficients(support)) ** 2) for part, X, y in parts]
        return np.array(squares) + floor**2

    return errors


def best(candidates: Iterable[Support], score: Criterion) -> Support:
    """The candidate of the least score; of equal ones the smallest."""
    return min(set(candidates), key=lambda support: (score(support), len(support), support))


def smallest_near_best(
    candidates: Iterable[Support], errors: Callable[[Support], Float[np.ndarray, " folds"]]
) -> Support:
    """The smallest support whose error is within one standard error of the least; then without the terms
    of which that can be said too."""
    known = {support: errors(support) for support in set(candidates)}
    least = known[min(known, key=lambda s: (float(known[s].mean()), s))]
    if not np.isfinite(least).all():
        raise ValueError(
            "inference.thresholded_least_squares: without a part of the rows there are too few for the terms "
            "of every threshold; expected more rows, higher values of `threshold`, or another `selection`"
        )

    def near(support: Support) -> bool:
        excess = known[support] - least
        if not np.isfinite(excess).all():
            return False
        error = excess.std(ddof=1) / np.sqrt(len(excess))
        return bool(excess.mean() <= error + 1e-6 * least.mean())

    rank = lambda s: (len(s), float(known[s].mean()), s)
    support = min(filter(near, known), key=rank)
    while True:
        smaller = [tuple(j for j in support if j != i) for i in support]
        known.update({s: errors(s) for s in smaller if s not in known})
        support, before = min(filter(near, [support, *smaller]), key=rank), support
        if support == before:
            return support


def refined(support: Support, usable: Support, score: Criterion) -> Support:
    """The support from which no term added, dropped or exchanged lowers the score."""
    scores: dict[Support, float] = {}

    def known(candidate: Support) -> float:
        if candidate not in scores:
            scores[candidate] = score(candidate)
        return scores[candidate]

    while True:
        outside = [j for j in usable if j not in support]
        without = [tuple(j for j in support if j != i) for i in support]
        moves = [*without, *(tuple(sorted((*s, j))) for s in (support, *without) for j in outside)]
        new = min(moves, key=lambda s: (known(s), len(s), s), default=support)
        if not known(new) < known(support):
            return support
        support = new
