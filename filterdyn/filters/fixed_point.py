"""Beliefs that follow from each other, row by row, as a fixed point: its error and its derivative."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from filterdyn.beliefs import Gaussian
from filterdyn.filters.prefix import prefix_products
from filterdyn.linalg import PSD, mm, mv, with_derivative_of


class Change(NamedTuple):
    """A small change of beliefs."""

    mean: Float[Array, "T dx"]
    matrix: Float[Array, "T dx dx"]


class AbstractResponse(eqx.Module):
    """How a belief answers to a small change of the one that it follows from, in every row. It carries
    no derivative."""

    @abc.abstractmethod
    def accumulate(self, defect: Change, reverse: bool = False) -> Change:
        """The change of every belief when `defect` is added to each: a linear recurrence, solved by
        an associative scan."""


class LinearResponse(AbstractResponse):
    """That of a linear Gaussian model: dm' = M (dm + dP w) and dP' = M dP M^T."""

    slope: Float[Array, "T dx dx"]
    tilt: Float[Array, "T dx"]

    def accumulate(self, defect: Change, reverse: bool = False) -> Change:
        pair = tuple[LinearResponse, Change]

        def combine(i: pair, j: pair) -> pair:
            (m, w), (mean, matrix) = (j[0].slope, j[0].tilt), i[1]
            both = LinearResponse(mm(m, i[0].slope), i[0].tilt + mv(i[0].slope.T, w))
            moved = Change(mv(m, mean + mv(matrix, w)), mm(mm(m, matrix), m.T))
            return both, Change(moved.mean + j[1].mean, moved.matrix + j[1].matrix)

        return prefix_products(combine, (self, defect), reverse)[1]


class FullResponse(AbstractResponse):
    """That of any filter: the Jacobian in the entries of the mean and the lower triangle of the
    covariance, n = dx (dx + 3) / 2 in number."""

    jacobian: Float[Array, "T n n"]

    def accumulate(self, defect: Change, reverse: bool = False) -> Change:
        pair = tuple[Array, Array]

        def combine(i: pair, j: pair) -> pair:
            return mm(j[0], i[0]), mv(j[0], i[1]) + j[1]

        rows = (self.jacobian, packed(defect))
        return unpacked(prefix_products(combine, rows, reverse)[1], defect.mean.shape[-1])


def packed(change: Change) -> Float[Array, "*T n"]:
    """The mean and the lower triangle of the covariance in one vector."""
    i, j = np.tril_indices(change.mean.shape[-1])
    return jnp.concatenate([change.mean, change.matrix[..., i, j]], axis=-1)


def unpacked(vector: Float[Array, "*T n"], dx: int) -> Change:
    """What `packed` has packed."""
    i, j = np.tril_indices(dx)
    index = np.zeros((dx, dx), int)
    index[i, j] = index[j, i] = np.arange(len(i))
    return Change(vector[..., :dx], vector[..., dx + index])


def defect_of(sweep: Callable[[Gaussian], Gaussian], beliefs: Gaussian) -> Change:
    """How far one step in every row is from the beliefs it should lead to."""
    after = sweep(beliefs)
    return Change(after.mean - beliefs.mean, after.spread.matrix - beliefs.spread.matrix)


def with_derivative_of_fixed_point(
    beliefs: Gaussian,
    sweep: Callable[[Gaussian], Gaussian],
    response: AbstractResponse,
    good: Bool[Array, " T"],
    reverse: bool = False,
) -> Gaussian:
    """`beliefs`, a fixed point of `sweep`, with its first and second derivatives.

    Of beliefs = sweep(beliefs, parameters) Newton's step beliefs + (I - sweep')^-1 (sweep(beliefs) -
    beliefs) is right to first order in a change of the parameters, a second one with the same sweep' to
    second order; the inverse is `response.accumulate`. The derivative is thus as accurate as that of a single
    step, whatever way the values were found. Where nothing is differentiated this is dead code. Rows
    that are not `good` have none.
    """

    def masked(x: Array) -> Array:
        return jnp.where(good.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0)

    response = jax.tree.map(masked, response)
    spread = beliefs.spread
    for _ in range(2):
        defect = defect_of(sweep, beliefs)
        change = response.accumulate(Change(*map(masked, defect)), reverse)
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
