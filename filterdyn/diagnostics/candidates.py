"""The faults that can be named: where each stands in `Faults`, its natural size, and its words."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from filterdyn.diagnostics.faults import Faults
from filterdyn.diagnostics.residuals import sensor_names
from filterdyn.filters import FilterResult
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series


@dataclass(frozen=True)
class Candidate:
    """One number of `Faults`.

    `rank` orders explanations that the data cannot tell apart; `radius` is how far a first step may
    go; `natural` makes the number a size that a person reads, which `words` puts into a sentence.
    """

    index: int
    kind: str
    target: str
    rank: int
    radius: float
    natural: Callable[[float], float]
    words: Callable[[float], str]


@dataclass(frozen=True)
class LateSensors:
    """Sets of sensors that may be late together: each alone, and all."""

    names: tuple[str, ...]
    members: np.ndarray

    def words(self, index: int, delay: int) -> str:
        rows = "one row" if delay == 1 else f"{delay} rows"
        if self.members[index].sum() > 1:
            return f"all sensors lag: readings are {rows} late (or the inputs act {rows} late)"
        return f"{self.names[index]} lags: its readings are {rows} late"


def late_sensors(result: FilterResult, series: Series) -> LateSensors:
    """Each sensor alone. All together only against inputs: without, nothing shows what is late."""
    names = sensor_names(result)
    members = np.eye(series.dy, dtype=bool)
    if series.dy > 1 and series.inputs is not None:
        names = (*names, "all sensors")
        members = np.concatenate([members, np.ones((1, series.dy), bool)])
    return LateSensors(names, members)


def candidates(
    model: StateSpaceModel, result: FilterResult, series: Series
) -> tuple[Candidate, ...]:
    """All that this model can have."""
    sensors = sensor_names(result)
    states = tuple(f"state {i}" for i in range(model.dx))
    many = len(sensors) > 1
    innovation = _typical(np.diagonal(np.asarray(result.innovation_covs, float), 0, -2, -1))
    state = _typical(np.asarray(result.predicted_variances, float))
    gaps = np.diff(np.asarray(series.times, float))
    gap = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 1.0
    unit = "row"
    if model.dynamics.is_continuous:
        state, unit = state / gap, "unit of time"

    found: list[Candidate] = []
    place = [field.name for field in fields(Faults)]
    shapes = Faults.none(model.dx, len(sensors), float)
    sizes = [int(getattr(shapes, name).size) for name in place]
    first = dict(zip(place, np.cumsum([0, *sizes[:-1]]), strict=True))

    def add(name: str, kind: str, targets: tuple[str, ...], rank: int, *rest: Any) -> None:
        radii, natural, words = rest
        for j, target in enumerate(targets):
            radius = float(np.broadcast_to(radii, len(targets))[j])
            say = partial(words, target)
            found.append(Candidate(int(first[name]) + j, kind, target, rank, radius, natural, say))

    same = float
    factor = lambda size: float(np.exp(size))
    plus = lambda size: 1 + float(size)
    add("noise", "R", sensors, 0, 1.5, factor, _noise_of_sensor)
    if many:
        add("noise_of_all", "R", ("all sensors",), 0, 1.5, factor, _noise_of_all)
    add("process_noise", "Q", ("all states",), 1, 1.5, factor, _process_noise)
    add("bias", "bias", sensors, 2, innovation, same, _bias)
    add("trend", "drift", sensors, 5, innovation, same, _trend)
    add("gain", "gain", sensors, 3, 0.5, plus, _gain)
    add("push", "drift", states, 6, state, same, lambda t, s: _push(t, s, unit))
    add("growing_push", "drift", states, 7, state, same, lambda t, s: _growing_push(t, s, unit))
    add("pace", "dynamics", states, 9, 0.3, plus, _pace)
    add("growing_pace", "drift", states, 8, 0.3, plus, _growing_pace)
    if model.dx > 1:
        add("pace_of_all", "dynamics", ("the state",), 9, 0.3, plus, _pace)
        add("growing_pace_of_all", "drift", ("the state",), 8, 0.3, plus, _growing_pace)
    return tuple(found)


def _typical(variances: np.ndarray) -> np.ndarray:
    """Typical standard deviation of each column, never 0."""
    finite = np.where(np.isfinite(variances), variances, np.nan)
    sd = np.sqrt(np.nan_to_num(np.nanmedian(finite, axis=0)))
    return np.where(sd > 0, sd, max(float(sd.max()), 1e-3))


def _factor(size: float) -> str:
    """A factor on a variance, as a person says it."""
    return f"{size:.3g} times larger" if size >= 1 else f"{1 / size:.3g} times smaller"


def _too(size: float) -> str:
    return "too small" if size >= 1 else "too large"


def _noise_of_sensor(target: str, size: float) -> str:
    return f"R of {target} is {_too(size)}: its noise variance should be about {_factor(size)}"


def _noise_of_all(target: str, size: float) -> str:
    return f"R is {_too(size)}: the noise variance of all sensors should be about {_factor(size)}"


def _process_noise(target: str, size: float) -> str:
    return f"Q is {_too(size)}: the process noise variance should be about {_factor(size)}"


def _bias(target: str, size: float) -> str:
    return (
        f"{target} has a bias: it reads about {abs(size):.3g} too {'high' if size > 0 else 'low'}"
    )


def _trend(target: str, size: float) -> str:
    way = "rises" if size > 0 else "falls"
    return (
        f"{target} drifts: over the series its reading {way} by about {abs(size):.3g} for no reason"
    )


def _gain(target: str, size: float) -> str:
    return f"the gain of {target} is wrong: it responds {size:.3g} times as much as the model says"


def _push(target: str, size: float, unit: str) -> str:
    return (
        f"{target} drifts: something that is not modelled moves it by about {size:+.3g} per {unit}"
    )


def _growing_push(target: str, size: float, unit: str) -> str:
    return (
        f"{target} drifts: something that is not modelled moves it more and more, by about {size:+.3g} per "
        f"{unit} at the end"
    )


def _pace(target: str, size: float) -> str:
    return (
        f"the dynamics are wrong: {target} moves about {size:.3g} times as fast as the model says"
    )


def _growing_pace(target: str, size: float) -> str:
    return (
        f"the dynamics drift (a parameter changes): at the end {target} moves about {size:.3g} times as "
        "fast as the model says"
    )
