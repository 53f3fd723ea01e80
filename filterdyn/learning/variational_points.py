"""Points of a standard normal distribution: a shifted lattice, symmetric, with unit covariance."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float


def primes(count: int) -> list[int]:
    """The first so many."""
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % p for p in found):
            found.append(number)
        number += 1
    return found


def normal_points(shift: Float[Array, " n"], size: int, dtype: jnp.dtype) -> Float[Array, "size n"]:
    """Points of equal weight with mean 0 and covariance exactly 1, so that means of polynomials of
    degree 3 are exact, whatever `shift` in [0, 1).

    The multiples of square roots of primes modulo 1 (Richtmyer 1951), shifted (Cranley, Patterson 1976)
    and sent through the normal quantile; then with every point its mirror image, and the columns made
    orthogonal. `size` is even and at least 2 n.
    """
    n, half = len(shift), size // 2
    steps = np.sqrt(np.array(primes(n), float))
    lattice = np.mod(np.arange(1, half + 1)[:, None] * steps, 1.0)
    tiny = float(jnp.finfo(dtype).eps)
    levels = jnp.clip(jnp.mod(jnp.asarray(lattice, dtype) + shift, 1.0), tiny, 1.0 - tiny)
    columns = jnp.linalg.qr(ndtri(levels).astype(dtype))[0]
    points = columns * jnp.sqrt(jnp.asarray(half, dtype))
    return jnp.concatenate([points, -points])


def shifted_points(key: Array, n: int, size: int, dtype: jnp.dtype) -> Float[Array, "size n"]:
    """`normal_points` with a random shift."""
    return normal_points(jax.random.uniform(key, (n,), dtype), size, dtype)
