"""The protocol of dynamics: how a state moves from one row to the next."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.linearization import AbstractLinearization, Affine


class Interval(NamedTuple):
    """From one row to the next: `time` and `input` are those of the row that is left."""

    time: Float[Array, ""]
    gap: Float[Array, ""]
    input: Float[Array, " du"] | None
    #: What `plan` said about this row, and what `tabulate` made of the plan.
    row: Int[Array, ""] | None = None
    table: Any = None

    def for_others(self) -> "Interval":
        """The same interval, without what was computed for the dynamics at one set of parameters (a number
        of steps serves them all)."""
        return self if isinstance(self.table, int) else self._replace(table=None)


class Plan(eqx.Module):
    """What is found out about a series before it is filtered, on the host: by the dynamics about its
    gaps."""

    rows: Int[Array, " T"] | None = None
    gaps: Float[Array, " U"] | None = None
    #: Largest number of steps in any gap (0: the number is the same in every gap).
    most: int = eqx.field(static=True, default=0)
    #: Is it known that nothing is missing?
    complete: bool = eqx.field(static=True, default=False)

    def cast(self, dtype: jnp.dtype, complete: bool = False) -> "Plan":
        gaps = None if self.gaps is None else self.gaps.astype(dtype)
        return Plan(self.rows, gaps, self.most, complete)


class AbstractDynamics(eqx.Module):
    """How the state moves. A filter asks for moments, a simulator for samples."""

    #: Is the next state a linear function of this one plus Gaussian noise?
    is_linear: ClassVar[bool] = False
    #: Does the gap between rows matter, or is every row one transition?
    is_continuous: ClassVar[bool] = True

    def plan(self, gaps: Any) -> Plan:
        """Look at the gaps (T,), concrete NumPy or traced, before anything is compiled."""
        return Plan()

    def tabulate(self, plan: Plan) -> Any:
        """Compute once what all rows share."""
        return None

    def repeats(self, plan: Plan) -> bool:
        """Do the moves of rows with one entry in `plan` differ in nothing but the input?"""
        return False

    @abc.abstractmethod
    def moments(
        self, rule: AbstractLinearization, belief: Gaussian, interval: Interval
    ) -> tuple[Affine, Int[Array, ""]]:
        """The affine stand-in for the move over `interval` around `belief`, and a status."""

    @abc.abstractmethod
    def sample(self, key: Array, x: Float[Array, " dx"], interval: Interval) -> Float[Array, " dx"]:
        """A draw of the state at the end of `interval`, given `x` at its beginning."""

    def sample_many(
        self, key: Array, x: Float[Array, "N dx"], interval: Interval
    ) -> Float[Array, "N dx"]:
        """`sample` for every row of `x`. One array of random numbers for all of them is faster than a
        key for each; then the draws are others than those of `sample`, with the same distribution."""
        keys = jax.random.split(key, len(x))
        return jax.vmap(lambda key, x: self.sample(key, x, interval))(keys, x)

    def log_density(
        self, x_to: Float[Array, " dx"], x_from: Float[Array, " dx"], interval: Interval
    ) -> Float[Array, ""]:
        """log p(x_to | x_from) over an interval of positive length. Where the noise does not reach
        every direction it is the density within those that it reaches, and `-inf` off them.

        **Raises:** `TypeError` if these dynamics have no density that is known.
        """
        raise TypeError(
            f"{type(self).__name__} has no transition density that is known in closed form; it can be "
            "sampled only (Transition, LinearTransition, LinearSDE, and SDE with substeps=1 and "
            "path_solver=diffrax.Euler() have one)"
        )

    def normals(self, x: Float[Array, " dx"], interval: Interval) -> tuple[int, ...]:
        """Shape of the standard normal numbers that `driven_by` makes a move of.

        **Raises:** `TypeError` if the move is no known function of such numbers.
        """
        raise TypeError(
            f"{type(self).__name__} is not known as a function of standard normal numbers "
            "(Transition with Gaussians or transforms of them, LinearTransition, LinearSDE, SDE and ODE "
            "are)"
        )

    def driven_by(
        self, x: Float[Array, " dx"], normals: Float[Array, "..."], interval: Interval
    ) -> Float[Array, " dx"]:
        """The state at the end of `interval`, given `x` at its beginning, as a differentiable function
        of standard normal numbers: with random ones it is a draw. Dynamics have it if they have
        `normals`, which is asked first."""
        raise NotImplementedError

    @abc.abstractmethod
    def check(self, owner: str, t: Any, x: Any, u: Any) -> None:
        """Raise if the model does not move a state like `x` (shapes only)."""
