"""The unscented transform."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.linearization.base import Linearized
from filterdyn.linearization.cubature import third_degree
from filterdyn.linearization.sigma_points import (
    AbstractSigmaPointRule,
    SigmaPoints,
    average_on,
    project_on,
    regress_on,
)


class Unscented(AbstractSigmaPointRule):
    """Regression on the 2 n + 1 points m and m +- alpha sqrt(n + kappa) S_j, with S_j the columns of
    the Cholesky factor of the covariance (Julier, Uhlmann 2004; Wan, van der Merwe 2000).

    The centre has weight 1 - n / c^2 in a mean and 2 - n / c^2 - alpha^2 + beta in a covariance,
    c^2 = alpha^2 (n + kappa); every other point 1 / (2 c^2). Conditional covariances are averaged
    with the points of the third-degree cubature rule where the centre's weight is negative.
    """

    alpha: float = eqx.field(static=True)
    beta: float = eqx.field(static=True)
    kappa: float | None = eqx.field(static=True)

    def __init__(self, alpha: float = 1.0, beta: float = 0.0, kappa: float | None = None):
        """**Arguments:**

        - `alpha` > 0: scales the distance of the points;
        - `beta`: adds to the weight of the centre in covariances;
        - `kappa` > -dx; `None` is max(3 - dx, 0).

        **Raises:** `ValueError` for numbers that are not finite and `alpha` <= 0, and when it is used with
        points so close that the precision does not resolve them.
        """
        numbers = dict(alpha=alpha, beta=beta, kappa=kappa)
        for name, value in numbers.items():
            if value is None and name == "kappa":
                continue
            if not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
                raise ValueError(f"Unscented: `{name}` is {value!r}; expected a finite number")
        if alpha <= 0:
            raise ValueError(f"Unscented: `alpha` is {alpha!r}; expected a positive number")
        self.alpha, self.beta = float(alpha), float(beta)
        self.kappa = None if kappa is None else float(kappa)

    def _kappa(self, dx: int) -> float:
        return float(max(3 - dx, 0)) if self.kappa is None else self.kappa

    def points(self, dx: int) -> SigmaPoints:
        """The rule for `dx` states."""
        square = self.alpha**2 * (dx + self._kappa(dx))
        excess = self.alpha**2 - self.beta
        weights = np.full(dx, 1.0 / square)
        centre = excess != 1.0 or not math.isclose(square, dx, rel_tol=1e-14)
        return SigmaPoints(math.sqrt(square) * np.eye(dx), weights, centre, excess)

    def __call__(
        self, function: Callable[[Array], Any], belief: Gaussian, has_aux: bool = False
    ) -> Linearized:
        points = self.points(len(belief.mean))
        self._check_distance(points.directions[0, 0], belief.mean.dtype)
        return regress_on(points, function, belief, has_aux)

    def _check_distance(self, distance: float, dtype: Any) -> None:
        """**Raises:** `ValueError` where rounding would be more than a thousandth of a function's value in
        the mean, which adds second differences over `distance`."""
        least = math.sqrt(1e3 * float(jnp.finfo(dtype).eps))
        if distance < least:
            raise ValueError(
                f"UnscentedKalmanFilter: `alpha` is {self.alpha}, which puts the points {distance:.2g} "
                f"standard deviations from the mean, too close in {jnp.dtype(dtype).name}; expected at "
                f"least {least:.2g} (alpha = 1 is the default)"
            )

    def project(
        self, function: Callable[[Array], Any], m: Float[Array, " n"], s: Float[Array, "n n"]
    ) -> tuple[Float[Array, " dz"], Float[Array, "dz n"]]:
        return project_on(self.points(len(m)), function, m, s)

    def average(self, function: Callable[[Array], Any], belief: Gaussian) -> Any:
        n = len(belief.mean)
        points = self.points(n)
        return average_on(third_degree(n) if points.weights.sum() > 1 else points, function, belief)

    def check(self, owner: str, dx: int) -> None:
        kappa = self._kappa(dx)
        if dx + kappa <= 0:
            raise ValueError(f"{owner}: `kappa` is {kappa} for {dx} states; expected > {-dx}")
        least = -(self.alpha**2) * kappa / dx
        if self.beta < least - 1e-12:
            raise ValueError(
                f"{owner}: `beta` is {self.beta} with kappa = {kappa} and {dx} states, which can make a "
                f"covariance indefinite; expected `beta` >= -alpha^2 kappa / dx = {least:.6g}"
            )
