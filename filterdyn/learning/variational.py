"""Online variational filtering: a Gaussian fitted to each row, and parameters that climb its bound."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from filterdyn._checks import check_count
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.cubature import CubatureKalmanFilter
from filterdyn.filters.extended import ExtendedKalmanFilter
from filterdyn.filters.gauss_hermite import GaussHermiteKalmanFilter
from filterdyn.filters.kalman import KalmanFilter
from filterdyn.filters.learned import changes_its_noise
from filterdyn.filters.particle_weights import innovation_of, measurement_log_weights
from filterdyn.filters.sampling import AbstractSamplingFilter, Measurement, SamplingStep
from filterdyn.filters.scan import first_failure
from filterdyn.filters.unscented import UnscentedKalmanFilter
from filterdyn.initial import Diffuse
from filterdyn.learning import variational_row
from filterdyn.learning.ascent import Ascent
from filterdyn.learning.model import ParametricModel
from filterdyn.learning.parameters import ParameterEstimate
from filterdyn.learning.variational_points import normal_points
from filterdyn.learning.variational_row import Kernel, Settings
from filterdyn.linalg import PSD, mv, triangularize
from filterdyn.model import StateSpaceModel

_NAME = "OnlineVariationalFilter"
_PREDICTIONS = (
    KalmanFilter,
    ExtendedKalmanFilter,
    UnscentedKalmanFilter,
    CubatureKalmanFilter,
    GaussHermiteKalmanFilter,
)
#: Points by default: this many, and for large states this many for every number that is fitted.
_POINTS = 32
_POINTS_EACH = 4


class VariationalBelief(eqx.Module):
    """The Gaussian q(x_t), and what is learnt of parameters beside it."""

    state: Gaussian
    #: Of a filter that learns.
    ascent: Ascent | None
    #: How many points a fit takes.
    size: int = eqx.field(static=True)

    @property
    def parameters(self) -> ParameterEstimate | None:
        """The estimate, which claims no posterior; `None` where nothing is learnt."""
        return None if self.ascent is None else self.ascent.estimate

    @property
    def mean(self) -> Float[Array, "*T dx"]:
        return self.state.mean

    @property
    def cov(self) -> Float[Array, "*T dx dx"]:
        return self.state.spread.matrix

    @property
    def variances(self) -> Float[Array, "*T dx"]:
        return jnp.diagonal(self.cov, axis1=-2, axis2=-1)

    @property
    def effective_sample_size(self) -> Float[Array, "*T"]:
        """The number of points, which weigh the same."""
        return jnp.full(self.mean.shape[:-1], self.size, self.mean.dtype)

    @property
    def is_finite(self) -> Bool[Array, ""]:
        leaves = [x for x in jax.tree.leaves(self) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()

    def sample(self, key: Array) -> Float[Array, " dx"]:
        """One draw (of a belief without a leading axis)."""
        return self.state.sample(key)


class OnlineVariationalFilter(AbstractSamplingFilter):
    """Online variational filtering, and of a `ParametricModel` parameter learning (Campbell, Shi,
    Rainforth, Doucet 2021).

    The posterior of all states is approximated by q(x_t) q(x_{t-1} | x_t) ... q(x_1 | x_2), all Gaussian
    and linear, of which a row fits the first two and leaves the others as they are. What it maximises is
    the bound on log p(y_1:t), E_q [log p(x_1:t, y_1:t) - log q(x_1:t)] = E_q(x_t) V_t(x_t): V_t follows
    from V_{t-1} by E_q(x_{t-1} | x_t) (section 3 of the paper), and so does its derivative by the model,
    S_t. Both are carried by their projections on quadratic functions under q(x_t), which are exact for
    linear Gaussian models. (Where the fit of a row is at rest that of V_t - log q(x_t) is a constant, so
    that only S_t takes memory.) Time and memory per row are constant.

    - Linear dynamics, and dynamics without a transition density (which enter by their Gaussian moments
      under `prediction`): the best q(x_{t-1} | x_t) is known in closed form, and q(x_t) is fitted.
    - Other dynamics: a Gaussian of the pair (x_{t-1}, x_t) is fitted, with the transition density as it is.
      A row without any measurement takes the moments of `prediction`.

    Expectations are means over points, drawn anew in every row, that are exact for polynomials of degree
    3: on a linear Gaussian model the filter is the Kalman filter, its bound the log-likelihood and the
    gradient of the bound the score. Measurements enter by their density, whatever its family. The start
    enters by its mean and covariance.

    `log_likelihood` is the increment of the **bound**, not a likelihood: it is low by as much as q differs
    from the posterior. What V_t has beyond second order is left out, so that the sum over rows may also
    exceed log p(y_1:t) (by 0.1 over 150 rows of a stochastic volatility); where dynamics entered by their
    moments it is that of the model with these. Its gradient by the model holds q fixed.

    **Parameters** climb the increments of the bound (section 4 of the paper): by default along the
    inverse of the accumulated outer products of these scores plus the precision of the prior, so that a
    row moves them by half a standard deviation of the prior at most, and on a linear Gaussian model the
    filter is recursive maximum likelihood (LeGland, Mevel 1997); with `parameter_optimizer` as that says.
    The covariance that steers the steps is no posterior, and where q is not the posterior the estimate is
    biased: `parameters` states no interval.
    """

    points: int | None = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    optimizer: Any = eqx.field(static=True)
    parameter_optimizer: Any = eqx.field(static=True)
    prediction: AbstractFilter
    truncation: int | None = eqx.field(static=True)

    learns: ClassVar[bool] = True

    def __init__(
        self,
        points: int | None = None,
        *,
        steps: int = 5,
        optimizer: optax.GradientTransformation | None = None,
        prediction: AbstractFilter = CubatureKalmanFilter(),
        parameter_optimizer: optax.GradientTransformation | None = None,
        truncation: int | None = None,
    ):
        """**Arguments:**

        - `points`: how many a row takes, an even number, at least 2 per number fitted (dx, of pairs 2 dx); by
          default the larger of 32 and 4 per number;
        - `steps`: iterations per row at most; a fit that is at rest stops earlier;
        - `optimizer`: `None` for natural-gradient steps, of which one solves a linear Gaussian row; or an
          Optax optimiser of mean and Cholesky factor by reparameterised gradients, started in every row
          from the prediction and in its units (`optax.adam(0.05)` takes some hundred `steps`);
        - `prediction`: a Gaussian filter, whose moments are used where these are asked for;
        - `parameter_optimizer`: an Optax optimiser that climbs the increments of the bound, in the space
          where parameters have no limits, in place of the default (no `evolution` then);
        - `truncation`: a gradient by the model forgets what is more than this many rows ago.

        **Raises:** `ValueError` for numbers out of range, `TypeError` for other kinds of objects.
        """
        if points is not None:
            points = check_count(_NAME, "points", points)
            if points % 2:
                raise ValueError(f"{_NAME}: `points` is {points}; expected an even number")
        self.points = points
        self.steps = check_count(_NAME, "steps", steps)
        self.optimizer = _check_optimizer("optimizer", optimizer)
        self.parameter_optimizer = _check_optimizer("parameter_optimizer", parameter_optimizer)
        if not isinstance(prediction, _PREDICTIONS):
            raise TypeError(
                f"{_NAME}: `prediction` is {getattr(prediction, '__name__', type(prediction).__name__)}; "
                "expected a Gaussian filter, such as fd.CubatureKalmanFilter()"
            )
        if changes_its_noise(prediction):
            raise ValueError(f"{_NAME}: `prediction` has AdaptiveNoise; expected a filter without")
        self.prediction = prediction
        self.truncation = (
            None if truncation is None else check_count(_NAME, "truncation", truncation)
        )

    def check(self, model: StateSpaceModel) -> None:
        if isinstance(model.initial, Diffuse):
            raise TypeError(
                f"{_NAME}: `initial` is Diffuse, under which no bound is finite; expected a proper "
                "distribution"
            )
        if isinstance(self.prediction, KalmanFilter) and not model.dynamics.is_linear:
            raise TypeError(
                f"{_NAME}: `prediction` is KalmanFilter and `dynamics` {type(model.dynamics).__name__}, "
                "which may be nonlinear; expected such as fd.CubatureKalmanFilter()"
            )
        if isinstance(model, ParametricModel):
            if self.parameter_optimizer is not None and model.evolution is not None:
                raise ValueError(
                    f"{_NAME}: `parameter_optimizer` climbs by its own rule and does not follow the model's "
                    "`evolution`; expected one of the two"
                )
        self._size(model, 1)

    def init(self, model: StateSpaceModel, dtype: jnp.dtype, key: Array) -> VariationalBelief:
        size = self._size(model, 1)
        if not isinstance(model, ParametricModel):
            return VariationalBelief(_lower(model.start(dtype)), None, size)
        ascent = Ascent.start(model, dtype, self.parameter_optimizer)
        return VariationalBelief(_lower(model.at(ascent.theta).start(dtype)), ascent, size)

    def advance(
        self, model: StateSpaceModel, belief: VariationalBelief, interval: Interval, key: Array
    ) -> tuple[VariationalBelief, Int[Array, ""]]:
        at, interval = _known(model, belief, interval)
        found = variational_row.predict(self.prediction, at, belief.state, interval)
        return VariationalBelief(found.belief, belief.ascent, belief.size), found.status

    def moments(self, belief: VariationalBelief) -> tuple[Float[Array, "N dx"], Float[Array, " N"]]:
        x = _points_of(belief.state, belief.size)
        return x, jnp.full(len(x), 1.0 / len(x), x.dtype)

    def observation_moments(
        self, model: StateSpaceModel, belief: VariationalBelief, t: Any, u: Any, key: Array
    ) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"]]:
        if belief.ascent is not None:
            assert isinstance(model, ParametricModel)
            model = model.at(belief.ascent.theta)
        return super().observation_moments(model, belief, t, u, key)

    def step(
        self,
        model: StateSpaceModel,
        belief: VariationalBelief,
        interval: Interval,
        measurement: Measurement,
        key: Array,
    ) -> SamplingStep:
        at, inside = _known(model, belief, interval)
        settings = self._settings(at, inside, belief)
        predicted = variational_row.predict(self.prediction, at, belief.state, inside)
        # (A fit is differentiated in `depends`, which holds q fixed, and nowhere else.)
        fixed, still, moved = _without_derivative((at, belief.state, predicted))
        row = variational_row.fit_row(settings, fixed, still, moved, inside, measurement, key)

        def depends(at: StateSpaceModel, before: Gaussian) -> tuple[Gaussian, Array]:
            return variational_row.depends(settings, at, before, inside, measurement, row)

        ascent = belief.ascent
        if ascent is None:
            state, bound = depends(at, belief.state)
        else:
            assert isinstance(model, ParametricModel)
            state, bound, ascent = ascent.climbed(model, belief.state, depends, interval.gap)
        x = _points_of(predicted.belief, belief.size)
        equal = jnp.zeros(len(x), x.dtype)
        innovation, cov, standardized = innovation_of(fixed, x, equal, measurement)
        _, possible = measurement_log_weights(fixed, x, measurement)
        return SamplingStep(
            VariationalBelief(predicted.belief, belief.ascent, belief.size),
            VariationalBelief(state, ascent, belief.size),
            innovation,
            cov,
            standardized,
            bound,
            first_failure(predicted.status, possible),
            {"effective_sample_size": belief.effective_sample_size},
        )

    def backward_kernel(
        self,
        model: StateSpaceModel,
        belief: VariationalBelief,
        interval: Interval,
        measurement: Measurement,
        key: Array,
    ) -> Kernel:
        """q(x_{t-1} | x_t) = N(mean + gain (x_t - m), factor factor^T), m the mean of q(x_t), of the row
        that `step` makes of the same arguments."""
        at, inside = _known(model, belief, interval)
        settings = self._settings(at, inside, belief)
        predicted = variational_row.predict(self.prediction, at, belief.state, inside)
        row = variational_row.fit_row(
            settings, at, belief.state, predicted, inside, measurement, key
        )
        return variational_row.kernel_of(at, belief.state, predicted, row)

    def _settings(
        self, model: StateSpaceModel, interval: Interval, belief: VariationalBelief
    ) -> Settings:
        pairwise = not model.dynamics.is_linear and _has_density(model, interval, belief.mean)
        size = self._size(model, 2 if pairwise else 1)
        return Settings(self.prediction, size, self.steps, self.optimizer, pairwise)

    def _size(self, model: StateSpaceModel, each: int) -> int:
        """How many points a fit of `each` states takes."""
        numbers = each * model.dx
        if self.points is None:
            return max(_POINTS, _POINTS_EACH * numbers)
        if self.points < 2 * numbers:
            raise ValueError(
                f"{_NAME}: `points` is {self.points} and {numbers} numbers are fitted together; expected "
                f"at least {2 * numbers}"
            )
        return self.points


def _known(
    model: StateSpaceModel, belief: VariationalBelief, interval: Interval
) -> tuple[StateSpaceModel, Interval]:
    """The model at the parameters as they are estimated, and the interval for it."""
    if belief.ascent is None:
        return model, interval
    assert isinstance(model, ParametricModel)
    return model.at(belief.ascent.theta), model.within(interval)


def _without_derivative(tree: Any) -> Any:
    inexact = lambda x: eqx.is_array(x) and jnp.issubdtype(x.dtype, jnp.inexact)
    return jax.tree.map(lambda x: stop_gradient(x) if inexact(x) else x, tree)


def _lower(belief: Gaussian) -> Gaussian:
    """With a lower triangular factor."""
    spread = belief.spread
    return Gaussian(belief.mean, spread=PSD(triangularize(spread.root), spread.matrix))


def _points_of(belief: Gaussian, size: int) -> Float[Array, "N dx"]:
    """States of equal weight with the belief's mean and covariance."""
    n, dtype = len(belief.mean), belief.mean.dtype
    points = normal_points(jnp.full(n, 0.5, dtype), size, dtype)
    root = stop_gradient(belief.spread.root)
    return belief.mean + jax.vmap(lambda e: mv(root, e))(points)


def _has_density(model: StateSpaceModel, interval: Interval, x: Array) -> bool:
    """Is the transition density known?"""
    try:
        jax.eval_shape(lambda x: model.dynamics.log_density(x, x, interval), x)
    except TypeError:
        return False
    return True


def _check_optimizer(name: str, optimizer: Any) -> Any:
    if optimizer is None:
        return None
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"{_NAME}: `{name}` is {type(optimizer).__name__}; expected an Optax optimiser, such as "
            "optax.adam(0.05), or None"
        )
    return optimizer
