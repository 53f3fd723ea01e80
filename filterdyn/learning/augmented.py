"""Joint filters: the parameters are states that nobody sees."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from filterdyn.beliefs import Ensemble, Gaussian, Particles
from filterdyn.dynamics import Interval
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.ensemble import EnsembleKalmanFilter
from filterdyn.filters.particle import ParticleFilter
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.filters.sampling import AbstractSamplingFilter, Measurement, SamplingStep
from filterdyn.filters.verbs import check_is_filter
from filterdyn.initial import Diffuse
from filterdyn.learning.evolution import Shrinkage
from filterdyn.learning.joint import augmented
from filterdyn.learning.model import ParametricModel
from filterdyn.learning.parameters import ParameterEstimate, ParameterSpace
from filterdyn.linalg import PSD
from filterdyn.linearization import Affine
from filterdyn.model import StateSpaceModel

_NAME = "AugmentedFilter"


def check_parametric(owner: str, model: Any) -> ParametricModel:
    """**Raises:** `TypeError` for a model without parameters that are to be learnt."""
    if not isinstance(model, ParametricModel):
        raise TypeError(
            f"{owner}: `model` is {type(model).__name__}; expected fd.ParametricModel(make, prior), which "
            "says what is to be learnt"
        )
    return model


def AugmentedFilter(
    filter: AbstractFilter | AbstractSamplingFilter,
) -> "AugmentedGaussianFilter | AugmentedSamplingFilter":
    """A filter of a `ParametricModel` that takes the parameters for further states (joint estimation;
    Cox 1964; Ljung 1979): `filter` follows both together.

    The parameters live in the space where they have no limits and move by the model's `evolution`;
    without one a Gaussian filter becomes ever more certain, and an ensemble or particle filter runs out
    of distinct parameters. Any filter will do that linearises or draws; a particle filter with
    `Shrinkage` is that of Liu and West (2001). The posterior it claims is as good as the Gaussian
    approximation of `filter`: with little noise, long series and parameters far from the prior an
    extended filter becomes overconfident (Ljung 1979); so is an ensemble that is small (of 100 members 90 %
    intervals of a moving parameter covered in 85 %, of 500 in 89 %, of 500 particles in 83 to 87 %).
    Iterations, sigma points or `RecursiveMaximumLikelihood` help against the first.

    State and parameters are followed together, but `mean` and `cov` are those of the state; what is
    known of the parameters is at `.parameters`. `fd.augmented(model)` is the same as a plain
    `StateSpaceModel`, to smooth or to look at the joint covariance.

    **Arguments:** `filter`: any but `KalmanFilter` (a product of state and parameter is not linear),
    and the parallel, learned and Rao-Blackwellised ones.

    **Raises:** `TypeError` for anything else.
    """
    check_is_filter(_NAME, filter)
    if isinstance(filter, (EnsembleKalmanFilter, ParticleFilter)):
        return AugmentedSamplingFilter(filter)
    if isinstance(filter, AbstractFilter) and not filter.learns:
        return AugmentedGaussianFilter(filter)
    raise TypeError(
        f"{_NAME}: `filter` is {type(filter).__name__}; expected a Gaussian filter, an "
        "EnsembleKalmanFilter or a ParticleFilter"
    )


class JointMemory(eqx.Module):
    """State and parameters together, and what would be known of these without any measurement."""

    joint: Gaussian
    unmeasured_cov: Float[Array, "*T k k"]
    space: ParameterSpace

    @property
    def parameters(self) -> ParameterEstimate:
        k = self.space.size
        return ParameterEstimate(
            self.space,
            self.joint.mean[..., -k:],
            self.joint.cov[..., -k:, -k:],
            unmeasured_cov=self.unmeasured_cov,
        )


class AugmentedGaussianFilter(AbstractFilter):
    """A Gaussian filter of state and parameters together: see `AugmentedFilter`."""

    filter: AbstractFilter

    learns: ClassVar[bool] = True

    def check(self, model: StateSpaceModel) -> None:
        model = check_parametric(_NAME, model)
        if isinstance(model.initial, Diffuse):
            raise TypeError(f"{_NAME}: `initial` is Diffuse; expected a proper distribution")
        self.filter.check(augmented(model))

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        assert isinstance(model, ParametricModel)
        joint = self.filter.init(augmented(model), dtype)
        return self.of_state(model, joint, model.prior_cov.astype(dtype))

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        assert isinstance(model, ParametricModel)
        memory: JointMemory = belief.memory
        found = self.filter.predict(augmented(model), memory.joint, interval)
        unmeasured = model.evolved_cov(memory.unmeasured_cov, interval.gap)
        dx = model.dx
        move = Affine(
            found.move.value[:dx],
            found.move.slope[:dx, :dx],
            PSD.from_matrix(found.move.noise.matrix[:dx, :dx]),
        )
        return Prediction(self.of_state(model, found.belief, unmeasured), move, found.status)

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        assert isinstance(model, ParametricModel)
        memory: JointMemory = belief.memory
        found = self.filter.update(augmented(model), memory.joint, t, u, y)
        return found._replace(belief=self.of_state(model, found.belief, memory.unmeasured_cov))

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        assert isinstance(model, ParametricModel)
        return self.filter.predict_observation(augmented(model), belief.memory.joint, t, u)

    def draw(
        self, model: StateSpaceModel, belief: Gaussian, key: Array
    ) -> tuple[StateSpaceModel, Float[Array, " n"]]:
        assert isinstance(model, ParametricModel)
        return augmented(model), belief.memory.joint.sample(key)

    def of_state(
        self, model: ParametricModel, joint: Gaussian, unmeasured: Float[Array, "k k"]
    ) -> Gaussian:
        """The belief of the state, that of state and parameters together behind it."""
        dx, spread = model.dx, joint.spread
        if spread.factor is None:
            part = PSD(None, spread.matrix[:dx, :dx])
        else:
            part = PSD.from_factor(spread.factor[:dx])
            part = PSD(part.factor, spread.matrix[:dx, :dx])
        memory = JointMemory(joint, unmeasured, model.space)
        return Gaussian(joint.mean[:dx], spread=part, memory=memory)


class JointDraws(eqx.Module):
    """Draws of state and parameters together; its moments are those of the state."""

    joint: Ensemble | Particles
    unmeasured_cov: Float[Array, "*T k k"]
    space: ParameterSpace

    @property
    def _whole(self) -> Float[Array, "*T N n"]:
        return self.joint.members if isinstance(self.joint, Ensemble) else self.joint.positions

    @property
    def state(self) -> Ensemble | Particles:
        states = self._whole[..., : -self.space.size]
        if isinstance(self.joint, Ensemble):
            return Ensemble(states)
        return Particles(states, self.joint.log_weights)

    @property
    def parameters(self) -> ParameterEstimate:
        thetas = self._whole[..., -self.space.size :]
        if isinstance(self.joint, Ensemble):
            weights = jnp.full(thetas.shape[:-1], 1.0 / self.joint.size, thetas.dtype)
        else:
            weights = self.joint.weights
        return ParameterEstimate.of_draws(self.space, thetas, weights, self.unmeasured_cov)

    @property
    def size(self) -> int:
        return self.joint.size

    @property
    def mean(self) -> Float[Array, "*T dx"]:
        return self.state.mean

    @property
    def cov(self) -> Float[Array, "*T dx dx"]:
        return self.state.cov

    @property
    def variances(self) -> Float[Array, "*T dx"]:
        return self.state.variances

    @property
    def effective_sample_size(self) -> Float[Array, "*T"]:
        return self.joint.effective_sample_size

    @property
    def is_finite(self) -> Bool[Array, ""]:
        return self.joint.is_finite

    def sample(self, key: Array) -> Float[Array, " dx"]:
        """One of the states (of a belief without a leading axis)."""
        return self.joint.sample(key)[: -self.space.size]


class AugmentedSamplingFilter(AbstractSamplingFilter):
    """An ensemble or particle filter of state and parameters together: see `AugmentedFilter`."""

    filter: EnsembleKalmanFilter | ParticleFilter
    truncation: int | None = eqx.field(static=True)

    learns: ClassVar[bool] = True

    def __init__(self, filter: EnsembleKalmanFilter | ParticleFilter):
        self.filter = filter
        self.truncation = filter.truncation

    @property
    def matches_moments(self) -> bool:  # type: ignore[override]
        return self.filter.matches_moments

    def check(self, model: StateSpaceModel) -> None:
        model = check_parametric(_NAME, model)
        if isinstance(model.initial, Diffuse):
            raise TypeError(f"{_NAME}: `initial` is Diffuse; expected a proper distribution")
        if isinstance(self.filter, ParticleFilter) and isinstance(model.evolution, Shrinkage):
            if self.filter.ess_threshold < 1:
                raise TypeError(
                    f"{_NAME}: Shrinkage needs particles of equal weight, and `ess_threshold` is "
                    f"{self.filter.ess_threshold}; expected fd.ParticleFilter(..., ess_threshold=1.0)"
                )
        self.filter.check(augmented(model))

    def init(self, model: StateSpaceModel, dtype: jnp.dtype, key: Array) -> JointDraws:
        assert isinstance(model, ParametricModel)
        joint = self.filter.init(augmented(model), dtype, key)
        return JointDraws(joint, model.prior_cov.astype(dtype), model.space)

    def advance(
        self, model: StateSpaceModel, belief: JointDraws, interval: Interval, key: Array
    ) -> tuple[JointDraws, Int[Array, ""]]:
        assert isinstance(model, ParametricModel)
        joint: Any = belief.joint
        joint, status = self.filter.advance(augmented(model), joint, interval, key)
        return self._like(model, belief, joint, interval), status

    def step(
        self,
        model: StateSpaceModel,
        belief: JointDraws,
        interval: Interval,
        measurement: Measurement,
        key: Array,
    ) -> SamplingStep:
        assert isinstance(model, ParametricModel)
        joint: Any = belief.joint
        found = self.filter.step(augmented(model), joint, interval, measurement, key)
        return found._replace(
            predicted=self._like(model, belief, found.predicted, interval),
            belief=self._like(model, belief, found.belief, interval),
        )

    def moments(self, belief: JointDraws) -> tuple[Float[Array, "N dx"], Float[Array, " N"]]:
        return self.filter.moments(belief.state)

    def observation_moments(
        self, model: StateSpaceModel, belief: JointDraws, t: Any, u: Any, key: Array
    ) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"]]:
        assert isinstance(model, ParametricModel)
        return self.filter.observation_moments(augmented(model), belief.joint, t, u, key)

    def draw(
        self, model: StateSpaceModel, belief: JointDraws, key: Array
    ) -> tuple[StateSpaceModel, Float[Array, " n"]]:
        assert isinstance(model, ParametricModel)
        return augmented(model), belief.joint.sample(key)

    def _like(
        self, model: ParametricModel, before: JointDraws, joint: Any, interval: Interval
    ) -> JointDraws:
        unmeasured = model.evolved_cov(before.unmeasured_cov, interval.gap)
        return JointDraws(joint, unmeasured, model.space)
