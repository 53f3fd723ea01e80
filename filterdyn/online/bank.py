"""A filter for each of many systems of one kind."""

import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from filterdyn._checks import as_numbers, check_count, check_shape
from filterdyn.filters.sampling_verbs import require_key
from filterdyn.filters.stepping import AnyFilter
from filterdyn.model import StateSpaceModel
from filterdyn.online.bank_events import Events, sorted_events
from filterdyn.online.bank_kernel import AXIS, BankKernel, blank, grown
from filterdyn.online.bank_keys import Lookup
from filterdyn.online.bank_saving import bank_arrays, bank_in
from filterdyn.online.bank_schedule import NOWHERE, in_blocks, spread, width_for
from filterdyn.online.bank_start import Starts
from filterdyn.online.bank_state import LATE, REFUSED, USED, BankResult, BankState, Beginning
from filterdyn.online.checkpoint import Reader, write
from filterdyn.online.clock import seconds
from filterdyn.online.kernel import HEAD
from filterdyn.online.online_filter import OnlineFilter
from filterdyn.online.saving import facts_of
from filterdyn.online.state import OnlineState

_NAME = "FilterBank"


class FilterBank:
    """Follows thousands of systems of one model, each by its key (a number or a name), with the step of
    an `OnlineFilter`; a batch of events is one call:

        bank = fd.FilterBank(model, fd.ExtendedKalmanFilter())
        state = bank.init()
        for keys, times, ys in batches:
            state, result = bank.step(state, keys, times, ys)

    The keys of a batch may come in any order and several times; each has its own clock. A key that was
    not there begins with its first event. What is wrong with one (a late event, an infinite measurement,
    a model that fails) is said in the result and leaves the others as they are. The state is a value.

    Tables grow and batches are padded in powers of two, so that few sizes are compiled;
    `compile_count` says how many. `online` is the `OnlineFilter` for what concerns one key only:
    `bank.online.forecast(state.of(key), times)`.
    """

    def __init__(
        self,
        model: StateSpaceModel,
        filter: AnyFilter,
        *,
        num_inputs: int = 0,
        devices: Sequence[Any] | None = None,
        donate: bool = False,
    ):
        """**Arguments:** `num_inputs`: how many inputs an event has; `devices`: those that the keys are
        spread over, without communication between them (`None`: one, the default); `donate`: let
        `step` change the state that it is given instead of copying it, which saves time and memory
        for a large bank, and leaves only the newest state of use.

        **Raises:** as `OnlineFilter`."""
        self.online = OnlineFilter(model, filter)
        self.model = model
        self.filter = filter
        self.num_inputs = check_count(_NAME, "num_inputs", num_inputs) if num_inputs else 0
        self.donate = donate
        devices = None if devices is None else list(devices)
        if devices is not None and not devices:
            raise ValueError(f"{_NAME}: `devices` is empty; expected one or more, or None")
        self._devices = 1 if devices is None else len(devices)
        mesh = None if devices is None else jax.sharding.Mesh(np.array(devices), (AXIS,))
        platform = devices[0].platform if devices else jax.default_backend()
        self._mesh, self._abreast = mesh, platform != "cpu"
        self._kernels: dict[Any, BankKernel] = {}
        self._starts = Starts(self.online)
        self._last: Lookup | None = None

    @property
    def compile_count(self) -> int:
        """How often a step was compiled: once per width of a batch (a power of two) and, on the way,
        once per size of the table (a power of two)."""
        return sum(kernel.compilations for kernel in self._kernels.values())

    def init(
        self,
        keys: Iterable[Hashable] = (),
        t0: Any = None,
        u0: Any = None,
        *,
        key: Array | None = None,
    ) -> BankState:
        """The state before any event.

        **Arguments:** `keys`: those that are known already; `t0`, `u0` (du,): when `initial` holds and
        the input from there on, as for `OnlineFilter.init`, for these keys and for those that come
        later; with `t0=None` a key begins at its first event, without a prediction before it (then
        `keys` must be empty). `key`: a random key for filters that sample; every key of the bank gets
        one of its own, made of this one and of its name, whoever else is in the bank.
        """
        require_key(f"{_NAME}.init", self.filter, key)
        beginning = Beginning(self._time("init", t0), self._input("init", "u0", u0), key)
        self._check_input("init", t0, u0)
        layout = self.online.init(0.0, key=key).layout
        kernel = self._kernel(layout)
        inputs = np.full((self._devices, self.num_inputs), np.nan, kernel.kernel.dtype)
        state = BankState(
            kernel.place(blank(layout, self._devices, 1)),
            layout,
            {},
            np.full(self._devices, np.nan),
            inputs if self.num_inputs else None,
            beginning,
        )
        keys = list(keys)
        return self.add(state, keys, t0, u0) if keys else state

    def add(self, state: BankState, keys: Iterable[Hashable], t0: Any, u0: Any = None) -> BankState:
        """The state with more keys, which begin at `t0` with the input `u0`.

        **Raises:** `ValueError` for a key that is there already."""
        keys = list(dict.fromkeys(keys))
        for key in keys:
            if key in state:
                raise ValueError(f"{_NAME}.add: {key!r} is there already")
        t0, u0 = self._time("add", t0), self._input("add", "u0", u0)
        if t0 is None:
            raise ValueError(f"{_NAME}.add: `t0` is None; expected the time at which they begin")
        self._check_input("add", t0, u0)
        vectors = self._starts.of(keys, state.beginning.key)
        return self._with(state, keys, np.full(len(keys), t0), u0, vectors)

    def step(
        self, state: BankState, keys: Any, times: Any, ys: Any, us: Any = None
    ) -> tuple[BankState, BankResult]:
        """Take a batch of events, each of which is a step of its key.

        **Arguments:**

        - `state`: what `init` or the step before returned;
        - `keys` (E,): numbers or names, in any order, each as often as it comes; the events of one key
          are taken in the order of their times;
        - `times` (E,): numbers or datetimes as for `OnlineFilter.step`, or one for all;
        - `ys` (E, dy) or (E,): the measurements, NaN where an entry is missing;
        - `us` (E, du) or (E,): the inputs from then on; a row of NaN, or `None`, holds the stored one.

        **Raises:** `ValueError` for shapes that do not fit; nothing is filtered then. An event that is
        older than its key's clock, or has a time that is none or infinite entries, is not used, and
        `result.fate` says so.
        """
        owner = f"{_NAME}.step"
        keys = keys if isinstance(keys, np.ndarray | jax.Array) else list(keys)
        found = self._look_up(owner, keys, state)
        kernel = self._kernel(state.layout)
        sizes = (len(found.keys), kernel.kernel.dy, self.num_inputs)
        events = Events.read(owner, sizes, times, ys, us)
        codes = np.where(events.sound, USED, REFUSED).astype(np.int8)
        fresh = found.slots < 0
        if fresh.any():
            state = self._with_new(state, found.keys, found.slots, events)
            found = self._look_up(owner, keys, state)
        slots = found.slots
        late = events.sound & ((slots < 0) | (events.times < state.clock[slots]))
        codes[late] = LATE
        if state.beginning.t0 is None:
            # Before its first event a key has no clock; what came before that had no input.
            codes[late & fresh] = REFUSED
        chosen = np.flatnonzero(codes == USED)
        linear = self.model.dynamics.is_linear
        batch = sorted_events(events, chosen, slots, found.apart, state.clock, state.inputs, linear)
        if batch.refused.size:
            codes[batch.refused] = REFUSED
        tables, records, places = self._advance(state, kernel, events, batch)
        clock, inputs = state.clock, state.inputs
        if not self.donate:
            clock = clock.copy()
            inputs = None if inputs is None else inputs.copy()
        clock[batch.slots[batch.last]] = batch.times[batch.last]
        if inputs is not None:
            inputs[batch.slots[batch.last]] = batch.now[batch.last]
        new = state.replace(
            tables=tables,
            clock=clock,
            inputs=inputs,
            late_count=state.late_count + int((codes == LATE).sum()),
            refused_count=state.refused_count + int((codes == REFUSED).sum()),
        )
        return new, BankResult(records, places, codes, kernel.kernel.record)

    def predict_to(self, state: BankState, t: Any) -> BankState:
        """The state in which every key that is not past `t` is at `t`, if nothing is measured until
        then; as `OnlineFilter.predict_to`."""
        t = seconds(f"{_NAME}.predict_to", "t", t)
        keys = [k for k, at in zip(state.keys, state.times, strict=True) if at <= t]
        dy = self._kernel(state.layout).kernel.dy
        return self.step(state, keys, t, np.full((len(keys), dy), np.nan))[0]

    def evict(
        self, state: BankState, keys: Iterable[Hashable]
    ) -> tuple[BankState, dict[Any, OnlineState]]:
        """The state without these keys, and where each of them stood, for `restore` or for
        `bank.online`. Their slots are free for others.

        **Raises:** `KeyError` for a key that is not there."""
        gone = {key: state.of(key) for key in keys}
        slots = {k: s for k, s in state.slots.items() if k not in gone}
        clock = state.clock.copy()
        clock[[state.slots[k] for k in gone]] = np.nan
        return state.replace(slots=slots, clock=clock), gone

    def restore(self, state: BankState, standing: Mapping[Any, OnlineState]) -> BankState:
        """The state with these keys where they stood, to the bit.

        **Raises:** `ValueError` for a key that is there, or a state of another filter."""
        for key, one in standing.items():
            if key in state or one.layout != state.layout:
                why = "is there already" if key in state else "stands in a state of another filter"
                raise ValueError(f"{_NAME}.restore: {key!r} {why}")
        several = list(standing.values())
        if not several:
            return state
        vectors = [
            np.stack([np.asarray(s.vectors[g]) for s in several])
            for g in range(len(state.layout.dtypes))
        ]
        held = None
        if self.num_inputs:
            none = np.full(self.num_inputs, np.nan)
            held = np.stack([none if s.input is None else np.asarray(s.input) for s in several])
        times = np.array([s.time for s in several], np.float64)
        return self._with(state, list(standing), times, held, vectors)

    def save(
        self,
        path: str | os.PathLike[str],
        state: BankState,
        *,
        position: int | str | None = None,
        generations: int = 1,
    ) -> None:
        """Write the whole bank to one file, as `OnlineFilter.save`."""
        generations = check_count(f"{_NAME}.save", "generations", generations)
        facts = dict(
            facts_of(self.model, self.filter, state),
            position=position,
            counts=[state.late_count, state.refused_count],
        )
        write(path, _NAME, bank_arrays(state), facts, generations)

    def load(
        self, path: str | os.PathLike[str], *, max_bytes: int = 2**34
    ) -> tuple[BankState, Any]:
        """The state and the position that `save` wrote; the stream goes on from them to the same bits
        on as many devices, and to rounding on another number of them.

        **Raises:** as `OnlineFilter.load`."""
        reader = Reader(path, _NAME, max_bytes)
        layout_of = lambda key: self.online.init(0.0, key=key)
        state = bank_in(reader, self.model, self.filter, layout_of, self.num_inputs, self._devices)
        tables = self._kernel(state.layout).place(state.tables)
        return state.replace(tables=tables), reader.fact("position")

    def _look_up(self, owner: str, keys: Any, state: BankState) -> Lookup:
        if self._last is None or not self._last.serves(keys, state.slots):
            self._last = Lookup(owner, keys, state.slots)
        return self._last

    def _kernel(self, layout: Any) -> BankKernel:
        kernel = self._kernels.get(layout.dtypes)
        if kernel is None or kernel.kernel.state != layout:
            held = np.zeros(self.num_inputs) if self.num_inputs else None
            one = self.online._kernel(OnlineState(0.0, None, (), layout), held)
            kernel = BankKernel(one, self._mesh, self.donate, self._abreast)
            self._kernels[layout.dtypes] = kernel
        return kernel

    def _time(self, verb: str, t0: Any) -> float | None:
        if t0 is None:
            return None
        t0 = seconds(f"{_NAME}.{verb}", "t0", t0)
        if not np.isfinite(t0):
            raise ValueError(f"{_NAME}.{verb}: `t0` is {t0}; expected a finite time")
        return float(t0)

    def _input(self, verb: str, name: str, value: Any) -> np.ndarray | None:
        if value is None:
            return None
        u = as_numbers(f"{_NAME}.{verb}", name, value).reshape(-1).astype(np.float64)
        check_shape(f"{_NAME}.{verb}", name, u, (self.num_inputs,), "`num_inputs`")
        if not np.isfinite(u).all():
            raise ValueError(f"{_NAME}.{verb}: `{name}` has NaN or infinite entries")
        return u

    def _check_input(self, verb: str, t0: Any, u0: Any) -> None:
        blind = self.num_inputs and t0 is not None and u0 is None
        if blind and not self.model.dynamics.is_linear:
            raise ValueError(
                f"{_NAME}.{verb}: `u0` is missing, and {type(self.model.dynamics).__name__} needs the "
                "input that holds from `t0` on"
            )

    def _with_new(
        self, state: BankState, keys: list[Any], slots: np.ndarray, events: Events
    ) -> BankState:
        """With the keys that are not there yet."""
        begin = state.beginning
        can = (slots < 0) & events.sound
        if self.num_inputs and begin.u0 is None and begin.t0 is None:
            can &= False if events.us is None else ~np.isnan(events.us).any(axis=1)
        first: dict[Any, float] = {}
        for i in np.flatnonzero(can).tolist():
            first[keys[i]] = min(first.get(keys[i], np.inf), events.times[i])
        if begin.t0 is not None:
            first = {k: begin.t0 for k, t in first.items() if t >= begin.t0}
        if not first:
            return state
        times = np.fromiter(first.values(), np.float64, len(first))
        vectors = self._starts.of(list(first), begin.key)
        return self._with(state, list(first), times, begin.u0, vectors)

    def _with(
        self, state: BankState, keys: list[Any], times: np.ndarray, held: Any, vectors: Any
    ) -> BankState:
        """With these keys in free slots, their clocks at `times`."""
        for key in keys:
            if not isinstance(key, str | int | np.integer):
                raise TypeError(
                    f"{_NAME}: a key is {type(key).__name__}; expected an integer or a string"
                )
        devices, tables, clock, inputs = self._devices, state.tables, state.clock, state.inputs
        needed = width_for(-(-(len(state) + len(keys)) // devices))
        if needed > tables[0].shape[1]:
            tables = self._kernel(state.layout).place([grown(t, needed) for t in tables])
        more = devices * tables[0].shape[1] - len(clock)
        clock = np.concatenate([clock, np.full(more, np.nan)])
        taken = np.zeros(len(clock), bool)
        taken[state._slots] = True
        slots = np.flatnonzero(~taken)[: len(keys)]
        clock[slots] = times
        if inputs is not None:
            unknown = np.full((more, self.num_inputs), np.nan, inputs.dtype)
            inputs = np.concatenate([inputs, unknown])
            inputs[slots] = np.nan if held is None else held
        placed, at = spread(slots, devices)
        width = placed.shape[1]
        rows = []
        for vector in vectors:
            row = np.zeros((devices * width, vector.shape[-1]), vector.dtype)
            row[at] = vector
            rows.append(row.reshape(devices, width, -1))
        tables = self._kernel(state.layout).put(tables, placed, tuple(rows))
        named = [k if isinstance(k, str) else int(k) for k in keys]
        table: dict[Hashable, int] = dict(state.slots)
        table.update(zip(named, slots.tolist(), strict=True))
        return state.replace(tables=tables, slots=table, clock=clock, inputs=inputs)

    def _advance(
        self, state: BankState, kernel: BankKernel, events: Events, batch: Any
    ) -> tuple[Any, list[Any], list[Any]]:
        """The tables after the events, the records of every call, and which events they are of."""
        tables = state.tables
        if kernel.lanes and batch.events.size:
            blocks = in_blocks(batch.slots, batch.rank, self._devices, kernel.lanes)
            rows = batch.blocks(kernel.kernel, events, blocks.source)
            tables, record = kernel.advance(tables, blocks.slots, rows, blocks.counts)
            return tables, [record], [(batch.events, blocks.at)]
        records: list[Any] = []
        places: list[Any] = []
        for mine in batch.rounds(self._abreast):
            placed, at = spread(batch.slots[mine], self._devices)
            width = placed.shape[1]
            rows = np.zeros((placed.size, kernel.kernel.width + 1), kernel.kernel.dtype)
            rows[:, HEAD : HEAD + kernel.kernel.dy] = np.nan
            rows[at] = batch.rows(kernel.kernel, events, mine)
            ends = np.full(placed.size, NOWHERE, np.int32)
            last = batch.last[mine] | self._abreast
            ends[at[last]] = placed.reshape(-1)[at[last]]
            shape = (self._devices, width)
            counts = np.bincount(batch.slots[mine] % self._devices, minlength=self._devices)
            tables, record = kernel.advance(
                tables,
                placed,
                ends.reshape(shape),
                rows.reshape(*shape, -1),
                counts.astype(np.int32),
                again=bool(records),
            )
            records.append(record)
            places.append((batch.events[mine], at))
        return tables, records, places
