"""Normal numbers of our own making: are they that?"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from filterdyn.dynamics.noise import standard_normals


def test_numbers_are_standard_normal_and_independent():
    n = 200_001  # odd: half of a block is left over
    z = np.asarray(standard_normals(jr.key(0), (n,), jnp.float32), float)
    # Each at 1e-5.
    assert stats.kstest(z, "norm").pvalue > 1e-5
    for lag in (1, 2, n // 2, n // 2 + 1):
        r = np.mean(z[:-lag] * z[lag:]) * np.sqrt(n - lag)
        assert abs(r) < 4.5
    assert abs(np.mean(z**4) - 3) < 4.5 * np.sqrt(96 / n)


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
