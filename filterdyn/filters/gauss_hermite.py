"""The Gauss-Hermite Kalman filter: regression on a product grid of quadrature nodes."""

import equinox as eqx

from filterdyn._checks import check_count
from filterdyn.filters.points import AbstractPointFilter
from filterdyn.linearization import GaussHermite
from filterdyn.outliers import AbstractOutlierRule, check_outliers


class GaussHermiteKalmanFilter(AbstractPointFilter):
    """The Gauss-Hermite Kalman filter (Ito, Xiong 2000), in square-root form, for any dynamics and
    observation of a few states: it takes order^dx points.

    Points are drawn anew before every prediction and every update; no weight is negative. Exact on
    linear Gaussian models. An observation that is not Gaussian enters by the mean of its conditional
    means, and the mean of its conditional covariances plus the spread of the means.
    """

    rule: GaussHermite
    iterations: int = eqx.field(static=True)
    outliers: AbstractOutlierRule | None

    def __init__(
        self, order: int = 3, *, iterations: int = 1, outliers: AbstractOutlierRule | None = None
    ):
        """**Arguments:**

        - `order` >= 2: nodes per state. Polynomials of degree up to 2 order - 1 in each state have
          exact means;
        - `iterations`: how often the observation is linearised; more than 1 is posterior linearisation
          (Garcia-Fernandez et al. 2015), which places the points under the belief *after* the
          measurement. The measurement counts once;
        - `outliers`: as for `KalmanFilter`.

        **Raises:** `ValueError` for anything else.
        """
        self.rule = GaussHermite(order)
        self.iterations = check_count("GaussHermiteKalmanFilter", "iterations", iterations)
        self.outliers = check_outliers("GaussHermiteKalmanFilter", outliers)
