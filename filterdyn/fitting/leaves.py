"""Which numbers of a model and of a learned filter are trained, and in which coordinates."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from filterdyn._callables import Held
from filterdyn._leaves import marked, markers
from filterdyn.fields import Normalization
from filterdyn.filters import AbstractLearnedFilter
from filterdyn.model import StateSpaceModel

Pick = Callable[[StateSpaceModel], Any]


def _picked(name: str, model: StateSpaceModel, pick: Pick) -> list[int]:
    if not callable(pick):
        raise TypeError(
            f"fit: `{name}` is {type(pick).__name__}; expected a function that picks leaves, such as "
            "lambda model: model.dynamics.drift.value"
        )
    leaves = jax.tree.leaves(model)
    found = [i for i in markers(pick(marked(model))) if eqx.is_inexact_array(leaves[i])]
    return sorted(set(found))


def _of_user_functions(model: StateSpaceModel) -> list[int]:
    """Numbers inside the functions that the user gave, but for what they are normalised by."""
    leaves, found = jax.tree.leaves(model), set()
    stand_in = marked(model)
    for part in (stand_in.dynamics, stand_in.observation):
        for name, value in vars(part).items():
            if not isinstance(value, Held) or name.endswith(("solver", "controller", "adjoint")):
                continue
            pieces = jax.tree.leaves(value.value, is_leaf=lambda x: isinstance(x, Normalization))
            for piece in pieces:
                if not isinstance(piece, Normalization):
                    found.update(markers(piece))
    return sorted(i for i in found if eqx.is_inexact_array(leaves[i]))


def _of_network(model: StateSpaceModel, filter: Any) -> list[int]:
    """Numbers in the network of a learned filter, counted after those of the model."""
    if not isinstance(filter, AbstractLearnedFilter):
        return []
    leaves, first = jax.tree.leaves(filter), len(jax.tree.leaves(model))
    found = markers(marked(filter).network)
    return [first + i for i in found if eqx.is_inexact_array(leaves[i])]


class Trained:
    """The trained leaves of a model and of a learned filter as a list of unconstrained arrays, and back."""

    def __init__(
        self, model: StateSpaceModel, filter: Any, trainable: Pick | None, positive: Pick | None
    ):
        self.leaves, self.structure = jax.tree.flatten((model, filter))
        learned = _of_network(model, filter)
        if trainable is None:
            self.indices = _of_user_functions(model)
            if not self.indices and not learned:
                raise ValueError(
                    "fit: the functions of the model hold no arrays; expected `trainable`, a function "
                    "that picks leaves, such as lambda model: model.dynamics.F"
                )
        else:
            self.indices = _picked("trainable", model, trainable)
            if not self.indices and not learned:
                raise ValueError(
                    "fit: `trainable` picked no array of floating numbers; expected leaves of the model"
                )
        chosen = [] if positive is None else _picked("positive", model, positive)
        if positive is not None and not chosen:
            raise ValueError(
                "fit: `positive` picked no array of floating numbers; expected leaves of the model"
            )
        self.indices = sorted({*self.indices, *chosen, *learned})
        self.positive = set(chosen)
        for i in chosen:
            if not np.all(np.asarray(self.leaves[i]) > 0):
                raise ValueError(
                    f"fit: `positive` picked a leaf with entries {np.asarray(self.leaves[i])}; "
                    "expected numbers > 0"
                )

    def start(self) -> list[Array]:
        """The numbers that the model holds."""
        values = [(i, jnp.asarray(self.leaves[i])) for i in self.indices]
        return [jnp.log(x) if i in self.positive else x for i, x in values]

    def parts(
        self, parameters: list[Array], leaves: list[Any] | None = None
    ) -> tuple[StateSpaceModel, Any]:
        """Model and filter with these numbers; every other leaf is the object that it was, or that of
        `leaves`, where not `None`."""
        found = list(self.leaves)
        if leaves is not None:
            found = [a if b is None else b for a, b in zip(found, leaves, strict=True)]
        for i, x in zip(self.indices, parameters, strict=True):
            found[i] = jnp.exp(x) if i in self.positive else x
        return jax.tree.unflatten(self.structure, found)


class Members:
    """A batch of models beside each other, under one filter: what of them is trained, and the rest."""

    def __init__(
        self, models: StateSpaceModel, filter: Any, trainable: Pick | None, positive: Pick | None
    ):
        (self.count,) = models.batch_shape
        self.first = self._member(models, 0)
        self.trained = Trained(self.first, filter, trainable, positive)
        for i in range(1, self.count):
            Trained(self._member(models, i), filter, trainable, positive)  # (checks the others)
        own, shared = jax.tree.leaves(models), jax.tree.leaves(filter)
        spread = lambda x: jnp.broadcast_to(x, (self.count, *jnp.shape(x)))
        self.leaves = [*own, *(spread(x) if eqx.is_array(x) else None for x in shared)]

    @staticmethod
    def _member(models: StateSpaceModel, i: int) -> StateSpaceModel:
        return jax.tree.map(lambda x: x[i], models)

    def start(self) -> list[Array]:
        """The numbers that the models hold, with a leading axis."""
        logs = self.trained.positive
        values = [(i, jnp.asarray(self.leaves[i])) for i in self.trained.indices]
        return [jnp.log(x) if i in logs else x for i, x in values]

    def parts(self, parameters: list[Array]) -> tuple[StateSpaceModel, Any]:
        """All models and filters with these numbers, with a leading axis."""
        return self.trained.parts(parameters, self.leaves)

    def member(self, parameters: list[Array], i: int) -> tuple[StateSpaceModel, Any]:
        """One of them."""
        own = [None if x is None else x[i] for x in self.leaves]
        return self.trained.parts([x[i] for x in parameters], own)
