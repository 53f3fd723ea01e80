"""Random rotations of an ensemble that keep its mean and covariance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rotation(key: Array, n: int, dtype: jnp.dtype) -> Float[Array, "n n"]:
    """A random orthogonal U with U 1 = 1, uniform among these (Sakov, Oke 2008, section 2): a uniform
    rotation of the directions that are orthogonal to 1."""
    q, r = jnp.linalg.qr(jax.random.normal(key, (n - 1, n - 1), dtype))
    # Signs of the diagonal of R make Q uniform (Mezzadri 2007).
    q = q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0).astype(dtype)
    # A Householder reflection takes the first unit vector to 1 / sqrt(n).
    first = jnp.zeros(n, dtype).at[0].set(1.0)
    v = jnp.full(n, n**-0.5, dtype) - first
    reflect = jnp.eye(n, dtype=dtype) - 2.0 * v[:, None] * v[None, :] / (v @ v)
    inner = jnp.eye(n, dtype=dtype).at[1:, 1:].set(q)
    return jax.lax.stop_gradient(
        jnp.matmul(jnp.matmul(reflect, inner, precision="highest"), reflect, precision="highest")
    )
