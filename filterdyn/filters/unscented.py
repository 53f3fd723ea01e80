"""The unscented Kalman filter: regression on 2 dx + 1 sigma points."""

import equinox as eqx

from filterdyn._checks import check_count
from filterdyn.filters.points import AbstractPointFilter
from filterdyn.linearization import Unscented
from filterdyn.outliers import AbstractOutlierRule, check_outliers


class UnscentedKalmanFilter(AbstractPointFilter):
    """The unscented Kalman filter (Julier, Uhlmann 2004), in square-root form, for any dynamics and
    observation.

    The points are m and m +- alpha sqrt(dx + kappa) S_j, S the Cholesky factor of the covariance, drawn
    anew before every prediction *and* every update, whose covariance includes the process noise. With
    alpha = 1, beta = 0, kappa = max(3 - dx, 0) no weight is negative; on two states that is the
    convention `ukf_a1_b0_k1_redraw` of the reference pendulum (alpha 1, beta 0, kappa 1). `beta=2`
    with `kappa=1`, and `alpha=1e-3, beta=2, kappa=0`, give its other two with redrawn points. The
    points that are not redrawn (`noredraw`) are not offered.

    All covariances are sums of squares, for every alpha: there is no downdate that could fail. But
    alpha = 1e-3 takes second differences over a thousandth of a standard deviation: it costs six digits
    in float64 and is refused in float32. Exact on linear Gaussian models. An observation that is not
    Gaussian enters by the mean of its conditional means, and the mean of its conditional covariances
    plus the spread of the means.
    """

    rule: Unscented
    iterations: int = eqx.field(static=True)
    outliers: AbstractOutlierRule | None

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.0,
        kappa: float | None = None,
        *,
        iterations: int = 1,
        outliers: AbstractOutlierRule | None = None,
    ):
        """**Arguments:**

        - `alpha` > 0: scales the distance of the points;
        - `beta` >= -alpha^2 kappa / dx (or a covariance could be indefinite): adds to the weight of the
          centre in covariances;
        - `kappa` > -dx; `None` is max(3 - dx, 0);
        - `iterations`: how often the observation is linearised; more than 1 is posterior linearisation
          (Garcia-Fernandez et al. 2015), which places the points under the belief *after* the
          measurement. The measurement counts once;
        - `outliers`: as for `KalmanFilter`.

        **Raises:** `ValueError` for anything else.
        """
        self.rule = Unscented(alpha, beta, kappa)
        self.iterations = check_count("UnscentedKalmanFilter", "iterations", iterations)
        self.outliers = check_outliers("UnscentedKalmanFilter", outliers)
