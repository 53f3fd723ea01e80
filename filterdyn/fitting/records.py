"""What a fit learns from: whole records, or windows that are drawn from them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from filterdyn._checks import as_numbers
from filterdyn.dynamics import Plan
from filterdyn.filters.rows import Row, is_complete, rows_of
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series


class Part(NamedTuple):
    """Rows of a series, and the true states in them where those are known (NaN where not)."""

    rows: Row
    states: Float[Array, "*B T dx"] | None


def experiments_of(name: str, series: Any, least: int) -> list[Series]:
    """One series or several, as a list.

    **Raises:** `TypeError` for anything else, `ValueError` for an empty list, and for a series that has
    no more rows than are not scored, or no measurement in those that are.
    """
    found = [series] if isinstance(series, Series) else list(series)
    if not found:
        raise ValueError(f"fit: `{name}` is empty; expected at least one fd.Series")
    for one in found:
        if not isinstance(one, Series) or one.times.ndim != 1:
            what = "a batch" if isinstance(one, Series) else type(one).__name__
            raise TypeError(f"fit: `{name}` holds {what}; expected fd.Series, or a list of them")
        if len(one) <= least:
            raise ValueError(
                f"fit: `burn_in` is {least} but a series in `{name}` has {len(one)} rows; expected "
                "fewer"
            )
        if np.isnan(np.asarray(one.observations[least:])).all():
            raise ValueError(f"fit: a series in `{name}` has no measurement after the burn-in")
    return found


def states_of(name: str, states: Any, experiments: Sequence[Series], dx: int) -> list[np.ndarray]:
    """The true states (T, dx) of every experiment.

    **Raises:** `ValueError` for shapes that disagree with the series, or where no state is known.
    """
    found = states if isinstance(states, (list, tuple)) else [states]
    if len(found) != len(experiments):
        raise ValueError(
            f"fit: `{name}` has {len(found)} entries for {len(experiments)} series; expected one each"
        )
    arrays = [as_numbers("fit", name, one).astype(float) for one in found]
    for array, one in zip(arrays, experiments, strict=True):
        if array.shape != (len(one), dx):
            raise ValueError(
                f"fit: `{name}` has shape {array.shape} for a series of {len(one)} rows; expected "
                f"({len(one)}, {dx})"
            )
        if np.isnan(array).all():
            raise ValueError(f"fit: `{name}` is NaN throughout; expected states where known")
    return arrays


def lay_out(
    model: StateSpaceModel, experiments: Sequence[Series], states: list[np.ndarray] | None
) -> tuple[list[Part], Plan]:
    """The rows of every experiment, under one plan for all of them."""
    dtype = model.dtype(*(one.observations for one in experiments))
    complete = all(is_complete(one.observations) for one in experiments)
    plan = model.dynamics.plan(np.concatenate([one.gaps for one in experiments]))
    plan = plan.cast(dtype, complete)
    parts, first = [], 0
    for i, one in enumerate(experiments):
        rows, _ = rows_of("fit", model, one, None, None, dtype)
        if plan.rows is not None:
            rows = rows._replace(plan=plan.rows[first : first + len(one)])
        known = None if states is None else jnp.asarray(states[i], dtype)
        parts.append(Part(rows, known))
        first += len(one)
    return parts, plan


def stacked(parts: Sequence[Part]) -> Part:
    """Several parts with a leading axis; shorter ones end in rows that change nothing."""
    longest = max(len(part.rows.time) for part in parts)

    def padded(part: Part) -> Part:
        extra = longest - len(part.rows.time)
        rows = jax.tree.map(
            lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], extra, axis=0)]), part.rows
        )
        later = jnp.arange(longest) >= longest - extra
        states = part.states
        if states is not None:
            states = jnp.concatenate([states, jnp.full((extra, states.shape[1]), jnp.nan)])
        return Part(_still(rows, later), states)

    return jax.tree.map(lambda *x: jnp.stack(x), *(padded(part) for part in parts))


def _still(rows: Row, where: Array) -> Row:
    """Rows in which, where it is said, time stands still and nothing is measured."""
    # The first row of every series has a gap of 0, and so has its entry in the plan.
    plan = None if rows.plan is None else jnp.where(where, rows.plan[0], rows.plan)
    return rows._replace(
        time_from=jnp.where(where, rows.time, rows.time_from),
        gap=jnp.where(where, 0.0, rows.gap),
        observation=jnp.where(where[:, None], jnp.nan, rows.observation),
        plan=plan,
    )


class Windows(NamedTuple):
    """All rows one after another, and where a window of so many rows may start."""

    part: Part
    starts: Int[Array, " S"]

    def draw(self, key: Array, count: int, length: int) -> Part:
        """`count` windows (count, length, ...) of equal chance, drawn with replacement."""
        starts = jax.random.choice(key, self.starts, (count,))
        return jax.vmap(lambda start: self.at(start, length))(starts)

    def at(self, start: Int[Array, ""], length: int) -> Part:
        """The window that starts in one row, to which nothing leads."""
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, length)
        part = jax.tree.map(cut, self.part)
        rows, entries = part.rows, self.part.rows.plan
        first = jnp.arange(length) == 0
        plan = rows.plan
        if plan is not None and entries is not None:
            plan = jnp.where(first, entries[0], plan)
        time_from = jnp.where(first, rows.time, rows.time_from)
        rows = rows._replace(time_from=time_from, gap=jnp.where(first, 0.0, rows.gap), plan=plan)
        return Part(rows, part.states)


def windows_of(parts: Sequence[Part], length: int, step: int = 1) -> Windows:
    """Windows of `length` rows, which never reach from one experiment into another.

    **Raises:** `ValueError` if no experiment is that long.
    """
    starts: list[int] = []
    first = 0
    for part in parts:
        count = len(part.rows.time)
        starts.extend(range(first, first + count - length + 1, step))
        first += count
    if not starts:
        raise ValueError(
            f"fit: `window` and `burn_in` ask for {length} rows but no series is that long; expected fewer"
        )
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    return Windows(joined, jnp.asarray(starts, jnp.int32))
