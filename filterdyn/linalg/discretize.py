"""Exact discretisation of a linear stochastic differential equation over one gap."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from filterdyn.linalg.products import mm
from filterdyn.linalg.psd import PSD, congruence
from filterdyn.linalg.surrogate import with_derivative_of
from filterdyn.linalg.triangularize import triangularize

#: Gauss-Legendre nodes on (0, 1) for the noise of the base step: 2e-16 relative at |A h| <= 1/2.
_LEGENDRE_NODES, _LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(6)
_NODES, _WEIGHTS = 0.5 * (_LEGENDRE_NODES + 1), 0.5 * _LEGENDRE_WEIGHTS
#: Terms of the Taylor series of exp(A h): 0.5^15 / 15! is 2e-17.
_TERMS = 15
#: Largest number of doublings: |A| gap up to 5e17.
_DOUBLINGS = 60


class Discretized(NamedTuple):
    """x(t + gap) = transition x(t) + held c + N(0, noise) for dx = (A x + c) dt + L dW."""

    transition: Float[Array, "dx dx"]
    held: Float[Array, "dx dx"]
    noise: PSD


def discretize(
    a: Float[Array, "dx dx"], diffusion: Float[Array, "dx dw"], gap: Float[Array, ""]
) -> Discretized:
    """Exact (Phi, Psi, Q) over `gap`, by scaling and doubling; a gap of 0 gives I, 0, 0.

    A base step h = gap / 2^s with |A h| <= 1/2 is expanded in a Taylor series, its noise by
    Gauss-Legendre quadrature (positive weights, so a factor exists), and doubled s times:
    Psi <- Psi + Phi Psi and S <- triangularize([Phi S, S]). Phi - I is carried instead of Phi, so
    that a short gap loses nothing, and a stiff A never meets a growing exponential (as the
    block exponential of Van Loan 1978 does). Any gap, any stable or unstable A with |A| gap < 5e17.
    """
    dtype = a.dtype
    n = a.shape[0]
    size = stop_gradient(jnp.abs(a).sum(1).max() * gap)
    size = jnp.where(jnp.isfinite(size), size, 0.0)
    doublings = jnp.clip(jnp.ceil(jnp.log2(jnp.maximum(2 * size, 1.0))), 0, _DOUBLINGS)
    h = gap * jnp.exp2(-doublings)
    ah = a * h

    def next_term(carry: tuple[Array, Array], k: Array) -> tuple[Any, Any]:
        term, columns = carry
        carry = mm(ah, term) / (k + 2), mm(ah, columns) / (k + 1)
        return carry, carry

    eye = jnp.eye(n, dtype=dtype)
    _, (terms, columns) = jax.lax.scan(next_term, (eye, diffusion), jnp.arange(_TERMS, dtype=dtype))
    unit = eye + terms.sum(0)
    noise = _base_noise(jnp.concatenate([diffusion[None], columns]), h)

    def double(state: tuple[Array, Array, PSD]) -> tuple[Array, Array, PSD]:
        change, held, noise = state
        noise = congruence(jnp.eye(n, dtype=dtype) + change, noise, noise, keep=False)
        return 2 * change + mm(change, change), 2 * held + mm(change, held), noise

    def maybe_double(i: int, state: tuple[Array, Array, PSD]) -> tuple[Array, Array, PSD]:
        return jax.lax.cond(i < doublings, double, lambda s: s, state)

    start = (mm(ah, unit), h * unit, noise)
    change, held, noise = jax.lax.fori_loop(0, _DOUBLINGS, maybe_double, start)
    return Discretized(jnp.eye(n, dtype=dtype) + change, held, noise)


def _base_noise(terms: Float[Array, "k dx dw"], h: Array) -> PSD:
    """The integral of exp(A s) L L^T exp(A^T s) over s in [0, h], for |A h| <= 1/2, from the terms
    (A h)^k L / k! of the series of exp(A h) L."""
    powers = jnp.asarray(_NODES[:, None] ** np.arange(_TERMS + 1), terms.dtype)
    at_nodes = (powers[:, :, None, None] * terms[None]).sum(1)
    weights = jnp.asarray(_WEIGHTS, terms.dtype)[:, None, None]
    smooth = h * (weights * jax.vmap(mm)(at_nodes, jnp.swapaxes(at_nodes, 1, 2))).sum(0)
    roots = stop_gradient(jnp.sqrt(h) * jnp.sqrt(weights) * at_nodes)
    factor = triangularize(jnp.concatenate(list(roots), axis=1))
    return PSD(factor, with_derivative_of(mm(factor, factor.T), smooth))
