"""A state-space model: where the state starts, how it moves, how it is seen."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array

from filterdyn._checks import BATCH_RECIPE, is_traced
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import AbstractDynamics
from filterdyn.initial import Diffuse
from filterdyn.moments import conditional_moments
from filterdyn.observations import AbstractObservation


class StateSpaceModel(eqx.Module):
    """Where the state starts (`initial`), how it moves (`dynamics`), how it is seen (`observation`).

    A model is a pytree: `jax.jit`, `jax.vmap`, `equinox.filter_grad` and Optax apply to it. A batch of
    models, `equinox.filter_vmap(make)(parameters)`, has `batch_shape` (S,).
    """

    initial: dist.Distribution
    dynamics: AbstractDynamics
    observation: AbstractObservation
    dx: int = eqx.field(static=True)
    _rank: Array

    def __init__(
        self,
        initial: dist.Distribution,
        dynamics: AbstractDynamics,
        observation: AbstractObservation,
    ):
        """**Arguments:**

        - `initial`: a NumPyro distribution of event shape (dx,), the state at `t0` (by default the
          time of the first row). `Delta(x0, event_dim=1)` is a state that is known;
        - `dynamics`: `Transition`, `LinearTransition`, `ODE`, `SDE` or `LinearSDE`;
        - `observation`: `Observation`, `GaussianObservation` or `LinearObservation`.

        **Raises:** `TypeError` for parts of another kind, `ValueError` for an `initial` of another
        shape, with a batch shape, or that is not finite.
        """
        owner = "StateSpaceModel"
        if not isinstance(initial, dist.Distribution):
            raise TypeError(
                f"{owner}: `initial` is {type(initial).__name__}; expected a NumPyro distribution "
                "(a known state x0 is dist.Delta(x0, event_dim=1))"
            )
        if not isinstance(dynamics, AbstractDynamics):
            raise TypeError(
                f"{owner}: `dynamics` is {type(dynamics).__name__}; expected Transition, "
                "LinearTransition, ODE, SDE or LinearSDE"
            )
        if not isinstance(observation, AbstractObservation):
            raise TypeError(
                f"{owner}: `observation` is {type(observation).__name__}; expected Observation, "
                "GaussianObservation or LinearObservation"
            )
        shape = f"batch shape {initial.batch_shape} and event shape {initial.event_shape}"
        if len(initial.event_shape) != 1 or initial.batch_shape != ():
            if len(initial.event_shape) == 1:
                raise ValueError(
                    f"{owner}: `initial` has {shape}; expected one distribution. To {BATCH_RECIPE}"
                )
            raise ValueError(
                f"{owner}: `initial` has {shape}; expected batch shape () and event shape (dx,): "
                "independent entries are declared with `.to_event(1)`, a known state is "
                "dist.Delta(x0, event_dim=1)"
            )
        for leaf in jax.tree.leaves(initial):
            if not is_traced(leaf) and not np.all(np.isfinite(np.asarray(leaf, float))):
                raise ValueError(
                    f"{owner}: `initial` ({type(initial).__name__}) has NaN or infinite parameters. A "
                    "singular covariance cannot be given as `covariance_matrix`, only as `scale_tril`; "
                    "a state that is known is dist.Delta(x0, event_dim=1)"
                )
        self.initial = initial
        self.dynamics = dynamics
        self.observation = observation
        self.dx = int(initial.event_shape[0])
        self._rank = jnp.zeros(())

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """`()` for one model, `(S,)` for a batch made by `equinox.filter_vmap`."""
        return tuple(self._rank.shape)

    def starts_exactly(self) -> bool:
        """Is the initial distribution Gaussian, a point, or diffuse?"""
        return isinstance(self.initial, Diffuse) or conditional_moments(self.initial).exact

    def starts_diffusely(self) -> bool:
        """Is a part of the initial covariance infinite?"""
        return isinstance(self.initial, Diffuse)

    def start(self, dtype: jnp.dtype) -> Gaussian:
        """The initial distribution as a Gaussian belief (its moments, where it is not Gaussian)."""
        if isinstance(self.initial, Diffuse):
            return self.initial.belief().astype(dtype)
        moments = conditional_moments(self.initial)
        return Gaussian(moments.mean, spread=moments.cov).astype(dtype)

    def dtype(self, *others: Any) -> jnp.dtype:
        """The floating type that a filter computes in: the widest among the model's arrays."""
        leaves = [x for x in jax.tree.leaves((self, others)) if eqx.is_inexact_array(x)]
        leaves = [x for x in leaves if x is not self._rank]
        return jnp.result_type(*leaves) if leaves else jnp.result_type(float)

    def dy(self, t: Any, u: Any) -> int:
        """Number of observed quantities (shapes only; nothing is computed)."""
        x = jax.ShapeDtypeStruct((self.dx,), self.dtype())
        return int(jax.eval_shape(self.observation.distribution, t, x, u).event_shape[0])

    def check(self, owner: str, t: Any, u: Any, dy: int | None, dtype: jnp.dtype) -> None:
        """Raise if the parts do not fit each other, the inputs and `dy` (shapes only)."""
        if self.batch_shape != ():
            raise ValueError(
                f"{owner}: `model` is a batch of shape {self.batch_shape}; map over it with "
                "equinox.filter_vmap, or give ObservedSeries its `batch_shape`"
            )
        x = jax.ShapeDtypeStruct((self.dx,), dtype)
        t = jax.ShapeDtypeStruct((), dtype)
        u = None if u is None else jax.ShapeDtypeStruct(u.shape, u.dtype)
        self.dynamics.check(type(self.dynamics).__name__, t, x, u)
        self.observation.check(type(self.observation).__name__, t, x, u, dy)
