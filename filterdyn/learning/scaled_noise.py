"""A model whose sensors are noisier, or less noisy, than it says."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from filterdyn._callables import Held
from filterdyn.beliefs import Gaussian
from filterdyn.filters.base import AbstractFilter, Update
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.learning.augmented import AugmentedGaussianFilter, JointMemory
from filterdyn.learning.joint import augmented
from filterdyn.learning.model import ParametricModel
from filterdyn.linearization import AbstractLinearization
from filterdyn.model import StateSpaceModel
from filterdyn.observations import AbstractObservation, LinearizedObservation
from filterdyn.transforms import GaussianView


def updated(
    filter: AbstractFilter,
    model: StateSpaceModel,
    logs: Float[Array, " dy"],
    belief: Gaussian,
    t: Any,
    u: Any,
    y: Float[Array, " dy"],
) -> Update:
    """`filter.update`, the noise of each sensor exp(`logs`) times as large (a standard deviation)."""
    if not isinstance(filter, AugmentedGaussianFilter):
        return filter.update(with_noise(model, logs), belief, t, u, y)
    assert isinstance(model, ParametricModel)
    # (It looks at the distribution of a measurement, not at its linearised form.)
    memory: JointMemory = belief.memory
    found = filter.filter.update(with_noise(augmented(model), logs), memory.joint, t, u, y)
    return found._replace(belief=filter.of_state(model, found.belief, memory.unmeasured_cov))


def predicted_observation(
    filter: AbstractFilter,
    model: StateSpaceModel,
    logs: Float[Array, " dy"],
    belief: Gaussian,
    t: Any,
    u: Any,
) -> PredictedObservation:
    """`filter.predict_observation`, likewise."""
    if not isinstance(filter, AugmentedGaussianFilter):
        return filter.predict_observation(with_noise(model, logs), belief, t, u)
    assert isinstance(model, ParametricModel)
    joint = with_noise(augmented(model), logs)
    return filter.filter.predict_observation(joint, belief.memory.joint, t, u)


def with_noise(model: StateSpaceModel, logs: Float[Array, " dy"]) -> StateSpaceModel:
    """`model`, the noise of each sensor exp(`logs`) times as large (a standard deviation), as a Gaussian
    filter sees it."""
    observation = ScaledNoise(model.observation, logs)
    if not isinstance(model, ParametricModel):
        return StateSpaceModel(model.initial, model.dynamics, observation)
    make = Held(_Scaled(model.make, logs))
    return eqx.tree_at(lambda m: (m.make, m.observation), model, (make, observation))


class _Scaled(eqx.Module):
    make: Held
    logs: Float[Array, " dy"]

    def __call__(self, parameters: Any) -> StateSpaceModel:
        return with_noise(self.make(parameters), self.logs)


class ScaledNoise(AbstractObservation):
    """The linearised form of another observation, with other noise."""

    inner: AbstractObservation
    logs: Float[Array, " dy"]

    def distribution(self, t: Any, x: Float[Array, " dx"], u: Any) -> dist.Distribution:
        return self.inner.distribution(t, x, u)

    def linearize(
        self, rule: AbstractLinearization, at: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> LinearizedObservation:
        lin = self.inner.linearize(rule, at, t, u, y)
        scale = jnp.exp(self.logs)
        squared = scale * scale if lin.noise.ndim == 1 else scale[:, None] * scale
        return lin._replace(noise=lin.noise * squared, exact_log_prob=None)

    def check(self, owner: str, t: Any, x: Any, u: Any, dy: int | None) -> None:
        self.inner.check(owner, t, x, u, dy)

    def view(self, t: Any, x: Any, u: Any) -> GaussianView | None:
        return self.inner.view(t, x, u)

    def nearest(
        self, t: Any, x: Float[Array, " dx"], u: Any, y: Float[Array, " dy"]
    ) -> Float[Array, " dy"]:
        return self.inner.nearest(t, x, u, y)
