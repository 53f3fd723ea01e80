"""Initial distributions that NumPyro does not have: diffuse ones, and the stationary one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from filterdyn._callables import Held
from filterdyn._checks import check_finite, check_shape, float_array, is_traced
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import AbstractDynamics, LinearSDE, LinearTransition
from filterdyn.linalg import PSD, DiffusePart, congruence, discretize
from filterdyn.moments import conditional_moments


class Diffuse(dist.Distribution):
    """An initial state about which nothing is known: its variance is infinite.

    x0 = base + directions delta, with delta flat on R^k (exact diffuse initialisation; Koopman, Durbin
    2000; Durbin, Koopman 2012, chapter 5). Filters report an infinite variance until the data have
    taken up all k dimensions; smoothed beliefs are finite in every row once that has happened.

    The likelihood is the diffuse one of Durbin and Koopman: a measurement that takes up a dimension
    adds -(log 2 pi + log F_inf) / 2, whatever it is. With `marginal` log 2 pi is left out there, which
    makes it the density of the other measurements given those (for a local level). On the Nile with
    variances 15099 and 1469.1 the two are -633.4646 and -632.5456. Likelihoods of models with
    different diffuse states cannot be compared.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (NumPyro's own class attribute)
    support = constraints.real_vector
    pytree_data_fields = ("directions", "base")
    pytree_aux_fields = ("marginal",)

    def __init__(
        self,
        dx: int,
        *,
        directions: Any = None,
        base: dist.Distribution | None = None,
        marginal: bool = False,
    ):
        """**Arguments:**

        - `dx`: number of states;
        - `directions` (dx, k): what is unknown; by default everything. A boolean vector (dx,) selects
          states;
        - `base`: a Gaussian or `Delta` of event shape (dx,), the rest of the state; by default 0;
        - `marginal`: the form of the likelihood (see above).

        **Raises:** `ValueError` for shapes that disagree, `TypeError` for a `base` that is not Gaussian.
        """
        dx = int(dx)
        if directions is None:
            directions = jnp.eye(dx)
        elif np.asarray(directions).dtype == bool and np.ndim(directions) == 1:
            directions = jnp.asarray(np.eye(len(directions))[:, np.asarray(directions)])
        self.directions = float_array("Diffuse", "directions", directions)
        if self.directions.ndim != 2 or self.directions.shape[0] != dx:
            raise ValueError(
                f"Diffuse: `directions` has shape {self.directions.shape}; expected ({dx}, k) or "
                f"booleans ({dx},)"
            )
        if self.directions.shape[1] > dx:
            raise ValueError(
                f"Diffuse: `directions` has {self.directions.shape[1]} columns for {dx} states"
            )
        check_finite("Diffuse", "directions", self.directions)
        if base is not None:
            check_shape("Diffuse", "base", jnp.empty(base.event_shape), (dx,), "as `dx`")
            if not conditional_moments(base).exact:
                raise TypeError(
                    f"Diffuse: `base` is {type(base).__name__}; expected a Gaussian or a Delta"
                )
        self.base = base
        self.marginal = bool(marginal)
        super().__init__((), (dx,))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """**Raises:** `ValueError`, always."""
        raise ValueError(
            "Diffuse: a flat distribution cannot be sampled; to simulate, give the model a proper "
            "`initial`"
        )

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        """0: the density of a flat distribution, up to a constant."""
        return jnp.zeros(jnp.shape(value)[:-1])

    def belief(self) -> Gaussian:
        """The start of a filter."""
        dx, k = self.event_shape[0], self.directions.shape[1]
        dtype = self.directions.dtype
        factor = jnp.pad(self.directions, ((0, 0), (0, dx - k)))
        part = DiffusePart(factor, factor @ factor.T, self.marginal)
        if self.base is None:
            zero = jnp.zeros((dx, dx), dtype)
            return Gaussian(jnp.zeros(dx, dtype), spread=PSD(zero, zero, part))
        moments = conditional_moments(self.base)
        return Gaussian(moments.mean, spread=PSD(moments.cov.factor, moments.cov.matrix, part))


#: Squarings of the transition: 2^64 steps.
_DOUBLINGS = 64


def stationary(dynamics: AbstractDynamics) -> dist.MultivariateNormal:
    """The stationary distribution of stable linear dynamics, without input.

    P = F P F^T + Q, by doubling in square-root form (Anderson, Moore 1979, section 6.7); a `LinearSDE`
    through its exact discretisation, whose stationary distribution is its own.

    **Raises:** `TypeError` for other dynamics and for matrices that are functions of time,
    `ValueError` if the dynamics are not stable.
    """
    (transition, offset, noise), name = _linear_parts(dynamics)
    if not is_traced(transition):
        radius = float(np.abs(np.linalg.eigvals(np.asarray(transition, float))).max())
        if not radius < 1:
            raise ValueError(
                f"stationary: the dynamics are not stable (the {name} is {radius:.6g}, expected below 1); "
                "use fd.Diffuse or give an initial distribution"
            )

    def double(carry: tuple[Array, PSD], _: None) -> tuple[tuple[Array, PSD], None]:
        f, p = carry
        return (f @ f, congruence(f, p, p)), None

    (_, p), _ = jax.lax.scan(double, (transition, noise), None, length=_DOUBLINGS)
    eye = jnp.eye(len(transition), dtype=transition.dtype)
    return dist.MultivariateNormal(
        jnp.linalg.solve(eye - transition, offset), p.matrix, validate_args=False
    )


def _linear_parts(
    dynamics: AbstractDynamics,
) -> tuple[tuple[Float[Array, "dx dx"], Float[Array, " dx"], PSD], str]:
    """x' = F x + c + noise, and what the size of its largest eigenvalue is called."""
    if isinstance(dynamics, LinearTransition):
        f, q, b = (_constant(dynamics, name) for name in ("F", "Q", "b"))
        offset = jnp.zeros(f.shape[0], f.dtype) if b is None else b
        return (f, offset, PSD.from_matrix(q)), "spectral radius of F"
    if isinstance(dynamics, LinearSDE):
        a = dynamics.A
        size = jax.lax.stop_gradient(jnp.abs(a).sum(1).max())
        exact = discretize(a, dynamics.L, 1.0 / jnp.where(size > 0, size, 1.0))
        b = jnp.zeros(len(a), a.dtype) if dynamics.b is None else exact.held @ dynamics.b
        return (exact.transition, b, exact.noise), "spectral radius of exp(A / |A|)"
    raise TypeError(
        f"stationary: `dynamics` is {type(dynamics).__name__}; expected LinearTransition or LinearSDE"
    )


def _constant(dynamics: LinearTransition, name: str) -> Any:
    value = getattr(dynamics, name)
    if isinstance(value, Held):
        raise TypeError(f"stationary: `{name}` is a function of time; expected an array")
    return value
