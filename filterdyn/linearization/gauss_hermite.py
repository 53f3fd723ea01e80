"""Products of Gauss-Hermite rules."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.linearization.base import Linearized
from filterdyn.linearization.sigma_points import (
    AbstractSigmaPointRule,
    SigmaPoints,
    average_on,
    check_pairs,
    project_on,
    regress_on,
)


@functools.lru_cache(maxsize=32)
def product_rule(order: int, n: int) -> SigmaPoints:
    """All order^n combinations of the nodes of one dimension."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / weights.sum()
    grid = np.stack(np.meshgrid(*[nodes] * n, indexing="ij"), axis=-1).reshape(-1, n)
    each = np.stack(np.meshgrid(*[weights] * n, indexing="ij"), axis=-1).reshape(-1, n).prod(1)
    # The nodes are symmetric: entry k and entry -1 - k of the list are a pair.
    half = len(grid) // 2
    return SigmaPoints(grid[:half], 2 * each[:half], order % 2 == 1)


class GaussHermite(AbstractSigmaPointRule):
    """Regression on the order^dx points of the product of Gauss-Hermite rules (Ito, Xiong 2000):
    exact means of polynomials up to degree 2 order - 1 in each state."""

    order: int = eqx.field(static=True)

    def __init__(self, order: int = 3):
        """**Arguments:** `order` >= 2: points per state.

        **Raises:** `ValueError` for anything else.
        """
        if not isinstance(order, (int, np.integer)) or order < 2:
            raise ValueError(f"GaussHermite: `order` is {order!r}; expected an integer >= 2")
        self.order = int(order)

    def points(self, dx: int) -> SigmaPoints:
        """The rule for `dx` states."""
        return product_rule(self.order, dx)

    def __call__(
        self, function: Callable[[Array], Any], belief: Gaussian, has_aux: bool = False
    ) -> Linearized:
        return regress_on(self.points(len(belief.mean)), function, belief, has_aux)

    def project(
        self, function: Callable[[Array], Any], m: Float[Array, " n"], s: Float[Array, "n n"]
    ) -> tuple[Float[Array, " dz"], Float[Array, "dz n"]]:
        return project_on(self.points(len(m)), function, m, s)

    def average(self, function: Callable[[Array], Any], belief: Gaussian) -> Any:
        return average_on(self.points(len(belief.mean)), function, belief)

    def check(self, owner: str, dx: int) -> None:
        check_pairs(owner, dx, self.order**dx // 2, "use a lower `order`, or CubatureKalmanFilter")
