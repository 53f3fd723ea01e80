"""A filter that follows the state at the parameters it believes, and learns these row by row."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.cubature import CubatureKalmanFilter
from filterdyn.filters.extended import ExtendedKalmanFilter
from filterdyn.filters.gauss_hermite import GaussHermiteKalmanFilter
from filterdyn.filters.kalman import KalmanFilter
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.filters.scan import add, select
from filterdyn.filters.unscented import UnscentedKalmanFilter
from filterdyn.filters.verbs import check_is_filter
from filterdyn.initial import Diffuse
from filterdyn.learning import tangent
from filterdyn.learning.augmented import check_parametric
from filterdyn.learning.information import evolved
from filterdyn.learning.model import ParametricModel
from filterdyn.learning.parameters import ParameterEstimate, ParameterSpace
from filterdyn.learning.tangent import Lesson, Slopes
from filterdyn.linalg import PSD
from filterdyn.model import StateSpaceModel

_KINDS = (
    KalmanFilter,
    ExtendedKalmanFilter,
    UnscentedKalmanFilter,
    CubatureKalmanFilter,
    GaussHermiteKalmanFilter,
)
#: No row moves a parameter further than so many of its standard deviations.
_REACH = 3.0


class Learnt(eqx.Module):
    """Parameters, the inverse of the information on them, and how the state's belief depends on them."""

    theta: Float[Array, "*T k"]
    #: What rounding took from theta, which in single precision would add up over a million small steps.
    lost: Float[Array, "*T k"]
    spread: PSD
    slopes: Slopes
    unmeasured_cov: Float[Array, "*T k k"]
    space: ParameterSpace
    #: Is the inverse of the information a covariance to be believed?
    claims: bool = eqx.field(static=True)

    @property
    def parameters(self) -> ParameterEstimate:
        cov = self.spread.matrix if self.claims else None
        unmeasured = self.unmeasured_cov if self.claims else None
        return ParameterEstimate(self.space, self.theta, cov, unmeasured_cov=unmeasured)


class Taught(NamedTuple):
    """After a lesson: how far the parameters move, and the inverse of the information."""

    step: Float[Array, " k"]
    spread: PSD


def check_inner(owner: str, filter: Any) -> AbstractFilter:
    """**Raises:** `TypeError` for a filter whose derivative by the parameters is not carried along."""
    check_is_filter(owner, filter)
    names = ", ".join(kind.__name__ for kind in _KINDS)
    if not isinstance(filter, _KINDS):
        raise TypeError(f"{owner}: `filter` is {type(filter).__name__}; expected one of {names}")
    if getattr(filter, "adaptive", None) is not None:
        raise TypeError(
            f"{owner}: `filter` has `adaptive` noise; expected one without (noise can be a parameter of "
            "the model)"
        )
    return filter


def check_learnable(owner: str, filter: AbstractFilter, model: StateSpaceModel) -> ParametricModel:
    """**Raises:** `TypeError` for a model that `filter` does not take, or without parameters."""
    model = check_parametric(owner, model)
    if isinstance(model.initial, Diffuse):
        raise TypeError(f"{owner}: `initial` is Diffuse; expected a proper distribution")
    filter.check(model)
    return model


def init(
    filter: AbstractFilter, model: StateSpaceModel, dtype: jnp.dtype, claims: bool
) -> Gaussian:
    """The belief before any measurement."""
    assert isinstance(model, ParametricModel)
    theta, cov = model.prior_mean.astype(dtype), model.prior_cov.astype(dtype)
    belief, slopes = tangent.start(filter, model, theta, dtype)
    learnt = Learnt(
        theta, jnp.zeros_like(theta), PSD.from_matrix(cov), slopes, cov, model.space, claims
    )
    return _with(belief, learnt)


def predict(
    filter: AbstractFilter, model: StateSpaceModel, belief: Gaussian, interval: Interval
) -> Prediction:
    """State and parameters at the end of an interval of positive length."""
    assert isinstance(model, ParametricModel)
    before: Learnt = belief.memory
    found, slopes = tangent.predict(
        filter, model, before.theta, _plain(belief), before.slopes, interval
    )
    spread = evolved(model, before.spread, interval.gap)
    unmeasured = model.evolved_cov(before.unmeasured_cov, interval.gap)
    learnt = Learnt(
        before.theta, before.lost, spread, slopes, unmeasured, before.space, before.claims
    )
    return found._replace(belief=_with(found.belief, learnt))


def update(
    filter: AbstractFilter,
    model: StateSpaceModel,
    belief: Gaussian,
    t: Any,
    u: Any,
    y: Float[Array, " dy"],
    teach: Callable[[PSD, Lesson], Taught],
    moves_state: bool = True,
) -> tuple[Update, Lesson]:
    """`teach` makes of the inverse of the information and a lesson a step of the parameters and what is known
    after it. If wanted the state's mean moves with the parameters, to first order."""
    assert isinstance(model, ParametricModel)
    before: Learnt = belief.memory
    plain = _plain(belief)
    found, slopes, lesson = tangent.update(
        filter, model, before.theta, plain, before.slopes, t, u, y
    )
    step, spread = teach(before.spread, lesson)
    step = jnp.where(lesson.seen, step, 0.0)
    spread = select(lesson.seen, spread, before.spread)
    theta, lost = add(before.theta, before.lost, step)
    # (A part that the parameters can hold goes over to them.)
    theta, lost = add(theta, jnp.zeros_like(lost), lost)
    learnt = Learnt(theta, lost, spread, slopes, before.unmeasured_cov, before.space, before.claims)
    after = found.belief
    if moves_state:
        after = Gaussian(after.mean + step @ slopes.mean, spread=after.spread)
    return found._replace(belief=_with(after, learnt)), lesson


def predict_observation(
    filter: AbstractFilter, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
) -> PredictedObservation:
    """What a measurement would be, at the parameters that are believed."""
    assert isinstance(model, ParametricModel)
    at = model.at(belief.memory.theta)
    return filter.predict_observation(at, _plain(belief), t, u)


class AbstractRecursiveFilter(AbstractFilter):
    """A Gaussian filter of the state, and a rule by which each row teaches the parameters."""

    filter: eqx.AbstractVar[AbstractFilter]
    forgetting: eqx.AbstractVar[float]

    learns: ClassVar[bool] = True
    #: Does the state's mean move with the parameters?
    moves_state: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def _teach(self, spread: PSD, lesson: Lesson) -> Taught:
        """What a lesson makes of the inverse of the information."""

    def check(self, model: StateSpaceModel) -> None:
        check_learnable(type(self).__name__, self.filter, model)

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        return init(self.filter, model, dtype, self.forgetting == 1)

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        return predict(self.filter, model, belief, interval)

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        return update(self.filter, model, belief, t, u, y, self._teach, self.moves_state)[0]

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        return predict_observation(self.filter, model, belief, t, u)


def predicted_slopes(
    filter: AbstractFilter, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
) -> Float[Array, "dy k"]:
    """Derivatives of the expected measurement by the parameters."""
    assert isinstance(model, ParametricModel)
    learnt: Learnt = belief.memory

    def expected(theta: Array, mean: Array, cov: Array) -> Array:
        at = Gaussian(mean, spread=PSD(belief.spread.factor, cov))
        return filter.predict_observation(model.at(theta), at, t, u).loc

    return learnt.slopes.along(expected, learnt.theta, belief).T


def within_reach(step: Float[Array, " k"], spread: PSD) -> Float[Array, " k"]:
    """The step, shortened where it would move a parameter beyond what is believed possible."""
    sds = spread.standard_deviations()
    excess = jnp.where(sds > 0, jnp.abs(step) / jnp.where(sds > 0, _REACH * sds, 1.0), 0.0)
    return step / jnp.maximum(1.0, excess.max())


def _plain(belief: Gaussian) -> Gaussian:
    return Gaussian(belief.mean, spread=belief.spread)


def _with(belief: Gaussian, learnt: Learnt) -> Gaussian:
    return Gaussian(belief.mean, spread=belief.spread, memory=learnt)
