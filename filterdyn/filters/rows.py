"""A series as the rows of a scan: gaps formed on the host, inputs shifted, clocks checked."""

import warnings
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from filterdyn._checks import as_numbers, check_finite, float_array, is_traced
from filterdyn.dynamics import AbstractDynamics, Plan
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series
from filterdyn.status import Status

_warned_irregular = False


class Row(NamedTuple):
    """One row (or, with a leading axis T, all of them). `time_from` and `input_from` are those of the
    row before, `gap` is the time since; `status` says what is wrong with the clock."""

    time_from: Float[Array, ""]
    gap: Float[Array, ""]
    input_from: Float[Array, " du"] | None
    time: Float[Array, ""]
    input: Float[Array, " du"] | None
    observation: Float[Array, " dy"]
    status: Int[Array, ""]
    plan: Int[Array, ""] | None


def rows_of(
    owner: str, model: StateSpaceModel, series: Series, t0: Any, u0: Any, dtype: jnp.dtype
) -> tuple[Row, Plan]:
    """The rows of a series, or of a batch of them with its leading axis.

    **Raises:** `ValueError` for a `t0` after the first row, and for a `u0` that is missing or does not
    fit the inputs.
    """
    times, gaps = series.times, series.gaps
    if t0 is None:
        first = times[..., :1]
    else:
        first, gaps = _start(owner, t0, times, gaps)
    xp = jnp if is_traced((times, first)) else np
    time_from = xp.concatenate([first, times[..., :-1]], axis=-1)
    status = clock_status(times, gaps, series.coarse_clock)
    _warn_if_irregular(model.dynamics, gaps[..., 1:])
    inputs = None if series.inputs is None else series.inputs.astype(dtype)
    input_from = None
    if inputs is None and u0 is not None:
        raise ValueError(f"{owner}: `u0` is given but the series has no inputs")
    if inputs is not None:
        # Without a `t0` there is no gap, whatever a traced one may look like.
        gap = np.zeros(()) if t0 is None else gaps[..., 0]
        before = _first_input(owner, model.dynamics, inputs, gap, u0, dtype)
        input_from = jnp.concatenate([before[..., None, :], inputs[..., :-1, :]], axis=-2)
    plan = model.dynamics.plan(gaps)
    row = Row(
        jnp.asarray(time_from, dtype),
        jnp.asarray(gaps, dtype),
        input_from,
        jnp.asarray(times, dtype),
        inputs,
        series.observations.astype(dtype),
        status,
        plan.rows,
    )
    return row, plan.cast(dtype, is_complete(series.observations))


def is_complete(observations: Any) -> bool:
    """Is it known on the host that nothing is missing?"""
    return not is_traced(observations) and not np.isnan(np.asarray(observations)).any()


def _start(owner: str, t0: Any, times: Any, gaps: Any) -> tuple[Any, Any]:
    if not is_traced(t0):
        t0 = as_numbers(owner, "t0", t0).astype(np.float64)
    if jnp.shape(t0) not in ((), times.shape[:-1]):
        raise ValueError(
            f"{owner}: `t0` has shape {jnp.shape(t0)}; expected one number"
            f"{f' or shape {times.shape[:-1]}' if times.ndim > 1 else ''}"
        )
    if not is_traced((t0, times)):
        late = ~np.isfinite(t0) | (t0 > times[..., 0])
        if np.any(late):
            raise ValueError(
                f"{owner}: `t0` is {t0.tolist()!r} but the first row is at "
                f"{times[..., 0].tolist()!r}; the initial distribution cannot hold after it"
            )
    xp = jnp if is_traced((t0, times, gaps)) else np
    first = xp.broadcast_to(xp.asarray(t0)[..., None], (*times.shape[:-1], 1))
    gap = times[..., :1] - first
    return first, xp.concatenate([gap.astype(gaps.dtype), xp.asarray(gaps)[..., 1:]], axis=-1)


def _first_input(
    owner: str, dynamics: AbstractDynamics, inputs: Array, gap: Any, u0: Any, dtype: jnp.dtype
) -> Array:
    """The input over the `gap` between `t0` and the first row."""
    if u0 is not None:
        u0 = jnp.atleast_1d(float_array(owner, "u0", u0))
        check_finite(owner, "u0", u0)
        if u0.shape not in (inputs.shape[-1:], inputs[..., 0, :].shape):
            raise ValueError(
                f"{owner}: `u0` has shape {u0.shape}; expected ({inputs.shape[-1]},), as the inputs of "
                "one row"
            )
        return jnp.broadcast_to(u0.astype(dtype), inputs[..., 0, :].shape)
    early = is_traced(gap) or np.any(gap > 0)
    if early and not dynamics.is_linear:
        raise ValueError(
            f"{owner}: `u0` is missing: `t0` lies before the first row, and {type(dynamics).__name__} "
            "needs the input that held from there to the first row"
        )
    return jnp.zeros_like(inputs[..., 0, :])


def clock_status(times: Any, gaps: Any, coarse: bool) -> Int[Array, " T"]:
    """What no constructor could check because the clock is traced."""
    if not is_traced((times, gaps)):
        return jnp.zeros(times.shape, jnp.int32)
    bad = ~jnp.isfinite(times) | ~(gaps >= 0)
    status = jnp.where(bad, Status.TIMES_DECREASING, Status.OK)
    if coarse:
        largest = jnp.maximum(jnp.abs(times), jnp.abs(times - gaps))
        tick = largest * jnp.finfo(times.dtype).eps
        row = jnp.arange(times.shape[-1])
        unresolved = ((gaps > 0) & (gaps < 8 * tick)) | ((gaps == 0) & (tick >= 1) & (row > 0))
        status = jnp.where((status == Status.OK) & unresolved, Status.TIMES_UNRESOLVED, status)
    return status.astype(jnp.int32)


def _warn_if_irregular(dynamics: AbstractDynamics, gaps: Any) -> None:
    global _warned_irregular
    if dynamics.is_continuous or _warned_irregular or is_traced(gaps):
        return
    positive = np.asarray(gaps)[np.asarray(gaps) > 0]
    if positive.size and positive.max() > positive.min() * 1.001:
        _warned_irregular = True
        warnings.warn(
            f"{type(dynamics).__name__} makes one transition per row, but the gaps between rows range "
            f"from {positive.min():.6g} to {positive.max():.6g}. For irregular times use a LinearSDE, SDE or "
            "ODE, or put missing rows in between (this is said once).",
            stacklevel=4,
        )
