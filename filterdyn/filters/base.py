"""The protocol of a filter: init, predict, update."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.linearization import Affine
from filterdyn.model import StateSpaceModel


class Prediction(NamedTuple):
    """A belief at the end of an interval."""

    belief: Gaussian
    #: The affine move that led there: what smoothing and backward sampling reverse.
    move: Affine
    status: Int[Array, ""]


class Update(NamedTuple):
    """A belief after a measurement, and what the measurement said."""

    belief: Gaussian
    innovation: Float[Array, " dy"]
    innovation_cov: Float[Array, "dy dy"]
    #: The innovation made independent and of variance one, NaN where the entry is missing.
    standardized: Float[Array, " dy"]
    log_likelihood: Float[Array, ""]
    status: Int[Array, ""]
    #: How much of each entry was believed, of a filter with an outlier rule.
    weights: Float[Array, " dy"] | None = None


class AbstractFilter(eqx.Module):
    """How a belief moves with the dynamics and changes with a measurement."""

    #: Does it learn parameters on the way, so that its belief is one row's alone?
    learns: ClassVar[bool] = False

    @abc.abstractmethod
    def check(self, model: StateSpaceModel) -> None:
        """**Raises:** `TypeError` for a model that this filter cannot treat, naming one that can."""

    @abc.abstractmethod
    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        """The belief before any measurement."""

    @abc.abstractmethod
    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        """The belief at the end of an interval of positive length."""

    @abc.abstractmethod
    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        """The belief after a measurement, in which NaN marks a missing entry."""

    @abc.abstractmethod
    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        """What a measurement would be, under this belief."""

    def draw(
        self, model: StateSpaceModel, belief: Gaussian, key: Array
    ) -> tuple[StateSpaceModel, Float[Array, " n"]]:
        """A draw of the state, and the model that it goes on with: where a simulated future starts."""
        return model, belief.sample(key)
