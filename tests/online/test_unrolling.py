"""Small reductions written out, with the same answers."""

import jax
import jax.numpy as jnp
import numpy as np

from filterdyn.online.unrolling import unrolled


def of(x, flag):
    """Sums of every kind, in calls and beside a product that is none."""
    inner = jax.jit(lambda a: a.sum(0) + a.max((0, 1)) - a.min())(x)
    return {"a": inner, "b": (x > 0).all() | flag.any(), "c": x.prod(), "d": x @ x.T}


def reductions(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("reduce_")


def test_small_reductions_are_written_out_and_mean_the_same():
    x, flag = np.linspace(-1.0, 2.0, 6).reshape(2, 3), np.array([False, True])
    found, expected = unrolled(of)(x, flag), of(jnp.asarray(x), flag)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert a.dtype == b.dtype
    assert reductions(of, jnp.asarray(x), flag) == 6
    assert reductions(unrolled(of), x, flag) == 0


def test_large_and_empty_reductions_stay():
    for x in (np.ones(100), np.ones((0, 2))):
        assert reductions(unrolled(lambda x: x.sum()), x) == 1
        assert unrolled(lambda x: x.sum())(x) == x.sum()
