"""The cubature Kalman filter: regression on the points of a spherical-radial rule."""

from typing import Literal

import equinox as eqx

from filterdyn._checks import check_count
from filterdyn.filters.points import AbstractPointFilter
from filterdyn.linearization import Cubature
from filterdyn.outliers import AbstractOutlierRule, check_outliers


class CubatureKalmanFilter(AbstractPointFilter):
    """The cubature Kalman filter (Arasaratnam, Haykin 2009), in square-root form, for any dynamics and
    observation.

    Points are drawn anew before every prediction and every update; no weight is negative. Exact on
    linear Gaussian models. An observation that is not Gaussian enters by the mean of its conditional
    means, and the mean of its conditional covariances plus the spread of the means.
    """

    rule: Cubature
    iterations: int = eqx.field(static=True)
    outliers: AbstractOutlierRule | None

    def __init__(
        self,
        degree: Literal[3, 5] = 3,
        *,
        iterations: int = 1,
        outliers: AbstractOutlierRule | None = None,
    ):
        """**Arguments:**

        - `degree`: polynomials of the state up to this degree have exact means. 3 takes 2 dx points;
          5 takes 2 dx^2 + 1 up to 4 states (Jia, Xin, Cheng 2013), 2^dx + 2 dx + 1 above;
        - `iterations`: how often the observation is linearised; more than 1 is posterior linearisation
          (Garcia-Fernandez et al. 2015), which places the points under the belief *after* the
          measurement. The measurement counts once;
        - `outliers`: as for `KalmanFilter`.

        **Raises:** `ValueError` for anything else.
        """
        self.rule = Cubature(degree)
        self.iterations = check_count("CubatureKalmanFilter", "iterations", iterations)
        self.outliers = check_outliers("CubatureKalmanFilter", outliers)
