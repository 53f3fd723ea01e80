"""Standard normal numbers for many particles: where a particle filter spends most of its time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float


def standard_normals(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, "..."]:
    """Independent N(0, 1) numbers, as many as `shape` holds.

    In float32 with JAX's default generator both words of each block become numbers. (`jax.random.normal`
    combines the two to one, so that arrays can be made in pieces on several devices, and takes twice as
    long.) The numbers are others than those of `jax.random.normal`; `key` must not be used for
    anything else.
    """
    count = math.prod(shape)
    new_style = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    is_threefry = (
        str(jax.random.key_impl(key)) == "threefry2x32" if new_style else key.shape == (2,)
    )
    if dtype != jnp.float32 or not is_threefry or count == 0:
        return jax.random.normal(key, shape, dtype)
    words = jax.random.key_data(key) if new_style else key
    bits = threefry_2x32(words, jax.lax.iota(jnp.uint32, count + count % 2))[:count]
    # 23 bits of the mantissa of a number in [1, 2); then (-1, 1), without -1.
    in_unit = jax.lax.bitcast_convert_type((bits >> 9) | jnp.uint32(0x3F800000), jnp.float32) - 1
    low = np.nextafter(np.float32(-1), np.float32(0))
    u = jnp.maximum(in_unit * (1 - low) + low, low)
    return (np.float32(math.sqrt(2)) * jax.lax.erf_inv(u)).reshape(shape)
