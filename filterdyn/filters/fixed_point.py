"""Beliefs that follow from each other, row by row, as a fixed point: its error and its derivative."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from filterdyn.beliefs import Gaussian
from filterdyn.filters.prefix import prefix_products
from filterdyn.linalg import PSD, mm, mv, with_derivative_of


class Change(NamedTuple):
    """A small change of beliefs."""

    mean: Float[Array, "T dx"]
    matrix: Float[Array, "T dx dx"]


class Response(NamedTuple):
    """How a belief answers to a small change of the one that it follows from:
    dm' = M (dm + dP w) and dP' = M dP M^T. It carries no derivative."""

    slope: Float[Array, "T dx dx"]
    tilt: Float[Array, "T dx"]


def accumulate(response: Response, defect: Change, reverse: bool = False) -> Change:
    """The change of every belief when `defect` is added to each: a linear recurrence, solved by
    an associative scan."""

    def combine(i: tuple[Response, Change], j: tuple[Response, Change]) -> tuple[Response, Change]:
        (m, w), (mean, matrix) = j[0], i[1]
        both = Response(mm(m, i[0].slope), i[0].tilt + mv(i[0].slope.T, w))
        moved = Change(mv(m, mean + mv(matrix, w)), mm(mm(m, matrix), m.T))
        return both, Change(moved.mean + j[1].mean, moved.matrix + j[1].matrix)

    return prefix_products(combine, (response, defect), reverse)[1]


def defect_of(sweep: Callable[[Gaussian], Gaussian], beliefs: Gaussian) -> Change:
    """How far one step in every row is from the beliefs it should lead to."""
    after = sweep(beliefs)
    return Change(after.mean - beliefs.mean, after.spread.matrix - beliefs.spread.matrix)


def with_derivative_of_fixed_point(
    beliefs: Gaussian,
    sweep: Callable[[Gaussian], Gaussian],
    response: Response,
    good: Bool[Array, " T"],
    reverse: bool = False,
) -> Gaussian:
    """`beliefs`, a fixed point of `sweep`, with its first and second derivatives.

    Of beliefs = sweep(beliefs, parameters) Newton's step beliefs + (I - sweep')^-1 (sweep(beliefs) -
    beliefs) is right to first order in a change of the parameters, a second one with the same sweep' to
    second order; the inverse is `accumulate`. The derivative is thus as accurate as that of a single
    step, whatever way the values were found. Where nothing is differentiated this is dead code. Rows
    that are not `good` have none.
    """

    def masked(x: Array) -> Array:
        return jnp.where(good.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0)

    response = Response(*map(masked, response))
    spread = beliefs.spread
    for _ in range(2):
        defect = defect_of(sweep, beliefs)
        change = accumulate(response, Change(*map(masked, defect)), reverse)
        mean = with_derivative_of(beliefs.mean, beliefs.mean + change.mean)
        matrix = with_derivative_of(spread.matrix, beliefs.spread.matrix + change.matrix)
        beliefs = Gaussian(mean, spread=PSD(spread.factor, matrix))
    return beliefs


def is_far(
    change: Change, belief: Gaussian, size: Float[Array, "T dx"], tolerance: float
) -> Bool[Array, " T"]:
    """Is a change of beliefs (T,) beyond `tolerance` in their standard deviations? `size` (T, dx) is
    that of the numbers they were computed from: nothing is held better than that many roundings."""
    eps = 16 * jnp.finfo(size.dtype).eps
    factor = belief.spread.root
    sd = jnp.sqrt((factor * factor).sum(-1))
    mean = jnp.abs(change.mean) > tolerance * sd + eps * (size + jnp.abs(belief.mean))
    unit = sd + eps / tolerance**0.5 * size
    matrix = jnp.abs(change.matrix) > tolerance * unit[:, :, None] * unit[:, None, :]
    finite = jnp.isfinite(change.mean).all(-1) & jnp.isfinite(change.matrix).all((-2, -1))
    return mean.any(-1) | matrix.any((-2, -1)) | ~finite


def distance(change: Change, belief: Gaussian, size: Float[Array, "T dx"]) -> Float[Array, " T"]:
    """How large a change of beliefs (T,) is in their standard deviations, roundings apart; infinite if
    it is not finite. `size` as in `is_far`."""
    eps = 16 * jnp.finfo(size.dtype).eps
    factor = belief.spread.root
    sd = jnp.sqrt((factor * factor).sum(-1))
    held = size + jnp.abs(belief.mean)
    mean = jnp.maximum(jnp.abs(change.mean) - eps * held, 0.0) / (sd + eps * held + tiny(sd))
    unit = sd + eps**0.75 * size + tiny(sd)
    matrix = jnp.abs(change.matrix) / (unit[:, :, None] * unit[:, None, :])
    found = jnp.maximum(mean.max(-1), matrix.max((-2, -1)))
    return jnp.where(jnp.isfinite(found), found, jnp.inf)


def tiny(x: Array) -> float:
    """A number that divides zero to zero."""
    return float(jnp.finfo(x.dtype).tiny) ** 0.5
