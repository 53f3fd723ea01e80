"""How many particles of once are still there: what the memory of a particle filter is worth."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Lineages(eqx.Module):
    """From which of the particles of some rows ago each one descends. When that is one for all, labels are
    given anew, and how long it took is noted."""

    labels: Int[Array, "*T N"]
    #: Rows since labels were given, and how many it took the last time (0: it has not happened).
    age: Int[Array, "*T"]
    took: Int[Array, "*T"]

    @staticmethod
    def start(size: int) -> "Lineages":
        nothing = jnp.zeros((), jnp.int32)
        return Lineages(jnp.arange(size, dtype=jnp.int32), nothing, nothing)

    @property
    def distinct(self) -> Int[Array, ""]:
        """How many there are (of a belief without a leading axis)."""
        n = self.labels.shape[-1]
        return jnp.zeros(n, jnp.int32).at[self.labels].set(1).sum()

    def aged(self, moved: Any) -> "Lineages":
        """A row later, nobody having been copied."""
        return Lineages(self.labels, self.age + jnp.asarray(moved, jnp.int32), self.took)

    def followed(self, labels: Int[Array, " N"], moved: Bool[Array, ""]) -> "Lineages":
        """A row later, with the labels of those who were copied."""
        age = self.age + moved.astype(jnp.int32)
        one = (labels == labels[0]).all() & (len(labels) > 1)
        fresh = jnp.arange(len(labels), dtype=jnp.int32)
        return Lineages(
            jnp.where(one, fresh, labels),
            jnp.where(one, 0, age).astype(jnp.int32),
            jnp.where(one, age, self.took).astype(jnp.int32),
        )
