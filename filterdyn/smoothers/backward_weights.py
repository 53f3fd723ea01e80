"""Weights of the filtered particles of a row given those of the next one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Float

from filterdyn.dynamics import Interval
from filterdyn.filters.rows import Row
from filterdyn.model import StateSpaceModel
from filterdyn.smoothers.genealogy import Forward

#: (x_to, x_from) -> log p(x_to | x_from)
Density = Callable[[Array, Array], Array]


def later(tree: Any) -> Any:
    """Rows 1 .. T - 1."""
    return jax.tree.map(lambda x: x[1:], tree)


def earlier(tree: Any) -> Any:
    """Rows 0 .. T - 2."""
    return jax.tree.map(lambda x: x[:-1], tree)


def interval_before(row: Row, table: Any) -> Interval:
    """That between a row and the one before it. Over a gap of 0 nothing moves and no density is used; it
    is taken for 1."""
    gap = jnp.where(row.gap > 0, row.gap, 1)
    return Interval(row.time_from, gap, row.input_from, row.plan, table)


def density_before(model: StateSpaceModel, row: Row, table: Any) -> Density:
    """That of the move over the gap before `row`, for one pair."""
    interval = interval_before(row, table)
    return lambda x_to, x_from: model.dynamics.log_density(x_to, x_from, interval)


def of_pairs(
    density: Density, x_to: Float[Array, "M dx"], x_from: Float[Array, "N dx"]
) -> Float[Array, "M N"]:
    """The log-density of every pair."""
    return jax.vmap(lambda b: jax.vmap(lambda a: density(b, a))(x_from))(x_to)


def weighed_back(
    density: Density,
    x: Float[Array, "N dx"],
    log_w: Float[Array, " N"],
    x_next: Float[Array, "M dx"],
    after: Float[Array, " M"],
) -> Float[Array, " N"]:
    """Normalised log-weights given the whole series, from those `after` of the next row's particles:

    w_{k|T}^i = w_k^i sum_j w_{k+1|T}^j p(x_{k+1}^j | x_k^i) / sum_l w_k^l p(x_{k+1}^j | x_k^l).
    """
    joint = of_pairs(density, x_next, x) + log_w
    reached = logsumexp(joint, axis=1)
    # A particle that nothing leads to (its weight is zero) is left out.
    share = jnp.where(jnp.isfinite(reached), after - reached, -jnp.inf)
    new = logsumexp(joint + share[:, None], axis=0)
    return new - logsumexp(new)


def smoothed_log_weights(
    model: StateSpaceModel, forward: Forward, rows: Row, table: Any
) -> Float[Array, "T N"]:
    """Those of all rows."""

    def one(after: Array, at: Any) -> tuple[Array, Array]:
        x, log_w, x_next, row = at
        new = weighed_back(density_before(model, row, table), x, log_w, x_next, after)
        new = jnp.where(row.gap > 0, new, after)
        return new, new

    last = forward.log_weights[-1]
    beliefs = (forward.positions, forward.log_weights)
    at = (*earlier(beliefs), forward.positions[1:], later(rows))
    _, before = jax.lax.scan(one, last, at, reverse=True)
    return jnp.concatenate([before, last[None]])
