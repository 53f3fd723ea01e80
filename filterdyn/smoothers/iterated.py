"""Smoothing again, linearised about the smoothed states."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Plan
from filterdyn.filters.anchored import anchored_model, anchored_rows, rule_of
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.fixed_point import Change, distance
from filterdyn.filters.kalman import KalmanFilter
from filterdyn.filters.parallel import ParallelKalmanFilter
from filterdyn.filters.parallel_gaussian import ParallelGaussianFilter
from filterdyn.filters.rows import Row
from filterdyn.linalg import PSD
from filterdyn.linearization import Affine
from filterdyn.model import StateSpaceModel
from filterdyn.smoothers.rauch_tung_striebel import Pass
from filterdyn.status import Status


class Smoothed(NamedTuple):
    """One pass over the series, forwards and back. The beliefs are those at `t0` and in all rows."""

    beliefs: Gaussian
    lag_one_covs: Float[Array, "T dx dx"]
    log_likelihood: Float[Array, ""]
    statuses: Int[Array, " T"]


def with_start(forward: Pass, start: Gaussian) -> Pass:
    """The belief at `t0` as a row before the first, which nothing was measured in."""
    n, dtype = len(start.mean), start.mean.dtype
    still = Affine(start.mean, jnp.eye(n, dtype=dtype), PSD.zeros(n, dtype))
    row = Pass(start, start, still)
    return jax.tree.map(lambda x0, x: jnp.concatenate([x0[None], x]), row, forward)


def affine_filter(filter: AbstractFilter) -> AbstractFilter:
    """The filter that goes over a model made affine for `filter`."""
    if isinstance(filter, ParallelKalmanFilter):
        return filter
    if isinstance(filter, ParallelGaussianFilter):
        return ParallelKalmanFilter(filter.tolerance)
    square_root = getattr(filter, "square_root", True)
    return KalmanFilter(square_root=square_root, outliers=getattr(filter, "outliers", None))


def smooth_again(
    filter: AbstractFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    first: Smoothed,
    passes: int,
    damping: float,
    one_pass: Callable[[AbstractFilter, StateSpaceModel, Row, Plan], Smoothed],
) -> tuple[Smoothed, Float[Array, " passes"]]:
    """`passes` more of them, and how far the means that each found are from those it was linearised at
    (in standard deviations, at most).

    Iterated posterior linearisation (García-Fernández, Svensson, Särkkä 2017): every move is
    linearised at the smoothed belief in the row that is left, every measurement at that in its own
    row, and the affine model is filtered and smoothed from the start. By Taylor expansion these are
    Gauss-Newton steps towards the most probable path (Bell 1994). With `damping` only part of a step is
    taken. A failure stays.
    """
    rule, table = rule_of(filter), model.dynamics.tabulate(plan)
    affine, along = anchored_model(model), affine_filter(filter)

    def body(carry: tuple[Smoothed, Array], _: Any) -> tuple[tuple[Smoothed, Array], Array]:
        last, held = carry
        means = last.beliefs.mean + damping * (held - last.beliefs.mean)
        at = Gaussian(means, spread=last.beliefs.spread)
        left, here = jax.tree.map(lambda x: x[:-1], at), jax.tree.map(lambda x: x[1:], at)
        anchored = anchored_rows(rule, model, table, rows, left, here)
        new = one_pass(along, affine, anchored, Plan())
        failed = last.statuses[-1] != Status.OK
        new = new._replace(statuses=jnp.where(failed, last.statuses, new.statuses))
        return (new, means), moved(at, new.beliefs)

    body = jax.checkpoint(body, prevent_cse=False)
    (found, _), changes = jax.lax.scan(body, (first, first.beliefs.mean), None, length=passes)
    return found, changes


def moved(old: Gaussian, new: Gaussian) -> Float[Array, ""]:
    """How far apart the means are, in standard deviations, at most."""
    change = Change(new.mean - old.mean, jnp.zeros_like(new.spread.matrix))
    return distance(change, new, jnp.zeros_like(new.mean)).max()
