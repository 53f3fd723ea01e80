"""The analyses: how a measurement moves the members of an ensemble.

All take the anomalies A (N, dx) and the measurement as the members see it, and give the shift of the
mean and the new anomalies.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._groups import in_groups
from filterdyn.ensembles.innovation import Weighing, noise_draws, noise_root, whitened
from filterdyn.ensembles.inverse_root import inverse_root, product
from filterdyn.ensembles.localization import GaspariCohn
from filterdyn.ensembles.observed import ObservedEnsemble
from filterdyn.linalg.decorrelate import independent

#: States are analysed locally in groups, so that their N x N matrices take at most this many numbers.
_MOST_ENTRIES = 2**22
#: Up to this many measurements they are taken one by one where that is a choice.
_FEW = 64


class Analysis(NamedTuple):
    """The shift of the mean and the anomalies after a measurement."""

    shift: Float[Array, " dx"]
    anomalies: Float[Array, "N dx"]


def _scale(a: Array) -> float:
    return float((len(a) - 1) ** 0.5)


def stochastic(
    a: Float[Array, "N dx"],
    seen: ObservedEnsemble,
    weighing: Weighing,
    localization: GaspariCohn | None,
    key: Array,
) -> Analysis:
    """Every member meets the measurement with noise of its own (Burgers, van Leeuwen, Evensen 1998),
    drawn centred: x_i <- x_i + K (y + e_i - y_i)."""
    d, y, r = seen.masked
    misses = noise_draws(key, r, len(a)) - y * _scale(a)
    shift = _gained(a, seen, weighing, localization, d[None])[0]
    return Analysis(shift, a + _gained(a, seen, weighing, localization, misses))


def deterministic(
    a: Float[Array, "N dx"],
    seen: ObservedEnsemble,
    weighing: Weighing,
    localization: GaspariCohn | None,
) -> Analysis:
    """The anomalies are moved half the way without noise, A - K Y / 2 (Sakov, Oke 2008a)."""
    d, y, _ = seen.masked
    shift = _gained(a, seen, weighing, localization, d[None])[0]
    return Analysis(shift, a - 0.5 * _gained(a, seen, weighing, localization, y * _scale(a)))


def _gained(
    a: Array,
    seen: ObservedEnsemble,
    weighing: Weighing,
    localization: GaspariCohn | None,
    innovations: Float[Array, "k dy"],
) -> Float[Array, "k dx"]:
    """K e of every row e, missing entries masked."""
    innovations = jnp.where(seen.observed, innovations, 0.0)
    (n, dx), dy = a.shape, innovations.shape[1]
    formed = weighing.inner_root is None
    if localization is None and (not formed or n * (dy + dx) <= 2 * dy * dx):
        return product(weighing.weights(innovations), a) / _scale(a)
    cross = product(seen.masked[1].T, a) / _scale(a)
    if localization is not None:
        cross = cross * localization.states_observations.T.astype(a.dtype)  # type: ignore[union-attr]
    return weighing.solved(innovations, cross)


def transform(
    a: Float[Array, "N dx"], seen: ObservedEnsemble, weighing: Weighing, symmetric: bool
) -> Analysis:
    """The anomalies are multiplied by a square root T of (I + Y R^-1 Y^T)^-1 that keeps their mean zero
    (Bishop, Etherton, Majumdar 2001): the symmetric one, which keeps the members closest to where they
    were (Ott et al. 2004), or for members that are rotated at random afterwards, to which all such
    roots are the same, the cheaper one of `serial`. In the symmetric root a noise of zero counts as
    one at rounding level."""
    d, y, r = seen.masked
    n, dy = y.shape
    if not symmetric and dy <= max(n, _FEW):
        return serial(a, seen, None)
    if weighing.inner_root is not None:
        root = weighing.inner_root
    else:
        root = inverse_root(whitened(noise_root(_above_rounding(r, y)), y))
    shift = product(weighing.weights(d[None]), a)[0] / _scale(a)
    return Analysis(shift, product(root, a))


def _above_rounding(r: Array, y: Float[Array, "N dy"]) -> Array:
    """The noise, its variances at least rounding times those of the members."""
    variances = (y * y).sum(0)
    floor = 16 * jnp.finfo(y.dtype).eps * jnp.where(variances > 0, variances, 1.0)
    if r.ndim == 1:
        return jnp.where(r > floor, r, floor)
    eye = jnp.eye(len(r), dtype=r.dtype)
    return r + eye * jnp.where(jnp.diagonal(r) > floor, 0.0, floor)


def serial(
    a: Float[Array, "N dx"], seen: ObservedEnsemble, localization: GaspariCohn | None
) -> Analysis:
    """One measurement after the other, each by a square root that needs no matrix (Whitaker, Hamill
    2002; Potter 1963): mean + K d, anomalies - alpha K y^T with alpha = 1 / (1 + sqrt(r / s)). What
    the members expect of later measurements is moved along.

    Without localisation it may be the weights of the anomalies that move, if those are fewer than the
    states.
    """
    d, y, r = seen.masked
    rows, residuals, r = independent(y.T, d[:, None], r, seen.observed)
    y, d = rows.T, residuals[:, 0]
    n, dy = y.shape
    scale = _scale(a)
    by_weights = localization is None and n <= a.shape[1]
    moving = jnp.eye(n, dtype=a.dtype) if by_weights else a / scale
    near = among = None
    if localization is not None:
        near = localization.states_observations.T.astype(a.dtype)  # type: ignore[union-attr]
        among = localization.observations_observations.astype(a.dtype)  # type: ignore[union-attr]

    def one(carry: Any, j: Array) -> tuple[Any, None]:
        shift, moving, d, y = carry
        expected, noise = y[:, j], r[j]
        variance = (expected * expected).sum() + noise
        safe = jnp.where(variance > 0, variance, 1.0)
        ratio = jnp.where(noise > 0, jnp.where(noise > 0, noise, 1.0) / safe, 0.0)
        alpha = 1.0 / (1.0 + jnp.where(noise > 0, jnp.sqrt(jnp.where(noise > 0, ratio, 1.0)), 0.0))
        gain = product(expected, moving) / safe
        gain_y = product(expected, y) / safe
        if near is not None and among is not None:
            gain, gain_y = gain * near[j], gain_y * among[j]
        half = alpha * expected[:, None]
        return (
            shift + gain * d[j],
            moving - half * gain,
            d - gain_y * d[j],
            y - half * gain_y,
        ), None

    start = (jnp.zeros(moving.shape[1], a.dtype), moving, d, y)
    (shift, moving, _, _), _ = jax.lax.scan(one, start, jnp.arange(dy))
    if by_weights:
        return Analysis(product(shift, a) / scale, product(moving, a))
    return Analysis(shift, moving * scale)


def local(a: Float[Array, "N dx"], seen: ObservedEnsemble, localization: GaspariCohn) -> Analysis:
    """A transform of its own for every state, which sees the measurements near it, their noise divided
    by the taper (Hunt, Kostelich, Szunyogh 2007)."""
    d, y, r = seen.masked
    n = len(a)
    r = _above_rounding(r, y)
    white, z = d / jnp.sqrt(r), y / jnp.sqrt(r)
    roots = jnp.sqrt(localization.weights.astype(a.dtype))
    scale = _scale(a)

    def one(at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        column, indices, weights = at
        near = z[:, indices] * weights
        root = inverse_root(near, precise=False)
        w = product(root, product(root, product(near, white[indices] * weights)))
        return (w * column).sum() / scale, product(root, column)

    at = (a.T, localization.neighbours, roots)
    shift, columns = in_groups(one, at, max(1, _MOST_ENTRIES // n**2))
    return Analysis(shift, columns.T)
