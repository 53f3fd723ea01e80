"""What one row does to a belief, and what several rows do together: the elements of the parallel
filter."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.gaussian import cast
from filterdyn.filters.prefix import prefix_products
from filterdyn.filters.rows import Row
from filterdyn.filters.scan import State, advance
from filterdyn.linalg import PSD, mm, mv, triangularize
from filterdyn.linalg.decorrelate import decorrelate
from filterdyn.linearization import Taylor
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status


class Element(NamedTuple):
    """Rows i + 1 .. j, given the state x_i: p(x_j | x_i, their data) = N(A x_i + b, U U^T), and the
    likelihood of their data is proportional to exp(eta^T x_i - x_i^T Z Z^T x_i / 2).

    States are counted from an origin (the mean of the start), so that a mean far from zero costs no
    digits.
    """

    a: Float[Array, "dx dx"]
    b: Float[Array, " dx"]
    u: Float[Array, "dx dx"]
    eta: Float[Array, " dx"]
    z: Float[Array, "dx dx"]


def known(belief: Gaussian, origin: Float[Array, " dx"]) -> Element:
    """Rows that leave this belief wherever they started."""
    zeros = jnp.zeros_like(belief.spread.matrix)
    return Element(zeros, belief.mean - origin, belief.spread.root, jnp.zeros_like(origin), zeros)


def element(
    filter: AbstractFilter,
    model: StateSpaceModel,
    table: Any,
    origin: Float[Array, " dx"],
    row: Row,
) -> Element:
    """One row: the move over its gap, then its measurement with the move's noise as the prior.

    [[H N, R^1/2], [N, 0]] is rotated to [[V, 0], [K V, U]] with V V^T the covariance of the
    measurement given x_i. Where that is singular (an exact sensor of a noiseless combination of states)
    there is no such element, and it is NaN.
    """
    n, dtype = len(origin), origin.dtype
    at = State(Gaussian(origin, spread=PSD.zeros(n, dtype)), jnp.int32(Status.OK))
    _, move, _ = advance(filter, model, table, at, row)
    noise = move.noise.root
    here = Gaussian(move.value, spread=PSD.zeros(n, dtype))
    lin = cast(
        model.observation.linearize(Taylor(), here, row.time, row.input, row.observation), dtype
    )
    observed = lin.observed
    residual = jnp.where(observed, lin.z - lin.value, 0.0)
    r = lin.noise
    rows = jnp.concatenate([lin.slope, residual[:, None]], axis=1)
    if r.ndim == 2:
        rows, r = decorrelate(r, rows, observed)
    # A missing entry is a measurement of nothing with noise one.
    rows = jnp.where(observed[:, None], rows, 0.0)
    r = jnp.where(observed, r, 1.0)
    h, residual = rows[:, :-1], rows[:, -1]

    dy = len(r)
    eye = jnp.eye(dy, dtype=dtype)
    top = jnp.concatenate([mm(h, noise), jnp.sqrt(r) * eye], axis=1)
    bottom = jnp.concatenate([noise, jnp.zeros((n, dy), dtype)], axis=1)
    joint = triangularize(jnp.concatenate([top, bottom], axis=0))
    v, kv, u = joint[:dy, :dy], joint[dy:, :dy], joint[dy:, dy:]
    floor = 16 * jnp.finfo(dtype).eps * jnp.sqrt((v * v).sum(1))
    exists = (jnp.diagonal(v) > floor).all()
    v = jnp.where(exists, v, jnp.nan)
    h_moved = mm(h, move.slope)
    white = solve_triangular(v, jnp.concatenate([h_moved, residual[:, None]], axis=1), lower=True)
    h_white, white = white[:, :-1], white[:, -1]
    found = Element(
        move.slope - mm(kv, h_white),
        move.value - origin + mv(kv, white),
        u,
        mv(h_white.T, white),
        PSD.from_factor(h_white.T).root,
    )
    return stop_gradient(found)


def combine(i: Element, j: Element) -> Element:
    """The rows of `i`, then those of `j`.

    With C = U_i U_i^T and J = Z_j Z_j^T, [[U_i^T Z_j, I], [Z_j, 0]] is rotated to [[V, 0], [Y, X]]:
    then (I + C J)^-1 = I - U_i V^-T Y^T, (I + C J)^-1 C = (U_i V^-T) (U_i V^-T)^T and
    (I + J C)^-1 J = X X^T. V is never singular, and nothing is subtracted from a covariance.
    """
    n = len(i.b)
    eye = jnp.eye(n, dtype=i.b.dtype)
    top = jnp.concatenate([mm(i.u.T, j.z), eye], axis=1)
    bottom = jnp.concatenate([j.z, jnp.zeros_like(eye)], axis=1)
    joint = triangularize(jnp.concatenate([top, bottom], axis=0))
    v, y, x = joint[:n, :n], joint[n:, :n], joint[n:, n:]
    w = solve_triangular(v, i.u.T, lower=True).T
    keep = eye - mm(w, y.T)
    left = mm(j.a, keep)
    return Element(
        mm(left, i.a),
        mv(left, i.b + mv(i.u, mv(i.u.T, j.eta))) + j.b,
        triangularize(jnp.concatenate([mm(j.a, w), j.u], axis=1)),
        mv(i.a.T, mv(keep.T, j.eta - mv(j.z, mv(j.z.T, i.b)))) + i.eta,
        triangularize(jnp.concatenate([mm(i.a.T, x), i.z], axis=1)),
    )


def scan_elements(elements: Element) -> Element:
    """What all rows up to each one do together."""
    return prefix_products(combine, elements)
