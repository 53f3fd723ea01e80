"""Recursive least squares."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.extended import ExtendedKalmanFilter
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.learning import recursive
from filterdyn.learning.information import check_forgetting, forgotten
from filterdyn.learning.recursive import Learnt, Taught
from filterdyn.learning.regression import Autoregression, Regression
from filterdyn.learning.tangent import Lesson
from filterdyn.linalg import PSD, condition, mm
from filterdyn.model import StateSpaceModel

_NAME = "RecursiveLeastSquares"
_FILTER = ExtendedKalmanFilter()


class RecursiveLeastSquares(AbstractFilter):
    """Recursive least squares of a `Regression` or an `Autoregression` (Plackett 1950; Ljung, Söderström
    1983), in square-root form.

    Without forgetting it is the Kalman filter of parameters that stand still, or move by the model's
    `evolution`: the exact posterior under a Gaussian prior, from which `log_likelihood`, innovations and
    forecasts come. With forgetting the estimate minimises

        sum_s forgetting^(t - s) |y_s - Phi_s theta|^2_R  +  forgetting^t |theta - prior mean|^2_C0,

    and no interval is claimed. Rows of which nothing was measured forget nothing. Where an input does not
    excite the system, exponential forgetting loses what was known of the directions that are not seen, and
    noise then moves them anywhere; `directional=True` keeps them (Cao, Schwartz 2000).

    `R` of the model weighs the measurements, against the prior and each other; only `log_likelihood`, `nis`
    and the intervals need it right.
    """

    forgetting: float = eqx.field(static=True)
    directional: bool = eqx.field(static=True)

    learns: ClassVar[bool] = True

    def __init__(self, *, forgetting: float = 1.0, directional: bool = False):
        """**Arguments:**

        - `forgetting` in (0, 1]: with every row that is measured the past counts this much less: about
          1 / (1 - forgetting) rows are remembered;
        - `directional`: forget only what the row has something to say of.

        **Raises:** `ValueError` and `TypeError` for anything else.
        """
        self.forgetting, self.directional = check_forgetting(_NAME, forgetting, directional)

    def check(self, model: StateSpaceModel) -> None:
        if not isinstance(model, (Regression, Autoregression)):
            raise TypeError(
                f"{_NAME}: `model` is {type(model).__name__}; expected fd.Regression or fd.Autoregression, "
                "in which a measurement is linear in the parameters (fd.RecursivePredictionError takes any "
                "fd.ParametricModel)"
            )

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        return recursive.init(_FILTER, model, dtype, self.forgetting == 1)

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        return recursive.predict(_FILTER, model, belief, interval)

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        learnt: Learnt = belief.memory
        found, lesson = recursive.update(_FILTER, model, belief, t, u, y, self._teach, True)
        # What the state's filter says holds for parameters that are known.
        before = forgotten(learnt.spread, lesson.slopes, self.forgetting, self.directional)
        errors = lesson.errors
        whole = condition(before, lesson.slopes, errors, *_all_of(errors))
        known = -0.5 * (errors @ errors + len(errors) * math.log(2 * math.pi))
        return found._replace(
            innovation_cov=self.predict_observation(model, belief, t, u).cov,
            standardized=jnp.where(jnp.isnan(found.standardized), jnp.nan, whole.standardized),
            log_likelihood=found.log_likelihood + (whole.log_likelihood - known),
        )

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        known = recursive.predict_observation(_FILTER, model, belief, t, u)
        slopes = recursive.predicted_slopes(_FILTER, model, belief, t, u)
        spread = belief.memory.spread
        spread = forgotten(spread, slopes, self.forgetting, self.directional)
        more = mm(mm(slopes, spread.matrix), slopes.T)
        return PredictedObservation(known.loc, known.cov + more, known.transforms)

    def _teach(self, spread: PSD, lesson: Lesson) -> Taught:
        before = forgotten(spread, lesson.slopes, self.forgetting, self.directional)
        after = condition(before, lesson.slopes, lesson.errors, *_all_of(lesson.errors))
        return Taught(after.shift, after.cov)


def _all_of(errors: Float[Array, " dy"]) -> tuple[Array, Array]:
    """Variances of one, and that all is there."""
    return jnp.ones_like(errors), jnp.ones(errors.shape, bool)
