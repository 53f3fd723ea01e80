"""Spherical-radial cubature rules."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

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


def third_degree(n: int) -> SigmaPoints:
    """The 2 n points +- sqrt(n) e_j (Arasaratnam, Haykin 2009)."""
    return SigmaPoints(math.sqrt(n) * np.eye(n), np.full(n, 1.0 / n), False)


@functools.lru_cache(maxsize=32)
def fifth_degree(n: int) -> SigmaPoints:
    """A rule of degree five with positive weights: the centre (weight 2 / (n + 2)) and points on the
    sphere of radius sqrt(n + 2).

    Up to 4 states those of Jia, Xin and Cheng (2013): +- e_j and (+- e_i +- e_j) / sqrt(2). Their
    weights on the axes, 4 - n, are negative above 4 states; then the corners (+-1, .., +-1) / sqrt(n)
    of a cube take the place of the diagonals (Stroud 1971).
    """
    axes, radius = np.eye(n), math.sqrt(n + 2)
    if n > 4:
        signs = itertools.product((1.0, -1.0), repeat=n - 1)
        others = np.array([(1.0, *rest) for rest in signs]) / math.sqrt(n)
        on_axes, on_others = 2.0 / (n + 2) ** 2, 2.0 * n**2 / (2**n * (n + 2) ** 2)
    else:
        pairs = itertools.combinations(range(n), 2)
        both = [(axes[i] + sign * axes[j]) for i, j in pairs for sign in (1, -1)]
        others = np.array(both).reshape(-1, n) / math.sqrt(2)
        on_axes, on_others = (4.0 - n) / (n + 2) ** 2, 2.0 / (n + 2) ** 2
    directions = radius * np.concatenate([axes, others])
    weights = np.concatenate([np.full(n, on_axes), np.full(len(others), on_others)])
    used = weights > 0
    return SigmaPoints(directions[used], weights[used], True)


class Cubature(AbstractSigmaPointRule):
    """Regression on the points of a spherical-radial cubature rule: exact means of polynomials up to
    its degree. No weight is negative."""

    degree: int = eqx.field(static=True)

    def __init__(self, degree: Literal[3, 5] = 3):
        """**Arguments:** `degree`: 3, with 2 dx points (Arasaratnam, Haykin 2009), or 5, with
        2 dx^2 + 1 points up to 4 states (Jia, Xin, Cheng 2013) and 2^dx + 2 dx + 1 above.

        **Raises:** `ValueError` for another degree.
        """
        if degree not in (3, 5):
            raise ValueError(f"Cubature: `degree` is {degree!r}; expected 3 or 5")
        self.degree = int(degree)

    def points(self, dx: int) -> SigmaPoints:
        """The rule for `dx` states."""
        return third_degree(dx) if self.degree == 3 else fifth_degree(dx)

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
        if self.degree == 5 and dx > 4:
            check_pairs(owner, dx, dx + 2 ** (dx - 1), "use `degree=3`")
