"""What SVI and an ensemble draw becomes a data tree like that of a chain.

Both approximate the posterior of one model that is linear and Gaussian in its parameters; the predictive
mean of their draws is held to that of the exact posterior.
"""

import jax
import jax.random as jr
import numpy as np
import numpyro
import optax
import pytest
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from oracles.straight_line import MISSING, data, model, posterior, predictive_mean

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("the posterior is that of float64", allow_module_level=True)
DRAWS = 400


def by_ensemble():
    settings = {"optimizer": optax.adam(optax.cosine_decay_schedule(0.3, 250)), "steps": 250}
    return fd.inference.ensemble(model, data(), key=jr.key(0), members=DRAWS, **settings).samples


@pytest.fixture(scope="module")
def guided():
    """Draws of a guide by its own method, and by `Predictive`, with what else it samples."""
    guide = AutoMultivariateNormal(model)
    svi = SVI(model, guide, optax.adam(optax.cosine_decay_schedule(0.05, 1500)), Trace_ELBO())
    params = svi.run(jr.key(0), 1500, data(), progress_bar=False).params
    of_guide = guide.sample_posterior(jr.key(1), params, sample_shape=(DRAWS,))
    predictive = Predictive(guide, params=params, num_samples=DRAWS)(jr.key(1))
    return {"guide": of_guide, "predictive": predictive}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ensemble", "guide", "predictive"])
def test_draws_of_a_fit_become_the_groups_of_arviz(method, request):
    of_guide = lambda: request.getfixturevalue("guided")[method]
    samples, y = by_ensemble() if method == "ensemble" else of_guide(), data()
    tree = fd.to_datatree(samples, model, y)
    assert set(tree.children) == {
        "posterior", "posterior_predictive", "log_likelihood", "observed_data"
    }  # fmt: skip
    assert {"b", "d"} <= set(tree["posterior"])
    assert tree["posterior"]["b"].shape == (1, DRAWS, 2)
    assert tree["log_likelihood"]["y"].shape == (1, DRAWS, 13)
    np.testing.assert_array_equal(tree["observed_data"]["y"], y)

    replicated = tree["posterior_predictive"]["y"].values[0, :, :, 0]
    expected = predictive_mean(posterior(y)[0])
    # 5 standard errors, and a tenth of a standard deviation for what SVI is off.
    sd = replicated.std(0)
    assert (np.abs(replicated.mean(0) - expected) < (5 / np.sqrt(DRAWS) + 0.1) * sd).all()
    assert np.isnan(np.asarray(y)[MISSING]).all() and np.isfinite(replicated).all()
    pointwise = tree["log_likelihood"]["y"].values[0]
    whole = numpyro.infer.log_likelihood(
        model, {"b": samples["b"][:20], "d": samples["d"][:20]}, y
    )["y"]
    np.testing.assert_allclose(pointwise[:20].sum(-1), whole, atol=1e-8)
