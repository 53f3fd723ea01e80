"""What is known of parameters, as it grows with measurements and is forgotten."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.learning.model import ParametricModel
from filterdyn.linalg import PSD, condition, congruence, mm, triangularize
from filterdyn.linalg.decorrelate import UNROLL


def evolved(model: ParametricModel, spread: PSD, gap: Float[Array, ""]) -> PSD:
    """After the parameters have moved over a gap by the model's `evolution`."""
    if model.evolution is None:
        return spread
    found = model.evolve(spread.matrix, gap)
    k = spread.matrix.shape[0]
    noise = PSD.from_matrix(found.noise)
    return congruence(found.slope * jnp.eye(k, dtype=spread.matrix.dtype), spread, noise)


def forgotten(spread: PSD, slopes: Float[Array, "m k"], factor: float, directional: bool) -> PSD:
    """Before a measurement of `slopes` theta + N(0, 1), the past counting `factor` times as much.

    Exponential forgetting multiplies the covariance C by 1 / factor, in directions that the measurement
    says nothing of too. Directional forgetting (Cao, Schwartz 2000, here of several rows at once) adds
    (1 / factor - 1) H^T (H C^-1 H^T)^+ H: nothing but in the directions H of the measurement, and with it
    the information stays bounded from below and above.
    """
    if factor == 1:
        return spread
    root = spread.root
    if not directional:
        return PSD.from_factor(root / factor**0.5)
    # With V = S^-1 H^T and Q an orthonormal basis of its columns that is S (Q Q^T) S^T.
    directions = _orthonormal(jnp.linalg.lstsq(root, slopes.T)[0].T)
    more = (factor**-0.5 - 1.0) * mm(mm(root, directions.T), directions)
    return PSD.from_factor(root + more)


def informed(spread: PSD, slopes: Float[Array, "m k"]) -> PSD:
    """After a measurement of `slopes` theta + N(0, 1)."""
    m, k = slopes.shape
    if m > k:
        # (As much is said by k rows with the same products.)
        slopes = triangularize(slopes.T).T
    count = len(slopes)
    nothing = jnp.zeros(count, slopes.dtype)
    return condition(spread, slopes, nothing, nothing + 1.0, jnp.ones(count, bool)).cov


def check_forgetting(owner: str, forgetting: Any, directional: Any) -> tuple[float, bool]:
    """**Raises:** `ValueError` for a factor outside (0, 1], `TypeError` for a flag that is none."""
    if not isinstance(forgetting, (int, float)) or not 0 < forgetting <= 1:
        raise ValueError(f"{owner}: `forgetting` is {forgetting!r}; expected 0 < f <= 1")
    if not isinstance(directional, bool):
        raise TypeError(f"{owner}: `directional` is {directional!r}; expected True or False")
    return float(forgetting), directional


def _orthonormal(rows: Float[Array, "m k"]) -> Float[Array, "n k"]:
    """Orthonormal rows with the same span, and zeros in place of those that add nothing to it."""
    floor = 1e2 * jnp.finfo(rows.dtype).eps * jnp.sqrt((rows * rows).sum())
    if len(rows) > UNROLL:
        _, sizes, found = jnp.linalg.svd(rows, full_matrices=False)
        return jnp.where(sizes[:, None] > floor, found, 0.0)
    done: list[Array] = []
    for i in range(len(rows)):
        row = rows[i]
        # (Twice: what is left of a row that is nearly a combination must be orthogonal too.)
        for _ in range(2):
            for other in done:
                row = row - (row * other).sum() * other
        norm = jnp.sqrt((row * row).sum())
        some = norm > floor
        done.append(jnp.where(some, row / jnp.where(some, norm, 1.0), 0.0))
    return jnp.stack(done)
