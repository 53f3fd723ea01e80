"""Localisation: correlations of an ensemble are trusted over short distances only."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from filterdyn._checks import as_numbers

#: Tapers of more entries than this are not formed.
_MOST_ENTRIES = 2**24
#: Neighbours are looked for in groups of this many states.
_ROWS = 256
_NAME = "GaspariCohn"


class GaspariCohn(eqx.Module):
    """A taper that falls from 1 at distance 0 to exactly 0 at 2 sqrt(10/3) = 3.65 `radius`, smooth and
    positive definite (Gaspari, Cohn 1999, equation 4.10). It is close to the Gaussian
    exp(-distance^2 / (2 radius^2)).

    An ensemble of N members has N - 1 independent directions; sampled correlations between distant
    states are noise. Under a taper they are left out.
    """

    #: Over all pairs, `None` where there are too many.
    states_observations: Float[Array, "dx dy"] | None
    observations_observations: Float[Array, "dy dy"] | None
    #: The observations near each state, padded with weight 0.
    neighbours: Int[Array, "dx k"]
    weights: Float[Array, "dx k"]
    #: The states near each state, itself among them, likewise.
    state_neighbours: Int[Array, "dx m"]
    state_weights: Float[Array, "dx m"]
    #: Where the states are, and after which length a coordinate comes back (infinity: never).
    places: Float[Array, "dx p"]
    period: Float[Array, " p"]
    radius: Float[Array, ""]
    dx: int = eqx.field(static=True)
    dy: int = eqx.field(static=True)

    def __init__(self, radius: float, states: Any, observations: Any = None, *, period: Any = None):
        """**Arguments:**

        - `radius` > 0, in the units of the coordinates;
        - `states` (dx,) or (dx, p): where each state is, in p dimensions;
        - `observations` (dy,) or (dy, p): where each measurement is; `None`: each state is measured;
        - `period`, a number or (p,): the length after which a coordinate comes back to itself.

        **Raises:** `ValueError` for a radius or period that is not positive and shapes that disagree.
        """
        radius = float(radius)
        if not (np.isfinite(radius) and radius > 0):
            raise ValueError(f"{_NAME}: `radius` is {radius}; expected a positive number")
        x = _coordinates("states", states)
        y = x if observations is None else _coordinates("observations", observations)
        if x.shape[1] != y.shape[1]:
            raise ValueError(
                f"{_NAME}: `states` has {x.shape[1]} coordinates a state but `observations` has "
                f"{y.shape[1]}"
            )
        if period is None:
            period = np.full(x.shape[1], np.inf)
        else:
            period = np.broadcast_to(as_numbers(_NAME, "period", period), x.shape[1:])
            if not (np.isfinite(period) & (period > 0)).all():
                raise ValueError(f"{_NAME}: `period` is {period}; expected positive numbers")
        self.dx, self.dy = len(x), len(y)
        small = max(self.dx, self.dy) * self.dy <= _MOST_ENTRIES
        between = lambda a, b: jnp.asarray(taper(_distances(a, b, period) / radius))
        self.states_observations = between(x, y) if small else None
        self.observations_observations = between(y, y) if small else None
        self.neighbours, self.weights = _neighbours(x, y, period, radius)
        self.state_neighbours, self.state_weights = (
            (self.neighbours, self.weights) if y is x else _neighbours(x, x, period, radius)
        )
        self.places, self.period = jnp.asarray(x), jnp.asarray(period, float)
        self.radius = jnp.asarray(radius, float)

    def among(self, states: Int[Array, " k"]) -> Float[Array, "k k"]:
        """The taper between these states."""
        places, period, radius = stop_gradient((self.places[states], self.period, self.radius))
        return taper(_distances(places, places, period) / radius)


def taper(z: Any) -> Any:
    """Gaspari and Cohn's function of distance / radius."""
    xp: Any = _module(z)
    r = xp.asarray(z, float) / (10 / 3) ** 0.5
    safe = xp.where(r > 0, r, 1.0)
    near = 1 - 5 / 3 * r**2 + 5 / 8 * r**3 + r**4 / 2 - r**5 / 4
    far = 4 - 5 * r + 5 / 3 * r**2 + 5 / 8 * r**3 - r**4 / 2 + r**5 / 12 - 2 / (3 * safe)
    return xp.clip(xp.where(r <= 1, near, xp.where(r < 2, far, 0.0)), 0.0, 1.0)


def _module(array: Any) -> Any:
    return jnp if isinstance(array, jax.Array) else np


def _coordinates(name: str, value: Any) -> np.ndarray:
    array = as_numbers(_NAME, name, value).astype(np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or len(array) == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"{_NAME}: `{name}` has shape {array.shape}; expected finite coordinates (n,) or (n, p)"
        )
    return array


def _distances(a: Any, b: Any, period: Any) -> Any:
    """Those of every row of `a` and every row of `b`."""
    return _lengths(a[:, None, :] - b[None, :, :], period)


def _lengths(gaps: Any, period: Any) -> Any:
    xp = _module(gaps)
    gap = xp.remainder(xp.abs(gaps), period)
    gap = xp.minimum(gap, period - gap)
    return xp.sqrt((gap**2).sum(-1))


def _neighbours(
    x: np.ndarray, y: np.ndarray, period: np.ndarray, radius: float
) -> tuple[Array, Array]:
    """The rows of `y` with a positive weight at each row of `x`, and that weight."""
    reach = 2 * np.sqrt(10 / 3) * radius * (1 + 1e-9)
    order = np.argsort(x[:, 0])
    block = max(1, min(_ROWS, 2**22 // len(y)))
    found: list[tuple[np.ndarray, ...]] = []
    for start in range(0, len(x), block):
        rows = order[start : start + block]
        # Far away by the first coordinate alone is far away.
        low, high = x[rows[0], 0], x[rows[-1], 0]
        aside = _lengths(y[:, :1] - 0.5 * (low + high), period[:1])
        columns = np.flatnonzero(aside <= 0.5 * (high - low) + reach)
        w = taper(_distances(x[rows], y[columns], period) / radius)
        row, column = np.nonzero(w)
        found.append((rows[row], columns[column], w[row, column]))
    rows, columns, w = (np.concatenate(parts) for parts in zip(*found, strict=True))
    counts = np.bincount(rows, minlength=len(x))
    first = np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(rows, kind="stable")
    rows, columns, w = rows[order], columns[order], w[order]
    position = np.arange(len(rows)) - first
    indices = np.zeros((len(x), max(1, counts.max())), np.int32)
    weights = np.zeros(indices.shape)
    indices[rows, position], weights[rows, position] = columns, w
    return jnp.asarray(indices), jnp.asarray(weights)
