"""Rates of change from noisy series without derivatives and without solves: the weak form."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from filterdyn._checks import as_numbers, check_count
from filterdyn.fields.base import Field, check_callable
from filterdyn.inference.term_regression import TermRegression
from filterdyn.inference.terms import TermLibrary, checked_points
from filterdyn.series import Series

_NAME = "inference.weak_regression"
#: Points of Gauss-Legendre quadrature between two rows, where test functions are smooth.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)

Matrix = np.ndarray


def weak_regression(
    library: TermLibrary,
    series: Series,
    *,
    noise: Any = None,
    known: Field | None = None,
    width: float | None = None,
    count: int | None = None,
    order: int = 4,
) -> TermRegression:
    """The weak form of dx/dt = known(t, x, u) + sum of c_j theta_j(t, x, u), for a series whose
    observations are the states, with noise (Messenger, Bortz 2021).

    Multiplied by a smooth function phi that vanishes at both ends of a stretch of time, and integrated by
    parts, the equation says

        - integral of phi' x dt = integral of phi known dt + sum of c_j integral of phi theta_j dt,

    in which nothing is differentiated but phi. Here phi(t) is (1 - s^2)^order, s from -1 to 1 along a
    stretch of length `width`, at `count` stretches side by side that overlap. Integrals are those of phi
    times a piecewise cubic through the rows, whose times need not be regular. They are linear in the noise
    to first order, which gives the covariance of the errors (Bortz, Messenger, Dukic 2023); by
    second derivatives the terms are freed of the mean that noise gives them.

    It is for differential equations whose path is smooth. Of a path that is itself random (an `SDE` with
    more than a little diffusion) integrals over both sides of a moment see no drift: there, train a
    drift by its likelihood and look at that with `pointwise_regression`.

    **Arguments:**

    - `library`: of as many states as the series has observations, and of its inputs;
    - `series`: rows with a missing entry are left out, rows at one time are averaged. Inputs are those
      of the rows, and taken for smooth as the states are;
    - `noise`: its variance, variances (dx,) or covariance (dx, dx); by default estimated from how far rows
      are from the cubic through their neighbours;
    - `known`: the part of the field that is known;
    - `width`, a time: long enough to average over noise, short beside what changes. By default an eighth of
      the series, at least 12 typical gaps and at most all of it;
    - `count`: by default stretches are a tenth of `width` apart, and no more than half as many as rows;
      `order` >= 2.

    **Raises:** `ValueError` for fewer than 8 whole rows, for shapes that disagree and settings out of range,
    and without `noise` for a state that never changes.
    """
    order = check_count(_NAME, "order", order)
    if order < 2:
        raise ValueError(f"{_NAME}: `order` is {order}; expected 2 or more")
    times, y, inputs, repeats = _whole_rows(library, series)
    if known is not None:
        check_callable(_NAME, "known", known)
    span = float(times[-1] - times[0])
    if width is None:
        width = min(span, max(span / 8, 12 * float(np.median(np.diff(times)))))
    width = float(width)
    if not 0.0 < width <= span * (1 + 1e-12):
        raise ValueError(f"{_NAME}: `width` is {width!r}; expected a time up to {span:g}")
    if count is None:
        count = int(np.clip(10 * (span - width) / width + 1, 1, max(len(times) // 2, 1)))
    count = check_count(_NAME, "count", count)
    starts = times[0] + (
        np.linspace(0.0, span - width, count) if count > 1 else [(span - width) / 2]
    )
    values, slopes = _operators(times, starts, width, order)
    if noise is None:
        still = [n for n, x in zip(library.state_names, y.T, strict=True) if np.ptp(x) == 0]
        if still:
            raise ValueError(
                f"{_NAME}: `series` has the same number in all rows of {still}, so that its noise cannot be "
                "estimated; give `noise`, or leave the state out"
            )
    covariance = _noise(noise, times, y, repeats)

    dtype = jnp.result_type(float)
    points = checked_points(library, jnp.asarray(y, dtype), inputs, times)
    spread = jnp.asarray(covariance / repeats[:, None, None], dtype)
    theta, theta_slopes = (np.asarray(x, float) for x in _terms(library, points, spread))
    design = values @ theta
    targets = -slopes @ y
    known_slopes = np.zeros((len(y), y.shape[1], y.shape[1]))
    if known is not None:
        part, known_slopes = (np.asarray(x, float) for x in _terms(known, points, spread))
        if part.shape != y.shape:
            raise ValueError(
                f"{_NAME}: `known(t, x, u)` has shape {part.shape[1:]}; expected {y.shape[1:]}"
            )
        targets = targets - values @ part
    errors = NoiseThroughIntegrals(values, slopes, theta_slopes, known_slopes, covariance, repeats)
    return TermRegression(library, design, targets, errors)


class NoiseThroughIntegrals:
    """What noise in the rows does to - integral of phi' y - integral of phi f(y), to first order."""

    depends = True

    def __init__(
        self,
        values: Float[Matrix, "n T"],
        slopes: Float[Matrix, "n T"],
        term_slopes: Float[Matrix, "T p dx"],
        known_slopes: Float[Matrix, "T dx dx"],
        noise: Float[Matrix, "dx dx"],
        repeats: Float[Matrix, " T"],
    ):
        self.values, self.slopes = values, slopes
        self.term_slopes, self.known_slopes = term_slopes, known_slopes
        self.root, self.repeats = np.linalg.cholesky(noise), repeats

    def covariance(self, i: int, coefficients: Float[Matrix, " p"]) -> Float[Matrix, "n n"]:
        jacobian = np.einsum("p,tpd->td", coefficients, self.term_slopes) + self.known_slopes[:, i]
        # (n, T, dx): the derivative of every residual by every measurement
        by_noise = self.values[:, :, None] * jacobian
        by_noise[:, :, i] += self.slopes
        by_noise /= np.sqrt(self.repeats)[:, None]
        flat = (by_noise @ self.root).reshape(len(by_noise), -1)
        return flat @ flat.T


def _whole_rows(
    library: TermLibrary, series: Series
) -> tuple[Matrix, Matrix, Matrix | None, Matrix]:
    """Times, states and inputs of the rows in which nothing is missing, those of one time averaged, and
    how many rows there are at each time."""
    if not isinstance(series, Series) or np.ndim(series.times) != 1:
        raise TypeError(f"{_NAME}: `series` is {type(series).__name__}; expected one fd.Series")
    y = np.asarray(series.observations, float)
    if y.shape[1] != len(library.state_names):
        raise ValueError(
            f"{_NAME}: `series` has {y.shape[1]} observation columns; expected one for each state of the "
            f"library, {list(library.state_names)}"
        )
    inputs = None if series.inputs is None else np.asarray(series.inputs, float)
    kept = np.isfinite(y).all(1)
    times, where = np.unique(np.asarray(series.times, float)[kept], return_inverse=True)
    if len(times) < 8:
        raise ValueError(
            f"{_NAME}: `series` has {len(times)} times with all entries; expected at least 8"
        )
    repeats = np.bincount(where).astype(float)

    def averaged(x: Matrix) -> Matrix:
        total = np.zeros((len(times), x.shape[1]))
        np.add.at(total, where, x[kept])
        return total / repeats[:, None]

    return times, averaged(y), None if inputs is None else averaged(inputs), repeats


@eqx.filter_jit
def _terms(field: Field, points: tuple[Any, ...], noise: Array) -> tuple[Array, Array]:
    """The values of a function of (t, x, u) in all rows, less what noise adds to their mean, and its
    derivatives by x."""
    states, inputs, times = points

    def one(x: Array, u: Any, t: Array, spread: Array) -> tuple[Array, Array]:
        at = lambda x: jnp.asarray(field(t, x, u))
        curvature = jax.hessian(at)(x)
        return at(x) - 0.5 * jnp.einsum("kij,ij->k", curvature, spread), jax.jacfwd(at)(x)

    return jax.vmap(one, (0, None if inputs is None else 0, 0, 0))(states, inputs, times, noise)


def _cubics(times: Matrix, at: Matrix, interval: Matrix) -> tuple[Matrix, Matrix]:
    """Of cubics around each interval, at some points of it: through which rows, and with which weights.

    They go through the four nearest rows where times are regular. Elsewhere two rows may be so near each
    other that a cubic through them multiplies their noise: there it is the one nearest to six rows.
    """
    gaps = np.diff(times)
    count = min(4 if gaps.max() <= 2 * gaps.min() else 6, len(times))
    first = np.clip(interval - (count // 2 - 1), 0, len(times) - count)
    rows = first[:, None] + np.arange(count)
    nodes = times[rows]
    center, scale = nodes.mean(1, keepdims=True), 0.5 * (nodes[:, -1:] - nodes[:, :1])
    powers = lambda t: ((t - center) / scale)[..., None] ** np.arange(4)
    return rows, powers(at) @ np.linalg.pinv(powers(nodes))


def _operators(
    times: Matrix, starts: Matrix, width: float, order: int
) -> tuple[Float[Matrix, "n T"], Float[Matrix, "n T"]]:
    """Matrices that take rows to the integrals of phi g and of phi' g, where g is the piecewise cubic through
    the rows and phi the test function of every stretch, with maximum 1."""
    values, slopes = np.zeros((2, len(starts), len(times)))
    interval = np.arange(len(times) - 1)
    for a, start in enumerate(starts):
        low = np.clip(times[:-1], start, start + width)
        high = np.clip(times[1:], start, start + width)
        inside = high > low
        half = 0.5 * (high - low)[inside]
        at = 0.5 * (high + low)[inside, None] + half[:, None] * _NODES
        rows, weights = _cubics(times, at, interval[inside])
        s = 2.0 * (at - start) / width - 1.0
        bump = np.maximum(1.0 - s**2, 0.0)
        phi = bump**order
        slope = -2.0 * s * order * bump ** (order - 1) * (2.0 / width)
        for total, function in ((values, phi), (slopes, slope)):
            parts = np.einsum("kq,kqi->ki", half[:, None] * _WEIGHTS * function, weights)
            np.add.at(total[a], rows, parts)
    return values, slopes


def _noise(noise: Any, times: Matrix, y: Matrix, repeats: Matrix) -> Float[Matrix, "dx dx"]:
    """The covariance of the noise of a row; estimated, if it is not given."""
    dx = y.shape[1]
    if noise is None:
        return np.diag(estimated_variances(times, y, repeats))
    given = as_numbers(_NAME, "noise", noise).astype(float)
    if given.shape not in ((), (dx,), (dx, dx)):
        raise ValueError(
            f"{_NAME}: `noise` has shape {given.shape}; expected (), ({dx},) or ({dx}, {dx})"
        )
    full = given if given.ndim == 2 else np.diag(np.broadcast_to(given, (dx,)))
    if not np.isfinite(full).all() or (np.linalg.eigvalsh(0.5 * (full + full.T)) <= 0).any():
        raise ValueError(f"{_NAME}: `noise` is not a positive variance or covariance")
    return full


def estimated_variances(
    times: Float[Matrix, " T"], y: Float[Matrix, "T dx"], repeats: Float[Matrix, " T"]
) -> Float[Matrix, " dx"]:
    """The variance of the noise, from how far each row is from the cubic through the two rows before and
    the two after it: of independent noise that has (1 + sum of squared weights) times its variance."""
    k = np.arange(2, len(times) - 2)
    rows = k[:, None] + np.array([-2, -1, 1, 2])
    nodes, weights = times[rows], np.ones((len(k), 4))
    for i in range(4):
        for j in range(4):
            if i != j:
                weights[:, i] *= (times[k] - nodes[:, j]) / (nodes[:, i] - nodes[:, j])
    error = y[k] - np.einsum("ki,kid->kd", weights, y[rows])
    spread = 1.0 / repeats[k] + np.sum(weights**2 / repeats[rows], axis=1)
    variances = np.mean(error**2 / spread[:, None], axis=0)
    return np.maximum(variances, np.finfo(float).eps * np.maximum(y.var(0), 1e-300))
