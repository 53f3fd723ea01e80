"""Where a fleet stands, and what its events said."""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from filterdyn.filters.results import parameters_of
from filterdyn.online.packing import Layout
from filterdyn.online.state import OnlineState, StepResult
from filterdyn.status import Status

#: What became of an event, as `BankResult.fate` says it.
FATES = np.array(["used", "late", "refused"])
USED, LATE, REFUSED = range(3)


class Beginning:
    """How a key begins that was not there before."""

    __slots__ = ("key", "t0", "u0")

    def __init__(self, t0: float | None, u0: np.ndarray | None, key: Array | None):
        self.t0 = t0
        self.u0 = u0
        self.key = key


class BankState:
    """Where a fleet stands: a value, and a pytree whose leaves are the tables on the devices.

    - `keys`: those that are followed, in the order in which they came;
    - `times`, `mean` (K, dx), `cov` (K, dx, dx), `status`, `log_likelihood`: of each of them, in the
      order of `keys`;
    - `late_count`, `refused_count`: how many events were not used.

    `len(state)`, `key in state` and `state.of(key)`, the `OnlineState` of one of them.
    """

    __slots__ = (
        "beginning", "clock", "inputs", "late_count", "layout", "refused_count", "slots", "tables",
    )  # fmt: skip

    def __init__(
        self,
        tables: tuple[Any, ...],
        layout: Layout,
        slots: dict[Hashable, int],
        clock: Float64[np.ndarray, " slots"],
        inputs: Float[np.ndarray, "slots du"] | None,
        beginning: Beginning,
        late_count: int = 0,
        refused_count: int = 0,
    ):
        self.tables = tables
        self.layout = layout
        #: Slot g is row g // D of device g % D.
        self.slots = slots
        self.clock = clock
        self.inputs = inputs
        self.beginning = beginning
        self.late_count = late_count
        self.refused_count = refused_count

    def replace(self, **changes: Any) -> "BankState":
        return BankState(**{name: getattr(self, name) for name in self.__slots__} | changes)

    @property
    def keys(self) -> tuple[Any, ...]:
        return tuple(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.slots

    def of(self, key: Hashable) -> OnlineState:
        """Where one key stands.

        **Raises:** `KeyError` if it is not there."""
        if key not in self.slots:
            raise KeyError(f"BankState: {key!r} is not among its {len(self)} keys")
        slot = self.slots[key]
        vectors = tuple(jnp.asarray(rows[0]) for rows in self.rows([slot]))
        held = None if self.inputs is None else self.inputs[slot].copy()
        known = held is not None and not np.isnan(held).any()
        return OnlineState(self.clock[slot], held if known else None, vectors, self.layout)

    def rows(self, slots: Any) -> list[np.ndarray]:
        """The packed states in these slots, on the host."""
        at = np.asarray(slots, np.int64)
        devices = self.tables[0].shape[0]
        return [np.asarray(table)[at % devices, at // devices] for table in self.tables]

    @property
    def _slots(self) -> np.ndarray:
        return np.fromiter(self.slots.values(), np.int64, len(self.slots))

    def _parts(self) -> Any:
        return self.layout.unpack(self.rows(self._slots))

    @property
    def times(self) -> Float64[np.ndarray, " K"]:
        return self.clock[self._slots]

    @property
    def mean(self) -> Float[Array, "K dx"]:
        return jax.vmap(lambda belief: belief.mean)(self._parts()[0].belief)

    @property
    def cov(self) -> Float[Array, "K dx dx"]:
        return jax.vmap(lambda belief: belief.cov)(self._parts()[0].belief)

    @property
    def parameters(self) -> Any:
        """Of a filter that learns, a `ParameterEstimate` with a leading axis K (by its first two moments);
        else `None`."""
        belief = self._parts()[0].belief

        def of(belief: Any) -> Any:
            found = parameters_of(belief)
            return None if found is None else found.without_draws()

        return jax.vmap(of)(belief)

    @property
    def status(self) -> Int[np.ndarray, " K"]:
        return self._parts()[0].status

    @property
    def log_likelihood(self) -> Float[np.ndarray, " K"]:
        state, total, lost = self._parts()
        return np.where(state.status == Status.OK, total + lost, -np.inf).astype(total.dtype)

    def __repr__(self) -> str:
        return f"BankState({len(self)} keys)"


class BankResult:
    """What became of the events of a batch, and what they said: arrays with an entry per event, in the
    order of the events.

    - `fate`: `"used"`, `"late"` (older than the key's clock) or `"refused"` (a time, measurement or
      input that is none);
    - `mean`, `cov`, `innovation`, `innovation_cov`, `log_likelihood`, `nis`, `status`,
      `outlier_weights`, `parameters`, `alarm` and `diagnostics` as in a `StepResult`, with a leading
      axis; of an event that was not used NaN, and 0 as log-likelihood.
    """

    __slots__ = ("_codes", "_places", "_record", "_result")

    def __init__(self, record: list[Any], places: list[Any], codes: np.ndarray, layout: Any):
        self._record = record
        #: Of every call, which events it held and where.
        self._places = places
        self._codes = codes
        self._result: Any = layout

    @property
    def fate(self) -> np.ndarray:
        return FATES[self._codes]

    @property
    def used(self) -> np.ndarray:
        """Which events were used?"""
        return self._codes == USED

    def _unpacked(self) -> StepResult:
        if isinstance(self._result, Layout):
            self._result = StepResult(self._gathered(self._result), self._result)
            self._record, self._places = [], []
        return self._result

    def _gathered(self, layout: Layout) -> tuple[np.ndarray, ...]:
        """The records in the order of the events."""
        count, found = len(self._codes), []
        if len(self._record) == 1 and len(self._places[0][0]) == count:
            events, place = self._places[0]
            if np.array_equal(events, place) and (np.diff(place) == 1).all():
                return tuple(_by_row(v)[:count] for v in self._record[0])
        for group, (dtype, size) in enumerate(zip(layout.dtypes, layout.sizes, strict=True)):
            vector = np.full((count, size), np.nan if np.dtype(dtype).kind == "f" else 0, dtype)
            for record, (events, place) in zip(self._record, self._places, strict=True):
                vector[events] = _by_row(record[group])[place]
            found.append(vector)
        for name in ("log_likelihood", "status"):
            leaf = layout.named[name]
            found[leaf.group][self._codes != USED, leaf.start] = 0
        return tuple(found)

    @property
    def mean(self) -> Float[np.ndarray, "E dx"]:
        return self._unpacked().mean

    @property
    def cov(self) -> Float[np.ndarray, "E dx dx"] | None:
        return self._unpacked().cov

    @property
    def innovation(self) -> Float[np.ndarray, "E dy"]:
        return self._unpacked().innovation

    @property
    def innovation_cov(self) -> Float[np.ndarray, "E dy dy"] | None:
        return self._unpacked().innovation_cov

    @property
    def log_likelihood(self) -> Float[np.ndarray, " E"]:
        return self._unpacked().log_likelihood

    @property
    def nis(self) -> Float[np.ndarray, " E"]:
        return self._unpacked().nis

    @property
    def status(self) -> Int[np.ndarray, " E"]:
        return self._unpacked().status

    @property
    def outlier_weights(self) -> Float[np.ndarray, "E dy"] | None:
        return self._unpacked().outlier_weights

    @property
    def diagnostics(self) -> dict[str, Array] | None:
        return self._unpacked().diagnostics

    @property
    def parameters(self) -> Any:
        return self._unpacked().parameters

    @property
    def alarm(self) -> Any:
        return self._unpacked().alarm

    def __repr__(self) -> str:
        return f"BankResult({len(self._codes)} events, {int(self.used.sum())} used)"


def _by_row(record: Any) -> np.ndarray:
    """Records (D, W, m), or in blocks (D, B, m, lanes), as (rows, m)."""
    record = np.asarray(record)
    record = record.swapaxes(2, 3) if record.ndim == 4 else record
    return record.reshape(-1, record.shape[-1])


class _Rest:
    """What of a state is no leaf: the same if it is the same objects."""

    def __init__(self, state: BankState):
        self.state = state

    def _identity(self) -> tuple[Any, ...]:
        s = self.state
        parts = (s.slots, s.clock, s.inputs, s.beginning)
        return (*map(id, parts), s.layout, s.late_count, s.refused_count)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rest) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())


jax.tree_util.register_pytree_node(
    BankState,
    lambda s: (s.tables, _Rest(s)),
    lambda rest, tables: rest.state.replace(tables=tuple(tables)),
)
