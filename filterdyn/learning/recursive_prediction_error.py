"""The recursive prediction error method."""

from typing import ClassVar

import equinox as eqx

from filterdyn.filters.base import AbstractFilter
from filterdyn.learning.information import check_forgetting, forgotten, informed
from filterdyn.learning.recursive import AbstractRecursiveFilter, Taught, check_inner, within_reach
from filterdyn.learning.tangent import Lesson
from filterdyn.linalg import PSD, mv

_NAME = "RecursivePredictionError"


class RecursivePredictionError(AbstractRecursiveFilter):
    """The recursive prediction error method (Ljung, Söderström 1983, chapter 3; Ljung 1979): a Gaussian
    filter follows the state at the parameters it believes, and each row moves these by a Gauss-Newton step
    that makes its prediction errors small.

    The derivative of the predicted measurement by the parameters is exact: those of the belief's mean and
    covariance are carried from row to row (the tangent filter). With e the innovation, S its covariance and
    psi the derivative, in the space where the parameters have no limits,

        C^-1 <- forgetting C^-1 + psi^T S^-1 psi,    theta <- theta + C psi^T S^-1 e,

    from mean and covariance of the prior; the model's `evolution` adds to C over every gap. The state's mean
    moves with the parameters, to first order, so that where predictions are linear in state and parameters
    together and S does not depend on these, this is the exact joint filter (Friedland 1969). No row moves a
    parameter by more than three of its standard deviations. `mean`, `cov` and `log_likelihood` are those of
    the filter at the parameters that are believed.

    **What it learns:** what the mean of a prediction depends on. Of S, and so of the size of noise, it learns
    only what shows in the filter's gain; `RecursiveMaximumLikelihood` learns noise too, but needs it to be
    Gaussian, which this does not.

    **What it claims:** without forgetting C is the covariance of the estimate, if the noise of the model is
    right, and `.parameters` has intervals. With forgetting there is only the estimate. A parameter that moves
    by a known amount has `evolution=fd.RandomWalk(...)` in the model, and intervals.

    A row takes the time of k + 1 rows of the filter, k the number of parameters.
    """

    filter: AbstractFilter
    forgetting: float = eqx.field(static=True)
    directional: bool = eqx.field(static=True)

    moves_state: ClassVar[bool] = True

    def __init__(
        self, filter: AbstractFilter, *, forgetting: float = 1.0, directional: bool = False
    ):
        """**Arguments:**

        - `filter`: `KalmanFilter` (where the model is linear in the state at given parameters),
          `ExtendedKalmanFilter`, `UnscentedKalmanFilter`, `CubatureKalmanFilter` or
          `GaussHermiteKalmanFilter`;
        - `forgetting` in (0, 1]: with every row that is measured the past counts this much less: about
          1 / (1 - forgetting) rows are remembered;
        - `directional`: forget only what the row has something to say of, so that without excitation
          nothing is forgotten (Cao, Schwartz 2000).

        **Raises:** `ValueError` and `TypeError` for anything else.
        """
        self.filter = check_inner(_NAME, filter)
        self.forgetting, self.directional = check_forgetting(_NAME, forgetting, directional)

    def _teach(self, spread: PSD, lesson: Lesson) -> Taught:
        before = forgotten(spread, lesson.slopes, self.forgetting, self.directional)
        after = informed(before, lesson.slopes)
        step = mv(after.matrix, lesson.errors @ lesson.slopes)
        return Taught(within_reach(step, before), after)
