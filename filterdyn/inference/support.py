"""The support of a distribution over series: that of each entry, NaN being a missing one."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.distributions import biject_to, constraints

from filterdyn.dynamics import Transition
from filterdyn.model import StateSpaceModel


class SeriesSupport(constraints.Constraint):
    """Arrays (..., T, dy) whose entries satisfy `entry`, or are NaN."""

    event_dim = 2

    def __init__(self, entry: Any):
        self.entry = entry
        self.is_discrete = entry.is_discrete

    def __call__(self, x: Any) -> Array:
        return (jnp.isnan(x) | self.entry(x)).all((-2, -1))

    def feasible_like(self, prototype: Any) -> Array:
        return self.entry.feasible_like(prototype)

    def tree_flatten(self) -> Any:
        return (), ((), dict(entry=self.entry, is_discrete=self.is_discrete))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeriesSupport) and self.entry == other.entry

    def __hash__(self) -> int:
        return hash(("SeriesSupport", type(self.entry)))


def series_support(model: StateSpaceModel, u: Any) -> SeriesSupport:
    """The support of the observation distribution; real numbers where it depends on parameters."""
    found: list[Any] = []

    def look(x: Array) -> Array:
        found.append(model.observation.distribution(jnp.zeros((), x.dtype), x, u).support)
        return x

    jax.eval_shape(look, jnp.zeros(model.dx, model.dtype()))
    (entry,) = found
    return SeriesSupport(_of_entries(entry))


def path_support(model: StateSpaceModel, u: Any) -> Any:
    """The support of paths (T, dx): that of each entry where the start and the moves have one and the
    same, and real numbers otherwise."""
    found: list[Any] = [model.initial.support]

    def look(x: Array) -> Array:
        assert isinstance(model.dynamics, Transition)
        found.append(model.dynamics.distribution(jnp.zeros((), x.dtype), x, u).support)
        return x

    entry: Any = constraints.real
    if isinstance(model.dynamics, Transition):
        jax.eval_shape(look, jnp.zeros(model.dx, model.dtype()))
        start, move = map(_of_entries, found)
        entry = move if type(start) is type(move) else entry
    return constraints.independent(entry, 2)


def _of_entries(entry: Any) -> Any:
    """The support of every entry of a vector; real numbers where it depends on parameters."""
    while isinstance(entry, constraints.independent):
        entry = entry.base_constraint
    depends = constraints.is_dependent(entry) or entry.event_dim or jax.tree.leaves(entry)
    return constraints.real if depends else entry


@biject_to.register(SeriesSupport)
def _(support: SeriesSupport) -> Any:
    return biject_to(constraints.independent(support.entry, 2))
