"""The regression of a state on the next one: what smoothing and backward sampling need."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from filterdyn.linalg.diffuse import measure
from filterdyn.linalg.gate import either
from filterdyn.linalg.products import mm
from filterdyn.linalg.psd import PSD, congruence
from filterdyn.linalg.surrogate import with_derivative_of
from filterdyn.linalg.triangularize import triangularize


class Regression(NamedTuple):
    """x = m + gain (x_next - m_next) + N(0, rest), with `next` the covariance of x_next."""

    gain: Float[Array, "dx dx"]
    rest: PSD
    next: PSD


def regress(p: PSD, phi: Float[Array, "dx dx"], noise: PSD) -> Regression:
    """The backward regression for x_next = phi x + N(0, noise), x ~ N(m, P).

    The joint factor [[phi S, N], [S, 0]] is triangularised to [[A, 0], [B, C]]: the gain is B A^+ and
    the rest C C^T, so nothing is subtracted. A state of x_next that is a linear combination of the
    ones before it (a negligible pivot of A) takes no part: a noise-free transition, Q = 0 or P = 0
    need no inverse that does not exist. The derivative is that of G = P phi^T P_next^+ on the range
    of P_next.
    """
    if p.diffuse is not None:
        return _regress_diffusely(p, phi, noise)
    n = phi.shape[0]
    s, fixed_phi = p.root, stop_gradient(phi)
    top = jnp.concatenate([mm(fixed_phi, s), noise.root], axis=1)
    bottom = jnp.concatenate([s, jnp.zeros_like(s)], axis=1)
    joint = triangularize(jnp.concatenate([top, bottom], axis=0), rank_revealing=n)
    a, b, c = joint[:n, :n], joint[n:, :n], joint[n:, n:]
    inverse = generalised_inverse(a)
    gain = mm(b, inverse)
    next_smooth = mm(mm(phi, p.matrix), phi.T) + noise.matrix
    next_matrix = with_derivative_of(mm(a, a.T), next_smooth)
    cross = with_derivative_of(mm(b, a.T), mm(p.matrix, phi.T))
    gain_smooth = mm(cross - mm(gain, next_matrix), mm(inverse.T, inverse))
    gain = with_derivative_of(gain, gain_smooth)
    rest_smooth = (
        p.matrix - mm(gain, cross.T) - mm(cross, gain.T) + mm(mm(gain, next_matrix), gain.T)
    )
    rest = PSD(c, with_derivative_of(mm(c, c.T), rest_smooth))
    after = PSD(a, next_matrix)
    if p.factor is None:
        return Regression(gain, rest.without_factor(), after.without_factor())
    return Regression(gain, rest, after)


def generalised_inverse(a: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The inverse of a lower triangular A without the rows and columns of negligible pivots."""
    n = a.shape[0]
    eps = jnp.finfo(a.dtype).eps
    eye = jnp.eye(n, dtype=a.dtype)
    pivots = (a * eye).sum(1)
    rows = jnp.sqrt((a * a).sum(1))
    keep = jnp.abs(pivots) > 20 * n * eps * rows
    kept = jnp.where(keep[:, None] & keep[None, :], a, 0.0)
    kept = kept + eye * jnp.where(keep, 0.0, 1.0)
    scale = jnp.where(keep, rows, 1.0)
    inverse = jax.scipy.linalg.solve_triangular(kept / scale[:, None], eye, lower=True)
    return jnp.where(keep[:, None] & keep[None, :], inverse, 0.0) / scale[None, :]


def _regress_diffusely(p: PSD, phi: Float[Array, "dx dx"], noise: PSD) -> Regression:
    """While part of P is infinite: x_next is a measurement of x, with noise of its own."""
    n = phi.shape[0]

    def diffuse(p: PSD) -> Regression:
        everything = jnp.ones(n, bool)
        found = measure(p, phi, jnp.eye(n, dtype=phi.dtype), noise.matrix, everything)
        return Regression(found.shift, found.cov, congruence(phi, p, noise))

    def proper(p: PSD) -> Regression:
        found = regress(PSD(p.factor, p.matrix), phi, noise)
        rest, after = (PSD(x.factor, x.matrix, p.diffuse) for x in (found.rest, found.next))
        return Regression(found.gain, rest, after)

    assert p.diffuse is not None
    return either((p.diffuse.factor != 0).any(), diffuse, proper, p)
