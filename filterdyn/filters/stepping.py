"""One row at a time, whichever kind of filter."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from filterdyn.filters import sampling_scan, scan
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status

AnyFilter = AbstractFilter | AbstractSamplingFilter


def start(filter: AnyFilter, model: StateSpaceModel, dtype: jnp.dtype, key: Array | None) -> Any:
    """The state before any row."""
    if isinstance(filter, AbstractSamplingFilter):
        assert key is not None
        return sampling_scan.start(filter, model, dtype, key)
    return scan.State(filter.init(model, dtype), jnp.int32(Status.OK))


def step(
    filter: AnyFilter, model: StateSpaceModel, table: Any, state: Any, row: Row
) -> tuple[Any, Any]:
    """The next state and a record of the row."""
    if isinstance(filter, AbstractSamplingFilter):
        return sampling_scan.step(filter, model, table, state, row)
    return scan.step(filter, model, table, state, row)
