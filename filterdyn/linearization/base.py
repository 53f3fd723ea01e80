"""The protocol of a linearisation rule."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.linalg import PSD


class Affine(NamedTuple):
    """z = value + slope (x - m) + N(0, noise), the linear stand-in for a random map at a belief with
    mean m."""

    value: Float[Array, " dz"]
    slope: Float[Array, "dz dx"]
    noise: PSD


class AbstractLinearization(eqx.Module):
    """A rule that replaces a map by an affine one around a Gaussian belief."""

    @abc.abstractmethod
    def __call__(
        self, function: Callable[[Array], Array], belief: Gaussian
    ) -> tuple[Float[Array, " dz"], Float[Array, "dz dx"]]:
        """The value (dz,) at the mean of `belief` and the slope (dz, dx) of the affine map."""
