"""The beliefs of a parallel scan held against the filter's own step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Int

from filterdyn.beliefs import Gaussian
from filterdyn.filters.fixed_point import (
    AbstractResponse,
    Change,
    FullResponse,
    LinearResponse,
    is_far,
    packed,
    unpacked,
)
from filterdyn.filters.scan import Record, first_failure
from filterdyn.linalg import PSD
from filterdyn.status import Status, failed_at


class Checked(NamedTuple):
    """Beliefs of all rows (T,), their status, and how a step answers to the belief before it. Nothing
    here carries a derivative."""

    beliefs: Gaussian
    response: AbstractResponse
    statuses: Int[Array, " T"]


def cross_check(
    steps: Callable[[Gaussian], Record],
    before: Callable[[Gaussian], Gaussian],
    beliefs: Gaussian,
    tolerance: float,
    linear: bool,
) -> Checked:
    """Refine the means of the scan's `beliefs`, and find the rows that are still too far from those of
    the sequential filter. `steps` makes one step in every row, from the beliefs that `before` gives.

    A step from the scan's belief should lead to the scan's next one. Where it does not, the difference
    is carried on through all later steps, since two errors below the tolerance may add up to one above:
    that is the error of the scan. The means are moved by it once, because the scan holds covariances
    much better: its own means lose the digits that vague priors and precise sensors are apart. What the
    error does next time to the prediction, the update and the log-likelihood of the next row is the
    error of what is reported there; all to first order. A row where even the difference is too large,
    or anything is not finite, is refused too. `linear` says that the model is linear and Gaussian.
    """
    records, _, _, error = _compared(steps, stop_gradient(before(beliefs)), beliefs, linear)
    beliefs = Gaussian(beliefs.mean + error.mean, spread=beliefs.spread)
    records, response, push, error = _compared(
        steps, stop_gradient(before(beliefs)), beliefs, linear
    )

    shifted = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]), error)
    of_predicted, of_filtered, of_term = push(shifted.mean, shifted.matrix)
    filtered, predicted = records.filtered, records.predicted
    root = predicted.spread.root
    size = jnp.sqrt((root * root).sum(-1))
    far = is_far(_defect(records, beliefs), filtered, size, tolerance)
    far = far | is_far(of_filtered, filtered, size, tolerance)
    far = far | is_far(of_predicted, predicted, size, tolerance)
    term = jnp.abs(records.log_likelihood)
    far = far | ~(jnp.abs(of_term) <= tolerance * jnp.maximum(1.0, term))
    inaccurate = jnp.where(far, Status.PARALLEL_INACCURATE, Status.OK)
    statuses = _from_the_first_on(jax.vmap(first_failure)(records.status, inaccurate))
    return jax.tree.map(stop_gradient, Checked(beliefs, response, statuses))


def _defect(records: Record, beliefs: Gaussian) -> Change:
    after = records.filtered
    return Change(after.mean - beliefs.mean, after.spread.matrix - beliefs.spread.matrix)


def _compared(
    steps: Callable[[Gaussian], Record], held: Gaussian, beliefs: Gaussian, linear: bool
) -> tuple[Record, AbstractResponse, Callable[..., tuple[Change, Change, Array]], Change]:
    """A step in every row from `held`, how it answers to small changes (in short, and as a function to
    what is reported), and the error of `beliefs`."""

    def reported(mean: Array, matrix: Array) -> tuple[tuple[Change, Change, Array], Record]:
        r = steps(Gaussian(mean, spread=PSD(held.spread.factor, matrix)))
        moments = lambda belief: Change(belief.mean, belief.spread.matrix)
        return (moments(r.predicted), moments(r.filtered), r.log_likelihood), r

    _, push, records = jax.linearize(reported, held.mean, held.spread.matrix, has_aux=True)
    response = (_linear_response if linear else _full_response)(push, held)
    response, records = jax.tree.map(stop_gradient, (response, records))
    return records, response, push, response.accumulate(_defect(records, beliefs))


def _linear_response(push: Callable[..., Any], held: Gaussian) -> LinearResponse:
    still = jnp.zeros_like(held.spread.matrix)
    units = jnp.eye(held.mean.shape[1], dtype=held.mean.dtype)
    _, change, tilt = jax.vmap(lambda d: push(jnp.broadcast_to(d, held.mean.shape), still))(units)
    # The score of the mean, Phi^T H^T S^-1 (innovation), is the tilt.
    return LinearResponse(jnp.moveaxis(change.mean, 0, -1), jnp.moveaxis(tilt, 0, -1))


def _full_response(push: Callable[..., Any], held: Gaussian) -> FullResponse:
    count, dx = held.mean.shape

    def along(unit: Array) -> Array:
        change = unpacked(jnp.broadcast_to(unit, (count, *unit.shape)), dx)
        return packed(push(change.mean, change.matrix)[1])

    units = jnp.eye(dx * (dx + 3) // 2, dtype=held.mean.dtype)
    return FullResponse(jnp.moveaxis(jax.vmap(along)(units), 0, -1))


def _from_the_first_on(statuses: Int[Array, " T"]) -> Int[Array, " T"]:
    """The first status that is not `OK`, in its row and all later ones."""
    row = failed_at(statuses)
    after = (row >= 0) & (jnp.arange(len(statuses)) >= row)
    return jnp.where(after, statuses[row], Status.OK).astype(jnp.int32)
