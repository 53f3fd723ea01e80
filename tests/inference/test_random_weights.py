"""Weights of a field are random variables of a NumPyro model, under NUTS, SVI and `Predictive`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed, trace
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, init_to_value
from numpyro.infer.autoguide import (
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

import filterdyn as fd
from filterdyn.inference import random_weights, weights_of, with_weights

NET = fd.fields.MLP(1, key=jr.key(0), width=3, depth=1, state_center=0.5, state_scale=2.0)


def sites(function, key=0):
    found = trace(seed(function, jr.key(key))).get_trace()
    return {name: site for name, site in found.items()}


def last(net):
    return net.weights[-1], net.biases[-1]


def test_every_array_but_those_of_a_normalization_is_a_site():
    found = sites(lambda: random_weights("net", NET))
    shapes = {name: site["value"].shape for name, site in found.items()}
    assert shapes == {
        "net.weights[0]": (3, 1),
        "net.weights[1]": (1, 3),
        "net.biases[0]": (3,),
        "net.biases[1]": (1,),
    }
    assert {site["type"] for site in found.values()} == {"sample"}
    kept = seed(lambda: random_weights("net", NET), jr.key(0))()
    np.testing.assert_array_equal(kept.state.scale, [2.0])


def test_default_prior_is_scaled_by_the_inputs_of_a_layer():
    found = sites(lambda: random_weights("net", NET, 2.0))
    scale = {name: float(site["fn"].variance.min()) ** 0.5 for name, site in found.items()}
    expected = [("weights[0]", 2.0), ("weights[1]", 2 / 3**0.5), ("biases[0]", 2.0)]
    for name, value in expected:
        np.testing.assert_allclose(scale[f"net.{name}"], value, rtol=1e-6)


def test_chosen_leaves_only_are_random_also_inside_a_universal_field():
    field = fd.fields.UniversalField(lambda t, x, u: -x, NET)
    priors = {"residual.weights[1]": dist.Normal(0, 1), "residual.biases[1]": dist.Laplace(0, 1)}
    where = lambda field: last(field.residual)
    found = sites(lambda: random_weights("f", field, priors, where=where))
    assert set(found) == {"f.residual.weights[1]", "f.residual.biases[1]"}
    drawn = seed(lambda: random_weights("f", field, priors, where=where), jr.key(0))()
    np.testing.assert_array_equal(drawn.residual.weights[0], NET.weights[0])
    assert (drawn.residual.weights[1] != NET.weights[1]).all()


def test_weights_of_and_with_weights_are_inverses_of_each_other():
    own = weights_of("net", NET, where=last)
    assert set(own) == {"net.weights[1]", "net.biases[1]"}
    draw = {name: x + 1.0 for name, x in own.items()} | {"rate": 3.0}
    moved = with_weights("net", NET, draw)
    np.testing.assert_array_equal(moved.weights[1], NET.weights[1] + 1.0)
    np.testing.assert_array_equal(moved.weights[0], NET.weights[0])
    drawn = seed(lambda: random_weights("net", NET), jr.key(3))()
    values = {
        name: site["value"] for name, site in sites(lambda: random_weights("net", NET), 3).items()
    }
    assert eqx.tree_equal(with_weights("net", NET, values), drawn)


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="`module` is function; expected an Equinox module"):
        random_weights("net", lambda x: x)
    with pytest.raises(TypeError, match="`where` is str"):
        weights_of("net", NET, where="weights")
    with pytest.raises(KeyError, match="expected exactly"):
        seed(lambda: random_weights("net", NET, {"weights[0]": dist.Normal()}), jr.key(0))()
    with pytest.raises(ValueError, match=r"`prior` has shape \(2,\)"):
        random_weights("net", NET, jnp.ones(2))
    with pytest.raises(KeyError, match="nothing"):
        with_weights("net", NET, {"other.weights[0]": jnp.zeros((3, 1))})
    with pytest.raises(ValueError, match=r"has shape \(5, 1, 3\); expected \(1, 3\)"):
        with_weights("net", NET, {"net.weights[1]": jnp.zeros((5, 1, 3))})
    with pytest.raises(ValueError, match="`where` picks none"):
        weights_of("net", NET, where=lambda net: ())


TIMES = jnp.arange(30) * 0.3


def decay(times, y=None, where=None):
    """A known rate of decay, and a network for the rest of the drift."""
    rate = numpyro.sample("rate", dist.LogNormal(-0.5, 0.3))
    net = random_weights("net", NET, 0.5, where=where)
    field = fd.fields.UniversalField(lambda t, x, u: -rate * x, net)
    start = dist.Normal(jnp.array([2.0]), 0.1).to_event(1)
    observation = fd.LinearObservation([[1.0]], R=[[0.01]])
    model = fd.StateSpaceModel(start, fd.SDE(field, 0.05, substeps=1), observation)
    series = fd.ObservedSeries(model, times, filter=fd.ExtendedKalmanFilter())
    numpyro.sample("y", series, obs=y)


@pytest.fixture(scope="module")
def record():
    return Predictive(
        decay,
        {"rate": jnp.array([0.6])}
        | {name: 0.0 * x[None] for name, x in weights_of("net", NET).items()},
    )(jr.key(0), TIMES)["y"][0]


@pytest.fixture(scope="module")
def last_layer(record):
    """NUTS over the rate and the last layer, started at the weights that the net has."""
    start = init_to_value(values=weights_of("net", NET, where=last) | {"rate": 0.5})
    mcmc = MCMC(
        NUTS(decay, init_strategy=start), num_warmup=100, num_samples=100, progress_bar=False
    )
    mcmc.run(jr.key(1), TIMES, record, where=last)
    return mcmc


@pytest.mark.slow
def test_nuts_samples_a_rate_and_the_last_layer_together(last_layer, record):
    samples = last_layer.get_samples()
    assert set(samples) == {"rate", "net.weights[1]", "net.biases[1]"}
    assert not last_layer.get_extra_fields()["diverging"].any()
    assert all(np.isfinite(x).all() and x.std() > 0 for x in samples.values())
    at = jnp.array([1.0])
    rest = jax.vmap(lambda draw: with_weights("net", NET, draw)(0.0, at))(samples)[:, 0]
    total = -samples["rate"] + rest
    # Rate and network may share the drift in many ways; their sum is what the data see.
    assert abs(total.mean() + 0.6) < 0.2
    assert total.std() < samples["rate"].std() + 0.05


@pytest.mark.slow
def test_posterior_predictive_of_weights_goes_through_the_same_data_tree(last_layer, record):
    samples = last_layer.get_samples()
    samples |= {"scope/of/numpyro": np.zeros(100)}  # as `random_eqx_module` names its sites
    tree = fd.to_datatree(samples, decay, TIMES, record, where=last)
    assert set(tree["posterior"]) == {
        "rate", "net.weights[1]", "net.biases[1]", "scope.of.numpyro"
    }  # fmt: skip
    assert tree["posterior_predictive"]["y"].shape == (1, 100, 30, 1)
    replicated = tree["posterior_predictive"]["y"].values
    low, high = np.quantile(replicated, [0.05, 0.95], axis=(0, 1))
    inside = np.mean((low <= record) & (record <= high))
    assert 0.7 < inside <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "guide", [AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal]
)
def test_variational_inference_over_all_weights_raises_the_bound_and_predicts(guide, record):
    guide = guide(decay)
    svi = SVI(decay, guide, numpyro.optim.Adam(0.02), Trace_ELBO())
    fitted = svi.run(jr.key(0), 300, TIMES, record, progress_bar=False)
    assert not any("$params" in name for name in fitted.params)
    assert np.mean(fitted.losses[-30:]) < np.mean(fitted.losses[:30]) - 5
    samples = guide.sample_posterior(jr.key(1), fitted.params, sample_shape=(40,))
    replicated = Predictive(decay, samples)(jr.key(2), TIMES)["y"]
    assert replicated.shape == (40, 30, 1)
    assert np.abs(replicated.mean(0) - record).mean() < 0.3


# A network of one hidden unit in front of a sensor, v tanh(w u + b) + c, with all four weights random.
ONE = fd.fields.MLP(1, key=jr.key(0), width=1, depth=1)
FORCES = np.linspace(-2.0, 2.0, 9)
DRIFT, LEVEL, SENSOR = 0.8, 0.04, 0.01


def bent(y=None):
    net = random_weights("net", ONE, 1.5)
    moves = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 0.3).to_event(1),
        fd.LinearTransition([[DRIFT]], [[LEVEL]]),
        fd.GaussianObservation(lambda t, x, u: x + net(t, u, None), [[SENSOR]]),
    )
    series = fd.ObservedSeries(
        moves, np.arange(9.0), FORCES[:, None], filter=fd.ExtendedKalmanFilter()
    )
    numpyro.sample("y", series, obs=y)


def by_quadrature(y, at, sd=1.5):
    """Mean and variance of the network at `at`: given w and b, on a grid, y is linear and Gaussian in v and
    c with the noise of a random level, and so is the network."""
    k = np.arange(9)
    start = DRIFT ** (k[:, None] + k) * (0.09 - LEVEL / (1 - DRIFT**2))
    noise = start + LEVEL / (1 - DRIFT**2) * DRIFT ** np.abs(k[:, None] - k) + SENSOR * np.eye(9)
    w, b = (x.ravel() for x in np.meshgrid(*[np.linspace(-7.5, 7.5, 241)] * 2))
    hidden = lambda u: np.tanh(w[:, None] * u + b[:, None])
    design = np.stack([hidden(FORCES), np.ones((len(w), 9))], 2)
    there = np.stack([hidden(at), np.ones((len(w), len(at)))], 2)
    precision = np.eye(2) / sd**2 + np.swapaxes(design, 1, 2) @ np.linalg.solve(noise, design)
    cov = np.linalg.inv(precision)
    of_data = np.swapaxes(design, 1, 2) @ np.linalg.solve(noise, y)
    mean = np.einsum("nij,nj->ni", cov, of_data)
    log_w = 0.5 * np.einsum("ni,ni->n", of_data, mean) - 0.5 * np.linalg.slogdet(precision)[1]
    log_w -= 0.5 * (w**2 + b**2) / sd**2
    weight = np.exp(log_w - log_w.max())
    weight /= weight.sum()
    means = np.einsum("nai,ni->na", there, mean)
    variances = np.einsum("nai,nij,naj->na", there, cov, there)
    first = weight @ means
    return first, weight @ (variances + means**2) - first**2


@pytest.mark.slow
@pytest.mark.skipif(not jax.config.jax_enable_x64, reason="compared with float64 quadrature")
def test_nuts_over_all_weights_of_a_network_has_the_posterior_of_quadrature():
    """The sign of the hidden unit is free, so what is compared is the network, at three inputs: mean and
    square within 4 Monte Carlo standard errors of 4 chains."""
    rng, level, y = np.random.default_rng(0), 0.2, []
    for u in FORCES:
        y.append(level + np.tanh(1.5 * u + 0.5) + 0.1 * rng.normal())
        level = DRIFT * level + 0.2 * rng.normal()
    y, at = np.array(y), np.array([-1.7, 0.3, 2.5])
    mcmc = MCMC(
        NUTS(bent, target_accept_prob=0.9),
        num_warmup=500,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(0), y[:, None])
    draws = mcmc.get_samples(group_by_chain=True)
    one = lambda draw: jax.vmap(lambda u: with_weights("net", ONE, draw)(0.0, u[None], None)[0])(at)
    found = np.asarray(jax.vmap(jax.vmap(one))(draws))
    for k, (mean, variance) in enumerate(np.transpose(by_quadrature(y, at))):
        for values, exact in ((found[..., k], mean), ((found[..., k] - mean) ** 2, variance)):
            effective = numpyro.diagnostics.effective_sample_size(values)
            assert effective > 200
            assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(effective)
