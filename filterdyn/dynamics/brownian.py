"""Brownian increments made of random numbers that are drawn elsewhere."""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

_KINDS = (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea)


def levy_area_for(solver: Any) -> Any:
    """The least of what a Brownian path can give that is enough for the solver."""
    needed = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
    return next(kind for kind in _KINDS if issubclass(kind, needed))


def numbers_for(levy_area: Any) -> int:
    """How many standard normal vectors one increment takes."""
    return 1 + _KINDS.index(levy_area)


class GivenIncrement(diffrax.AbstractBrownianPath):
    """One increment of a Brownian motion over whatever interval is asked for, from standard normal
    vectors: that of the increment W, and those of the space-time areas H and K where a solver uses
    them (Foster, Oberhauser, Lyons 2020). For one step of a solver, and no more."""

    normals: Float[Array, "k dw"]
    levy_area: Any = eqx.field(static=True)

    @property
    def t0(self) -> Any:  # type: ignore[override]
        return -jnp.inf

    @property
    def t1(self) -> Any:  # type: ignore[override]
        return jnp.inf

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        assert t1 is not None
        length = t1 - t0
        root = jnp.where(length > 0, jnp.sqrt(jnp.where(length > 0, length, 1.0)), 0.0)
        sizes = (1.0, 1 / math.sqrt(12), 1 / math.sqrt(720))
        parts = [z * (size * root) for z, size in zip(self.normals, sizes, strict=False)]
        if not use_levy:
            return parts[0]
        return self.levy_area(length, *parts)
