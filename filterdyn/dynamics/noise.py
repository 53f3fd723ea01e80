"""Standard normal numbers for many particles: where a particle filter spends most of its time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt32

#: Of Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw 2011).
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
#: sin(pi t / 2) / t in powers of t^2 on [-1, 1], with the least maximal relative error: 5e-9.
_SINE = (1.57079631845, -0.6459637106, 0.0796896789478, -0.0046737666124, 0.000151485130733)


def standard_normals(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, "..."]:
    """Independent N(0, 1) numbers, as many as `shape` holds.

    In float32 with JAX's default generator each is r cos(angle) of Box and Muller (1958), with r from one
    word of a block of Threefry and the angle from the other. It is written out number by number, so that
    XLA makes one vectorised loop of it, fused with what the numbers are used for: `jax.random.normal`
    takes two to four times as long. The last axis varies slowest, which lets particles (N, dx) lie in
    memory state by state. The numbers are others than those of `jax.random.normal`; `key` must not be
    used for anything else.
    """
    count = math.prod(shape)
    new_style = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    is_threefry = (
        str(jax.random.key_impl(key)) == "threefry2x32" if new_style else key.shape == (2,)
    )
    if dtype != jnp.float32 or not is_threefry or count == 0:
        return jax.random.normal(key, shape, dtype)
    words = jax.random.key_data(key) if new_style else key
    length = shape[0]
    rows = lax.iota(jnp.uint32, count // length) * jnp.uint32(length)
    places = lax.iota(jnp.uint32, length)
    # (A loop, because XLA would compute a number anew wherever it is used.)
    z = lax.map(lambda row: _box_muller(words, row + places), rows)
    return z.reshape(shape[::-1]).transpose()


def _box_muller(key: UInt32[Array, "2"], counter: UInt32[Array, " n"]) -> Float[Array, " n"]:
    for_radius, for_angle = threefry(key, counter)
    # (0, 1], down to 2^-32: the numbers end at 6.7.
    u = (_signed(for_radius >> 1) + np.float32(0.5)) * np.float32(2**-31)
    # The angle is that of a whole turn less a quarter: its cosine is the sine of pi t / 2.
    t = 1 - jnp.abs(_signed(for_angle)) * np.float32(2**-30)
    sine = jnp.full_like(t, _SINE[-1])
    for c in _SINE[-2::-1]:
        sine = sine * (t * t) + np.float32(c)
    return jnp.sqrt(-2 * jnp.log(u)) * (t * sine)


def threefry(
    key: UInt32[Array, "2"], counter: UInt32[Array, " n"]
) -> tuple[UInt32[Array, " n"], UInt32[Array, " n"]]:
    """The blocks of Threefry-2x32 at (0, counter), two words each: those of JAX's generator, without the
    loop in which it computes them on a CPU, which takes every round through memory."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    a, b = jnp.broadcast_to(schedule[0], counter.shape), counter + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            a = a + b
            b = a ^ ((b << rotation) | (b >> (32 - rotation)))
        a = a + schedule[(group + 1) % 3]
        b = b + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return a, b


def _signed(word: UInt32[Array, " n"]) -> Float[Array, " n"]:
    """A word as the signed integer of its bits."""
    return lax.bitcast_convert_type(word, jnp.int32).astype(jnp.float32)
