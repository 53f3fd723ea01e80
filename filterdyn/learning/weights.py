"""Weights of a model that are learnt on the way: which they are, and what is known of them."""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from filterdyn._leaves import marked, markers
from filterdyn.fields import Normalization
from filterdyn.model import StateSpaceModel


class WeightSpace(eqx.Module):
    """Arrays of a model as one vector (k,), and back into what a function of the model picked."""

    #: Which leaves of the model, and where in what was picked; in the order of the vector.
    leaves: tuple[int, ...] = eqx.field(static=True)
    places: tuple[int, ...] = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    @staticmethod
    def of(owner: str, model: StateSpaceModel, where: Callable[[Any], Any]) -> "WeightSpace":
        """**Raises:** `TypeError` if `where` picks no array of floating numbers of the dynamics or the
        observation, or one of `initial`."""
        picked = where(marked(model))
        leaves = jax.tree.leaves(model)
        fixed = set()
        for part in jax.tree.leaves(picked, is_leaf=lambda x: isinstance(x, Normalization)):
            if isinstance(part, Normalization):
                fixed.update(markers(part))
        parts, structure = jax.tree.flatten(picked)
        found: dict[int, int] = {}
        for place, part in enumerate(parts):
            for i in markers(part):
                if i not in fixed and eqx.is_inexact_array(leaves[i]):
                    found.setdefault(i, place)
        if not found:
            raise TypeError(
                f"{owner}: `where` picked no array of floating numbers; expected a function of the model "
                "such as lambda m: m.dynamics.drift.value.residual"
            )
        if set(found) & set(markers(marked(model).initial)):
            raise TypeError(
                f"{owner}: `where` picked numbers of `initial`; expected weights of the dynamics or the "
                "observation"
            )
        shapes = tuple(tuple(leaves[i].shape) for i in found)
        return WeightSpace(tuple(found), tuple(found.values()), shapes, structure)

    @property
    def sizes(self) -> list[int]:
        return [int(np.prod(shape)) for shape in self.shapes]

    @property
    def size(self) -> int:
        """k, the length of the vector."""
        return sum(self.sizes)

    def vector(self, model: StateSpaceModel, dtype: jnp.dtype) -> Float[Array, " k"]:
        """The weights of a model."""
        leaves = jax.tree.leaves(model)
        return jnp.concatenate([jnp.ravel(leaves[i]).astype(dtype) for i in self.leaves])

    def arrays(self, vector: Float[Array, "*T k"]) -> list[Array]:
        """The weights, array by array; leading axes stay."""
        found, start = [], 0
        for size, shape in zip(self.sizes, self.shapes, strict=True):
            found.append(vector[..., start : start + size].reshape((*vector.shape[:-1], *shape)))
            start += size
        return found

    def model(self, model: StateSpaceModel, vector: Float[Array, " k"]) -> StateSpaceModel:
        """A model with these weights."""
        leaves, structure = jax.tree.flatten(model)
        for i, array in zip(self.leaves, self.arrays(vector), strict=True):
            leaves[i] = array
        return jax.tree.unflatten(structure, leaves)

    def tree(self, *vectors: Float[Array, "*T k"]) -> Any:
        """What was picked, with these weights (of several vectors a tuple of each), and `None` in place of
        everything else."""
        parts: list[Any] = [None] * self.structure.num_leaves
        arrays = zip(*(self.arrays(vector) for vector in vectors), strict=True)
        for place, found in zip(self.places, arrays, strict=True):
            parts[place] = found if len(vectors) > 1 else found[0]
        return jax.tree.unflatten(self.structure, parts)

    def spread_out(self, owner: str, name: str, value: Any) -> Float[Array, " k"]:
        """A number for every weight: of one number for all, or one or an array for each array."""
        values = value if isinstance(value, (list, tuple)) else [value] * len(self.shapes)
        if len(values) != len(self.shapes):
            raise ValueError(
                f"{owner}: `{name}` has {len(values)} entries; expected one for each of the "
                f"{len(self.shapes)} arrays that `where` picked, or a number for all"
            )
        parts = []
        for i, (one, shape) in enumerate(zip(values, self.shapes, strict=True)):
            if jnp.shape(one) not in ((), shape):
                raise ValueError(
                    f"{owner}: `{name}[{i}]` has shape {jnp.shape(one)}; expected () or {shape}"
                )
            parts.append(
                jnp.ravel(jnp.broadcast_to(jnp.asarray(one, jnp.result_type(float)), shape))
            )
        return jnp.concatenate(parts)


class WeightEstimate(eqx.Module):
    """What is known of weights that are learnt on the way.

    - `mean`, `sd`: what `where` picked of the model, with the weights or their standard deviations, and
      `None` in place of everything else (`eqx.combine(estimate.mean, where(model))` is the network);
    - `interval(probability)`: the same, with the pair of lower and upper ends in place of each array;
    - `unconstrained_mean` (k,), `variances` (k,): all of them in one vector; `unmeasured_variances` (k,):
      what the variances would be without any measurement, so that the ratio says what was learnt.

    Of many rows everything has a leading axis T.
    """

    unconstrained_mean: Float[Array, "*T k"]
    variances: Float[Array, "*T k"]
    unmeasured_variances: Float[Array, "*T k"]
    space: WeightSpace

    @property
    def mean(self) -> Any:
        return self.space.tree(self.unconstrained_mean)

    @property
    def sd(self) -> Any:
        return self.space.tree(self.variances**0.5)

    @property
    def median(self) -> Any:
        """The same as `mean`: weights have no limits."""
        return self.mean

    def interval(self, probability: float = 0.9) -> Any:
        """Lower and upper end of the central interval of each weight.

        **Raises:** `ValueError` unless 0 < `probability` < 1."""
        if not 0 < probability < 1:
            raise ValueError(f"interval: `probability` is {probability}; expected 0 < p < 1")
        reach = NormalDist().inv_cdf(0.5 + 0.5 * float(probability)) * self.variances**0.5
        ends = [self.unconstrained_mean + sign * reach for sign in (-1, 1)]
        return self.space.tree(*ends)

    def without_draws(self) -> "WeightEstimate":
        """Itself: there are none."""
        return self

    def __repr__(self) -> str:
        return f"WeightEstimate({self.space.size} weights)"
