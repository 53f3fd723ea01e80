"""Events as they arrive: late ones, repeated ones, and a restart in the middle."""

import os
from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np

from filterdyn._checks import as_numbers, check_count
from filterdyn.online.checkpoint import Reader, packed, write
from filterdyn.online.clock import seconds
from filterdyn.online.late import AbstractLatePolicy
from filterdyn.online.saving import arrays_of
from filterdyn.online.state import StepResult
from filterdyn.online.stepping_filter import SteppingFilter

_NAME = "EventStream"
_LAST = np.iinfo(np.int64).max


class Arrival(NamedTuple):
    """What became of an event.

    - `fate`: `"new"`, after all others; `"replayed"`, late and put in its place; `"late"`, too late and
      not used; `"duplicate"`, seen before and not used;
    - `results`: the `StepResult` of the event and of those after it, which were filtered again; none
      if it was not used.
    """

    fate: str
    results: tuple[StepResult, ...]


class _Event(NamedTuple):
    time: np.float64
    #: Of one without a number, the largest: they follow each other as they come.
    sequence: int
    y: np.ndarray
    u: np.ndarray | None
    before: Any

    @property
    def place(self) -> tuple[np.float64, int]:
        return self.time, self.sequence


class EventStream:
    """An `OnlineFilter` or `ExportedFilter` with a memory of its last events, for streams that are out
    of order or repeat themselves:

        stream = fd.EventStream(online, online.init(t0), fd.ReplayLate(window=2.0))
        arrival = stream.push(t, y, sequence=41)

    `state` is the state after all events so far; `late_count` and `duplicate_count` say how many were
    not used.
    """

    def __init__(
        self,
        online: SteppingFilter,
        state: Any,
        late: AbstractLatePolicy,
        *,
        remember: int = 4096,
    ):
        """**Arguments:** `late`: `DropLate()`, `RejectLate()` or `ReplayLate(window)`; `remember`: how
        many sequence numbers are kept to know a duplicate by."""
        if not isinstance(late, AbstractLatePolicy):
            raise TypeError(
                f"{_NAME}: `late` is {type(late).__name__}; expected DropLate(), RejectLate() or "
                "ReplayLate(window)"
            )
        self.online = online
        self.state = state
        self.late = late
        self.late_count = 0
        self.duplicate_count = 0
        self._remember = check_count(_NAME, "remember", remember)
        self._seen: dict[int, None] = {}
        self._events: list[_Event] = []

    def push(self, t: Any, y: Any, u: Any = None, *, sequence: int | None = None) -> Arrival:
        """Take an event, whatever its time.

        **Arguments:** `t`, `y`, `u` as for `OnlineFilter.step`; `sequence`: a number by which a repeated
        event is known, and by which events of one instant are sorted.

        **Raises:** `ValueError` as `OnlineFilter.step`, and with `RejectLate` for a late event; nothing
        has changed then.
        """
        if sequence is not None and sequence in self._seen:
            self.duplicate_count += 1
            return Arrival("duplicate", ())
        time = seconds(f"{_NAME}.push", "t", t)
        order = _LAST if sequence is None else int(sequence)
        place = bisect_right(self._events, (time, order), key=lambda e: e.place)
        if place == len(self._events) and time >= self.state.time:
            fate, results = "new", self._filter(place, (_new(time, order, y, u),))
        elif place < len(self._events) and self._reaches(time):
            fate, results = "replayed", self._filter(place, (_new(time, order, y, u),))
        elif np.isnan(time) or self.late.is_error:
            raise ValueError(
                f"{_NAME}.push: `t` is {float(time)!r}, before the last event at "
                f"{float(self.state.time)!r}; expected a time that is not earlier"
            )
        else:
            self.late_count += 1
            fate, results = "late", ()
        if sequence is not None:
            self._seen[int(sequence)] = None
            while len(self._seen) > self._remember:
                del self._seen[next(iter(self._seen))]
        return Arrival(fate, results)

    def _reaches(self, time: np.float64) -> bool:
        window, _ = self.late.reach
        known_from = self._events[0].before.time
        return bool(time >= max(self.state.time - window, known_from))

    def _filter(self, place: int, fresh: tuple[_Event, ...]) -> tuple[StepResult, ...]:
        """Filter these, and again what lies at `place` and after."""
        again = self._events[place:]
        state = again[0].before if again else self.state
        events, results = self._events[:place], []
        for event in (*fresh, *again):
            events.append(event._replace(before=state))
            state, result = self.online.step(state, event.time, event.y, event.u)
            results.append(result)
        window, capacity = self.late.reach
        stale = bisect_right(
            events, state.time - window, key=lambda e: np.nextafter(e.time, np.inf)
        )
        self._events = events[max(stale, len(events) - capacity) :]
        self.state = state
        return tuple(results)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        position: int | str | None = None,
        generations: int = 1,
    ) -> None:
        """Write the state, the events that may be filtered again, and the numbers seen; as
        `OnlineFilter.save`."""
        generations = check_count(f"{_NAME}.save", "generations", generations)
        write(path, _NAME, *self._contents(position), generations)

    def to_bytes(self, *, position: int | str | None = None) -> bytes:
        """What `save` writes, for those who keep it elsewhere than in a file."""
        return packed(_NAME, *self._contents(position))

    def _contents(self, position: int | str | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        base = self._events[0].before if self._events else self.state
        given = [e.u is not None for e in self._events]
        arrays = arrays_of(base)
        arrays["event times"] = np.array([e.time for e in self._events], np.float64)
        arrays["event sequences"] = np.array([e.sequence for e in self._events], np.int64)
        arrays["event inputs given"] = np.array(given, bool)
        arrays["seen"] = np.array(list(self._seen), np.int64)
        if self._events:
            arrays["event measurements"] = np.stack([e.y for e in self._events])
        if any(given):
            arrays["event inputs"] = np.stack([e.u for e in self._events if e.u is not None])
        facts = dict(
            self.online._facts(base),
            position=position,
            late=repr(self.late),
            counts=[self.late_count, self.duplicate_count],
            remember=self._remember,
        )
        return arrays, facts

    @staticmethod
    def load(
        online: SteppingFilter,
        path: str | os.PathLike[str],
        late: AbstractLatePolicy,
        *,
        max_bytes: int = 2**30,
    ) -> tuple["EventStream", Any]:
        """The stream that `save` wrote, and its position; `late` must be what it was.

        **Raises:** as `OnlineFilter.load`.
        """
        return EventStream._read(online, Reader(path, _NAME, max_bytes), late)

    @staticmethod
    def from_bytes(
        online: SteppingFilter,
        content: bytes,
        late: AbstractLatePolicy,
        *,
        max_bytes: int = 2**30,
    ) -> tuple["EventStream", Any]:
        """The stream that `to_bytes` gave, and its position; as `load`."""
        return EventStream._read(online, Reader(bytes(content), _NAME, max_bytes), late)

    @staticmethod
    def _read(
        online: SteppingFilter, reader: Reader, late: AbstractLatePolicy
    ) -> tuple["EventStream", Any]:
        reader.expect("late", repr(late))
        state = online._state_in(reader)
        times = reader.array("event times", None, np.float64)
        count = times.shape
        sequences = reader.array("event sequences", count, np.int64).tolist()
        given = reader.array("event inputs given", count, bool)
        seen = reader.array("seen", None, np.int64).tolist()
        try:
            stream = EventStream(online, state, late, remember=reader.fact("remember"))
            stream.late_count, stream.duplicate_count = map(int, reader.fact("counts"))
            stream._seen = dict.fromkeys(seen)
            measurements: Any = (
                reader.array("event measurements", None, np.float64) if count[0] else []
            )
            inputs = iter(reader.array("event inputs", None, np.float64) if given.any() else [])
            events = tuple(
                _new(t, order, y, next(inputs) if with_input else None)
                for t, order, y, with_input in zip(
                    times, sequences, measurements, given, strict=True
                )
            )
            # The states between are not in the file: they come out the same.
            stream._filter(0, events)
        except (ValueError, TypeError, StopIteration, RuntimeError) as error:
            if "is refused" in str(error):
                raise
            reader.refuse(f"its events do not fit ({error})")
        return stream, reader.fact("position")


def _new(time: np.float64, sequence: int, y: Any, u: Any) -> _Event:
    y = as_numbers(_NAME, "y", y).astype(np.float64).reshape(-1)
    if u is not None:
        u = as_numbers(_NAME, "u", u).astype(np.float64).reshape(-1)
    return _Event(time, sequence, y, u, None)
