"""Second-order Taylor expansion: the rule of the second-order extended Kalman filter."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.linalg import PSD, mm, with_derivative_of
from filterdyn.linearization.base import AbstractSpreadRule, Linearized
from filterdyn.linearization.cubature import third_degree
from filterdyn.linearization.sigma_points import average_on


class SecondOrderTaylor(AbstractSpreadRule):
    """f(x) is replaced by f(m) + J (x - m) + (x - m)^T H (x - m) / 2, of which the Gaussian moments are
    exact (Jazwinski 1970; Roth, Gustafsson 2011; Särkkä, Svensson 2023, algorithm 7.8):

        mean        f_i(m) + tr(H_i P) / 2,
        covariance  J P J^T + E,   E_ij = tr(H_i P H_j P) / 2.

    With P = S S^T and G_i = S^T H_i S the error has the factor C = [G_i[a, a] / sqrt(2), G_i[a, b] for
    a < b], in which nothing is decomposed and nothing subtracted. The derivatives J and H are taken
    by forward differentiation. Conditional covariances are averaged over the points of the third-degree
    cubature rule: the same to second order, and positive semi-definite.
    """

    def __call__(
        self, function: Callable[[Array], Any], belief: Gaussian, has_aux: bool = False
    ) -> Linearized:
        def once(x: Array) -> tuple[Array, tuple[Array, Any]]:
            z, aux = function(x) if has_aux else (function(x), None)
            return z, (z, aux)

        def twice(x: Array) -> tuple[Array, tuple[Array, Array, Any]]:
            slope, (z, aux) = jax.jacfwd(once, has_aux=True)(x)
            return slope, (z, slope, aux)

        hessian, (z, slope, aux) = jax.jacfwd(twice, has_aux=True)(belief.mean)
        p, s = belief.spread.matrix, belief.spread.root
        bend = jax.vmap(lambda h: mm(mm(s.T, h), s))(stop_gradient(hessian))
        sagitta = 0.5 * jnp.trace(bend, axis1=1, axis2=2)
        smooth = 0.5 * (hessian * p).sum((1, 2))
        value = z + with_derivative_of(sagitta.astype(z.dtype), smooth)
        columns = _columns(bend)
        error = PSD(columns, with_derivative_of(mm(columns, columns.T), _error_of(hessian, p)))
        return Linearized(value, slope, error, jax.tree.map(lambda leaf: leaf[None], aux))

    def project(
        self, function: Callable[[Array], Any], m: Float[Array, " n"], s: Float[Array, "n n"]
    ) -> tuple[Float[Array, " dz"], Float[Array, "dz n"]]:
        def along(arm: Array) -> tuple[Array, Array, Array]:
            first = lambda x: jax.jvp(function, (x,), (arm,))
            (z, slope), (_, bend) = jax.jvp(first, (m,), (arm,))
            return z, slope, bend

        z, slopes, bends = jax.vmap(along, out_axes=(None, 1, 1))(s.T)
        return z + 0.5 * bends.sum(1), slopes

    def average(self, function: Callable[[Array], Any], belief: Gaussian) -> Any:
        return average_on(third_degree(len(belief.mean)), function, belief)

    def check(self, owner: str, dx: int) -> None:
        """Any number of states."""


def _columns(bend: Float[Array, "dz n n"]) -> Float[Array, "dz k"]:
    """C with C C^T = [sum_ab G_i[a, b] G_j[a, b] / 2] for symmetric G_i."""
    n = bend.shape[1]
    diagonal = [bend[:, a, a, None] * math.sqrt(0.5) for a in range(n)]
    above = [bend[:, a, a + 1 :] for a in range(n)]
    return jnp.concatenate([*diagonal, *above], axis=1)


def _error_of(hessian: Float[Array, "dz n n"], p: Float[Array, "n n"]) -> Float[Array, "dz dz"]:
    """[tr(H_i P H_j P) / 2]."""
    seen = jax.vmap(lambda h: mm(h, p))(hessian)
    return 0.5 * (seen[:, None] * jnp.swapaxes(seen, 1, 2)[None]).sum((2, 3))
