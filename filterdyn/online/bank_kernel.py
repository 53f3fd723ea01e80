"""The compiled steps of a fleet: rows of many keys into a table of packed states."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from filterdyn.online.kernel import Kernel
from filterdyn.online.lanes import NotInLanes, in_lanes
from filterdyn.online.packing import Layout

#: The axis of the devices.
AXIS = "fleet"
#: How many bytes of the numbers of one kind a vector instruction takes.
_VECTOR = 32


class BankKernel:
    """Steps of a `Kernel` for the keys of a bank.

    A table holds a packed state per slot, (D, C, n) on D devices. A call takes W rows per device, in one
    of three ways:

    - in lanes, on a CPU: one loop goes from one block of `lanes` keys to the next and takes a row of
      each; it is one compiled function, in vector instructions. A second row of a key is in a later
      block, and where there are too few keys for a block one of them is there several times, so that
      all write the same.
    - in turn, on a CPU for steps that cannot be done so (random numbers, matrices for LAPACK): one loop
      from row to row, those of one key side by side and in order, with the state of the key at hand;
    - `abreast`, on an accelerator: one step each of W keys, all at once.

    A step is the same computation whoever else is in the call, and on a CPU the same instructions.
    """

    def __init__(self, kernel: Kernel, mesh: Mesh | None, donate: bool, abreast: bool):
        self.kernel = kernel
        self.abreast = abreast
        # (A trace makes the layout of the record known.)
        table = [jax.ShapeDtypeStruct((n,), d) for d, n in _groups(kernel.state)]
        row = jax.ShapeDtypeStruct((kernel.width,), kernel.dtype)
        jax.eval_shape(kernel.packed_step, tuple(table), row)
        #: How often the steps were traced, which is how often they were compiled.
        self.compilations = 0
        #: How many keys a block holds (0: there are none).
        self.lanes = 0 if abreast else self._possible_lanes(table, row)
        steps = self._abreast if abreast else self._in_lanes if self.lanes else self._in_turn
        used_up: Any = dict(donate_argnums=(0,)) if donate else {}
        self.sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(AXIS))
        self._advance = jax.jit(self._on_each(mesh, steps), **used_up)
        #: For calls after the first of a batch, whose table is nobody else's.
        self._continue = jax.jit(self._on_each(mesh, steps), donate_argnums=(0,))
        self._put = jax.jit(self._on_each(mesh, _put))

    def advance(self, tables: Any, *rows: Any, again: bool = False) -> tuple[Any, Any]:
        """The tables after these rows, and their records (D, W, m)."""
        return (self._continue if again else self._advance)(tables, *self._placed(rows))

    def put(self, tables: Any, slots: Any, vectors: Any) -> Any:
        """The tables with other vectors (D, W, n) in these slots (D, W)."""
        return self._put(tables, *self._placed((slots, vectors)))

    def place(self, tables: Any) -> Any:
        """Tables from the host, on the devices."""
        put = jnp.asarray if self.sharding is None else lambda x: jax.device_put(x, self.sharding)
        return tuple(put(table) for table in tables)

    def _placed(self, arguments: Any) -> Any:
        return arguments if self.sharding is None else jax.device_put(arguments, self.sharding)

    def _on_each(self, mesh: Mesh | None, function: Any) -> Any:
        """`function` on every device with what is its own: none waits for another."""

        def one(*arguments: Any) -> Any:
            mine = jax.tree.map(lambda x: x[0], arguments)
            return jax.tree.map(lambda x: x[None], function(*mine))

        if mesh is None:
            return one
        spec = PartitionSpec(AXIS)
        return jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)

    def _possible_lanes(self, table: Any, row: Any) -> int:
        lanes = _VECTOR // self.kernel.dtype.itemsize
        wide = lambda x: jax.ShapeDtypeStruct((*x.shape, lanes), x.dtype)
        try:
            jax.eval_shape(
                in_lanes(self.kernel.packed_step, lanes), *jax.tree.map(wide, (tuple(table), row))
            )
        except NotInLanes:
            return 0
        return lanes

    def _in_lanes(
        self,
        tables: Any,
        slots: Int[Array, "B lanes"],
        rows: Float[Array, "B width lanes"],
        count: Int[Array, ""],
    ) -> tuple[Any, Any]:
        """The first `count` blocks. Their records are (B, m, lanes)."""
        self.compilations += 1
        lanes = self.lanes
        step = in_lanes(self.kernel.packed_step, lanes)

        def advance(i: Any, tables: Any) -> Any:
            at = [(slots[i, k], np.int32(0)) for k in range(lanes)]
            # (Not a gather: XLA takes that for as much work as the whole table.)
            read = lambda table, k: jax.lax.dynamic_slice(table, at[k], (1, table.shape[1]))[0]
            states = tuple(jnp.stack([read(t, k) for k in range(lanes)], 1) for t in tables)
            return at, *step(states, rows[i])

        records = jax.eval_shape(lambda: advance(0, tables)[2])
        blank = jax.tree.map(lambda x: jnp.zeros((len(slots), *x.shape), x.dtype), records)

        def body(i: Any, carry: Any) -> Any:
            tables, records = carry
            at, states, record = advance(i, tables)
            for k in range(lanes):
                tables = tuple(
                    jax.lax.dynamic_update_slice(table, state[None, :, k], at[k])
                    for table, state in zip(tables, states, strict=True)
                )
            write = lambda all, one: jax.lax.dynamic_update_index_in_dim(all, one, i, 0)
            return tables, jax.tree.map(write, records, record)

        return jax.lax.fori_loop(0, count, body, (tables, blank))

    def _in_turn(
        self,
        tables: Any,
        slots: Int[Array, " W"],
        ends: Int[Array, " W"],
        rows: Float[Array, "W width+1"],
        count: Int[Array, ""],
    ) -> tuple[Any, Any]:
        """The first `count` rows. The last number of a row says whether it is its key's first; `ends`
        are the slots, of a row that is not its key's last one beyond the table."""
        self.compilations += 1
        begins = tuple(table.at[slots].get(mode="clip") for table in tables)
        first = tuple(begin[0] for begin in begins)
        record = jax.eval_shape(self.kernel.packed_step, first, rows[0, :-1])[1]
        blank = jax.tree.map(lambda x: jnp.zeros((len(rows), *x.shape), x.dtype), record)

        def body(i: Any, carry: Any) -> Any:
            state, ended, records = carry
            row = rows[i]
            fresh = tuple(begin[i] for begin in begins)
            state = tuple(jnp.where(row[-1] > 0, a, b) for a, b in zip(fresh, state, strict=True))
            state, record = self.kernel.packed_step(state, row[:-1])
            write = lambda all, one: jax.lax.dynamic_update_index_in_dim(all, one, i, 0)
            return state, jax.tree.map(write, ended, state), jax.tree.map(write, records, record)

        _, ended, records = jax.lax.fori_loop(0, count, body, (first, begins, blank))
        return _put(tables, ends, ended), records

    def _abreast(
        self,
        tables: Any,
        slots: Int[Array, " W"],
        ends: Int[Array, " W"],
        rows: Float[Array, "W width+1"],
        count: Int[Array, ""],
    ) -> tuple[Any, Any]:
        """One row each of `count` keys."""
        self.compilations += 1
        begins = tuple(table.at[slots].get(mode="clip") for table in tables)
        states, records = jax.vmap(self.kernel.packed_step)(begins, rows[:, :-1])
        return _put(tables, ends, states), records


def _put(tables: Any, slots: Any, vectors: Any) -> Any:
    return tuple(
        table.at[slots].set(vector, mode="drop", unique_indices=False)
        for table, vector in zip(tables, vectors, strict=True)
    )


def _groups(layout: Layout) -> Any:
    return zip(layout.dtypes, layout.sizes, strict=True)


def blank(layout: Layout, devices: int, slots: int) -> list[np.ndarray]:
    """Tables on the host without anything in them."""
    return [np.zeros((devices, slots, n), d) for d, n in _groups(layout)]


def grown(table: Any, slots: int) -> np.ndarray:
    """A table (D, C, n) on the host, with more slots."""
    table = np.asarray(table)
    more = np.zeros((table.shape[0], slots - table.shape[1], table.shape[2]), table.dtype)
    return np.concatenate([table, more], axis=1)
