"""What a live view shows of one row."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from filterdyn.status import Status

#: Of so many rows, at most, an answer holds parameters: they are the dearest to read.
_PARAMETER_ROWS = 30
#: Of so many states, measurements and parameters, at most, are numbers sent.
_MOST = 24


class LiveRow:
    """A row as it came, and once somebody has asked, `found`: the same for JSON."""

    __slots__ = ("found", "number", "step", "t", "y")

    def __init__(self, number: int, t: Any, step: Any, y: Any):
        self.number = number
        self.t = t
        self.step = step
        self.y = y
        self.found: dict[str, Any] | None = None

    @staticmethod
    def read(rows: Sequence["LiveRow"], probability: float) -> None:
        """Take the numbers from those of which nobody has asked before."""
        new = [row for row in rows if row.found is None]
        every = -(-len(new) // _PARAMETER_ROWS)
        last = len(new) - 1
        for i, row in enumerate(new):
            row.found = _found(row, probability, with_parameters=(last - i) % every == 0)
            row.step = row.y = None

    def __repr__(self) -> str:
        return f"LiveRow({self.number})"


def _found(row: LiveRow, probability: float, with_parameters: bool) -> dict[str, Any]:
    step = row.step
    half = NormalDist().inv_cdf(0.5 + 0.5 * probability)
    cov, spread = step.cov, step.innovation_cov
    innovation = np.asarray(step.innovation, float)
    found: dict[str, Any] = dict(
        n=row.number,
        t=_time(row.t),
        mean=_listed(step.mean),
        half=None if cov is None else _listed(half * _roots(cov)),
        y=None if row.y is None else _listed(np.ravel(np.asarray(row.y, float))),
        e=None if spread is None else _listed(innovation / _roots(spread)),
        nis=_number(step.nis),
    )
    status = int(step.status)
    if status != Status.OK:
        found["status"] = Status(status).name
    if with_parameters and step.parameters is not None and status == Status.OK:
        found["parameters"] = _parameters(step.parameters, probability)
    alarm = step.alarm
    if alarm is not None and status == Status.OK:
        words = getattr(alarm, "in_words", "")
        if words:
            found["alarm"] = words
            found["since"] = _number(alarm.rows)
        elif float(alarm.raised) > 0:
            found["raised"] = True
    return found


def _roots(cov: Any) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.maximum(np.diagonal(np.asarray(cov, float)), 0.0))


def _parameters(learnt: Any, probability: float) -> dict[str, list[float | None]]:
    """By name the middle and, of who claims a posterior, the lower and upper end."""
    try:
        ends = learnt.interval(probability)
        middle = learnt.median
    except (ValueError, AttributeError):  # no posterior is claimed, or it has no order
        ends, middle = {}, learnt.mean
    found: dict[str, list[float | None]] = {}
    for name, value in middle.items():
        columns = [np.ravel(np.asarray(x, float)) for x in (value, *ends.get(name, ()))]
        size = columns[0].size
        for k in range(min(size, _MOST - len(found))):
            label = name if size == 1 else f"{name}[{k}]"
            found[label] = [_number(column[k]) for column in columns]
    return found


def _time(t: Any) -> float | None:
    if hasattr(t, "timestamp"):
        return float(t.timestamp())
    if isinstance(t, np.datetime64):
        return float(t.astype("datetime64[ns]").astype(np.int64)) / 1e9
    return _number(t)


def _listed(values: Any) -> list[float | None]:
    return [_number(v) for v in np.asarray(values, float)[:_MOST].tolist()]


def _number(value: Any) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None
