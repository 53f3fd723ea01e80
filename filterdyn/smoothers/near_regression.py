"""Regression of states on those of a later row, covariances being trusted over short distances only."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from filterdyn._groups import in_groups
from filterdyn.ensembles import GaspariCohn
from filterdyn.ensembles.inverse_root import product

#: States are taken in groups, so that the matrices of a group take at most this many numbers.
_MOST_ENTRIES = 2**22
#: One matrix of all states is formed up to this many entries.
_MOST_OF_ALL = 2**24

#: Of the members x (N, dx), what they are in the next row before its measurement (N, dx), and by how
#: much that was missed (N, dx): how far they are moved (N, dx).
Regression = Callable[[Array, Array, Array], Array]


def near_regression(taper: GaspariCohn) -> Regression:
    """For every state i,

        G_i = (rho_i o C(x_i, x^f)) (rho o C(x^f))^-1,    moved_i = G_i missed,

    with C the covariances of the sample, o the product entry by entry and rho the taper between the
    states near i. Under the taper the covariance has full rank however few members there are. Where a
    matrix of all states is less work than one for each, all states count as near.
    """
    dx, near = taper.state_neighbours.shape
    if dx**2 <= _MOST_OF_ALL and near**3 >= dx**2:
        among = taper.among(jnp.arange(dx))
        return lambda x, ahead, missed: _moved(x, ahead, missed, among, among)

    here = jnp.arange(dx)
    neighbours, weights = taper.state_neighbours, taper.state_weights
    group = max(1, _MOST_ENTRIES // near**2)
    # (Tapers are formed once where there is room for all of them.)
    tapers = jax.vmap(taper.among)(neighbours) if dx <= group else None

    def regress(x: Array, ahead: Array, missed: Array) -> Array:
        def one(at: tuple[Array, Array, Array, Array | None]) -> Array:
            i, indices, weight, rho = at
            rho = taper.among(indices) if rho is None else rho
            column = x[:, i, None]
            return _moved(column, ahead[:, indices], missed[:, indices], rho, weight[:, None])[:, 0]

        return in_groups(one, (here, neighbours, weights, tapers), group).T

    return regress


def _moved(
    x: Float[Array, "N g"],
    ahead: Float[Array, "N k"],
    missed: Float[Array, "N k"],
    among: Float[Array, "k k"],
    weights: Float[Array, "k g"],
) -> Float[Array, "N g"]:
    """The regression of x on k states ahead, of which those of weight 0 for all do not count.

    In units of standard deviations. On the diagonal stands 1 and as much as rounding may have taken.
    """
    a, b = x - x.mean(0), ahead - ahead.mean(0)
    n, k = b.shape
    eps = float(jnp.finfo(x.dtype).eps)
    squares = (b * b).sum(0)
    # (A state that all members agree on has anomalies of rounding.)
    used = (squares > n * (8 * eps * ahead.mean(0)) ** 2) & (weights > 0).any(1)
    scale = jnp.where(used, 1.0 / jnp.sqrt(jnp.where(used, squares, 1.0)), 0.0)
    b, missed = b * scale, missed * scale
    among, weights = among.astype(x.dtype), weights.astype(x.dtype)
    off_diagonal = jnp.where(jnp.eye(k, dtype=bool), 0.0, among * product(b.T, b))
    factor = jnp.linalg.cholesky(off_diagonal + (1.0 + 8 * k * eps) * jnp.eye(k, dtype=x.dtype))
    gain = cho_solve((factor, True), weights * product(b.T, a))
    return product(missed, gain)
