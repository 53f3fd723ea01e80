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
    """L with L L^T = P and dL = dP L^-T / 2, so that (L + dL)(L + dL)^T = P + dP to first order.

    A draw m + L eps then has the derivative of a reparameterised sample (first order only). At a
    singular P the derivative is that within its range.
    """
    factor = triangularize(jax.lax.stop_gradient(p.root))
    if p.diffuse is not None:  # there is nothing to draw from
        factor = jnp.where((p.diffuse.factor != 0).any(), jnp.nan, factor)
    inverse = generalised_inverse(factor)
    return with_derivative_of(factor, 0.5 * mm(p.matrix, jax.lax.stop_gradient(inverse).T))
