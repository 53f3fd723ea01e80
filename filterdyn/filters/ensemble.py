"""The ensemble Kalman filter, in the variants of the literature."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from filterdyn._checks import check_count, check_covariance, float_array, is_traced
from filterdyn.beliefs import Ensemble
from filterdyn.dynamics import Interval
from filterdyn.ensembles import AdaptiveInflation, GaspariCohn, analyses
from filterdyn.ensembles.analyses import Analysis
from filterdyn.ensembles.inflation import Carried, relaxed
from filterdyn.ensembles.innovation import Weighing, innovation_cov, noise_draws, weigh
from filterdyn.ensembles.inverse_root import product
from filterdyn.ensembles.observed import ObservedEnsemble, observe
from filterdyn.ensembles.rotation import rotation
from filterdyn.filters.sampling import (
    AbstractSamplingFilter,
    Measurement,
    SamplingStep,
    propagate,
)
from filterdyn.initial import Diffuse
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status

_NAME = "EnsembleKalmanFilter"
_KINDS = ("stochastic", "deterministic", "transform", "serial", "local")


class EnsembleKalmanFilter(AbstractSamplingFilter):
    """A Kalman filter whose covariances are those of N states that move with the dynamics themselves
    (Evensen 1994), for any dynamics and observation and for states of any number: what is formed is of
    size N x dx, N x N and dy x dy at most.

    `kind` is how a measurement moves the members:

    - `"stochastic"`: each meets it with noise of its own (Burgers, van Leeuwen, Evensen 1998);
    - `"deterministic"`: the anomalies are moved half the way, without noise (Sakov, Oke 2008a);
    - `"transform"`: a symmetric square root in the space of the members (Bishop, Etherton, Majumdar
      2001), with random rotations that keep mean and covariance (Sakov, Oke 2008b);
    - `"serial"`: a square root, one measurement after the other (Whitaker, Hamill 2002);
    - `"local"`: a transform for each state, of the measurements near it (Hunt, Kostelich, Szunyogh
      2007).

    For a linear Gaussian model the stochastic kind tends to the Kalman filter like N^-1/2, and
    `"transform"` and `"serial"` are the Kalman filter of the ensemble's own moments where the dynamics
    have no noise. The log-likelihood is the Gaussian density of the innovation under the mean and
    covariance of what the members expect (localised where the filter is), plus noise. Observations that are
    not Gaussian enter by their conditional moments at the members.
    """

    matches_moments: ClassVar[bool] = True

    size: int = eqx.field(static=True)
    kind: str = eqx.field(static=True)
    inflation: Float[Array, ""] | AdaptiveInflation
    additive: Array | None
    relaxation: Float[Array, ""] | None
    localization: GaspariCohn | None
    #: May the factor be another than 1?
    inflates: bool = eqx.field(static=True)
    rotate: bool = eqx.field(static=True)
    truncation: int | None = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        kind: str = "stochastic",
        *,
        inflation: float | AdaptiveInflation = 1.0,
        additive: Any = None,
        relaxation: float | None = None,
        localization: GaspariCohn | None = None,
        rotate: bool | None = None,
        truncation: int | None = None,
    ):
        """**Arguments:**

        - `size`: N >= 2, the number of members;
        - `kind`: see above;
        - `inflation` > 0: the factor on the predicted spread (standard deviation) in every row that
          was moved to and has a measurement, or an `AdaptiveInflation` that learns it;
        - `additive`: noise that is added to the members at every move: a variance (), variances (dx,)
          or a covariance (dx, dx), in squared units of the state;
        - `relaxation` in [0, 1]: how far the spread after a measurement is moved back to the one
          before (Whitaker, Hamill 2012);
        - `localization`: a `GaspariCohn` taper; for all kinds but `"transform"`, and needed by
          `"local"`. A localised `"serial"` or `"local"` filter needs independent noise (R as
          variances);
        - `rotate`: random rotations of the anomalies after a measurement; `None`: for `"transform"`;
        - `truncation`: gradients forget what is more than this many rows ago, at most (truncated
          backpropagation; Chen, Sanz-Alonso, Willett 2022).

        **Raises:** `ValueError` for numbers out of range, an unknown `kind`, and a `localization` that
        is missing or does not go with it.
        """
        self.size = check_count(_NAME, "size", size)
        if self.size < 2:
            raise ValueError(f"{_NAME}: `size` is {size}; expected at least 2 members")
        if kind not in _KINDS:
            raise ValueError(f"{_NAME}: `kind` is {kind!r}; expected one of {', '.join(_KINDS)}")
        if localization is not None and not isinstance(localization, GaspariCohn):
            raise TypeError(
                f"{_NAME}: `localization` is {type(localization).__name__}; expected fd.GaspariCohn"
            )
        if kind == "local" and localization is None:
            raise ValueError(
                f"{_NAME}: `localization` is missing; kind='local' needs fd.GaspariCohn(radius, ...)"
            )
        if kind == "transform" and localization is not None:
            raise ValueError(
                f"{_NAME}: kind='transform' has no localization; expected kind='local', which "
                "transforms each state with the measurements near it"
            )
        if (
            localization is not None
            and kind != "local"
            and localization.states_observations is None
        ):
            raise ValueError(
                f"{_NAME}: `localization` of {localization.dx} states and {localization.dy} "
                f"measurements has too many pairs for kind={kind!r}; expected kind='local'"
            )
        self.kind = kind
        self.localization = localization
        self.inflation = (
            inflation if isinstance(inflation, AdaptiveInflation) else _positive(inflation)
        )
        constant = not isinstance(self.inflation, AdaptiveInflation) and not is_traced(
            self.inflation
        )
        self.inflates = not constant or float(self.inflation) != 1.0  # type: ignore[arg-type]
        self.additive = None if additive is None else _covariance(additive)
        self.relaxation = None if relaxation is None else _share(relaxation)
        self.rotate = kind == "transform" if rotate is None else bool(rotate)
        self.truncation = (
            None if truncation is None else check_count(_NAME, "truncation", truncation)
        )

    def check(self, model: StateSpaceModel) -> None:
        if isinstance(model.initial, Diffuse):
            raise TypeError(
                f"{_NAME}: `initial` is diffuse and cannot be sampled; give a proper distribution, or "
                "use fd.KalmanFilter or fd.ExtendedKalmanFilter"
            )
        if self.localization is not None and self.localization.dx != model.dx:
            raise ValueError(
                f"{_NAME}: `localization` is for {self.localization.dx} states; the model has {model.dx}"
            )

    def init(self, model: StateSpaceModel, dtype: jnp.dtype, key: Array) -> Ensemble:
        members = model.initial.sample(key, (self.size,)).astype(dtype)
        return Ensemble(members, memory=self._carried(members))

    def start_from(self, members: Float[Array, "N dx"]) -> Ensemble:
        """A belief of given members."""
        return Ensemble(members, memory=self._carried(members))

    def _carried(self, members: Array) -> Carried:
        learns = isinstance(self.inflation, AdaptiveInflation)
        first = self.inflation.initial if learns else self.inflation  # type: ignore[union-attr]
        return Carried(jnp.asarray(first, members.dtype), _has_spread(members))

    def advance(
        self, model: StateSpaceModel, belief: Ensemble, interval: Interval, key: Array
    ) -> tuple[Ensemble, Int[Array, ""]]:
        key_move, key_add = jax.random.split(key)
        members = propagate(model, belief.members, interval, key_move)
        if self.additive is not None:
            dx, dtype = members.shape[1], members.dtype
            noise = self.additive.astype(dtype)
            noise = jnp.broadcast_to(noise, (dx,)) if noise.ndim < 2 else noise
            added = noise_draws(key_add, noise, self.size)
            members = jnp.where(interval.gap > 0, members + added, members)
        finite = jnp.isfinite(members).all()
        status = jnp.where(finite, Status.OK, Status.MODEL_NOT_FINITE).astype(jnp.int32)
        carried = belief.memory._replace(spread=belief.memory.spread | _has_spread(members))
        return Ensemble(members, memory=carried), status

    def step(
        self,
        model: StateSpaceModel,
        belief: Ensemble,
        interval: Interval,
        measurement: Measurement,
        key: Array,
    ) -> SamplingStep:
        key_move, key_noise, key_turn = jax.random.split(key, 3)
        moved, status = self.advance(model, belief, interval, key_move)
        t, u, y = measurement
        some = ~jnp.isnan(y).all()
        carried: Carried = moved.memory

        before = observe(model, moved, t, u, y)
        mean, anomalies = moved.mean, moved.anomalies
        widened = some & (interval.gap > 0)
        factor = jnp.where(widened, carried.inflation, 1.0)
        if isinstance(self.inflation, AdaptiveInflation):
            variances = (before.anomalies**2).sum(0)
            learned = self.inflation.learned(
                carried.inflation,
                before.innovation,
                variances,
                before.variances,
                before.observed,
            )
            carried = carried._replace(inflation=jnp.where(widened, learned, carried.inflation))
        predicted, seen = Ensemble(moved.members, memory=carried), before
        if self.inflates:
            anomalies = factor * anomalies
            wide = jnp.where(widened, mean + anomalies, moved.members)
            predicted = Ensemble(wide, memory=carried)
            if model.observation.is_linear:
                seen = before._replace(anomalies=factor * before.anomalies)
            else:
                seen = observe(model, predicted, t, u, y)
        taper = self._taper(seen)
        weighing = weigh(seen, taper)
        new = self._analysis(anomalies, seen, weighing, key_noise)
        after = new.anomalies
        if self.relaxation is not None:
            after = relaxed(after, moved.variances, self.relaxation.astype(after.dtype))
        if self.rotate:
            after = product(rotation(key_turn, self.size, after.dtype), after)
        members = jnp.where(some, mean + new.shift + after, predicted.members)

        log_likelihood, singular = weighing.log_likelihood, weighing.singular
        known = (moved.members == moved.members[0]).all()
        if seen.exact_log_prob is not None:
            log_likelihood = jnp.where(known, seen.exact_log_prob, log_likelihood)
            singular = singular & ~known
        lost = some & carried.spread & ~_has_spread(moved.members)
        status = _first(
            status,
            seen.status,
            jnp.where(lost, Status.COLLAPSED, Status.OK),
            jnp.where(singular, Status.SINGULAR_INNOVATION, Status.OK),
        )
        result = Ensemble(members, memory=carried)
        ensemble_spread = lambda belief: jnp.sqrt(belief.variances.mean())
        nothing = jnp.full_like(y, jnp.nan)
        return SamplingStep(
            predicted,
            result,
            jnp.where(seen.observed, seen.innovation, nothing),
            innovation_cov(seen, taper),
            jnp.where(seen.observed, weighing.standardized, nothing),
            log_likelihood,
            status,
            {
                "effective_sample_size": result.effective_sample_size,
                "spread": ensemble_spread(result),
                "predicted_spread": ensemble_spread(predicted),
                "inflation": factor,
            },
        )

    def _taper(self, seen: ObservedEnsemble) -> Float[Array, "dy dy"] | None:
        found = self.localization
        if found is None:
            return None
        dy = seen.innovation.shape[0]
        if found.dy != dy:
            raise ValueError(
                f"{_NAME}: `localization` is for {found.dy} measurements; the model has {dy}"
            )
        if self.kind in ("serial", "local") and seen.noise.ndim == 2:
            raise ValueError(
                f"{_NAME}: a localised kind={self.kind!r} needs measurements with independent noise; "
                "give R as variances (dy,)"
            )
        among = found.observations_observations
        return None if among is None else among.astype(seen.innovation.dtype)

    def _analysis(
        self, anomalies: Array, seen: ObservedEnsemble, weighing: Weighing, key: Array
    ) -> Analysis:
        taper = self.localization
        if self.kind == "stochastic":
            return analyses.stochastic(anomalies, seen, weighing, taper, key)
        if self.kind == "deterministic":
            return analyses.deterministic(anomalies, seen, weighing, taper)
        if self.kind == "serial":
            return analyses.serial(anomalies, seen, taper)
        if self.kind == "transform":
            return analyses.transform(anomalies, seen, weighing, symmetric=not self.rotate)
        assert taper is not None
        return analyses.local(anomalies, seen, taper)


def _has_spread(members: Float[Array, "N dx"]) -> Array:
    """Do the members differ by more than rounding in any state?"""
    reach = jnp.abs(members - members[0]).max(0)
    size = jnp.abs(members).max(0)
    return (reach > 8 * jnp.finfo(members.dtype).eps * size).any()


def _first(*statuses: Array) -> Int[Array, ""]:
    found = jnp.asarray(statuses[0], jnp.int32)
    for status in statuses[1:]:
        found = jnp.where(found == Status.OK, status, found).astype(jnp.int32)
    return found


def _positive(value: Any) -> Array:
    array = float_array(_NAME, "inflation", value)
    known = not is_traced(array)
    if array.ndim or (known and not (np.isfinite(float(array)) and float(array) > 0)):
        raise ValueError(
            f"{_NAME}: `inflation` is {value!r}; expected a positive number or an "
            "fd.AdaptiveInflation"
        )
    return array


def _share(value: Any) -> Array:
    array = float_array(_NAME, "relaxation", value)
    if array.ndim or (not is_traced(array) and not 0 <= float(array) <= 1):
        raise ValueError(f"{_NAME}: `relaxation` is {value!r}; expected a number in [0, 1]")
    return array


def _covariance(value: Any) -> Array:
    array = float_array(_NAME, "additive", value)
    if array.ndim > 2 or (array.ndim == 2 and array.shape[0] != array.shape[1]):
        raise ValueError(
            f"{_NAME}: `additive` has shape {array.shape}; expected (), (dx,) or (dx, dx)"
        )
    check_covariance(_NAME, "additive", array)
    return array
