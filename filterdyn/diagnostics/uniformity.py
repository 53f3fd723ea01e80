"""Are ranks uniform? The largest departure of their distribution function, with its exact p-value."""

import math

import numpy as np

#: The distribution function is looked at in so many points at most.
_POINTS = 100
#: No p-value is known to be smaller.
_ROUNDING = 1e-14


def p_value(ranks: np.ndarray, draws: int) -> float:
    """The p-value of ranks 0 .. draws (N,) that should be uniform and independent.

    With C_i how many of N ranks are below the point i, a binomial number, the statistic is the smallest
    two-sided probability of any C_i. The chance that it is as small as it is follows from the Markov chain
    C_1, C_2, ..., whose steps are binomial: exactly, however small, which no simulation of ranks gives.

    Reference: Säilynoja, Bürkner, Vehtari 2022, "Graphical test for discrete uniformity and its
    applications in goodness-of-fit evaluation and multiple sample comparison".
    """
    n = len(ranks)
    if n == 0:
        return math.nan
    points = evaluation_points(draws)
    counts = np.searchsorted(np.sort(ranks), points, side="left")
    smallest = min(two_sided(n, z)[c] for z, c in zip(points / (draws + 1), counts, strict=True))
    return min(1.0, max(_ROUNDING, 1.0 - coverage(n, draws, smallest)))


def band(n: int, draws: int, rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points z in (0, 1), and the lower and upper limit there of the share of n ranks below z: all are
    kept with a probability of `1 - rate` or a little more."""
    points = evaluation_points(draws)
    low, high = 0.0, rate
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if 1 - coverage(n, draws, middle) <= rate else (low, middle)
    z = points / (draws + 1)
    limits = np.array([_limits(n, one, low) for one in z]) / n
    return z, limits[:, 0], limits[:, 1]


def evaluation_points(draws: int) -> np.ndarray:
    """Whole numbers from 1 to `draws`, all or some of them."""
    return np.unique(np.linspace(1, draws, min(draws, _POINTS)).round().astype(int))


def coverage(n: int, draws: int, level: float) -> float:
    """The probability that no count has a two-sided probability of `level` or less."""
    points = evaluation_points(draws) / (draws + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    before, at, mass = 0.0, np.zeros(1, int), np.ones(1)
    for z in points:
        low, high = _limits(n, z, level)
        new = np.arange(low, high + 1)
        if not len(new):
            return 0.0
        step = (z - before) / (1 - before)
        k, left = new[:, None] - at, n - at
        fits = k >= 0
        k = np.where(fits, k, 0)
        rest = left - k
        fits &= rest >= 0
        rest = np.where(fits, rest, 0)
        log_mass = log_factorial[left] - log_factorial[k] - log_factorial[rest]
        log_mass = log_mass + k * math.log(step) + rest * math.log1p(-step)
        mass = np.exp(np.where(fits, log_mass, -np.inf)) @ mass
        before, at = z, new
    return float(mass.sum())


def two_sided(n: int, z: float) -> np.ndarray:
    """Twice the smaller tail, (n + 1,), of every value of a binomial number."""
    k = np.arange(n + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((n - k[:-1]) / (k[:-1] + 1.0)))])
    mass = np.exp(log_choose + k * math.log(z) + (n - k) * math.log1p(-z))
    lower, upper = np.cumsum(mass), np.cumsum(mass[::-1])[::-1]
    return 2 * np.minimum(lower, upper)


def _limits(n: int, z: float, level: float) -> tuple[int, int]:
    """The first and last value whose two-sided probability is above `level`."""
    # (Probabilities that are equal by symmetry differ by rounding.)
    kept = np.flatnonzero(two_sided(n, z) > level * (1 + 1e-9))
    return (int(kept[0]), int(kept[-1])) if len(kept) else (1, 0)
