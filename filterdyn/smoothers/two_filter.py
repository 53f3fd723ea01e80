"""Smoothing by two particle filters, one from each end of the series."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jax.nn import logsumexp
from jax.random import fold_in
from jaxtyping import Array, Bool, Float

from filterdyn.dynamics import Interval
from filterdyn.filters.particle import ParticleFilter
from filterdyn.filters.particle_weights import measurement_log_weights, normalize
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling import Measurement, propagate
from filterdyn.model import StateSpaceModel
from filterdyn.resampling import AbstractCopying, Systematic
from filterdyn.resampling.base import equal_log_weights, normalized
from filterdyn.smoothers.backward_weights import (
    density_before,
    earlier,
    later,
    of_pairs,
    weighed_back,
)
from filterdyn.smoothers.genealogy import Forward
from filterdyn.status import Status

#: Degrees of freedom of the Student-t distributions here.
_DF = 5.0


class _Link(NamedTuple):
    """What the forward filter says about a row and the next: the prediction of the next, and the linear
    regression of the state on the next one, x = centre + slope (x' - ahead) + rest."""

    ahead: Float[Array, " dx"]
    ahead_factor: Float[Array, "dx dx"]
    centre: Float[Array, " dx"]
    slope: Float[Array, "dx dx"]
    rest_factor: Float[Array, "dx dx"]


def _student(mean: Float[Array, " dx"], factor: Float[Array, "dx dx"]) -> dist.Distribution:
    """Of the covariance L L^T."""
    scale = factor * ((_DF - 2) / _DF) ** 0.5
    return dist.MultivariateStudentT(_DF, mean, scale, validate_args=False)


def _factor(cov: Float[Array, "dx dx"], like: Float[Array, "dx dx"]) -> Float[Array, "dx dx"]:
    """The Cholesky factor of a covariance that may be singular next to that of `like`."""
    least = 10 * jnp.finfo(cov.dtype).eps ** 0.5 * jnp.diagonal(like)
    return jnp.linalg.cholesky(cov + jnp.diag(least + jnp.finfo(cov.dtype).tiny))


def _moments(
    x: Float[Array, "N dx"], w: Float[Array, " N"]
) -> tuple[Float[Array, " dx"], Float[Array, "N dx"], Float[Array, "dx dx"]]:
    """Mean, distances from it and covariance."""
    mean = w @ x
    a = x - mean
    return mean, a, (w[:, None] * a).T @ a


def _link(x: Float[Array, "N dx"], log_w: Float[Array, " N"], moved: Float[Array, "N dx"]) -> _Link:
    w = normalized(log_w)
    centre, a, cov = _moments(x, w)
    ahead, b, ahead_cov = _moments(moved, w)
    factor = _factor(ahead_cov, ahead_cov)
    solve = jax.scipy.linalg.solve_triangular
    white = solve(factor, (w[:, None] * b).T @ a, lower=True)
    slope = solve(factor.T, white, lower=False).T
    return _Link(ahead, factor, centre, slope, _factor(cov - white.T @ white, cov))


def smoothed_by_two_filters(
    filter: ParticleFilter,
    model: StateSpaceModel,
    forward: Forward,
    rows: Row,
    table: Any,
    key: Array,
) -> tuple[Float[Array, "T N dx"], Float[Array, "T N"], Bool[Array, ""]]:
    """Particles of all rows, their normalised log-weights, and whether the backward filter went through.

    The backward filter follows gamma_k(x_k) p(y_k .. y_T | x_k), gamma_k a Student-t distribution. Its
    weights times (sum_i w_{k-1}^i p(x_k | x_{k-1}^i)) / gamma_k(x_k) are those of the smoother. The first
    row, where no prediction need have a density, is weighed from the second.
    """
    forward = stop_gradient(forward)
    count = len(forward.log_weights)
    size, dtype = filter.size, forward.positions.dtype
    if count == 1:
        return forward.positions, forward.log_weights, jnp.array(True)
    copying = filter.resampling if isinstance(filter.resampling, AbstractCopying) else Systematic()
    key_links, key_last, key_back = jax.random.split(key, 3)

    def seen(x: Array, row: Row) -> Array:
        measurement = Measurement(row.time, row.input, row.observation)
        return measurement_log_weights(model, x, measurement)[0]

    def link(at: Any) -> _Link:
        x, log_w, row, k = at
        interval = Interval(row.time_from, row.gap, row.input_from, row.plan, table)
        return _link(x, log_w, propagate(model, x, interval, fold_in(key_links, k)))

    beliefs = (forward.positions, forward.log_weights)
    ks = jnp.arange(count - 1)
    links = jax.lax.map(link, (*earlier(beliefs), later(rows), ks))

    def gamma(link: _Link, x: Array) -> Array:
        return _student(link.ahead, link.ahead_factor).log_prob(x)

    final, last_row = jax.tree.map(lambda x: x[-1], (links, rows))
    mean, _, cov = _moments(forward.positions[-1], normalized(forward.log_weights[-1]))
    start = _student(mean, _factor(cov, cov))
    x_last = start.sample(key_last, (size,)).astype(dtype)
    log_w = gamma(final, x_last) + seen(x_last, last_row) - start.log_prob(x_last)
    first = normalize(log_w, equal_log_weights(x_last))

    def back(carry: Any, at: Any) -> tuple[Any, Any]:
        x_next, log_w, fine = carry
        link, link_before, row, row_next, k = at
        moves = row_next.gap > 0
        key_resample, key_draw = jax.random.split(fold_in(key_back, k))
        index = copying.ancestors(key_resample, log_w)
        x_next = jnp.where(moves, x_next[index], x_next)
        log_w = jnp.where(moves, equal_log_weights(x_next), log_w)
        rest = dist.MultivariateStudentT(
            _DF, jnp.zeros_like(link.centre), link.rest_factor, validate_args=False
        )
        noise = rest.sample(key_draw, (size,)).astype(dtype)
        drawn = link.centre + (x_next - link.ahead) @ link.slope.T + noise
        x = jnp.where(moves, drawn, x_next)
        density = jax.vmap(density_before(model, row_next, table))(x_next, x)
        ratio = jnp.where(moves, density - rest.log_prob(noise), 0.0)
        ratio = ratio + gamma(link_before, x) - gamma(link, x_next)
        new = normalize(log_w + ratio + seen(x, row), log_w)
        carry = (x, new.log_weights, fine & (new.status == Status.OK))
        return carry, carry[:2]

    carry = (x_last, first.log_weights, first.status == Status.OK)
    middle = jax.tree.map(lambda x: x[1:-1], rows)
    at = (later(links), earlier(links), middle, jax.tree.map(lambda x: x[2:], rows), ks[1:])
    (_, _, fine), found = jax.lax.scan(back, carry, at, reverse=True)
    found = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), found, carry[:2])

    def combined(at: Any) -> Array:
        x, log_w, x_before, log_w_before, link, row = at
        pairs = of_pairs(density_before(model, row, table), x, x_before)
        new = log_w - gamma(link, x) + logsumexp(pairs + log_w_before, axis=1)
        return new - logsumexp(new)

    positions, backward = found
    weights = jax.lax.map(combined, (positions, backward, *earlier(beliefs), links, later(rows)))

    # Rows at the time of the first one have its state: they are weighed from the first row that has not.
    moves = rows.gap[1:] > 0
    k = jnp.argmax(moves)
    x0, log_w0 = jax.tree.map(lambda x: x[k], earlier(beliefs))
    x1, log_w1, row1 = jax.tree.map(lambda x: x[k], (positions, weights, later(rows)))
    log_w0 = weighed_back(density_before(model, row1, table), x0, log_w0, x1, log_w1)
    log_w0 = jnp.where(moves.any(), log_w0, forward.log_weights[-1])

    def fill(before: Any, at: Any) -> tuple[Any, Any]:
        x, log_w, moves = at
        now = jax.tree.map(lambda a, b: jnp.where(moves, a, b), (x, log_w), before)
        return now, now

    _, filled = jax.lax.scan(fill, (x0, log_w0), (positions, weights, moves))
    whole = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), (x0, log_w0), filled)
    return *whole, fine & jnp.isfinite(whole[1].max(1)).all()
