"""Many series of one model on one clock."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from filterdyn._checks import is_traced
from filterdyn.dynamics import Plan
from filterdyn.filters import linear
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.running import run
from filterdyn.filters.scan import Record
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series

#: So many series go through the rows side by side: enough to fill vector registers, and few enough
#: for the loop to stay one kernel.
_TOGETHER = 64


def have_one_pattern(observations: Any) -> bool | None:
    """Do the series (..., T, dy) miss the same entries? `None` where that is not known on the host."""
    if is_traced(observations):
        return None
    missing = np.isnan(np.asarray(observations))
    missing = missing.reshape(-1, *missing.shape[-2:])
    return bool((missing == missing[:1]).all())


def have_one_clock(series: Series, t0: Any) -> bool:
    """Is it known on the host that the series of a batch have the same times and start together?"""
    if is_traced((series.times, series.gaps)) or np.ndim(t0) > 0:
        return False
    flat = lambda x: np.asarray(x).reshape(-1, x.shape[-1])
    return all((flat(x) == flat(x)[:1]).all() for x in (series.times, series.gaps))


def run_batch(
    filter: AbstractFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    keep: Callable[[Record], Any],
    one_clock: bool,
    one_pattern: bool | None,
) -> tuple[Float[Array, "*B"], Any]:
    """The log-likelihoods and what `keep` keeps of the series in `rows`, which have leading axes."""
    lead = rows.time.shape[:-1]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(lead) :]), rows)
    if one_clock:
        inputs = None if rows.input is None else (flat.input_from, flat.input)
        first = jax.tree.map(lambda x: x[0], flat)
        out = run_many(filter, model, first, plan, flat.observation, inputs, keep, one_pattern)
    else:
        out = eqx.filter_vmap(lambda rows: run(filter, model, rows, plan, keep)[1:])(flat)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), out)


def run_many(
    filter: AbstractFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    observations: Float[Array, "B T dy"],
    inputs: tuple[Array, Array] | None,
    keep: Callable[[Record], Any],
    one_pattern: bool | None,
) -> tuple[Float[Array, " B"], Any]:
    """The log-likelihoods and what `keep` keeps, with leading axes (B, T), of series that share
    everything in `rows` but the observations and, where they are given, the `inputs` before and in
    every row (B, T, du).

    The covariances of a linear Gaussian model are computed once for all, if the series miss the same
    entries; when that is not known beforehand both ways are compiled and one is gone.
    """

    def one(y: Array, inputs: Any) -> Any:
        own = rows._replace(observation=y)
        if inputs is not None:
            own = own._replace(input_from=inputs[0], input=inputs[1])
        return run(filter, model, own, plan, keep)[1:]

    def apart() -> Any:
        return eqx.filter_vmap(one)(observations, inputs)

    def together() -> Any:
        return _run_together(filter, model, rows, plan, observations, inputs, keep)

    if len(observations) == 1:
        first = jax.tree.map(lambda x: x[0], (observations, inputs))
        out = one(*first)
        return jax.tree.map(lambda x: x[None], out)
    if one_pattern is False or not linear.treats(filter, model):
        return apart()
    if one_pattern:
        return together()
    missing = jnp.isnan(observations)
    return jax.lax.cond((missing == missing[:1]).all(), together, apart)


def _run_together(
    filter: Any,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    observations: Float[Array, "B T dy"],
    inputs: Any,
    keep: Callable[[Record], Any],
) -> Any:
    count = len(observations)
    size = min(count, _TOGETHER)
    chunks = -(-count // size)

    def split(x: Array) -> Array:
        padded = jnp.concatenate([x, jnp.repeat(x[:1], chunks * size - count, axis=0)])
        return padded.reshape(chunks, size, *x.shape[1:])

    def one_chunk(parts: Any) -> Any:
        y, inputs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), parts)
        own = rows._replace(observation=y)
        if inputs is not None:
            own = own._replace(input_from=inputs[0], input=inputs[1])
        _, total, records = linear.run_linear(filter, model, own, plan, lambda record: record)
        return total, keep(_each(records, size))

    out = jax.lax.map(one_chunk, jax.tree.map(split, (observations, inputs)))
    return jax.tree.map(lambda x: x.reshape(chunks * size, *x.shape[2:])[:count], out)


def _each(records: Record, size: int) -> Record:
    """Records (T, ...) whose means have a trailing axis, as those of every series (S, T, ...). (Nobody
    asks for the moves.)"""
    own = lambda x: jnp.moveaxis(x, -1, 0)
    seen = records.fine

    def shared(tree: Any) -> Any:
        def copy(x: Array) -> Array:
            mine = jnp.moveaxis(seen, -1, 0).reshape(size, len(x), *[1] * (x.ndim - 1))
            return jnp.where(mine, x[None], jnp.nan)

        return jax.tree.map(copy, tree)

    def belief(b: Any) -> Any:
        return eqx.tree_at(lambda b: (b.mean, b.spread), b, (own(b.mean), shared(b.spread)))

    return Record(
        belief(records.predicted),
        belief(records.filtered),
        records.move,
        own(records.innovation),
        shared(records.innovation_cov),
        own(records.standardized),
        None,
        own(records.log_likelihood),
        own(records.status),
        own(records.fine),
    )
