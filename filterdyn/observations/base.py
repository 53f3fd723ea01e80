"""The protocol of an observation, and what a Gaussian filter needs of one."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float

from filterdyn.beliefs import Gaussian
from filterdyn.linearization import AbstractLinearization
from filterdyn.transforms import GaussianView, gaussian_view


class LinearizedObservation(NamedTuple):
    """z = value + slope (x - m) + N(0, noise), with z the measurement `y` in the space where it is
    Gaussian and `log_jacobian` the log-density correction of getting there."""

    z: Float[Array, " dy"]
    observed: Bool[Array, " dy"]
    value: Float[Array, " dy"]
    slope: Float[Array, "dy dx"]
    noise: Float[Array, " dy"] | Float[Array, "dy dy"]
    log_jacobian: Float[Array, ""]
    #: log p(y | m) for a family that is matched by moments, else None.
    exact_log_prob: Float[Array, ""] | None
    status: Array


class AbstractObservation(eqx.Module):
    """The distribution of a measurement given the state."""

    #: Is the measurement a linear function of the state plus Gaussian noise?
    is_linear: ClassVar[bool] = False

    @property
    def is_constant(self) -> bool:
        """Do all rows have the same slope and noise?"""
        return False

    @abc.abstractmethod
    def distribution(self, t: Any, x: Float[Array, " dx"], u: Any) -> dist.Distribution:
        """The NumPyro distribution of y (event shape (dy,)) at time `t`, state `x`, input `u`."""

    @abc.abstractmethod
    def linearize(
        self, rule: AbstractLinearization, at: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> LinearizedObservation:
        """The affine stand-in around the belief `at`, with the measurement `y` (NaN = missing)."""

    @abc.abstractmethod
    def check(self, owner: str, t: Any, x: Any, u: Any, dy: int | None) -> None:
        """Raise if the model does not give `dy` quantities for a state like `x` (shapes only)."""

    def view(self, t: Any, x: Any, u: Any) -> GaussianView | None:
        """The measurement as a transformed Gaussian, or `None` if it is matched by moments."""
        return gaussian_view(self.distribution(t, x, u))

    def nearest(
        self, t: Any, x: Float[Array, " dx"], u: Any, y: Float[Array, " dy"]
    ) -> Float[Array, " dy"]:
        """Of the ways to write the measurement `y` the one nearest to what the state `x` expects: an
        angle can be written with any number of turns."""
        return y
