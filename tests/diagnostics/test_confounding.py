"""What of a network the known terms could say, and the prior that keeps it from saying so."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed, trace

import filterdyn as fd
from filterdyn.inference import orthogonality

STATES = jnp.asarray(np.random.default_rng(0).normal(size=(40, 2)))


def known(p, x):
    """Two terms of different units; the second is of no use to the first."""
    return jnp.stack([p["k"] * x[0], 100.0 * p["m"] * x[1] ** 2])


def site(residual, scale=0.1):
    model = lambda: orthogonality("o", known, {"k": 1.0, "m": 2.0}, residual, STATES, scale)
    found = trace(seed(model, jr.key(0))).get_trace()["o"]
    return found, seed(model, jr.key(0))()


def test_projection_is_the_change_of_parameters_that_a_residual_looks_like():
    other = lambda x: known({"k": 0.3, "m": -0.02}, x)
    found, change = site(other)
    np.testing.assert_allclose(change, [0.3, -0.02], rtol=1e-4)
    expected = dist.Normal(change, 0.1).log_prob(0.0).sum()
    np.testing.assert_allclose(found["fn"].log_prob(found["value"]), expected, rtol=1e-5)
    assert found["is_observed"]


def test_projection_of_what_is_orthogonal_is_zero():
    x0 = STATES[:, 0]
    shift = (x0 * x0**2).sum() / (x0**2).sum()
    _, change = site(lambda x: jnp.stack([x[0] ** 2 - shift * x[0], 0.0]))
    np.testing.assert_allclose(change, 0.0, atol=1e-6)


def test_draws_that_trade_a_parameter_for_the_network_have_correlation_minus_one():
    rng = np.random.default_rng(1)
    traded = rng.normal(size=500)
    draws = {"k": 1.0 + traded, "m": 2.0 + 0.1 * rng.normal(size=500), "w": traded}
    draws["v"] = rng.normal(size=500)
    residual = lambda d, x: jnp.stack([-d["w"] * x[0], 0.5 * d["v"] * x[1] ** 2])
    found = fd.diagnostics.confounding(draws, known, residual, STATES, ["m", "k"])
    assert found.names == ("k", "m")
    np.testing.assert_allclose(found.correlation[0], -1.0, atol=1e-5)
    # The correlation of 500 independent draws: five standard errors.
    assert abs(found.correlation[1]) < 5 / 500**0.5
    np.testing.assert_allclose(found.sd[0], traded.std(), rtol=1e-6)
    assert found.sd_of_sum[0] < 1e-4
    np.testing.assert_allclose(found.share, 1.0, atol=1e-4)
    assert str(found).splitlines()[1].startswith("  k: correlation with the network -1.00, sd ")


def test_a_network_without_any_of_the_terms_is_not_confounded():
    draws = {"k": np.array([1.0, 2.0, 3.0, 4.0])}
    physics = lambda d, x: d["k"] * x[:1]
    found = fd.diagnostics.confounding(draws, physics, lambda d, x: jnp.zeros(1), STATES, ["k"])
    assert found.share == 0 and found.correlation[0] == 0
    assert found.sd_of_sum[0] == found.sd[0]


def test_wrong_arguments_are_named():
    call = lambda draws, states=STATES, names=("k",): fd.diagnostics.confounding(
        draws, lambda d, x: d["k"] * x, lambda d, x: x, states, names
    )
    with pytest.raises(KeyError, match="`parameters` has 'q'"):
        call({"k": np.ones(5)}, names=["q"])
    with pytest.raises(ValueError, match=r"'k' has shape \(2,\) in each draw"):
        call({"k": np.ones((5, 2))})
    with pytest.raises(ValueError, match=r"`states` has shape \(40,\)"):
        call({"k": np.ones(5)}, states=STATES[:, 0])
    with pytest.raises(ValueError, match="got 2 draws"):
        call({"k": np.ones(2)})
    with pytest.raises(ValueError, match="`scale` has 3 entries; expected one, or 2"):
        site(lambda x: x, jnp.ones(3))
    with pytest.raises(ValueError, match="expected positive numbers"):
        site(lambda x: x, 0.0)
    with pytest.raises(ValueError, match=r"`states` has shape \(2,\)"):
        orthogonality("o", known, 1.0, lambda x: x, jnp.zeros(2), 1.0)
