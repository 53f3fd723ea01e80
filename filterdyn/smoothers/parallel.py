"""The Rauch-Tung-Striebel smoother, all rows at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from filterdyn.beliefs import Gaussian
from filterdyn.filters.fixed_point import (
    Change,
    LinearResponse,
    is_far,
    with_derivative_of_fixed_point,
)
from filterdyn.filters.prefix import prefix_products
from filterdyn.linalg import PSD, congruence, mm, mv, triangularize
from filterdyn.smoothers.rauch_tung_striebel import Pass, backward_regression, reversed_steps


class BackwardElement(NamedTuple):
    """x_k given x_{j+1}: its error about the filtered mean is `gain` times that of x_{j+1}, plus
    `shift`, plus N(0, rest rest^T)."""

    gain: Float[Array, "dx dx"]
    shift: Float[Array, " dx"]
    rest: Float[Array, "dx dx"]


def combine(later: BackwardElement, earlier: BackwardElement) -> BackwardElement:
    """Back over the later rows, then over the earlier ones."""
    return BackwardElement(
        mm(earlier.gain, later.gain),
        mv(earlier.gain, later.shift) + earlier.shift,
        triangularize(jnp.concatenate([mm(earlier.gain, later.rest), earlier.rest], axis=1)),
    )


def smooth_in_parallel(
    forward: Pass, tolerance: float
) -> tuple[Gaussian, Float[Array, "T_minus_1 dx dx"], Bool[Array, ""]]:
    """As `smooth_backward`, and whether one backward step in every row confirms it.

    Gains that grow from row to row (a move that forgets, with little noise) multiply to products in
    which every digit is lost, so the scan is checked and differentiated as that of the filter is.
    """
    whole = jnp.isfinite(forward.filtered.mean).all()
    if forward.filtered.mean.shape[0] == 1:
        return forward.filtered, jnp.zeros((0, *forward.filtered.cov.shape[1:])), whole
    # A failed row is NaN, and so would derivatives be.
    forward = jax.tree.map(lambda x: jnp.where(whole, x, 0.0), forward)
    steps, last = reversed_steps(forward)
    regressions = jax.vmap(backward_regression)(steps)
    gains = regressions.gain

    def back(after: Gaussian) -> Gaussian:
        """One step from every row to the one before it."""
        difference = after.mean - steps.predicted.mean
        mean = steps.filtered.mean + jax.vmap(mv)(gains, difference)
        return Gaussian(mean, spread=jax.vmap(congruence)(gains, after.spread, regressions.rest))

    def after(beliefs: Gaussian) -> Gaussian:
        """The belief that each row follows from, of rows 0 .. T - 2."""
        return jax.tree.map(lambda x, end: jnp.concatenate([x[1:], end[None]]), beliefs, last)

    def everything(beliefs: Gaussian) -> Gaussian:
        return jax.tree.map(lambda x, end: jnp.concatenate([x, end[None]]), beliefs, last)

    nothing = jnp.zeros_like(last.cov)
    shifts = jax.vmap(mv)(gains, forward.filtered.mean[1:] - forward.predicted.mean[1:])
    ends = BackwardElement(nothing, jnp.zeros_like(last.mean), last.spread.root)
    rows = BackwardElement(gains, shifts, regressions.rest.root)
    elements = jax.tree.map(lambda x, end: jnp.concatenate([x, end[None]]), rows, ends)
    products = prefix_products(combine, stop_gradient(elements), reverse=True)
    factors = products.rest[:-1]
    smoothed = Gaussian(
        stop_gradient(steps.filtered.mean) + products.shift[:-1],
        spread=PSD(factors, jax.vmap(lambda s: mm(s, s.T))(factors)),
    )

    # Values: one step from the scan's beliefs, and what the scan's errors do to it.
    stepped = stop_gradient(back(after(smoothed)))
    response = stop_gradient(LinearResponse(gains, jnp.zeros_like(shifts)))
    defect = Change(stepped.mean - smoothed.mean, stepped.spread.matrix - smoothed.spread.matrix)
    error = response.accumulate(defect, reverse=True)
    carried = Change(error.mean - defect.mean, error.matrix - defect.matrix)
    root = forward.filtered.spread.root[:-1]
    size = jnp.sqrt((root * root).sum(-1))
    far = is_far(defect, stepped, size, tolerance) | is_far(carried, stepped, size, tolerance)
    # What the regressions explain and what they leave is the filtered covariance.
    explained = jax.vmap(congruence)(gains, regressions.next, regressions.rest)
    regressed = stop_gradient(explained.matrix - steps.filtered.spread.matrix)
    far = far | is_far(Change(jnp.zeros_like(shifts), regressed), steps.filtered, size, tolerance)
    fine = whole & ~stop_gradient(far).any()

    good = jnp.broadcast_to(fine, far.shape)
    safe = jax.tree.map(lambda x: jnp.where(fine, x, 0.0), smoothed)
    beliefs = with_derivative_of_fixed_point(
        safe, lambda beliefs: back(after(beliefs)), response, good, reverse=True
    )
    result = everything(back(after(beliefs)))
    lag_one = jax.vmap(lambda cov, gain: mm(cov, gain.T))(result.cov[1:], gains)
    result, lag_one = jax.tree.map(lambda x: jnp.where(fine, x, jnp.nan), (result, lag_one))
    return result, lag_one, fine
