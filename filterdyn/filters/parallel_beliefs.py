"""The beliefs of all rows found at once: by one associative scan, or by several of them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.filters.anchored import anchored_model, anchored_rows, before
from filterdyn.filters.elements import Element, element, known, scan_elements
from filterdyn.filters.fixed_point import Change, distance
from filterdyn.filters.parallel import ParallelKalmanFilter
from filterdyn.filters.parallel_gaussian import ParallelGaussianFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.scan import State, advance, select, step
from filterdyn.linalg import PSD, mm
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status


def scanned(
    filter: ParallelKalmanFilter, model: StateSpaceModel, table: Any, start: Gaussian, rows: Row
) -> Gaussian:
    """The filtered beliefs in all rows of a linear Gaussian model. They carry no derivative."""
    origin = stop_gradient(start.mean)
    first = jax.tree.map(lambda x: x[0], rows)
    later = jax.tree.map(lambda x: x[1:], rows)
    begin = State(start, jnp.int32(Status.OK))
    filtered = step(filter, model, table, begin, first)[1].filtered
    elements = jax.tree.map(lambda x: x[None], stop_gradient(known(filtered, origin)))
    if rows.observation.shape[0] > 1:
        tail = jax.vmap(lambda row: element(filter, model, table, origin, row))(later)
        elements = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), elements, tail)
    return _beliefs(scan_elements(elements), origin)


def _beliefs(whole: Element, origin: Array) -> Gaussian:
    return Gaussian(origin + whole.b, spread=PSD(whole.u, jax.vmap(lambda u: mm(u, u.T))(whole.u)))


#: Iterations go on until they change this much less than the tolerance.
_MARGIN = 1e-3
#: Rows in a stretch of the first guess, and how often it is gone over.
_STRETCH, _ROUNDS = 32, 4


def iterated(
    filter: ParallelGaussianFilter, model: StateSpaceModel, table: Any, start: Gaussian, rows: Row
) -> tuple[Gaussian, Int[Array, ""]]:
    """The filtered beliefs in all rows of any model, and a status. They carry no derivative.

    Every move is linearised at the filtered belief in the row before, every measurement at the
    predicted one, and the affine model is filtered by an associative scan, again and again. The fixed
    point is the sequential filter. Row k is right after k + 1 iterations at the latest, whatever
    becomes of later rows, because none depends on these.

    An affine model far from the truth can be arbitrarily wrong, so the first guess is made by the
    filter itself (`_guessed`).
    """

    def everything(start: Gaussian, rows: Row) -> tuple[Gaussian, Array]:
        return _iterated(filter, model, table, start, rows)

    # A loop of unknown length has no reverse mode, so nothing that it closes over may have a tangent.
    closed = eqx.filter_closure_convert(everything, start, rows)
    still = lambda tree: jax.tree.map(lambda x: stop_gradient(x) if eqx.is_array(x) else x, tree)
    return still(closed)(*still((start, rows)))


def _iterated(
    filter: ParallelGaussianFilter, model: StateSpaceModel, table: Any, start: Gaussian, rows: Row
) -> tuple[Gaussian, Int[Array, ""]]:
    affine, along = anchored_model(model), ParallelKalmanFilter()
    dtype = rows.observation.dtype
    tolerance = filter.tolerance_in(dtype)

    def sweep(predicted: Gaussian, filtered: Gaussian) -> tuple[Gaussian, Gaussian]:
        left = before(start, filtered)
        anchored = anchored_rows(filter.rule, model, table, rows, left, predicted)
        new = scanned(along, affine, None, start, anchored)

        def into(belief: Gaussian, row: Row) -> Gaussian:
            return advance(along, affine, None, State(belief, jnp.int32(Status.OK)), row)[0]

        return jax.vmap(into)(before(start, new), anchored), new

    def body(carry: Any) -> Any:
        (predicted, filtered), _, last, i = carry
        new = sweep(predicted, filtered)
        change = jnp.maximum(_change(predicted, new[0]), _change(filtered, new[1]))
        usable = jnp.isfinite(change)
        beliefs = jax.vmap(select)(usable, new, (predicted, filtered))
        return beliefs, last, change.max(), i + 1

    def unfinished(carry: Any) -> Array:
        _, previous, last, i = carry
        # At the level of roundings, changes do not become smaller.
        still = (last <= tolerance) & (last >= 0.5 * previous)
        return (i < filter.max_iterations) & ~(last <= _MARGIN * tolerance) & ~still

    infinity = jnp.asarray(jnp.inf, dtype)
    begin = (_guessed(filter, model, table, start, rows), infinity, infinity, jnp.int32(0))
    (_, filtered), _, last, _ = jax.lax.while_loop(unfinished, body, begin)
    converged = last <= tolerance
    status = jnp.where(converged, Status.OK, Status.ITERATIONS_NOT_CONVERGED)
    return filtered, status.astype(jnp.int32)


def _guessed(
    filter: ParallelGaussianFilter, model: StateSpaceModel, table: Any, start: Gaussian, rows: Row
) -> tuple[Gaussian, Gaussian]:
    """Predicted and filtered beliefs of a filter that has forgotten what came a hundred rows before.

    Stretches of 32 rows are filtered one row after the other, all stretches at once: first each from
    the start, then from where the stretch before has ended. After four rounds the first 128 rows are
    those of the sequential filter, and every other one has seen at least the 96 rows before it.
    """
    count = rows.observation.shape[0]
    stretches = -(-count // _STRETCH)
    length = min(count, _STRETCH)

    def fold(x: Array) -> Array:
        pad = jnp.repeat(x[-1:], stretches * length - count, axis=0)
        return jnp.concatenate([x, pad]).reshape(stretches, length, *x.shape[1:])

    def one(belief: Gaussian, row: Row) -> tuple[Gaussian, tuple[Gaussian, Gaussian]]:
        state, record = step(filter, model, table, State(belief, jnp.int32(Status.OK)), row)
        predicted = select(record.fine, record.predicted, state.belief)
        return state.belief, (predicted, state.belief)

    folded = jax.tree.map(fold, rows)
    along = jax.vmap(lambda begin, rows: jax.lax.scan(one, begin, rows))

    def again(carry: tuple[Gaussian, Any], _: Any) -> tuple[tuple[Gaussian, Any], None]:
        ends, beliefs = along(carry[0], folded)
        return (before(start, ends), beliefs), None

    begins = jax.tree.map(lambda x: jnp.broadcast_to(x, (stretches, *x.shape)), start)
    shapes = jax.eval_shape(along, begins, folded)[1]
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (_, beliefs), _ = jax.lax.scan(again, (begins, nothing), None, length=_ROUNDS)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], beliefs)


def _change(old: Gaussian, new: Gaussian) -> Float[Array, " T"]:
    change = Change(new.mean - old.mean, new.spread.matrix - old.spread.matrix)
    root = new.spread.root
    return distance(change, new, jnp.sqrt((root * root).sum(-1)))
