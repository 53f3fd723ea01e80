"""The compiled step: a packed state and a packed row to a packed state and a packed record."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from filterdyn.dynamics import Plan
from filterdyn.filters.results import alarm_of, parameters_of, squared_norm
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling_scan import FULL, SamplingState
from filterdyn.filters.scan import add, finite_term, select
from filterdyn.filters.stepping import AnyFilter, step
from filterdyn.filters.verbs import check_model
from filterdyn.model import StateSpaceModel
from filterdyn.online.packing import Layout
from filterdyn.online.unrolling import unrolled
from filterdyn.status import Status

#: Of a packed row: the time before, the gap, the time, the number of steps in the gap; then the
#: measurement, the input before and the input.
HEAD = 4


class Kernel:
    """One step of a filter for rows of `du` inputs (`None`: of none)."""

    def __init__(
        self, model: StateSpaceModel, filter: AnyFilter, du: int | None, dy: int, state: Layout
    ):
        self.model = model
        self.filter = filter
        self.du = du
        self.dy = dy
        self.state = state
        self.dtype = np.dtype(state.dtypes[0])
        self.width = HEAD + dy + 2 * (du or 0)
        #: How a record lies; known after the first trace.
        self.record: Any = None
        #: How often the step was traced, which is how often it was compiled.
        self.compilations = 0
        probe = model.dynamics.plan(np.zeros(1))
        #: Are steps counted on the host, where the gap is known in double precision?
        self.counts_steps = probe.rows is not None and probe.gaps is None
        self._most = probe.most if self.counts_steps else 0
        self.one = jax.jit(self._one)
        self.many = jax.jit(self._many)

    def number_of_steps(self, gaps: np.ndarray) -> np.ndarray:
        if not self.counts_steps:
            return np.zeros(1)
        return np.asarray(self.model.dynamics.plan(gaps).rows)

    def traced(self, vectors: Any, row: Row, most: int) -> tuple[Any, Any]:
        """The step inside somebody else's trace."""
        (state, total, lost), record = self._advance(vectors, row, most)
        return self.state.pack((state, total, lost)), self._packed(record)

    def packed_step(self, vectors: Any, row: Float[Array, " width"]) -> tuple[Any, Any]:
        """The step, to be mapped or scanned."""
        end = HEAD + self.dy
        between = None if self.du is None else row[end : end + self.du]
        now = None if self.du is None else row[end + self.du :]
        steps = row[3].astype(jnp.int32) if self.counts_steps else None
        unpacked = Row(
            row[0], row[1], between, row[2], now, row[HEAD:end], jnp.int32(Status.OK), steps
        )
        return self.traced(vectors, unpacked, self._most)

    def _one(self, vectors: Any, row: Any) -> tuple[Any, Any]:
        self.compilations += 1
        step = self.packed_step if jax.default_backend() != "cpu" else unrolled(self.packed_step)
        return step(vectors, row)

    def _many(self, vectors: Any, rows: Any, count: Any) -> tuple[Any, Any]:
        """The first `count` rows."""
        self.compilations += 1

        def body(vectors: Any, at: Any) -> Any:
            row, i = at
            new, record = self.packed_step(vectors, row)
            return select(i < count, new, vectors), record

        return jax.lax.scan(body, vectors, (rows, jnp.arange(rows.shape[0])))

    def _advance(self, vectors: Any, row: Row, most: int) -> tuple[Any, dict[str, Any]]:
        model = self.model
        check_model("OnlineFilter", model, jax.tree.map(lambda x: x[None], row))
        state, total, lost = self.state.unpack(vectors)
        table = model.dynamics.tabulate(Plan(most=most))
        new, record = step(self.filter, model, table, state, row)
        total, lost = add(total, lost, finite_term(record))
        sampled = isinstance(new, SamplingState)
        found = dict(
            mean=record.filtered.mean,
            cov=None if sampled and model.dx > FULL else record.filtered.cov,
            innovation=record.innovation,
            innovation_cov=None if sampled and self.dy > FULL else record.innovation_cov,
            # (A sum of no terms may come out as -0.)
            log_likelihood=jnp.where(record.log_likelihood == 0, 0.0, record.log_likelihood),
            nis=squared_norm(record.standardized),
            status=record.status,
            outlier_weights=None if sampled else record.weights,
            diagnostics=record.diagnostics if sampled else None,
            parameters=None if sampled else parameters_of(record.filtered),
            alarm=None if sampled else alarm_of(record.filtered),
        )
        return (new, total, lost), found

    def _packed(self, record: dict[str, Any]) -> Any:
        self.record = Layout.of(record)
        return self.record.pack(record)
