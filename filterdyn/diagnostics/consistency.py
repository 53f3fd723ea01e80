"""What is wrong with a model, in words."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from filterdyn._checks import check_count
from filterdyn.diagnostics import chi_square
from filterdyn.diagnostics.calibration import PIT, Coverage, coverage, pit
from filterdyn.diagnostics.candidates import Candidate, candidates, late_sensors
from filterdyn.diagnostics.fault_search import search, shift
from filterdyn.diagnostics.faults import Faults
from filterdyn.diagnostics.input_correlation import InputCorrelation, input_correlation
from filterdyn.diagnostics.mean_bias import MeanBias, mean_bias
from filterdyn.diagnostics.nis import NIS, nis
from filterdyn.diagnostics.residuals import check_level, check_one_series, check_result
from filterdyn.diagnostics.whiteness import Whiteness, whiteness
from filterdyn.filters import FilterResult
from filterdyn.filters.verbs import prepare
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series
from filterdyn.status import Status

#: Explanations whose likelihoods differ by less than this factor are named side by side, the plainest
#: first.
_CLOSE = math.log(10.0)
_MOST_FAULTS = 4


@dataclass(frozen=True)
class Fault:
    """One fault that the likelihood asks for.

    - `kind`: `"R"`, `"Q"`, `"bias"`, `"gain"`, `"lag"`, `"drift"` or `"dynamics"`;
    - `target`: which sensor or state;
    - `size`: for R and Q the factor on the variance, for gain and dynamics the factor on the response
      and on the speed, for bias and drift an offset in units of sensor or state, for lag rows;
    - `log_likelihood_gain`, in nats, over the model with the faults named before it;
    - `words`: the sentence;
    - `alternatives`: other single faults within a factor of 10 of the likelihood of the best.
    """

    kind: str
    target: str
    size: float
    log_likelihood_gain: float
    words: str
    alternatives: tuple["Fault", ...] = ()

    def __str__(self) -> str:
        text = f"{self.words} (log-likelihood +{self.log_likelihood_gain:.1f})"
        for other in self.alternatives:
            text += (
                f"\n    hardly to be told from: {other.words} (+{other.log_likelihood_gain:.1f})"
            )
        return text


@dataclass(frozen=True)
class ConsistencyReport:
    """What `consistency_report` found. Printed, it is a text.

    - `ok`: nothing is wrong, as far as `false_alarm_rate` allows to say;
    - `faults`: in the order of what they explain; empty if nothing is wrong;
    - `unexplained`: tests that failed while no fault that is known here was found;
    - `failure`: the status of a filter that broke down (then nothing else was judged), or "";
    - `nis`, `whiteness`, `mean_bias`, `pit`, `coverage`, `input_correlation`: the tests, of the model
      as it stands (`None` after a failure, or without inputs).
    """

    faults: tuple[Fault, ...]
    unexplained: tuple[str, ...]
    failure: str
    nis: NIS | None
    whiteness: Whiteness | None
    mean_bias: MeanBias | None
    pit: PIT | None
    coverage: Coverage | None
    input_correlation: InputCorrelation | None
    tests: int
    false_alarm_rate: float

    @property
    def ok(self) -> bool:
        return not (self.faults or self.unexplained or self.failure)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the faults, first the one that explains most."""
        return tuple(fault.kind for fault in self.faults)

    def __str__(self) -> str:
        if self.failure:
            return f"The filter failed: {self.failure}. Nothing else was judged."
        rate = (
            f"{self.tests} tests, together a false alarm in {1 / self.false_alarm_rate:,.0f} runs"
        )
        if self.ok:
            lines = [f"Nothing is wrong ({rate})."]
        elif self.faults:
            lines = [f"The model and the data disagree ({rate}):"]
            lines += [f"{i}. {fault}" for i, fault in enumerate(self.faults, 1)]
        else:
            lines = [f"The model and the data disagree, and no single fault explains how ({rate}):"]
            lines += [f"- {text}" for text in self.unexplained]
        parts = (self.nis, self.whiteness, self.mean_bias, self.input_correlation, self.pit)
        lines += [str(part) for part in (*parts, self.coverage) if part is not None]
        return "\n".join(lines)


def consistency_report(
    model: StateSpaceModel,
    result: FilterResult,
    series: Series,
    *,
    false_alarm_rate: float = 1e-4,
    max_lag: int = 5,
    t0: Any = None,
    u0: Any = None,
) -> ConsistencyReport:
    """Say what is wrong with a model, given data, or that nothing is.

    Each fault that is known here is one number in a wider model: the noise variance of a sensor or of
    all, a factor on Q, a bias, a trend and a gain of each sensor, a constant or growing push on each
    state, a constant or growing factor on how fast each state moves, and a delay of 1 .. `max_lag` rows
    of a sensor. For each the likelihood is maximised. The fault with the largest gain is named if
    twice the gain exceeds the chi-square bound (for a delay, which has nothing to fit, if the
    likelihood ratio exceeds one over the level, which is exact); of those that explain the data less
    than 10 times worse than the best, the plainest. It is then put into the model, and
    the search goes on until nothing gains. Beside the faults stand the tests of the innovations.

    All tests share `false_alarm_rate` (Bonferroni): a run of the right model is reported with at most
    that probability. That holds for a linear Gaussian model and a filter without `outliers` and
    `adaptive`; for others it is as good as the filter's likelihood is.

    What cannot be told apart from the data is named together (`Fault.alternatives`): the gain of a single
    sensor without inputs and Q, say. Nothing is said of what no data could show, such as a delay of
    the only sensor of a system without inputs.

    **Arguments:** `model`, the `result` of filtering `series` with it; `t0`, `u0` as given to
    `fd.filter`.

    **Raises:** `ValueError` if `result` is not that of this model and series.
    """
    owner = "consistency_report"
    check_result(owner, result)
    check_one_series(owner, result)
    check_level(owner, "false_alarm_rate", false_alarm_rate)
    max_lag = check_count(owner, "max_lag", max_lag)
    if int(result.status) != Status.OK:
        failure = f"{Status(int(result.status)).name} in row {int(result.failed_at)}"
        nothing = (None,) * 6
        return ConsistencyReport((), (), failure, *nothing, 0, false_alarm_rate)
    tests = (
        nis(result),
        whiteness(result),
        mean_bias(result),
        pit(result),
        coverage(result),
        None if series.inputs is None else input_correlation(result, series),
    )
    finder = _Finder(model, result, series, max_lag, t0, u0)
    judged = 4 + (tests[5] is not None)
    level = false_alarm_rate / (len(finder.candidates) + finder.delays + judged)
    faults = finder.find(level)
    unexplained = () if faults else _alarms(level, *tests)
    total = len(finder.candidates) + finder.delays + judged
    return ConsistencyReport(faults, unexplained, "", *tests, total, false_alarm_rate)


def _alarms(level: float, nis: NIS, white: Whiteness, bias: MeanBias, pit: PIT, *rest: Any) -> Any:
    """What the tests of the innovations object to at this level."""
    found = []
    if nis.p_value < level:
        size = "larger" if nis.mean > 1 else "smaller"
        found.append(
            f"the innovations are {size} than the filter says (NIS, p = {nis.p_value:.2g})"
        )
    if white.p_value < level:
        found.append(f"the innovations are correlated in time (p = {white.p_value:.2g})")
    if bias.p_value < level:
        found.append(f"the innovations are not zero on average (p = {bias.p_value:.2g})")
    if pit.p_value < level:
        found.append(f"one-step predictions are not calibrated (PIT, p = {pit.p_value:.2g})")
    inputs = rest[1]
    if inputs is not None and inputs.p_value < level:
        found.append(f"the innovations depend on the inputs (p = {inputs.p_value:.2g})")
    return tuple(found)


class _Found(NamedTuple):
    """A candidate with its best size; `key` is its place in `Faults`, or its row of late sensors."""

    fault: Fault
    rank: int
    key: tuple[str, int]
    value: float


class _Finder:
    """The faults found so far, and the search for the next."""

    def __init__(
        self,
        model: StateSpaceModel,
        result: FilterResult,
        series: Series,
        max_lag: int,
        *start: Any,
    ):
        self.args = model, *prepare("consistency_report", model, series, result.filter, *start)
        self.filter = result.filter
        dy, rows = series.dy, len(series)
        self.result = result
        self.most = min(max_lag, max(1, rows // 5))
        self.candidates: tuple[Candidate, ...] = candidates(model, result, series)
        self.groups = late_sensors(result, series)
        self.radii = np.zeros(ravel_pytree(Faults.none(model.dx, dy, float))[0].shape)
        for candidate in self.candidates:
            self.radii[candidate.index] = candidate.radius
        self.sizes = np.zeros_like(self.radii)
        self.late: dict[int, int] = {}

    @property
    def delays(self) -> int:
        return len(self.groups.names) * self.most

    def find(self, level: float) -> tuple[Fault, ...]:
        named: list[_Found] = []
        while len(named) < _MOST_FAULTS:
            found = self._significant(level)
            if not found:
                break
            best = self._best(found)
            named.append(best)
            self._set(best)
        if len(named) > 1:
            named = [again for one in named if (again := self._judge_again(one, level))]
        return tuple(one.fault for one in named)

    def _set(self, one: _Found, value: float | None = None) -> None:
        kind, index = one.key
        value = one.value if value is None else value
        if kind == "lag":
            self.late[index] = int(value)
        else:
            self.sizes[index] = value

    def _search(self) -> Any:
        model, rows, plan = self.args
        seen = rows.observation
        for index, delay in self.late.items():
            seen = shift(seen, jnp.asarray(self.groups.members[index]), jnp.int32(delay), 0)
        rows = rows._replace(observation=seen)
        sizes, radii = jnp.asarray(self.sizes), jnp.asarray(self.radii)
        members = jnp.asarray(self.groups.members)
        return search(model, rows, plan, self.filter, sizes, radii, members, self.most)

    def _all(self) -> list[_Found]:
        gains = self._search()
        if not self.late and not self.sizes.any():
            self._check_likelihood(float(gains.log_likelihood))
        sizes, value = np.asarray(gains.sizes, float), np.asarray(gains.gains, float)
        found = []
        for c in self.candidates:
            size = c.natural(sizes[c.index])
            fault = Fault(c.kind, c.target, size, float(value[c.index]), c.words(size))
            found.append(_Found(fault, c.rank, ("size", c.index), float(sizes[c.index])))
        for i, name in enumerate(self.groups.names):
            gain = np.asarray(gains.lag_gains, float)[i]
            delay = int(gain.argmax()) + 1
            words = self.groups.words(i, delay)
            fault = Fault("lag", name, float(delay), float(gain.max()), words)
            found.append(_Found(fault, 4, ("lag", i), float(delay)))
        return found

    def _significant(self, level: float) -> list[_Found]:
        bound = 0.5 * float(chi_square.quantile(1 - level, 1))
        enough = {"size": bound, "lag": math.log(1 / level)}
        return [
            one
            for one in self._all()
            if one.fault.log_likelihood_gain > enough[one.key[0]] and not self._is_set(one.key)
        ]

    def _is_set(self, key: tuple[str, int]) -> bool:
        kind, index = key
        if kind == "lag":
            taken = [self.groups.members[i] for i in self.late]
            return any((self.groups.members[index] & other).any() for other in taken)
        return bool(self.sizes[index] != 0)

    def _best(self, found: list[_Found]) -> _Found:
        gain = lambda one: one.fault.log_likelihood_gain
        top = max(gain(one) for one in found)
        close = [one for one in found if gain(one) > top - _CLOSE]
        best = min(close, key=lambda one: (one.rank, -gain(one)))
        others = sorted((one for one in close if one is not best), key=gain, reverse=True)
        alternatives = tuple(one.fault for one in others)
        return best._replace(fault=replace(best.fault, alternatives=alternatives))

    def _judge_again(self, one: _Found, level: float) -> _Found | None:
        """The same fault beside all others that were named: its size now, or `None` if it is not
        needed any more. (A delay stands as it was found.)"""
        if one.key[0] == "lag":
            return one
        before = self.sizes[one.key[1]]
        self.sizes[one.key[1]] = 0.0
        bound = 0.5 * float(chi_square.quantile(1 - level, 1))
        (now,) = [other for other in self._all() if other.key == one.key]
        if now.fault.log_likelihood_gain <= bound:
            return None
        self._set(now, before if not math.isfinite(now.value) else now.value)
        return now._replace(fault=replace(now.fault, alternatives=one.fault.alternatives))

    def _check_likelihood(self, value: float) -> None:
        expected = float(self.result.log_likelihood)
        eps = float(jnp.finfo(self.result.log_likelihoods.dtype).eps)
        close = 100 * eps**0.5 * (1 + float(np.abs(self.result.log_likelihoods).sum()))
        if not self.result.moments_matched and abs(value - expected) > close:
            raise ValueError(
                f"consistency_report: `result` has log-likelihood {expected:.6g} but this model and "
                f"series give {value:.6g}; expected the result of fd.filter(model, series, ...), with its "
                "`t0` and `u0`"
            )
