"""Sufficient statistics of conjugate posteriors: what a particle keeps of its past."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from filterdyn._callables import Held
from filterdyn._checks import is_traced
from filterdyn.learning.model import ParametricModel
from filterdyn.moments import bare


class Passage(NamedTuple):
    """One row, as one particle went through it: what statistics are made of.

    What is not there is NaN, and teaches nothing: entries of `y` that are missing, and `x_from` where
    nothing moved (the first row, a gap of 0).
    """

    x_from: Float[Array, " dx"]
    x_to: Float[Array, " dx"]
    #: The measurement at `time`.
    y: Float[Array, " dy"]
    time_from: Float[Array, ""]
    time: Float[Array, ""]
    gap: Float[Array, ""]
    #: The inputs that held over the gap, and at the measurement.
    input_from: Float[Array, " du"] | None
    input: Float[Array, " du"] | None


class AbstractStatistics(eqx.Module):
    """The posterior of some parameters given a whole path of the state, as numbers that add up.

    Statistics are a pytree of arrays in which the posterior is of an exponential family: every row adds
    its own (the natural parameters), so that forgetting is a weighted sum. A family of one's own is a
    subclass with these five; `ParticleLearning` does the rest.
    """

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """Which parameters of the model these are the posterior of."""

    @abc.abstractmethod
    def prior(self, model: ParametricModel) -> Any:
        """The statistics before any row, from the model's prior.

        **Raises:** `TypeError` or `ValueError` if that is not conjugate."""

    @abc.abstractmethod
    def update(self, statistics: Any, passage: Passage) -> Any:
        """The statistics after a row; what is NaN in it must change nothing."""

    @abc.abstractmethod
    def sample(self, key: Array, statistics: Any) -> dict[str, Array]:
        """A draw of the parameters, by name."""

    @abc.abstractmethod
    def moments(self, statistics: Any) -> tuple[Float[Array, " n"], Float[Array, "n n"]] | None:
        """Mean and covariance of the parameters in the order of `names`, in the space where they have no
        limits (the logarithm of what is positive, the logit of a probability); `None` if they are not
        known, and are taken from draws."""


def forgotten(statistics: Any, prior: Any, factor: float) -> Any:
    """Statistics that have come `1 - factor` of the way back to the prior: a posterior proportional to
    posterior^factor prior^(1 - factor) (Kulhavy, Zarrop 1993), which stays proper however long nothing
    is learnt."""
    if factor == 1.0:
        return statistics
    return jax.tree.map(lambda s, p: factor * s + (1.0 - factor) * p, statistics, prior)


def held(owner: str, name: str, function: Callable[[Passage], Any] | Held) -> Held:
    """**Raises:** `TypeError` for anything but a function."""
    if isinstance(function, Held):
        return function
    if isinstance(function, type) or not callable(function):
        raise TypeError(
            f"{owner}: `{name}` is {function!r}; expected a function of a fd.Passage (x_from, x_to, y, ...)"
        )
    return Held(function)


def named(owner: str, name: str, value: Any) -> str:
    """**Raises:** `TypeError` for anything but the name of a parameter."""
    if not isinstance(value, str):
        raise TypeError(f"{owner}: `{name}` is {value!r}; expected the name of a parameter")
    return value


def prior_of(
    owner: str, model: ParametricModel, name: str, *families: type[dist.Distribution]
) -> Any:
    """The model's prior of a parameter, bare of `expand` and `to_event`.

    **Raises:** `ValueError` if there is none, `TypeError` if it is of another family."""
    if name not in model.prior:
        raise ValueError(
            f"{owner}: there is no parameter {name!r}; the model's are {list(model.prior)}"
        )
    found = bare(model.prior[name])
    if not isinstance(found, families):
        raise TypeError(
            f"{owner}: the prior of {name!r} is {type(found).__name__}; conjugate is "
            f"{' or '.join(family.__name__ for family in families)}"
        )
    return found


def shaped(model: ParametricModel, name: str, value: Any) -> Array:
    """A parameter of the prior of `name`, with the shape of the parameter itself."""
    return jnp.broadcast_to(
        jnp.asarray(value, jnp.result_type(float)), model.prior[name].event_shape
    )


def present(value: Any) -> tuple[Array, Array]:
    """Which entries are there, and the value with zeros in place of the others."""
    value = jnp.asarray(value)
    there = ~jnp.isnan(value)
    return there, jnp.where(there, value, 0.0)


def summed_to(value: Array, shape: tuple[int, ...]) -> Array:
    """Entries of rows, summed where the parameter is one for all of them."""
    return value.sum() if shape == () else jnp.broadcast_to(value, shape)


def check_start(owner: str, model: ParametricModel) -> None:
    """**Raises:** `ValueError` if the initial distribution is another for other parameters."""
    if is_traced(model.prior_mean):
        return
    with jax.ensure_compile_time_eval():
        other = model.prior_mean + jnp.sqrt(jnp.diagonal(model.prior_cov))
        there = jax.tree.leaves(model.at(other).initial)
    for a, b in zip(jax.tree.leaves(model.initial), there, strict=True):
        if not is_traced((a, b)) and not np.array_equal(np.asarray(a), np.asarray(b)):
            raise ValueError(
                f"{owner}: `initial` depends on the parameters, which their statistics do not know of; "
                "expected one that does not (fd.NestedParticleFilter takes any)"
            )
