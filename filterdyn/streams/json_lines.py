"""Events as lines of JSON."""

import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from filterdyn._checks import check_count
from filterdyn.streams.event import Event
from filterdyn.streams.line_reader import LineReader, MalformedLine

_NAME = "JSONLines"
_FIELDS = ("time", "y", "u", "seq")
_LARGEST = 2**63 - 1


class JSONLines:
    """A source for `LocalRunner.run`: one event in JSON on each line.

        {"time": "2026-11-28T10:00:00.25Z", "y": [20.3, null], "u": 0.5, "seq": 17}

    - `time`: a number, or a date and time in ISO 8601 with its zone;
    - `y`: a list, a number, or a table by `observation_names`, in which what is not there is missing;
      `null` is missing;
    - `u`, if there is one, likewise by `input_names`; nothing of it can be missing;
    - `seq`, if there is one: a whole number by which a repeated event is known.

    An input is known by its first line. If that is the one that the snapshot saw, the events after
    those in the snapshot follow: a file is read from there, a pipe is passed over up to there. If it
    is another one, the input is new and taken from its beginning. `resumed` says which (`"same"`,
    `"other"`; `"start"` without a snapshot).
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "-",
        *,
        follow: bool = False,
        observation_names: Sequence[str] | None = None,
        input_names: Sequence[str] | None = None,
        on_malformed: Callable[[MalformedLine], None] | None = None,
        max_line: int = 2**20,
    ):
        """**Arguments:**

        - `path`: of the file; `"-"` is the standard input;
        - `follow`: wait for more at the end of the file, as `tail -F` does; a file that was replaced or
          cut is read from its beginning;
        - `on_malformed`: is called with the `MalformedLine`, which is then passed over; without it, the
          error is raised;
        - `max_line`: the most bytes of a line.
        """
        if follow and path == "-":
            raise ValueError(
                f"{_NAME}: `follow` is for a file; a pipe is followed to its end anyway"
            )
        self.path = path
        self.follow = follow
        self.observation_names = _names("observation_names", observation_names)
        self.input_names = _names("input_names", input_names)
        self._on_malformed = on_malformed
        self._max_line = check_count(_NAME, "max_line", max_line)
        self._reader: LineReader | None = None

    @property
    def resumed(self) -> str:
        return "start" if self._reader is None else self._reader.resumed

    def __call__(self, position: Any = None) -> Iterator[Event | None]:
        """The events after `position` (that of an `Event` from here), and `None` where nothing more is
        at hand just now.

        **Raises:** `MalformedLine`; `ValueError` if the input begins as it did and then is another one.
        """
        self._reader = reader = LineReader(self.path, self.follow, self._max_line)
        try:
            for line in reader.lines(position):
                if line is None:
                    yield None
                    continue
                if line.isspace():
                    continue
                try:
                    event = self._event(line)
                except ValueError as error:
                    malformed = MalformedLine(reader.number, str(error))
                    if self._on_malformed is None:
                        raise malformed from None
                    self._on_malformed(malformed)
                    continue
                yield event._replace(position=reader.place)
        finally:
            reader.close()

    def _event(self, line: bytes) -> Event:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"this is no JSON ({error}): {_shown(line)}") from None
        if not isinstance(found, dict):
            raise ValueError(f'expected {{"time": ..., "y": ...}}, not {_shown(line)}')
        for name in ("time", "y"):
            if name not in found:
                raise ValueError(
                    f"it has no `{name}`; expected `time`, `y` and, if there are, `u`, `seq`"
                )
        for name in found:
            if name not in _FIELDS:
                raise ValueError(f"it has a field `{name}`; expected `time`, `y`, `u`, `seq` only")
        u = found.get("u")
        return Event(
            _time(found["time"]),
            _vector("y", found["y"], "observation_names", self.observation_names, True),
            None if u is None else _vector("u", u, "input_names", self.input_names, False),
            _sequence(found.get("seq")),
        )


def _names(argument: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str) or len(set(names)) != len(names) or not all(names):
        raise ValueError(f"{_NAME}: `{argument}` is {names!r}; expected a list of different names")
    return tuple(names)


def _time(value: Any) -> float | datetime.datetime:
    if isinstance(value, str):
        try:
            time = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"`time` is {value!r}; expected a number or ISO 8601") from None
        if time.tzinfo is None:
            raise ValueError(
                f"`time` is {value!r} without a time zone; expected one, such as a final Z"
            )
        return time
    return _number("time", value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`{name}` is {_shown(value)}; expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = np.inf
    if not np.isfinite(number):
        raise ValueError(
            f"`{name}` is {_shown(value)}; expected a finite number (in `y`, null marks a missing one)"
        )
    return number


def _vector(
    field: str, value: Any, argument: str, names: tuple[str, ...] | None, may_miss: bool
) -> np.ndarray:
    if isinstance(value, dict):
        if names is None:
            raise ValueError(f"`{field}` is a table, and there are no `{argument}` to order it by")
        for name in value:
            if name not in names:
                raise ValueError(f"`{field}` has an entry `{name}`; expected {', '.join(names)}")
        value = [value.get(name) for name in names]
    entries = value if isinstance(value, list) else [value]
    if may_miss:
        return np.array([np.nan if v is None else _number(field, v) for v in entries])
    return np.array([_number(field, v) for v in entries])


def _sequence(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= _LARGEST:
        raise ValueError(f"`seq` is {_shown(value)}; expected a whole number of 64 bits")
    return value


def _shown(value: Any) -> str:
    text = value.decode(errors="replace").strip() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
