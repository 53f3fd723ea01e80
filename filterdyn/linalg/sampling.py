"""A factor to draw from a Gaussian with, differentiable as a reparameterisation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.linalg.products import mm
from filterdyn.linalg.psd import PSD
from filterdyn.linalg.regression import generalised_inverse
from filterdyn.linalg.surrogate import with_derivative_of
from filterdyn.linalg.triangularize import triangularize


def sampling_factor(p: PSD) -> Float[Array, "n n"]:
    """L with L L^T = P, lower triangular, and the derivative of Cholesky's factor, first order only:
    dL = L tril(L^-1 dP L^-T), the diagonal halved, so that (L + dL)(L + dL)^T = P + dP.

    So the derivative of a draw m + L eps is the limit of its differences under the same key. At a
    singular P it is that within the range of P.
    """
    factor = triangularize(jax.lax.stop_gradient(p.root), rank_revealing=len(p.matrix))
    if p.diffuse is not None:  # there is nothing to draw from
        factor = jnp.where((p.diffuse.factor != 0).any(), jnp.nan, factor)
    inverse = jax.lax.stop_gradient(generalised_inverse(factor))
    half = jnp.tril(mm(mm(inverse, p.matrix), inverse.T))
    half = half - 0.5 * half * jnp.eye(len(half), dtype=half.dtype)
    return with_derivative_of(factor, mm(jax.lax.stop_gradient(factor), half))
