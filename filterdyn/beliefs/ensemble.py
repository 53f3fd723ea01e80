"""A distribution of the state as draws of equal weight."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from filterdyn._checks import float_array


class Ensemble(eqx.Module):
    """N draws of the state, the members, all of the same weight.

    `members` is (N, dx). In results there is a leading axis T.
    """

    members: Float[Array, "*T N dx"]
    #: What a filter carries beside the state (an inflation that it learns).
    memory: Any

    def __init__(self, members: Float[Array, "*T N dx"], *, memory: Any = None):
        """**Arguments:** `members` (N, dx), N >= 2.

        **Raises:** `ValueError` for another shape.
        """
        members = float_array("Ensemble", "members", members)
        if members.ndim < 2 or members.shape[-2] < 2:
            raise ValueError(
                f"Ensemble: `members` has shape {members.shape}; expected (N, dx) with N >= 2"
            )
        self.members = members
        self.memory = memory

    @property
    def size(self) -> int:
        """N, the number of members."""
        return self.members.shape[-2]

    @property
    def mean(self) -> Float[Array, "*T dx"]:
        return self.members.mean(-2)

    @property
    def anomalies(self) -> Float[Array, "*T N dx"]:
        """The members less their mean."""
        return self.members - self.mean[..., None, :]

    @property
    def cov(self) -> Float[Array, "*T dx dx"]:
        """The covariance of the members, divided by N - 1. Of rank N - 1 at most; formed when it is
        asked for, which takes dx^2 numbers."""
        a = self.anomalies
        return jnp.einsum("...ni,...nj->...ij", a, a, precision="highest") / (self.size - 1)

    @property
    def variances(self) -> Float[Array, "*T dx"]:
        """The diagonal of `cov`, without forming it."""
        return (self.anomalies**2).sum(-2) / (self.size - 1)

    @property
    def effective_sample_size(self) -> Float[Array, "*T"]:
        """N: all weights are equal."""
        lead = self.members.shape[:-2]
        return jnp.full(lead, float(self.size), self.members.dtype)

    @property
    def is_finite(self) -> Bool[Array, ""]:
        return jnp.isfinite(self.members).all()

    def astype(self, dtype: jnp.dtype) -> "Ensemble":
        return Ensemble(self.members.astype(dtype), memory=self.memory)

    def sample(self, key: Array) -> Float[Array, " dx"]:
        """One of the members (of a belief without a leading axis)."""
        return self.members[jax.random.randint(key, (), 0, self.size)]
