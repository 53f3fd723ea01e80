"""Events as lines of JSON."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from filterdyn._checks import check_count
from filterdyn.streams.event import Event
from filterdyn.streams.event_fields import checked_names, event_of, shown
from filterdyn.streams.line_reader import LineReader, MalformedLine

_NAME = "JSONLines"


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
        self.observation_names = checked_names(_NAME, "observation_names", observation_names)
        self.input_names = checked_names(_NAME, "input_names", input_names)
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
            raise ValueError(f"this is no JSON ({error}): {shown(line)}") from None
        return event_of(found, self.observation_names, self.input_names)
