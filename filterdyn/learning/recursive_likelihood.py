"""Recursive maximum likelihood."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from filterdyn.filters.base import AbstractFilter
from filterdyn.learning.information import check_forgetting, forgotten, informed
from filterdyn.learning.recursive import AbstractRecursiveFilter, Taught, check_inner, within_reach
from filterdyn.learning.tangent import Lesson
from filterdyn.linalg import PSD, mv

_NAME = "RecursiveMaximumLikelihood"


class RecursiveMaximumLikelihood(AbstractRecursiveFilter):
    """Recursive maximum likelihood by the tangent filter, in O(1) memory (LeGland, Mevel 1997; Poyiadjis,
    Doucet, Singh 2011, without particles): a Gaussian filter follows the state at the parameters it believes,
    and each row moves these along the derivative of its log-likelihood.

    That score s is exact: the derivatives of the belief's mean and covariance by the parameters are carried
    from row to row. It is scaled by the Fisher information of the rows so far (Amari 1998): with psi and S'_i
    the derivatives of the predicted measurement and of its covariance S, in the space where the parameters
    have no limits,

        J_ij = psi_i^T S^-1 psi_j + tr(S^-1 S'_i S^-1 S'_j) / 2,
        C^-1 <- forgetting C^-1 + J,    theta <- theta + C s,

    from mean and covariance of the prior; the model's `evolution` adds to C over every gap. Without
    forgetting the gain falls like 1 / t and the estimate becomes as good as that of maximum likelihood over
    all rows. No row moves a parameter by more than three of its standard deviations. `mean`, `cov` and
    `log_likelihood` are those of the filter at the parameters that are believed.

    **What it learns:** whatever the likelihood depends on, the size of process noise and sensor noise too.

    **What it claims:** without forgetting C is the covariance of the estimate, if the model is right, and
    `.parameters` has intervals. With forgetting there is only the estimate. A parameter that moves by a known
    amount has `evolution=fd.RandomWalk(...)` in the model, and intervals.

    A row takes the time of k + 1 rows of the filter, k the number of parameters.
    """

    filter: AbstractFilter
    forgetting: float = eqx.field(static=True)
    directional: bool = eqx.field(static=True)

    moves_state: ClassVar[bool] = False

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
        slopes = jnp.concatenate([lesson.slopes, lesson.square_slopes])
        before = forgotten(spread, slopes, self.forgetting, self.directional)
        after = informed(before, slopes)
        return Taught(within_reach(mv(after.matrix, lesson.score), before), after)
