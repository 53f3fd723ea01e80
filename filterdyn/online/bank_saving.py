"""A whole bank as the arrays of a checkpoint."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

from filterdyn.filters.stepping import AnyFilter
from filterdyn.model import StateSpaceModel
from filterdyn.online.bank_schedule import width_for
from filterdyn.online.bank_state import BankState, Beginning
from filterdyn.online.checkpoint import Reader, fingerprint
from filterdyn.online.saving import GENERATORS
from filterdyn.online.state import OnlineState


def bank_arrays(state: BankState) -> dict[str, np.ndarray]:
    """The keys with their slots, clocks, inputs and packed states, and how a new key begins."""
    keys, slots = list(state.slots), state._slots
    names = [str(k).encode() for k in keys]
    arrays = {
        "slots": slots,
        "is text": np.array([isinstance(k, str) for k in keys], bool),
        "lengths": np.array([len(n) for n in names], np.int64),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "clock": state.clock[slots],
        "size": np.array(state.tables[0].shape[:2], np.int64),
    }
    if state.inputs is not None:
        arrays["inputs"] = state.inputs[slots]
    arrays |= dict(zip(state.layout.dtypes, state.rows(slots), strict=True))
    begin = state.beginning
    if begin.t0 is not None:
        arrays["t0"] = np.array(begin.t0)
    if begin.u0 is not None:
        arrays["u0"] = begin.u0
    if begin.key is not None:
        arrays["root"] = np.asarray(_key_data(begin.key))
    return arrays


def bank_in(
    reader: Reader,
    model: StateSpaceModel,
    filter: AnyFilter,
    init: Callable[[Any], OnlineState],
    num_inputs: int,
    devices: int,
) -> BankState:
    """The state in a file, its tables on the host."""
    reader.expect("model", fingerprint(model, filter))
    generator = reader.fact("generator")
    if generator not in (None, *GENERATORS):
        reader.refuse(f"its generator of random numbers is {generator!r}")
    old = generator is None
    example = jax.random.PRNGKey(0) if old else jax.random.key(0, impl=generator)
    layout = init(example).layout
    saved, capacity = reader.array("size", (2,), np.int64).tolist()
    slots = reader.array("slots", None, np.int64)
    count = slots.shape
    keys = _keys(reader, count)
    if slots.ndim != 1 or not _distinct_below(slots, saved * capacity) or saved < 1:
        reader.refuse("its slots are none")
    if saved != devices:
        slots, capacity = np.arange(count[0]), width_for(-(-count[0] // devices))
    tables = []
    for dtype, size in zip(layout.dtypes, layout.sizes, strict=True):
        rows = np.zeros((devices, capacity, size), dtype)
        rows[slots % devices, slots // devices] = reader.array(dtype, (*count, size), dtype)
        tables.append(rows)
    clock = np.full(devices * capacity, np.nan)
    clock[slots] = reader.array("clock", count, np.float64)
    inputs = None
    if num_inputs or reader.has("inputs"):
        inputs = np.full((len(clock), num_inputs), np.nan, layout.dtypes[0])
        inputs[slots] = reader.array("inputs", (*count, num_inputs), layout.dtypes[0])
    if not np.isfinite(clock[slots]).all():
        reader.refuse("a clock of it is not finite")
    t0 = float(reader.array("t0", (), np.float64)) if reader.has("t0") else None
    u0 = reader.array("u0", (num_inputs,), np.float64) if reader.has("u0") else None
    root = None
    if reader.has("root"):
        data = _key_data(example)
        root = jax.numpy.asarray(reader.array("root", data.shape, data.dtype))
        root = root if old else jax.random.wrap_key_data(root, impl=generator)
    late, refused = map(int, reader.fact("counts"))
    table: dict[Hashable, int] = dict(zip(keys, slots.tolist(), strict=True))
    begin = Beginning(t0, u0, root)
    return BankState(tuple(tables), layout, table, clock, inputs, begin, late, refused)


def _key_data(key: Any) -> Any:
    new = jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(key) if new else key


def _keys(reader: Reader, count: tuple[int, ...]) -> list[Any]:
    text = reader.array("is text", count, bool)
    lengths = reader.array("lengths", count, np.int64)
    ends = np.cumsum(lengths)
    names = reader.array("names", None, np.uint8).tobytes()
    if len(names) != (ends[-1] if len(ends) else 0):
        reader.refuse("its keys do not fit")
    try:
        parts = [names[a:b].decode() for a, b in zip(ends - lengths, ends, strict=True)]
        keys = [p if t else int(p) for p, t in zip(parts, text, strict=True)]
    except ValueError as error:
        reader.refuse(f"its keys are none ({error})")
    if len(set(keys)) != len(keys):
        reader.refuse("a key of it is there twice")
    return keys


def _distinct_below(slots: np.ndarray, end: int) -> bool:
    inside = bool(((slots >= 0) & (slots < end)).all())
    return inside and len(np.unique(slots)) == len(slots)
