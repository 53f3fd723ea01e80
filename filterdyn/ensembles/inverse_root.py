"""The inverse symmetric square root of I + Z Z^T, differentiable where eigenvalues coincide."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from filterdyn.linalg import with_derivative_of
from filterdyn.linalg.cholesky import only_derivative


def product(*matrices: Array) -> Array:
    """The product of matrices at full precision."""
    out = matrices[0]
    for m in matrices[1:]:
        out = jnp.matmul(out, m, precision="highest")
    return out


def inverse_root(z: Float[Array, "n k"], *, precise: bool = True) -> Float[Array, "n n"]:
    """The symmetric T = C^-1/2 of C = I + Z Z^T.

    By the eigenvectors of C or, with `precise` and where Z is large (precise measurements), by the
    singular vectors of Z: C would lose the digits of its small eigenvalues.

    Derivatives of eigenvectors are infinite where eigenvalues coincide, as those of I + (low rank) do;
    those of T are not. In the basis of C's eigenvectors, with s_i the roots of its eigenvalues, a
    residual E = I - T C T is removed by dT_ij = E_ij / (s_i + s_j). Each round with this, at fixed
    eigenvectors, makes one more order of the derivative right.
    """
    n, k = z.shape
    eye = jnp.eye(n, dtype=z.dtype)
    c = eye + product(z, z.T)

    def by_eigenvectors(z: Array, c: Array) -> tuple[Array, Array]:
        eigenvalues, v = jnp.linalg.eigh(c)
        # (C >= I: rounding must not say otherwise.)
        return v, jnp.sqrt(jnp.maximum(eigenvalues, 1.0))

    def by_singular_vectors(z: Array, c: Array) -> tuple[Array, Array]:
        wide = jnp.pad(z, ((0, 0), (0, max(n - k, 0))))
        v, sigma, _ = jnp.linalg.svd(wide, full_matrices=False)
        return v, jnp.hypot(1.0, sigma)

    fixed = stop_gradient((z, c))
    if precise:
        large = jnp.trace(fixed[1]) - n > float(jnp.finfo(z.dtype).eps) ** -0.25
        v, s = jax.lax.cond(large, by_singular_vectors, by_eigenvectors, *fixed)
    else:
        v, s = by_eigenvectors(*fixed)
    value = product(v / s, v.T)
    smooth = value
    for _ in range(2):
        residual = only_derivative(eye - product(smooth, c, smooth))
        smooth = smooth + product(v, product(v.T, residual, v) / (s[:, None] + s[None, :]), v.T)
    return with_derivative_of(value, smooth)
