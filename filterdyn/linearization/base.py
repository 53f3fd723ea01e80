"""The protocol of a linearisation rule."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.linalg import PSD, mm, triangularize, with_derivative_of


class Affine(NamedTuple):
    """z = value + slope (x - m) + N(0, noise), the linear stand-in for a random map at a belief with
    mean m."""

    value: Float[Array, " dz"]
    slope: Float[Array, "dz dx"]
    #: As dynamics give it, its factor may have more columns than rows.
    noise: PSD


class Linearized(NamedTuple):
    """z = value + slope (x - m) + an error of mean zero that is uncorrelated with x: the linear
    stand-in for a function at a belief with mean m."""

    value: Float[Array, " dz"]
    slope: Float[Array, "dz dx"]
    #: The error's covariance, its factor with any number of columns; `None` where the rule sees none.
    error: PSD | None
    #: What the function gave besides z, stacked over the points where it was evaluated.
    aux: Any = None

    def to_affine(self, noise: PSD | None = None) -> Affine:
        """The map plus independent noise, the error counted as noise too."""
        if self.error is None:
            n = len(self.value)
            noise = PSD.zeros(n, self.value.dtype) if noise is None else noise
            return Affine(self.value, self.slope, noise)
        noise = self.error if noise is None else beside(noise, self.error)
        return Affine(self.value, self.slope, noise)


def beside(p: PSD, q: PSD) -> PSD:
    """P + Q with the columns of both factors side by side."""
    return PSD(jnp.concatenate([p.root, q.root], axis=1), p.matrix + q.matrix)


def squared(p: PSD) -> PSD:
    """P with a square factor."""
    if p.factor is None or p.factor.shape[0] == p.factor.shape[1]:
        return p
    factor = triangularize(p.factor)
    return PSD(factor, with_derivative_of(mm(factor, factor.T), p.matrix))


class AbstractLinearization(eqx.Module):
    """A rule that replaces a map by an affine one around a Gaussian belief."""

    @abc.abstractmethod
    def __call__(
        self, function: Callable[[Array], Any], belief: Gaussian, has_aux: bool = False
    ) -> Linearized:
        """The affine stand-in for `function`, from x (dx,) to z (dz,) or with `has_aux` to a pair of z
        and anything else."""

    @abc.abstractmethod
    def average(self, function: Callable[[Array], Any], belief: Gaussian) -> Any:
        """The mean over x of `function`, from x (dx,) to covariances: a `PSD`, or variances or a
        matrix as an array. It is positive semi-definite, as they are."""

    @abc.abstractmethod
    def check(self, owner: str, dx: int) -> None:
        """**Raises:** `ValueError` if there is no such rule for `dx` states."""


class AbstractSpreadRule(AbstractLinearization):
    """A rule under which the mean of a function depends on the spread of the belief."""

    @abc.abstractmethod
    def project(
        self, function: Callable[[Array], Any], m: Float[Array, " n"], s: Float[Array, "n n"]
    ) -> tuple[Float[Array, " dz"], Float[Array, "dz n"]]:
        """E f(x) and E[f(x) xi^T] for x = m + S xi, xi standard normal: what moment equations are made
        of."""
