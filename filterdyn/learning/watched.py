"""A filter that is watched for changes, and that goes on from what has changed."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from filterdyn._checks import check_count
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.filters.scan import select
from filterdyn.filters.verbs import check_is_filter
from filterdyn.learning.alarms import Alarm, ChangeKind, Watch
from filterdyn.learning.reopened import check_reopens, faded, reopened
from filterdyn.learning.scaled_noise import predicted_observation, updated
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status

_NAME = "WatchedFilter"
#: An outlier is a row in which every sensor has so many times its noise.
_OUTLIER = 10.0
#: With such a lead, in nats, an explanation is taken before the patience is at its end: odds of 1000.
_SURE = math.log(1000.0)


class WatchedFilter(AbstractFilter):
    """A filter that notices when the system has become another one, says what has changed, and goes on
    from there.

    Beside `filter` run copies of it, each under an explanation of what may have changed: that a sensor has
    more noise, or less (its standard deviation times each of `noise_factors`), or that the dynamics have
    changed. Of a filter that learns the last copy has its parameters set free (their prior covariance is
    added to what is known of them); of any other it trusts its state less in every row (its standard
    deviation times `fading`: Sorenson, Sacks 1971).

    The gain of a copy in log-likelihood over `filter` itself is a CUSUM (Page 1954; for dependent rows Lai
    1998): where it falls to 0 the copy starts again from the belief of `filter`, so that the time of the
    change need not be known. Two changes are told apart because both are tried on the same rows: noise
    explains innovations that are large, and that the gain of the filter then makes alternate; a parameter
    explains those that come back with the input or the oscillation. Then comes an outlier, for which one
    row alone has 10 times its noise: only what follows tells it from noise, so it is decided up to
    `patience` rows after the alarm what it was.

    With `responds` the filter then takes over the belief of the copy that was right, with its larger gains,
    and the noise of that sensor; otherwise it only tells. What each row said is at `.alarm` of a
    `StepResult`, and at `.alarms` of a `FilterResult`.

    The threshold follows from the mean number of rows to a false alarm: the sum of the likelihood ratios
    of all J explanations since any time, less J times the number of rows, is a martingale while nothing
    changes, so that with log(J `false_alarm_every`) it is at least `false_alarm_every`, whatever the model,
    if its predictions are right. (In benchmarks it was 16 times that, because explanations share rows and
    pass the threshold by some margin.) Missing entries count nothing.
    """

    filter: AbstractFilter
    noise_factors: tuple[float, ...] = eqx.field(static=True)
    fading: float = eqx.field(static=True)
    false_alarm_every: float = eqx.field(static=True)
    patience: int = eqx.field(static=True)
    window: int = eqx.field(static=True)
    responds: bool = eqx.field(static=True)

    learns: ClassVar[bool] = True

    def __init__(
        self,
        filter: AbstractFilter,
        *,
        false_alarm_every: float = 10_000.0,
        noise_factors: Sequence[float] = (2.0, 5.0, 0.5),
        fading: float = 1.5,
        patience: int = 20,
        window: int = 100,
        responds: bool = True,
    ):
        """**Arguments:**

        - `filter`: any Gaussian filter; of those that learn, `AugmentedFilter`, `DualFilter` and the
          recursive ones;
        - `false_alarm_every` > 1: the least mean number of rows between false alarms;
        - `noise_factors`: what is tried on the standard deviation of each sensor, not 1;
        - `fading` > 1: of a filter that does not learn, what is tried on its standard deviation;
        - `patience`: after how many rows at the latest it is decided what an alarm was about;
        - `window`: an explanation that has not gained for so many rows starts again;
        - `responds`: is the filter to change with an alarm?

        **Raises:** `TypeError` and `ValueError` for anything else.
        """
        check_is_filter(_NAME, filter)
        if not isinstance(filter, AbstractFilter) or isinstance(filter, WatchedFilter):
            raise TypeError(
                f"{_NAME}: `filter` is {type(filter).__name__}; expected a Gaussian filter, or one that "
                "learns and has a Gaussian belief"
            )
        factors = tuple(float(f) for f in noise_factors)
        if not factors or any(not 0 < f < math.inf or f == 1 for f in factors):
            raise ValueError(
                f"{_NAME}: `noise_factors` is {noise_factors!r}; expected positive numbers that are not 1"
            )
        if not 1 < fading < math.inf:
            raise ValueError(f"{_NAME}: `fading` is {fading!r}; expected a number > 1")
        if not 1 < false_alarm_every < math.inf:
            raise ValueError(
                f"{_NAME}: `false_alarm_every` is {false_alarm_every!r}; expected a number of rows > 1"
            )
        self.filter = filter
        self.noise_factors = factors
        self.fading = float(fading)
        self.false_alarm_every = float(false_alarm_every)
        self.patience = check_count(_NAME, "patience", patience)
        self.window = check_count(_NAME, "window", window)
        self.responds = bool(responds)

    def threshold(self, dy: int) -> float:
        """In nats, for `dy` sensors: what an explanation has to gain for an alarm."""
        return math.log(self._raising(dy) * self.false_alarm_every)

    def _raising(self, dy: int) -> int:
        """How many explanations can raise an alarm: all but that by an outlier."""
        return dy * len(self.noise_factors) + 1

    def _offsets(self, dy: int) -> np.ndarray:
        """The log of what each explanation puts on the noise of each sensor, (J, dy)."""
        noise = [math.log(f) * row for row in np.eye(dy) for f in self.noise_factors]
        return np.array([*noise, np.zeros(dy), np.zeros(dy)])

    def check(self, model: StateSpaceModel) -> None:
        self.filter.check(model)
        check_reopens(_NAME, self.filter, model)

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        own = self.filter.init(model, dtype)
        dy = model.dy(jnp.zeros((), dtype), None)
        nothing = jnp.zeros(self._raising(dy) + 1, dtype)
        zero = jnp.zeros((), dtype)
        alarm = Alarm(zero, zero, zero - 1, zero + 1, zero, nothing, jnp.ones(dy, dtype))
        return _with(
            Watch(
                own,
                self._others(model, own, dy),
                jnp.zeros(dy, dtype),
                nothing,
                nothing,
                nothing,
                nothing,
                zero - 1,
                alarm,
            )
        )

    def _others(self, model: StateSpaceModel, own: Gaussian, dy: int) -> Any:
        """The beliefs under all explanations, of a change that comes next."""
        noise = [own for _ in range(self._raising(dy) - 1)]
        return _stacked([*noise, reopened(model, own), own])

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        watch: Watch = belief.memory
        found = self.filter.predict(model, watch.own, interval)

        def moved(belief: Gaussian, fades: Array) -> Gaussian:
            after = self.filter.predict(model, belief, interval).belief
            return faded(after, jnp.where(fades, self.fading, 1.0).astype(after.mean.dtype))

        count = len(watch.evidence)
        others = jax.vmap(moved)(watch.others, jnp.arange(count) == count - 2)
        watch = eqx.tree_at(lambda w: (w.own, w.others), watch, (found.belief, others))
        return found._replace(belief=_with(watch))

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        watch: Watch = belief.memory
        dtype, dy = belief.mean.dtype, len(y)
        offsets = jnp.asarray(self._offsets(dy), dtype)

        def one(belief: Gaussian, logs: Array) -> Update:
            return updated(self.filter, model, logs, belief, t, u, y)

        found = one(watch.own, watch.noise_logs)
        # The last is this row as an outlier.
        tried = jnp.concatenate([offsets, jnp.full((1, dy), math.log(_OUTLIER), dtype)])
        beliefs = jax.tree.map(
            lambda many, x: jnp.concatenate([many, x[None]]), watch.others, watch.own
        )
        under = jax.vmap(one)(beliefs, watch.noise_logs + tried)
        gains = jnp.where(_is_fine(under), under.log_likelihood - found.log_likelihood, -jnp.inf)
        seen = (~jnp.isnan(y)).any().astype(dtype)
        after = self._judged(watch, under.belief, gains, seen)
        after = eqx.tree_at(lambda w: w.own, after, found.belief)
        return found._replace(belief=_with(self._answered(model, after, offsets)))

    def _judged(
        self, watch: Watch, beliefs: Gaussian, gains: Float[Array, " J+1"], seen: Array
    ) -> Watch:
        """After a row whose log-likelihood under the explanations is by `gains` larger."""
        evidence = watch.evidence + gains[:-1]
        # The outlier that counts is the one that explains most.
        newer = jnp.zeros(len(evidence), bool).at[-1].set(gains[-1] > jnp.maximum(evidence[-1], 0))
        evidence = jnp.where(newer, gains[-1], evidence)
        others = jax.tree.map(
            lambda x: jnp.concatenate([x[:-2], jnp.where(newer[-1], x[-1:], x[-2:-1])]), beliefs
        )
        since = jnp.where(newer, seen, watch.since + seen)
        gained = (evidence > watch.highest) | newer
        since_highest = jnp.where(gained, 0.0, watch.since_highest + seen)
        waits = watch.waiting >= 0
        # (NaN is not > 0 either.)
        goes_on = (evidence > 0) & (waits | (since_highest < self.window))
        keep = lambda x: jnp.where(goes_on, x, 0.0)
        highest = jnp.maximum(watch.highest, evidence)
        evidence = keep(evidence)
        raised = (evidence[:-1].max() >= self.threshold(len(watch.noise_logs))) & ~waits
        waiting = jnp.where(raised, 0.0, jnp.where(waits, watch.waiting + seen, -1.0))
        dtype = evidence.dtype
        alarm = eqx.tree_at(
            lambda a: (a.raised, a.evidence), watch.alarm, (raised.astype(dtype), evidence)
        )
        return Watch(
            watch.own,
            others,
            watch.noise_logs,
            evidence,
            keep(jnp.where(newer, evidence, highest)),
            keep(since),
            keep(since_highest),
            waiting.astype(dtype),
            alarm,
        )

    def _answered(self, model: StateSpaceModel, watch: Watch, offsets: Array) -> Watch:
        """Decide what an alarm was about, if it can be decided, and begin anew."""
        dy, dtype = len(watch.noise_logs), watch.noise_logs.dtype
        raising, evidence = self._raising(dy), watch.evidence
        sensors = evidence[: raising - 1].reshape(dy, -1).max(1)
        by_kind = jnp.stack([sensors.max(), evidence[-2], evidence[-1]])
        second = _second(by_kind, sensors)
        decided = (watch.waiting >= 0) & (
            (watch.waiting >= self.patience) | (by_kind.max() - second >= _SURE)
        )
        winner = jnp.argmax(evidence)
        kind = jnp.where(
            winner < raising - 1,
            ChangeKind.SENSOR_NOISE,
            jnp.where(winner == raising - 1, ChangeKind.DYNAMICS, ChangeKind.OUTLIER),
        )
        of_noise = decided & (winner < raising - 1)
        own, logs = watch.own, watch.noise_logs
        if self.responds:
            own = select(decided, jax.tree.map(lambda x: x[winner], watch.others), own)
            logs = jnp.where(of_noise, logs + offsets[winner], logs)
        real = lambda x: jnp.asarray(x).astype(dtype)
        alarm = Alarm(
            watch.alarm.raised,
            real(jnp.where(decided, kind, ChangeKind.NONE)),
            real(jnp.where(of_noise, winner // len(self.noise_factors), -1)),
            jnp.where(of_noise, jnp.exp(offsets[winner].sum()), 1.0),
            jnp.where(decided, watch.since[winner], 0.0),
            watch.alarm.evidence,
            jnp.exp(logs),
        )
        starts = decided | (evidence <= 0)
        fresh = self._others(model, own, dy)
        others = jax.vmap(select)(starts, fresh, watch.others)
        keep = lambda x: jnp.where(starts, 0.0, x)
        return Watch(
            own,
            others,
            logs,
            keep(evidence),
            keep(watch.highest),
            keep(watch.since),
            keep(watch.since_highest),
            jnp.where(decided, -1.0, watch.waiting),
            alarm,
        )

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        watch: Watch = belief.memory
        return predicted_observation(self.filter, model, watch.noise_logs, watch.own, t, u)

    def draw(
        self, model: StateSpaceModel, belief: Gaussian, key: Array
    ) -> tuple[StateSpaceModel, Float[Array, " n"]]:
        return self.filter.draw(model, belief.memory.own, key)


def _second(by_kind: Float[Array, "3"], sensors: Float[Array, " dy"]) -> Float[Array, ""]:
    """The best of the explanations that are of another kind, or about another sensor, than the best."""
    noise = jnp.sort(sensors)
    other = noise[-2] if len(sensors) > 1 else jnp.zeros_like(by_kind[0])
    ordered = jnp.sort(by_kind)
    return jnp.where(
        by_kind[0] >= ordered[-1],
        jnp.maximum(jnp.maximum(by_kind[1], by_kind[2]), other),
        ordered[-2],
    )


def _with(watch: Watch) -> Gaussian:
    return Gaussian(watch.own.mean, spread=watch.own.spread, memory=watch)


def _stacked(beliefs: list[Gaussian]) -> Gaussian:
    return jax.tree.map(lambda *x: jnp.stack(x), *beliefs)


def _is_fine(under: Update) -> Bool[Array, " J"]:
    """Which of these has worked?"""
    finite = jax.vmap(lambda b: jnp.isfinite(b.mean).all() & jnp.isfinite(b.spread.carrier).all())
    return (under.status == Status.OK) & finite(under.belief)
