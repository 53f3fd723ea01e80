"""Localisation: correlations of an ensemble are trusted over short distances only."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from filterdyn._checks import as_numbers

#: Tapers of more entries than this are not formed.
_MOST_ENTRIES = 2**24
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
        if period is not None:
            period = np.broadcast_to(as_numbers(_NAME, "period", period), x.shape[1:])
            if not (np.isfinite(period) & (period > 0)).all():
                raise ValueError(f"{_NAME}: `period` is {period}; expected positive numbers")
        self.dx, self.dy = len(x), len(y)
        small = max(self.dx, self.dy) * self.dy <= _MOST_ENTRIES
        between = lambda a, b: jnp.asarray(taper(_distances(a, b, period) / radius))
        self.states_observations = between(x, y) if small else None
        self.observations_observations = between(y, y) if small else None
        self.neighbours, self.weights = _neighbours(x, y, period, radius)


def taper(z: np.ndarray) -> np.ndarray:
    """Gaspari and Cohn's function of distance / radius."""
    r = np.asarray(z, float) / np.sqrt(10 / 3)
    safe = np.where(r > 0, r, 1.0)
    near = 1 - 5 / 3 * r**2 + 5 / 8 * r**3 + r**4 / 2 - r**5 / 4
    far = 4 - 5 * r + 5 / 3 * r**2 + 5 / 8 * r**3 - r**4 / 2 + r**5 / 12 - 2 / (3 * safe)
    return np.clip(np.where(r <= 1, near, np.where(r < 2, far, 0.0)), 0.0, 1.0)


def _coordinates(name: str, value: Any) -> np.ndarray:
    array = as_numbers(_NAME, name, value).astype(np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or len(array) == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"{_NAME}: `{name}` has shape {array.shape}; expected finite coordinates (n,) or (n, p)"
        )
    return array


def _distances(a: np.ndarray, b: np.ndarray, period: np.ndarray | None) -> np.ndarray:
    gap = np.abs(a[:, None, :] - b[None, :, :])
    if period is not None:
        gap = np.remainder(gap, period)
        gap = np.minimum(gap, period - gap)
    return np.sqrt((gap**2).sum(-1))


def _neighbours(
    x: np.ndarray, y: np.ndarray, period: np.ndarray | None, radius: float
) -> tuple[Array, Array]:
    """The observations with a positive weight at each state, and that weight."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    rows = max(1, 2**22 // len(y))
    for start in range(0, len(x), rows):
        w = taper(_distances(x[start : start + rows], y, period) / radius)
        found.extend((np.flatnonzero(row), row[row > 0]) for row in w)
    most = max(1, *(len(i) for i, _ in found))
    indices = np.zeros((len(x), most), np.int32)
    weights = np.zeros((len(x), most))
    for k, (i, w) in enumerate(found):
        indices[k, : len(i)], weights[k, : len(i)] = i, w
    return jnp.asarray(indices), jnp.asarray(weights)
