"""How parameters move while nobody measures, and what of the past is forgotten."""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import float_array, is_traced
from filterdyn.learning.parameters import ParameterSpace


class Evolved(NamedTuple):
    """theta' = mean + slope (theta - mean) + N(0, noise)."""

    slope: Float[Array, ""]
    noise: Float[Array, "k k"]


class AbstractEvolution(eqx.Module):
    """How the parameters of a `ParametricModel` move, in the space where they have no limits."""

    @abc.abstractmethod
    def check(self, owner: str, space: ParameterSpace) -> None:
        """Raise if it names parameters that are not there."""

    @abc.abstractmethod
    def move(
        self, space: ParameterSpace, cov: Float[Array, "k k"], gap: Float[Array, ""]
    ) -> Evolved:
        """Over a gap (1 for a transition in discrete time), of parameters known with covariance `cov`."""


class RandomWalk(AbstractEvolution):
    """Parameters that wander: over a gap d their unconstrained values (the logarithm of a parameter that
    is positive) move by N(0, sd^2 d), each on its own."""

    sd: Any

    def __init__(self, sd: float | Mapping[str, Any]):
        """**Arguments:** `sd` >= 0: per square root of the unit of time (in discrete time: per row), one
        number for all, or by name, a number or an array of the parameter's unconstrained shape; a name
        that is left out stands still.

        **Raises:** `ValueError` for a negative or infinite number."""
        if isinstance(sd, Mapping):
            self.sd = {n: _rate(f"sd[{n!r}]", value) for n, value in sorted(sd.items())}
        else:
            self.sd = _rate("sd", sd)

    def check(self, owner: str, space: ParameterSpace) -> None:
        if not isinstance(self.sd, dict):
            return
        for name, value in self.sd.items():
            if name not in space.names:
                raise ValueError(
                    f"{owner}: `evolution` names {name!r}; expected names in {list(space.names)}"
                )
            free = space.free_shapes[space.names.index(name)]
            if value.shape not in ((), free):
                raise ValueError(
                    f"{owner}: `evolution` gives {name!r} the shape {value.shape}; expected () or {free}"
                )

    def rates(self, space: ParameterSpace) -> Float[Array, " k"]:
        """Variances per unit of time."""
        if not isinstance(self.sd, dict):
            return jnp.broadcast_to(self.sd**2, (space.size,))
        parts = []
        for name, free in zip(space.names, space.free_shapes, strict=True):
            sd = self.sd.get(name, jnp.zeros(()))
            parts.append(jnp.ravel(jnp.broadcast_to(sd**2, free)))
        return jnp.concatenate(parts)

    def move(
        self, space: ParameterSpace, cov: Float[Array, "k k"], gap: Float[Array, ""]
    ) -> Evolved:
        variances = self.rates(space).astype(cov.dtype) * gap
        return Evolved(jnp.ones((), cov.dtype), jnp.diag(variances))


class Forgetting(AbstractEvolution):
    """Exponential forgetting: with every row the covariance grows by 1 / factor, so that a row counts
    `factor` times as much as the next one, and about 1 / (1 - factor) rows are remembered. Without
    excitation it grows without end."""

    factor: float = eqx.field(static=True)

    def __init__(self, factor: float):
        """**Arguments:** `factor` in (0, 1].

        **Raises:** `ValueError` for another number."""
        if is_traced(factor) or not 0 < factor <= 1:
            raise ValueError(f"Forgetting: `factor` is {factor!r}; expected 0 < f <= 1")
        self.factor = float(factor)

    def check(self, owner: str, space: ParameterSpace) -> None:
        """It concerns all parameters."""

    def move(
        self, space: ParameterSpace, cov: Float[Array, "k k"], gap: Float[Array, ""]
    ) -> Evolved:
        return Evolved(jnp.ones((), cov.dtype), cov * (1.0 / self.factor - 1.0))


class Shrinkage(AbstractEvolution):
    """Parameters that stand still, moved about their mean without a change of mean and covariance, for
    filters of draws that would run out of distinct parameters (Liu, West 2001): theta' = mean +
    a (theta - mean) + N(0, (1 - a^2) cov), a = (3 discount - 1) / (2 discount)."""

    discount: float = eqx.field(static=True)

    def __init__(self, discount: float = 0.98):
        """**Arguments:** `discount` in (1/3, 1]: Liu and West use 0.95 to 0.99.

        **Raises:** `ValueError` for another number."""
        if is_traced(discount) or not 1 / 3 < discount <= 1:
            raise ValueError(f"Shrinkage: `discount` is {discount!r}; expected 1/3 < d <= 1")
        self.discount = float(discount)

    def check(self, owner: str, space: ParameterSpace) -> None:
        """It concerns all parameters."""

    def move(
        self, space: ParameterSpace, cov: Float[Array, "k k"], gap: Float[Array, ""]
    ) -> Evolved:
        a = (3 * self.discount - 1) / (2 * self.discount)
        return Evolved(jnp.asarray(a, cov.dtype), (1 - a * a) * cov)


def _rate(name: str, value: Any) -> Array:
    rate = float_array("RandomWalk", name, value)
    if not is_traced(rate) and not (jnp.isfinite(rate) & (rate >= 0)).all():
        raise ValueError(f"RandomWalk: `{name}` is {value!r}; expected numbers >= 0")
    return rate
