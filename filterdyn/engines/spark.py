"""Spark Structured Streaming, through `transformWithState`."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from filterdyn.engines.keyed import KeyedFilter
from filterdyn.online.late import AbstractLatePolicy
from filterdyn.streams.event import Event
from filterdyn.streams.named import online_filter

try:
    import pandas as pd
    from pyspark.sql import DataFrame, functions
    from pyspark.sql.streaming import StatefulProcessor, StatefulProcessorHandle
except ModuleNotFoundError as error:  # pragma: no cover
    raise ImportError(
        "filterdyn.engines.spark needs PySpark 4 with pandas: pip install 'filterdyn[spark]'"
    ) from error

_NAME = "engines.spark.follow"
#: Of an event without a number.
_NO_SEQUENCE = -(2**63)
_FIELDS = (
    ("time", "double"),
    ("fate", "string"),
    ("mean", "array<double>"),
    ("sd", "array<double>"),
    ("innovation", "array<double>"),
    ("nis", "double"),
    ("log_likelihood", "double"),
    ("status", "string"),
    ("error", "string"),
)


def follow(
    frame: DataFrame,
    online: str,
    late: AbstractLatePolicy | None = None,
    *,
    key: str,
    time: str = "time",
    observations: Sequence[str],
    inputs: Sequence[str] = (),
    sequence: str | None = None,
    seed: int = 0,
    remember: int = 256,
    float32: bool = False,
) -> DataFrame:
    """Filter a streaming data frame, key by key:

        estimates = fd.engines.spark.follow(
            spark.readStream.schema("pump string, time double, level double").json("in"),
            "plant:online",
            key="pump",
            observations=["level"],
        )
        estimates.writeStream.option("checkpointLocation", "checkpoints").start(path="out")

    Each batch of a key is filtered in the order of its times (Spark keeps no other), and for each row
    comes one with its `key`, `time`, `fate`, `mean`, `sd`, `innovation`, `nis`, `log_likelihood`, `status`
    and, if it was refused, `error`.

    The state of a key are the bytes of its `EventStream`, in Spark's state store, which takes them back
    together with the batch if a worker dies. Spark has only one store that can do it: set
    `spark.sql.streaming.stateStore.providerClass` to its `RocksDBStateStoreProvider`.

    **Arguments:**

    - `online`: `"module:object"`, which the workers import, or the name of a file that `export` wrote: the
      step is compiled once in each of them, and no code travels in a message;
    - `key`, `time` (seconds, or a timestamp), `observations` (one column for each entry of `y`, null is
      missing), `inputs`, `sequence`: names of columns;
    - `float32`: single precision (default: double);
    - the others as for `KeyedFilter`.
    """
    if not isinstance(online, str):
        raise TypeError(
            f"{_NAME}: `online` is {type(online).__name__}; expected 'module:object', which workers can "
            "import"
        )
    columns = _Columns(key, time, tuple(observations), tuple(inputs), sequence)
    known = dict(frame.dtypes)
    for name in columns.all:
        if name not in known:
            raise ValueError(
                f"{_NAME}: the frame has no column `{name}`; it has {', '.join(known)}"
            )
    settings = _Settings(online, late, seed, remember, float32)
    return (
        columns.select(frame)
        .groupBy("key")
        .transformWithStateInPandas(
            _Processor(settings, columns),
            f"key {known[key]}, " + ", ".join(f"{name} {kind}" for name, kind in _FIELDS),
            "Append",
            "None",
        )
        .withColumnRenamed("key", key)
    )


@dataclass(frozen=True)
class _Columns:
    key: str
    time: str
    observations: tuple[str, ...]
    inputs: tuple[str, ...]
    sequence: str | None

    @property
    def all(self) -> tuple[str, ...]:
        numbers = (self.time, *self.observations, *self.inputs)
        return (self.key, *numbers, *(() if self.sequence is None else (self.sequence,)))

    def select(self, frame: DataFrame) -> DataFrame:
        """The columns under names of ours: `key`, `time`, `seq`, `y0`, ..., `u0`, ..."""
        column = lambda name: functions.col(f"`{name}`")
        number = lambda name, ours: column(name).cast("double").alias(ours)
        sequence = None if self.sequence is None else column(self.sequence).cast("bigint")
        missing = functions.lit(_NO_SEQUENCE).cast("bigint")
        return frame.select(
            column(self.key).alias("key"),
            number(self.time, "time"),
            (missing if sequence is None else functions.coalesce(sequence, missing)).alias("seq"),
            *(number(name, f"y{k}") for k, name in enumerate(self.observations)),
            *(number(name, f"u{k}") for k, name in enumerate(self.inputs)),
        )

    def events(self, table: pd.DataFrame) -> list[Event]:
        """The rows as events, in the order of their times."""
        y = table[[f"y{k}" for k in range(len(self.observations))]].to_numpy(np.float64)
        u = table[[f"u{k}" for k in range(len(self.inputs))]].to_numpy(np.float64)
        held = np.isnan(u).all(axis=1)
        return [
            Event(
                float(time),
                y[k],
                None if held[k] else u[k],
                None if number == _NO_SEQUENCE else int(number),
            )
            for k, (time, number) in enumerate(zip(table["time"], table["seq"], strict=True))
        ]


@dataclass(frozen=True)
class _Settings:
    online: str
    late: AbstractLatePolicy | None
    seed: int
    remember: int
    float32: bool


@functools.lru_cache(maxsize=8)
def _keyed(settings: _Settings) -> KeyedFilter:
    """One in each process of a worker, so that the step is compiled once in it."""
    jax.config.update("jax_enable_x64", not settings.float32)
    online = online_filter(f"{_NAME}: `online`", settings.online)
    return KeyedFilter(online, settings.late, seed=settings.seed, remember=settings.remember)


class _Processor(StatefulProcessor):
    def __init__(self, settings: _Settings, columns: _Columns):
        self._settings = settings
        self._columns = columns

    def init(self, handle: StatefulProcessorHandle) -> None:
        self._state = handle.getValueState("filterdyn", "content BINARY")

    def handleInputRows(
        self, key: Any, rows: Iterator[pd.DataFrame], timerValues: Any
    ) -> Iterator[pd.DataFrame]:
        table = pd.concat(list(rows)).sort_values(["time", "seq"], kind="stable")
        kept = self._state.get()
        content, found = _keyed(self._settings).advance(
            str(key[0]), None if kept is None else bytes(kept[0]), self._columns.events(table)
        )
        if content is not None:
            self._state.update((content,))
        out = pd.DataFrame(found).reindex(columns=[name for name, _ in _FIELDS])
        out["time"] = table["time"].to_numpy()
        out.insert(0, "key", key[0])
        yield out.astype(object).where(out.notna(), None)

    def close(self) -> None:
        pass
