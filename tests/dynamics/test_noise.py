"""Normal numbers of our own making: are they that?"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.extend.random import threefry2x32_p
from scipy import stats

from filterdyn.dynamics.noise import standard_normals, threefry


def test_words_are_those_of_the_generator_in_jax():
    key, counter = jr.key_data(jr.key(3)), jnp.arange(1000, dtype=jnp.uint32)
    zeros = jnp.zeros_like(counter)
    theirs = threefry2x32_p.bind(*jnp.broadcast_arrays(key[0], key[1], zeros, counter))
    for a, b in zip(threefry(key, counter), theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_numbers_are_standard_normal_and_independent():
    n = 200_001
    z = np.asarray(standard_normals(jr.key(0), (n,), jnp.float32), float)
    # Each at 1e-5.
    assert stats.kstest(z, "norm").pvalue > 1e-5
    for lag in (1, 2, n // 2, n // 2 + 1):
        r = np.mean(z[:-lag] * z[lag:]) * np.sqrt(n - lag)
        assert abs(r) < 4.5
    assert abs(np.mean(z**4) - 3) < 4.5 * np.sqrt(96 / n)
    far = (np.abs(z) > 3.5).sum(), 2 * n * stats.norm.sf(3.5)
    assert abs(far[0] - far[1]) < 4.5 * np.sqrt(far[1])
    columns = np.asarray(standard_normals(jr.key(1), (n // 3, 3), jnp.float32), float)
    products = columns.T @ columns / np.sqrt(n // 3)
    assert np.abs(products[np.triu_indices(3, 1)]).max() < 4.5


def test_keys_of_a_batch_give_the_numbers_of_each():
    keys = jr.split(jr.key(1), 3)
    one = lambda key: standard_normals(key, (5, 2), jnp.float32)
    np.testing.assert_array_equal(jax.vmap(one)(keys), jnp.stack([one(k) for k in keys]))
    old = jr.PRNGKey(7)
    np.testing.assert_array_equal(one(old), one(jr.wrap_key_data(old)))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_other_types_and_generators_are_those_of_jax(impl):
    key = jr.key(2, impl=impl)
    dtype = jnp.float64 if impl == "threefry2x32" else jnp.float32
    np.testing.assert_array_equal(standard_normals(key, (4,), dtype), jr.normal(key, (4,), dtype))
