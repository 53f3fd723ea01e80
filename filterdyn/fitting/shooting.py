"""Multiple shooting: a long simulation as short ones that must meet."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from filterdyn.dynamics import Plan
from filterdyn.filters.base import AbstractFilter
from filterdyn.fitting.objectives import observed_mean
from filterdyn.fitting.passes import follow, free_path
from filterdyn.fitting.records import Part, Windows, stacked
from filterdyn.model import StateSpaceModel


class Segments(NamedTuple):
    """Parts (S, L + 1, ...) that start from states of their own; the last row of each is the first of
    the next one, where `meets` says that there is one."""

    parts: Part
    meets: Float[Array, " S"]
    #: How large the states are, and the measurements.
    scale: Float[Array, " dx"]
    spread: Float[Array, ""]


def segments_of(
    model: StateSpaceModel, parts: Sequence[Part], plan: Plan, filter: AbstractFilter, length: int
) -> tuple[Segments, Float[Array, "S dx"]]:
    """The segments, and their first states as the filter estimates them."""
    pieces, meets, starts, paths, seen = [], [], [], [], []
    for part in parts:
        count = len(part.rows.time)
        path = follow(model, part.rows, plan, filter, None, None, lambda r: r.filtered.mean)[1]
        whole = Windows(part, jnp.zeros(1, jnp.int32))
        for start in range(0, count, length):
            end = min(start + length + 1, count)
            pieces.append(whole.at(jnp.int32(start), end - start))
            meets.append(float(end == start + length + 1))
            starts.append(path[start])
        paths.append(path)
        seen.append(part.rows.observation)
    scale = jnp.nanstd(jnp.concatenate(paths), axis=0)
    scale = jnp.where(scale > 0, scale, 1.0)
    spread = jnp.nanvar(jnp.concatenate(seen))
    dtype = scale.dtype
    segments = Segments(stacked(pieces), jnp.asarray(meets, dtype), scale, spread)
    return segments, jnp.stack(starts)


def shooting_loss(
    model: StateSpaceModel,
    segments: Segments,
    starts: Float[Array, "S dx"],
    plan: Plan,
    filter: AbstractFilter,
    continuity: float,
) -> Float[Array, ""]:
    """Mean squared error of the segments, and `continuity` times the mean squared gap between them, each
    in units of how large the measurements and the states are."""
    plan = Plan(plan.rows, plan.gaps, plan.most)

    def one(part: Part, start: Array, meets: Array) -> tuple[Array, Array, Array]:
        launched = StateSpaceModel(
            dist.Delta(start, event_dim=1), model.dynamics, model.observation
        )
        y = part.rows.observation
        mean, fine = free_path(launched, part.rows, plan, filter, None, 0, None)
        # The last row belongs to the next segment.
        own = (jnp.arange(len(y)) < len(y) - 1) | (meets == 0)
        missing = jnp.isnan(y) | ~own[:, None]
        errors = jnp.where(missing, 0.0, y - observed_mean(model, part.rows, mean))
        return jnp.where(fine, jnp.sum(errors**2), jnp.inf), jnp.sum(~missing), mean[-1]

    squares, counts, ends = jax.vmap(one)(segments.parts, starts, segments.meets)
    gaps = (ends[:-1] - starts[1:]) / segments.scale
    gaps = jnp.where(segments.meets[:-1, None] > 0, gaps, 0.0)
    joints = jnp.maximum(segments.meets.sum() * starts.shape[1], 1.0)
    apart = segments.spread * jnp.sum(gaps**2) / joints
    return squares.sum() / counts.sum() + continuity * apart
