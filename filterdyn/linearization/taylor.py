"""First-order Taylor expansion: the rule of the extended Kalman filter."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.linearization.base import AbstractLinearization


class Taylor(AbstractLinearization):
    """f(x) is replaced by f(m) + f'(m) (x - m); the Jacobian is taken by forward differentiation."""

    def __call__(
        self, function: Callable[[Array], Array], belief: Gaussian
    ) -> tuple[Float[Array, " dz"], Float[Array, "dz dx"]]:
        def twice(x: Array) -> tuple[Array, Array]:
            z = function(x)
            return z, z

        slope, value = jax.jacfwd(twice, has_aux=True)(belief.mean)
        return value, slope
