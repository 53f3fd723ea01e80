"""A state as the arrays and facts of a checkpoint."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from filterdyn.filters.stepping import AnyFilter
from filterdyn.model import StateSpaceModel
from filterdyn.online.checkpoint import Reader, fingerprint
from filterdyn.online.packing import Layout
from filterdyn.online.state import OnlineState

GENERATORS = ("threefry2x32", "rbg", "unsafe_rbg")


def arrays_of(state: Any) -> dict[str, np.ndarray]:
    """The leaves of a state, by name."""
    arrays = {"time": np.asarray(state.time, np.float64)}
    if state.input is not None:
        arrays["input"] = np.asarray(state.input)
    for dtype, vector in zip(state.layout.dtypes, state.vectors, strict=True):
        arrays[dtype] = np.asarray(vector)
    return arrays


def facts_of(model: StateSpaceModel, filter: AnyFilter, state: Any) -> dict[str, Any]:
    """What a state belongs to."""
    return dict(model=fingerprint(model, filter), generator=state.layout.generator)


@functools.lru_cache(maxsize=64)
def _layout(init: Callable[..., OnlineState], generator: str | None) -> Layout:
    old = generator is None
    key = jax.random.PRNGKey(0) if old else jax.random.key(0, impl=generator)
    return init(0.0, key=key).layout


def state_in(
    reader: Reader, model: StateSpaceModel, filter: AnyFilter, init: Callable[..., OnlineState]
) -> OnlineState:
    """The state in a file, which must be one of this model and this filter. Its layout is made here and
    not read."""
    reader.expect("model", fingerprint(model, filter))
    generator = reader.fact("generator")
    if generator not in (None, *GENERATORS):
        reader.refuse(f"its generator of random numbers is {generator!r}")
    layout = _layout(init, generator)
    return OnlineState(*parts_in(reader, layout), layout)


def parts_in(reader: Reader, layout: Layout) -> tuple[Any, Any, tuple[Any, ...]]:
    """The time, the input and the vectors of a state in a file."""
    vectors = tuple(
        jnp.asarray(reader.array(dtype, (size,), dtype))
        for dtype, size in zip(layout.dtypes, layout.sizes, strict=True)
    )
    time = reader.array("time", (), np.float64)[()]
    input = reader.array("input", None, layout.dtypes[0]) if reader.has("input") else None
    if not np.isfinite(time) or (input is not None and input.ndim != 1):
        reader.refuse("its time or its input is not one")
    return time, input, vectors
