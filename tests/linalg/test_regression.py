"""Backward regression through singular moves against dense conditioning."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from oracles import dense

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("the oracle is float64", allow_module_level=True)


def singular_move(dx, seed):
    """One state is a multiple of the one before it, to rounding, and the last one is free."""
    rng = np.random.default_rng(seed)
    f, g = rng.normal(size=(dx, dx)) / dx, rng.normal(size=(dx, dx - 1)) / dx
    c = rng.normal()
    f[1], g[1] = c * f[0], c * g[0]
    return f, g @ g.T, rng.normal(size=(1, dx)), rng.normal(size=(5, 1))


@pytest.mark.parametrize(("dx", "seed"), [(3, 0), (3, 1), (14, 0)])
def test_a_state_that_copies_another_takes_nothing_from_a_third(dx, seed):
    """What rounding leaves of the copy is no direction in which others could have a part."""
    F, Q, H, y = singular_move(dx, seed)
    P0, R = np.eye(dx) + 0.3, np.array([[0.3]])
    exact = dense.answer(dense.discrete_rows(np.zeros(dx), P0, F, Q, H, R, y))
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(dx), jnp.asarray(P0)),
        fd.LinearTransition(F, Q),
        fd.LinearObservation(H, R),
    )
    smooth = fd.smooth(model, fd.Series(np.arange(5.0), y), fd.KalmanFilter())
    np.testing.assert_allclose(smooth.mean, exact.smoothed_mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(smooth.cov, exact.smoothed_cov, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(smooth.lag_one_covs, exact.lag_one_cov, rtol=1e-9, atol=1e-9)
