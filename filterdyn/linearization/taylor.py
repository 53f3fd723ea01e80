"""First-order Taylor expansion: the rule of the extended Kalman filter."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from filterdyn.beliefs import Gaussian
from filterdyn.linearization.base import AbstractLinearization, Linearized


class Taylor(AbstractLinearization):
    """f(x) is replaced by f(m) + f'(m) (x - m); the Jacobian is taken by forward differentiation."""

    def __call__(
        self, function: Callable[[Array], Any], belief: Gaussian, has_aux: bool = False
    ) -> Linearized:
        def twice(x: Array) -> tuple[Array, tuple[Array, Any]]:
            z, aux = function(x) if has_aux else (function(x), None)
            return z, (z, aux)

        slope, (value, aux) = jax.jacfwd(twice, has_aux=True)(belief.mean)
        return Linearized(value, slope, None, jax.tree.map(lambda leaf: leaf[None], aux))

    def average(self, function: Callable[[Array], Any], belief: Gaussian) -> Any:
        return function(belief.mean)

    def check(self, owner: str, dx: int) -> None:
        """Any number of states."""
