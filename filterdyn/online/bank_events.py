"""The events of a batch, sorted by key and time, with what held before each."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from filterdyn._checks import as_numbers, check_shape
from filterdyn.online.clock import seconds, seconds_of
from filterdyn.online.kernel import HEAD, Kernel


class Events(NamedTuple):
    """A batch as it came."""

    times: Float64[np.ndarray, " E"]
    ys: Float[np.ndarray, "E dy"]
    us: Float[np.ndarray, "E du"] | None
    #: Are the time, the measurement and the input numbers that can be used?
    sound: Bool[np.ndarray, " E"]

    @staticmethod
    def read(owner: str, sizes: tuple[int, int, int], times: Any, ys: Any, us: Any) -> "Events":
        """As many events, measurements and inputs as `sizes` says, of whatever kind of numbers."""
        count, dy, du = sizes
        if np.ndim(times) == 0:
            times = np.full(count, seconds(owner, "times", times))
        times = seconds_of(owner, "times", times)
        check_shape(owner, "times", times, (count,), "one per key")
        ys = _rows(as_numbers(owner, "ys", ys), dy)
        check_shape(owner, "ys", ys, (count, dy), "a row per key")
        sound = np.isfinite(times) & ~np.isinf(ys).any(axis=1)
        if us is not None:
            us = _rows(as_numbers(owner, "us", us), du)
            check_shape(owner, "us", us, (count, du), "a row per key")
            missing = np.isnan(us)
            partly = missing.any(axis=1) & ~missing.all(axis=1)
            sound &= ~np.isinf(us).any(axis=1) & ~partly
        return Events(times, ys, us, sound)


def _rows(values: np.ndarray, size: int) -> np.ndarray:
    return values[:, None] if values.ndim == 1 and size == 1 else values


class Batch(NamedTuple):
    """The events that are used, sorted by slot and time."""

    #: Which events they are.
    events: Int[np.ndarray, " n"]
    slots: Int[np.ndarray, " n"]
    times: Float64[np.ndarray, " n"]
    before: Float64[np.ndarray, " n"]
    #: The inputs over the gap and from the event on.
    held: Float[np.ndarray, "n du"] | None
    now: Any
    first: Bool[np.ndarray, " n"]
    last: Bool[np.ndarray, " n"]
    #: Events that no input is known for.
    refused: Int[np.ndarray, " r"]

    def rounds(self, abreast: bool) -> Iterator[Any]:
        """Which events go into a call: all, or (`abreast`) the first of every key, then the second."""
        if not self.events.size:
            return
        if not abreast or self.first.all():
            yield slice(None)
            return
        rank = self.rank
        for r in range(rank.max() + 1):
            yield np.flatnonzero(rank == r)

    @property
    def rank(self) -> Int[np.ndarray, " n"]:
        """How many events of its key come before one."""
        at = np.arange(len(self.events))
        return at - np.maximum.accumulate(np.where(self.first, at, 0))

    def rows(self, kernel: Kernel, events: Events, mine: Any) -> np.ndarray:
        """Rows for a `BankKernel`, of these of the events."""
        gaps = self.times[mine] - self.before[mine]
        rows = np.empty((len(gaps), kernel.width + 1), kernel.dtype)
        rows[:, 0] = self.before[mine]
        rows[:, 1] = gaps
        rows[:, 2] = self.times[mine]
        rows[:, 3] = kernel.number_of_steps(gaps)
        end = HEAD + kernel.dy
        rows[:, HEAD:end] = events.ys[self.events[mine]]
        if self.held is not None:
            du = self.now.shape[1]
            rows[:, end : end + du] = self.held[mine]
            rows[:, end + du : -1] = self.now[mine]
        rows[:, -1] = self.first[mine]
        return rows

    def blocks(
        self, kernel: Kernel, events: Events, source: Int[np.ndarray, "D B L"]
    ) -> np.ndarray:
        """The rows (D, B, width, L) of blocks of events."""
        rows = np.ascontiguousarray(self.rows(kernel, events, slice(None))[:, :-1].T)
        return np.ascontiguousarray(np.moveaxis(rows[:, source], 0, 2))


def sorted_events(
    events: Events,
    chosen: Int[np.ndarray, " n"],
    slots: Int[np.ndarray, " E"],
    apart: bool,
    clock: Float64[np.ndarray, " slots"],
    inputs: Float[np.ndarray, "slots du"] | None,
    linear: bool,
) -> Batch:
    """The `chosen` events by key and time (`apart`: each of another key, so in any order). `linear`
    dynamics take an input that is not known for zero."""
    if not apart:
        chosen = chosen[np.lexsort((events.times[chosen], slots[chosen]))]
    held, now, refused = None, None, chosen[:0]
    if inputs is not None:
        moves = events.times[chosen] > clock[slots[chosen]]
        held, now, known = _inputs(events.us, chosen, slots[chosen], inputs, moves & (not linear))
        chosen, held, now, refused = chosen[known], held[known], now[known], chosen[~known]
    mine, times = slots[chosen], events.times[chosen]
    first = _starts(mine)
    last = np.concatenate([first[1:], [True]]) if len(mine) else first
    before = np.where(first, clock[mine], np.concatenate([[0.0], times[:-1]])[: len(times)])
    return Batch(chosen, mine, times, before, held, now, first, last, refused)


def _starts(slots: np.ndarray) -> np.ndarray:
    """Which are the first of their key?"""
    first = np.ones(len(slots), bool)
    first[1:] = slots[1:] != slots[:-1]
    return first


def _inputs(
    us: np.ndarray | None,
    chosen: np.ndarray,
    slots: np.ndarray,
    inputs: np.ndarray,
    needed: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inputs that are held until an event and from it on, and whether they are known."""
    at, first = np.arange(len(chosen)), _starts(slots)
    start = np.maximum.accumulate(np.where(first, at, 0))
    now = inputs[slots]
    if us is not None:
        u = us[chosen]
        given = ~np.isnan(u).any(axis=1)
        latest = np.maximum.accumulate(np.where(given, at, -1))
        now = np.where((latest >= start)[:, None], u[np.maximum(latest, 0)], now)
    held = np.where(first[:, None], inputs[slots], np.concatenate([now[:1], now[:-1]]))
    known = ~np.isnan(now).any(axis=1) & ~(np.isnan(held).any(axis=1) & needed)
    return np.nan_to_num(held), now, known
