"""An event as a table of fields, checked field by field."""

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np

from filterdyn.streams.event import Event

_FIELDS = ("time", "y", "u", "seq")
_LARGEST = 2**63 - 1


def event_of(
    found: Any, observation_names: tuple[str, ...] | None, input_names: tuple[str, ...] | None
) -> Event:
    """The event that a table `{"time": ..., "y": ..., "u": ..., "seq": ...}` says.

    **Raises:** `ValueError` for what is none.
    """
    if not isinstance(found, dict):
        raise ValueError(f'expected {{"time": ..., "y": ...}}, not {shown(found)}')
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
        _vector("y", found["y"], "observation_names", observation_names, True),
        None if u is None else _vector("u", u, "input_names", input_names, False),
        _sequence(found.get("seq")),
    )


def checked_names(owner: str, argument: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of entries, which must differ from each other."""
    if names is None:
        return None
    if isinstance(names, str) or len(set(names)) != len(names) or not all(names):
        raise ValueError(f"{owner}: `{argument}` is {names!r}; expected a list of different names")
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
        raise ValueError(f"`{name}` is {shown(value)}; expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = np.inf
    if not np.isfinite(number):
        raise ValueError(
            f"`{name}` is {shown(value)}; expected a finite number (in `y`, null marks a missing one)"
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
        raise ValueError(f"`seq` is {shown(value)}; expected a whole number of 64 bits")
    return value


def shown(value: Any) -> str:
    """As much of it as fits into a message."""
    text = value.decode(errors="replace").strip() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
