"""A model made affine along a trajectory, in all rows at once: what iterated smoothers and filters
that are parallel in time go over."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import AbstractDynamics, Interval
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.gaussian import cast
from filterdyn.filters.rows import Row
from filterdyn.filters.scan import is_finite
from filterdyn.linalg import mv
from filterdyn.linalg.gate import gated
from filterdyn.linearization import AbstractLinearization, Affine, Taylor, squared
from filterdyn.model import StateSpaceModel
from filterdyn.observations import AbstractObservation, LinearizedObservation


class AnchoredMove(NamedTuple):
    """The move into a row, linearised at a belief with mean `origin` in the row before."""

    move: Affine
    origin: Float[Array, " dx"]
    status: Int[Array, ""]


class AnchoredObservation(NamedTuple):
    """The measurement of a row, linearised at a belief with mean `origin`."""

    seen: LinearizedObservation
    origin: Float[Array, " dx"]


class AnchoredMoves(AbstractDynamics):
    """Dynamics that are given row by row, as the `AnchoredMove` in the row's plan."""

    is_linear: ClassVar[bool] = True

    def moments(
        self, rule: AbstractLinearization, belief: Gaussian, interval: Interval
    ) -> tuple[Affine, Int[Array, ""]]:
        at: Any = interval.row
        value = at.move.value + mv(at.move.slope, belief.mean - at.origin)
        return at.move._replace(value=value), at.status

    def sample(self, key: Array, x: Float[Array, " dx"], interval: Interval) -> Float[Array, " dx"]:
        raise NotImplementedError

    def check(self, owner: str, t: Any, x: Any, u: Any) -> None:
        """Nothing here comes from a user."""


class AnchoredObservations(AbstractObservation):
    """Measurements that are given row by row, as the `AnchoredObservation` in the row's input."""

    is_linear: ClassVar[bool] = True

    def distribution(self, t: Any, x: Float[Array, " dx"], u: Any) -> dist.Distribution:
        raise NotImplementedError

    def linearize(
        self, rule: AbstractLinearization, at: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> LinearizedObservation:
        seen, origin = u
        return seen._replace(value=seen.value + mv(seen.slope, at.mean - origin))

    def check(self, owner: str, t: Any, x: Any, u: Any, dy: int | None) -> None:
        """Nothing here comes from a user."""


def anchored_model(model: StateSpaceModel) -> StateSpaceModel:
    """The model that rows made by `anchored_rows` belong to."""
    return StateSpaceModel(model.initial, AnchoredMoves(), AnchoredObservations())


def anchored_rows(
    rule: AbstractLinearization,
    model: StateSpaceModel,
    table: Any,
    rows: Row,
    left: Gaussian,
    at: Gaussian,
) -> Row:
    """All rows (T,) with their moves linearised at the beliefs `left` in the rows before, and their
    measurements at the beliefs `at`. Where a model function is not finite the row is not either, and
    lets no derivative through.
    """

    def move(left: Gaussian, row: Row) -> tuple[AnchoredMove, Array]:
        interval = Interval(row.time_from, row.gap, row.input_from, row.plan, table)
        found, status = model.dynamics.moments(rule, left, interval)
        found = cast(found, left.mean.dtype)
        found = found._replace(noise=squared(found.noise))
        finite = is_finite(found.value, found.slope, found.noise.matrix)
        return AnchoredMove(found, left.mean, status), finite & (row.gap > 0)

    def measurement(at: Gaussian, row: Row) -> tuple[AnchoredObservation, Array]:
        seen = model.observation.linearize(rule, at, row.time, row.input, row.observation)
        seen = cast(seen, at.mean.dtype)
        return AnchoredObservation(seen, at.mean), is_finite(seen.value, seen.slope, seen.noise)

    def each(function: Any, belief: Gaussian) -> Any:
        first = jax.tree.map(lambda x: x[0], (belief, rows))
        return jax.vmap(gated(function, lambda out: out[1], *first))(belief, rows)[0]

    here: Any = each(move, left), each(measurement, at)
    return rows._replace(plan=here[0], input=here[1], input_from=None)


def rule_of(filter: AbstractFilter) -> AbstractLinearization:
    """How a Gaussian filter linearises."""
    return getattr(filter, "rule", Taylor())


def before(start: Gaussian, beliefs: Gaussian) -> Gaussian:
    """The belief that each row starts from."""
    return jax.tree.map(lambda x0, x: jnp.concatenate([x0[None], x[:-1]]), start, beliefs)
