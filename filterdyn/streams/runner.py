"""A stream that is kept up by one process after another."""

import contextlib
import json
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxtyping import Array

from filterdyn._checks import check_count
from filterdyn.online import DropLate, EventStream
from filterdyn.online.late import AbstractLatePolicy
from filterdyn.online.stepping_filter import SteppingFilter
from filterdyn.streams.event import Event, Outcome

try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None  # type: ignore[assignment]

_NAME = "LocalRunner"

#: Events, or a function from the position of a snapshot (`None`: there is none) to those after it.
#: `None` among them means that nothing is at hand just now.
Source = Iterable[Event | None] | Callable[[Any], Iterable[Event | None]]
AsyncSource = AsyncIterable[Event | None] | Callable[[Any], AsyncIterable[Event | None]]


class LocalRunner:
    """Filters a stream on one machine, with snapshots from which the next process goes on:

        with fd.streams.LocalRunner(online, "snapshots") as runner:
            for outcome in runner.run(events):
                print(outcome.state.mean)

    A snapshot is one file, written whole or not at all, that holds the state and how far into its
    source it reaches. So every event enters the state exactly once, whenever the process dies; what
    `run` had yielded since the last snapshot, it yields again, the same to the bit.

    - `stream`: the `EventStream`, `None` before the first event;
    - `count`: how many events were taken, by this process and those before;
    - `position`: of the last of them, as its source gave it;
    - `output`: something in JSON of the user's own that is kept in the snapshot, such as the size of a
      file of results, to which the next process can cut it back.
    """

    def __init__(
        self,
        online: SteppingFilter,
        folder: str | os.PathLike[str],
        late: AbstractLatePolicy | None = None,
        *,
        t0: Any = None,
        u0: Any = None,
        key: Array | None = None,
        every: int = 1000,
        seconds: float = 10.0,
        generations: int = 3,
        remember: int = 4096,
    ):
        """**Arguments:**

        - `online`: an `OnlineFilter`, or an `ExportedFilter`;
        - `folder`: of the snapshots; it is made if it is not there;
        - `late`: what to do about late events, `None` for `DropLate()`;
        - `t0`, `u0`, `key`: as for `OnlineFilter.init`; `t0=None` is the time of the first event. They
          are not used if there is a snapshot;
        - `every`, `seconds`: a snapshot is due after so many events, or after that time;
        - `generations`: how many snapshots are kept;
        - `remember`: as for `EventStream`.

        **Raises:** `BlockingIOError` if another process uses the folder; `ValueError` for a snapshot
        that is damaged, of another model or of another late policy.
        """
        self.online = online
        self.folder = Path(folder)
        self.late = DropLate() if late is None else late
        self.stream: EventStream | None = None
        self.count = 0
        self.position: Any = None
        self.output: Any = None
        self._begin = (t0, u0, key)
        self._every = check_count(_NAME, "every", every)
        if not seconds > 0:
            raise ValueError(f"{_NAME}: `seconds` is {seconds!r}; expected a time > 0")
        self._seconds = seconds
        self._generations = check_count(_NAME, "generations", generations)
        self._remember = check_count(_NAME, "remember", remember)
        if t0 is not None:
            self.stream = self._started(t0)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        try:
            self._resume()
        except BaseException:
            self.close()
            raise
        self._saved, self._saved_at = self.count, time.monotonic()

    @property
    def path(self) -> Path:
        """The newest snapshot."""
        return self.folder / "stream"

    def run(self, source: Source) -> Iterator[Outcome]:
        """What becomes of each event.

        **Arguments:** `source`: an iterable of `Event`s that begins where the stream began, from which
        those that the snapshot covers are skipped; or a function that takes the `position` of the
        snapshot (`None`: there is none) and gives the events after it, as `JSONLines` is.

        A snapshot is made when one is due and at the end of the source. An outcome counts as used when
        the next one is asked for.
        """
        events = (
            source(self.position) if callable(source) else islice(iter(source), self.count, None)
        )
        for event in events:
            if event is not None:
                yield self.push(event)
            if self.is_due:
                self.snapshot()
        self.snapshot()

    async def run_async(self, source: AsyncSource) -> AsyncIterator[Outcome]:
        """As `run`, for a source that is an asynchronous iterable or gives one."""
        skipped = 0 if callable(source) else self.count
        events = source(self.position) if callable(source) else source
        async for event in events:
            if skipped > 0:
                skipped -= event is not None
                continue
            if event is not None:
                yield self.push(event)
            if self.is_due:
                self.snapshot()
        self.snapshot()

    def push(self, event: Event) -> Outcome:
        """Take one event, and make no snapshot yet.

        **Raises:** `ValueError` and `TypeError` as `EventStream.push`; nothing has changed then.
        """
        stream = self._started(event.time) if self.stream is None else self.stream
        arrival = stream.push(event.time, event.y, event.u, sequence=event.sequence)
        self.stream = stream
        self.skip(event)
        return Outcome(event, arrival, stream.state)

    def skip(self, event: Event) -> None:
        """Count an event as taken, without looking at it: one that was refused, say."""
        self.count += 1
        self.position = event.position

    @property
    def is_due(self) -> bool:
        """Is it time for a snapshot?"""
        since = self.count - self._saved
        return since >= self._every or (
            since > 0 and time.monotonic() - self._saved_at >= self._seconds
        )

    def snapshot(self) -> None:
        """Write a snapshot now, unless nothing has come since the last one."""
        if self.stream is None or self.count == self._saved:
            return
        facts = dict(count=self.count, source=self.position, output=self.output)
        self.stream.save(self.path, position=json.dumps(facts), generations=self._generations)
        self._saved, self._saved_at = self.count, time.monotonic()

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "LocalRunner":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """A snapshot, unless an error got in the way of what was done with the last outcome."""
        try:
            if kind is None:
                self.snapshot()
        finally:
            self.close()

    def _started(self, time: Any) -> EventStream:
        t0, u0, key = self._begin
        state = self.online.init(time if t0 is None else t0, u0, key=key)
        return EventStream(self.online, state, self.late, remember=self._remember)

    def _resume(self) -> None:
        if not self.path.exists():
            return
        self.stream, position = EventStream.load(self.online, self.path, self.late)
        try:
            facts = json.loads(position)
            self.count = int(facts["count"])
            self.position, self.output = facts["source"], facts["output"]
        except (ValueError, TypeError, KeyError):
            self.stream = None
            raise ValueError(
                f"{_NAME}: {str(self.path)!r} was not written by a {_NAME}: its position is "
                f"{position!r}"
            ) from None

    def _locked(self) -> int | None:
        if fcntl is None:
            return None
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            with contextlib.suppress(OSError):
                os.close(lock)
            raise BlockingIOError(
                f"{_NAME}: another process uses the folder {str(self.folder)!r}"
            ) from None
        return lock
