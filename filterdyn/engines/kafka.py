"""Kafka, through Quix Streams."""

from typing import Any

from filterdyn.engines.keyed import KeyedFilter
from filterdyn.online.late import AbstractLatePolicy
from filterdyn.streams.event import Event
from filterdyn.streams.event_fields import checked_names, event_of
from filterdyn.streams.named import online_filter

try:
    from quixstreams import message_context
    from quixstreams.dataframe import StreamingDataFrame
except ModuleNotFoundError as error:  # pragma: no cover
    raise ImportError(
        "filterdyn.engines.kafka needs Quix Streams: pip install 'filterdyn[kafka]'"
    ) from error

_NAME = "engines.kafka.follow"
_STATE = "filterdyn"


def follow(
    frame: StreamingDataFrame,
    online: Any,
    late: AbstractLatePolicy | None = None,
    *,
    observation_names: Any = None,
    input_names: Any = None,
    seed: int = 0,
    remember: int = 256,
) -> StreamingDataFrame:
    """Filter the messages of a Kafka topic, key by key:

        app = quixstreams.Application(broker_address="localhost:9092", consumer_group="plant")
        frame = app.dataframe(app.topic("measurements"))
        frame = fd.engines.kafka.follow(frame, online)
        frame.to_topic(app.topic("estimates"))
        app.run()

    A message is an event in JSON, `{"time": ..., "y": ..., "u": ..., "seq": ...}` as for `filterdyn stream`,
    or a list of them: a batch, for which the state is kept once. For each event there is a row,
    `{"time": ..., "fate": "new", "mean": [...], "sd": [...], ...}`; what is no event has the fate
    `"refused"` and stops nobody.

    The state of a key are the bytes of its `EventStream`, in the store of Quix Streams and in its
    changelog topic. They hold the offset of the last message of each partition, so that messages that
    Kafka delivers again after a crash change nothing.

    **Arguments:** `frame`: whose messages have keys; `online`: an `OnlineFilter`, `"module:object"`
    or the name of a file that `export` wrote;
    the others as for `KeyedFilter` and `JSONLines`.
    """
    if isinstance(online, str):
        online = online_filter(f"{_NAME}: `online`", online)
    keyed = KeyedFilter(online, late, seed=seed, remember=remember)
    names = (
        checked_names(_NAME, "observation_names", observation_names),
        checked_names(_NAME, "input_names", input_names),
    )

    def advance(value: Any, key: Any, timestamp: int, headers: Any, state: Any) -> list[Any]:
        context = message_context()
        content, rows = keyed.advance(
            key.decode(errors="backslashreplace") if isinstance(key, bytes) else str(key),
            state.get_bytes(_STATE),
            [_event(found, *names) for found in (value if isinstance(value, list) else [value])],
            position=context.offset,
            source=f"{context.topic}/{context.partition}",
        )
        if content is not None:
            state.set_bytes(_STATE, content)
        return rows

    return frame.apply(advance, stateful=True, metadata=True, expand=True)


def _event(found: Any, *names: Any) -> Event | ValueError:
    try:
        return event_of(found, *names)
    except ValueError as error:
        return error
