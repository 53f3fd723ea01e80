"""Filters of many keys, whose states an engine keeps as bytes."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import jax

from filterdyn._checks import check_count
from filterdyn.online import DropLate, EventStream
from filterdyn.online.late import AbstractLatePolicy
from filterdyn.online.stepping_filter import SteppingFilter
from filterdyn.streams.event import Event, Outcome
from filterdyn.streams.json_output import as_json

_NAME = "KeyedFilter"


class KeyedFilter:
    """One model, filtered for many keys. It has no state of its own that matters: an engine hands it
    the bytes of a key and a batch of its events, and keeps the bytes that come back.

        content, rows = keyed.advance("pump 7", content, events)

    An engine that delivers a batch again after a crash gets the same bytes as if it had not: they hold
    the last position of every source, and a batch at or before it is not used again.
    """

    def __init__(
        self,
        online: SteppingFilter,
        late: AbstractLatePolicy | None = None,
        *,
        seed: int = 0,
        remember: int = 256,
        cache: int = 4096,
    ):
        """**Arguments:**

        - `late`: what to do about late events of a key, `None` for `DropLate()`;
        - `seed`: of filters that sample; every key draws numbers of its own;
        - `remember`: as for `EventStream`, for each key;
        - `cache`: how many keys are kept ready, so that their bytes need not be read again.
        """
        self.online = online
        self.late = DropLate() if late is None else late
        self._key = jax.random.key(seed)
        self._remember = check_count(_NAME, "remember", remember)
        self._most = check_count(_NAME, "cache", cache)
        self._ready: OrderedDict[str, tuple[bytes, EventStream, dict[str, int]]] = OrderedDict()

    def advance(
        self,
        name: str,
        content: bytes | None,
        events: Iterable[Event | ValueError],
        *,
        position: int | None = None,
        source: str = "",
    ) -> tuple[bytes | None, list[dict[str, Any]]]:
        """Filter a batch of events of one key.

        **Arguments:**

        - `name`: of the key;
        - `content`: what `advance` returned for it before, `None` for a new key;
        - `events`: in the order in which they came; an error in the place of what was no event;
        - `position`: of the batch in its `source` (a partition, a file): a number that grows.

        **Returns:** the new bytes (`None` if a key is new and no event was usable), and for each event
        a row as `filterdyn stream` writes it: `fate`, `mean`, `sd`, ... An event that is refused has the
        fate `"refused"` and an `error`, and changes nothing.

        **Raises:** `ValueError` for bytes that are damaged or of another model.
        """
        stream, clocks = self._taken(name, content)
        if position is not None and position <= clocks.get(source, position - 1):
            return content, [dict(fate="duplicate") for _ in events]
        rows: list[dict[str, Any]] = []
        for event in events:
            try:
                if isinstance(event, ValueError):
                    raise event
                fresh = self._started(name, event) if stream is None else stream
                arrival = fresh.push(event.time, event.y, event.u, sequence=event.sequence)
            except (ValueError, TypeError) as error:
                rows.append(dict(fate="refused", error=str(error)))
            else:
                stream = fresh
                rows.append(as_json(Outcome(event, arrival, stream.state)))
        if stream is None:
            return None, rows
        if position is not None:
            clocks[source] = position
        new = stream.to_bytes(position=json.dumps(clocks))
        self._ready[name] = new, stream, clocks
        while len(self._ready) > self._most:
            self._ready.popitem(last=False)
        return new, rows

    def _taken(self, name: str, content: bytes | None) -> tuple[EventStream | None, dict[str, int]]:
        """The stream of a key. It leaves the cache until its batch is done."""
        ready = self._ready.pop(name, None)
        if content is None:
            return None, {}
        if ready is not None and ready[0] == content:
            return ready[1], ready[2]
        stream, position = EventStream.from_bytes(self.online, content, self.late)
        return stream, dict(json.loads(position))

    def _started(self, name: str, event: Event) -> EventStream:
        digest = hashlib.sha256(name.encode()).digest()
        key = jax.random.fold_in(self._key, int.from_bytes(digest[:4], "big"))
        state = self.online.init(event.time, key=key)
        return EventStream(self.online, state, self.late, remember=self._remember)
