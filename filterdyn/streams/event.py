"""An event of a stream, and what became of it."""

from typing import Any, NamedTuple

from filterdyn.online import Arrival


class Event(NamedTuple):
    """A measurement as it arrives.

    - `time`: a number or a datetime with a time zone;
    - `y` (dy,) or a number, NaN where an entry is missing;
    - `u` (du,) or a number: the input from `time` on; `None` holds the one before;
    - `sequence`: a number by which a repeated event is known, if there is one;
    - `position`: where its source stands after it, as JSON (an offset, a table), if the source can say.
    """

    time: Any
    y: Any
    u: Any = None
    sequence: int | None = None
    position: Any = None


class Outcome(NamedTuple):
    """What became of an event.

    - `event`: the `Event`;
    - `arrival`: the `Arrival`: its fate, and the results of it and of what was filtered again;
    - `state`: the `OnlineState` (or `ExportedState`) after it.
    """

    event: Event
    arrival: Arrival
    state: Any
