"""Draws and densities of Gaussian noise, for many states at once."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.dynamics.noise import standard_normals
from filterdyn.linalg import PSD, by_columns, mv
from filterdyn.linalg.cholesky import cholesky
from filterdyn.linalg.products import SMALL


def rows_through(a: Float[Array, "m n"], x: Float[Array, "N n"]) -> Float[Array, "N m"]:
    """A x for every row of x."""
    if max(a.shape) <= SMALL:
        return jax.vmap(lambda row: by_columns(a, row))(x)
    return jnp.matmul(x, a.T, precision="highest")


def draws(
    key: Array, factor: Float[Array, "n n"], like: Float[Array, "N n"]
) -> Float[Array, "N n"]:
    """Draws of N(0, L L^T), one for every row of `like`, from one array of random numbers."""
    return rows_through(factor, standard_normals(key, like.shape, like.dtype))


def log_density_of(residual: Float[Array, " n"], noise: PSD) -> Float[Array, ""]:
    """log N(residual; 0, P), differentiable in both. Of a singular P the density within its range,
    and `-inf` off it."""
    factor, inverse = cholesky(noise)
    eye = jnp.eye(len(residual), dtype=residual.dtype)
    pivots = (factor * eye).sum(1)
    reached = pivots != 0
    # S^+ carries no derivative. Each round makes one more order of that of S z = r right.
    start = mv(inverse, residual)
    change = factor - jax.lax.stop_gradient(factor)
    z = start
    for _ in range(2):
        z = start - mv(inverse, mv(change, z))
    missed = residual - mv(factor, z)
    size = jnp.abs(residual) + mv(jnp.abs(factor), jnp.abs(z))
    tolerance = 1e3 * len(residual) * jnp.finfo(residual.dtype).eps
    within = (jnp.abs(missed) <= tolerance * size).all()
    log_det = jnp.log(jnp.where(reached, jnp.abs(pivots), 1.0)).sum()
    log_2pi = math.log(2 * math.pi)
    value = -0.5 * (z * z).sum() - log_det - 0.5 * log_2pi * reached.sum()
    return jnp.where(within, value, -jnp.inf)
