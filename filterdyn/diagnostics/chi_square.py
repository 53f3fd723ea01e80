"""The chi-square distribution on the host, in double precision whatever JAX is set to."""

import math
from typing import Any

import numpy as np

_TINY = 1e-300
_ROUNDS = 10_000


def survival(x: Any, dof: Any) -> Any:
    """P(X > x) for X chi-square with `dof` degrees of freedom (any number >= 0), entry by entry."""
    return 1.0 * _each(_survival, x, dof)


def quantile(p: Any, dof: Any) -> Any:
    """The x with P(X <= x) = p, by bisection; 0 for 0 degrees of freedom."""
    return 1.0 * _each(_quantile, p, dof)


def two_sided(x: Any, dof: Any) -> Any:
    """Twice the smaller tail: the p-value of a sum of squares that may be too large or too small."""
    upper = survival(x, dof)
    return np.minimum(1.0, 2.0 * np.minimum(upper, 1.0 - upper))


def normal_two_sided(z: Any) -> Any:
    """P(|Z| > |z|) for a standard normal Z."""
    return survival(np.square(z), 1.0)


def _each(function: Any, a: Any, b: Any) -> Any:
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    pairs, back = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_inverse=True)
    values = np.array([function(x, y) for x, y in pairs.T])
    return values[back.ravel()].reshape(a.shape)[()]


def _survival(x: float, dof: float) -> float:
    if math.isnan(x) or math.isnan(dof):
        return math.nan
    if x <= 0:
        return 1.0
    if dof <= 0:
        return 0.0
    a, z = 0.5 * dof, 0.5 * x
    if z == math.inf:
        return 0.0
    scale = math.exp(a * math.log(z) - z - math.lgamma(a))
    return 1.0 - scale * _series(a, z) if z < a + 1 else scale * _fraction(a, z)


def _series(a: float, z: float) -> float:
    """Lower incomplete gamma function over z^a e^-z: sum of z^n / (a (a + 1) ... (a + n))."""
    term = total = 1.0 / a
    for n in range(1, _ROUNDS):
        term *= z / (a + n)
        total += term
        if term < total * 1e-17:
            break
    return total


def _fraction(a: float, z: float) -> float:
    """Upper incomplete gamma function over z^a e^-z: its continued fraction, from the front (Lentz)."""
    b = z + 1 - a
    c, d = 1 / _TINY, 1 / b
    value = d
    for n in range(1, _ROUNDS):
        numerator = -n * (n - a)
        b += 2
        d = 1 / (numerator * d + b or _TINY)
        c = b + numerator / c or _TINY
        value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return value


def _quantile(p: float, dof: float) -> float:
    if math.isnan(p) or math.isnan(dof):
        return math.nan
    if dof <= 0 or p <= 0:
        return 0.0
    if p >= 1:
        return math.inf
    low, high = 0.0, dof + 1.0
    while _survival(high, dof) > 1 - p:
        low, high = high, 2 * high
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if _survival(middle, dof) > 1 - p else (low, middle)
    return 0.5 * (low + high)
