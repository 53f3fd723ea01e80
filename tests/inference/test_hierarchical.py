"""Many series with parameters of their own and a population that they come from."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 answers", allow_module_level=True)

LENGTHS = (9, 5, 12)
COUNT = len(LENGTHS)
SPREAD, DECAY, DIFFUSION, NOISE = 0.8, 0.7, 0.3, 0.2
calls = []


class Relaxing(eqx.Module):
    """x' = level - DECAY x."""

    level: jax.Array

    def __call__(self, t, x, u):
        calls.append(None)
        return self.level - DECAY * x


def linear(level):
    motion = fd.LinearSDE([[-DECAY]], DIFFUSION, b=level[None])
    start = dist.MultivariateNormal(jnp.zeros(1), 0.5 * jnp.eye(1))
    return fd.StateSpaceModel(start, motion, fd.LinearObservation([[1.0]], NOISE**2))


def nonlinear(level):
    start = dist.MultivariateNormal(jnp.zeros(1), 0.5 * jnp.eye(1))
    motion = fd.SDE(Relaxing(level), DIFFUSION, substeps=2)
    return fd.StateSpaceModel(start, motion, fd.LinearObservation([[1.0]], NOISE**2))


def records(seed=0, lengths=LENGTHS):
    """Series with times and lengths of their own, and an entry missing in the first."""
    random = np.random.default_rng(seed)
    found = []
    for length in lengths:
        times = random.uniform(0, 3) + np.cumsum(random.uniform(0.1, 0.9, length))
        y = 1.0 + random.normal(size=length)
        found.append(fd.Series(times, y))
    y = np.array(found[0].observations)
    y[3] = np.nan
    found[0] = fd.Series(found[0].times, y)
    return found


def population(make, filter):
    def model(times, y=None, mean=None):
        if mean is None:
            mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
        with numpyro.plate("series", len(times)):
            level = numpyro.sample("level", dist.Normal(mean, SPREAD))
            models = eqx.filter_vmap(make)(level)
            site = fd.ObservedSeries(models, times, filter=filter, batch_shape=(len(times),))
            numpyro.sample("y", site, obs=y)

    return model


KINDS = {
    "linear": (linear, fd.KalmanFilter()),
    "a field": (nonlinear, fd.ExtendedKalmanFilter()),
}
LEVELS = jnp.array([0.4, -0.3, 1.1])


def separate(make, filter, series, level):
    return fd.log_likelihood(make(level), series, filter)


def test_the_density_is_that_of_the_separate_series_and_the_population():
    make, filter = KINDS["a field"]
    series, batch = records(), fd.stack(records())
    model = population(make, filter)
    found, _ = log_density(
        model, (batch.times, batch.observations), {}, {"mean": 0.3, "level": LEVELS}
    )
    expected = dist.Normal(0.0, 2.0).log_prob(0.3) + dist.Normal(0.3, SPREAD).log_prob(LEVELS).sum()
    for one, level in zip(series, LEVELS, strict=True):
        expected += separate(make, filter, one, level)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.slow
def test_with_the_population_known_every_series_has_the_posterior_that_it_has_alone():
    """Its gradient is that of its own fit, and no second derivative couples two series."""
    make, filter = KINDS["linear"]
    series, batch = records(), fd.stack(records())
    model = population(make, filter)
    args = (batch.times, batch.observations)
    joint = lambda level: log_density(model, args, {"mean": 0.3}, {"level": level})[0]
    both = lambda f: jax.jit(lambda x: (jax.grad(f)(x), jax.hessian(f)(x)))
    slope, curvature = both(joint)(LEVELS)
    for i in (0, 2):

        def alone(level, one=series[i]):
            return dist.Normal(0.3, SPREAD).log_prob(level) + separate(make, filter, one, level)

        own_slope, own_curvature = both(alone)(LEVELS[i])
        assert float(slope[i]) == pytest.approx(float(own_slope), rel=1e-9)
        assert float(curvature[i, i]) == pytest.approx(float(own_curvature), rel=1e-8)
    assert np.abs(curvature - jnp.diag(jnp.diag(curvature))).max() < 1e-10


def dense_posterior(series):
    """Mean and covariance of (mean, levels), which everything is linear in: by one dense Gaussian."""
    blocks, values, gains = [], [], []
    for one in series:
        t = np.asarray(one.times - one.times[0])
        y = np.asarray(one.observations)[:, 0]
        decay = np.exp(-DECAY * t)
        stationary = DIFFUSION**2 / (2 * DECAY)
        cov = 0.5 * np.outer(decay, decay) + stationary * (
            np.exp(-DECAY * np.abs(t[:, None] - t)) - np.outer(decay, decay)
        )
        seen = ~np.isnan(y)
        blocks.append((cov + NOISE**2 * np.eye(len(t)))[seen][:, seen])
        gains.append(((1 - decay) / DECAY)[seen])
        values.append(y[seen])
    prior = 4.0 * np.ones((COUNT + 1, COUNT + 1))
    prior[1:, 1:] += SPREAD**2 * np.eye(COUNT)
    rows = np.repeat(np.arange(COUNT), [len(v) for v in values])
    G = np.zeros((len(rows), COUNT + 1))
    G[np.arange(len(rows)), 1 + rows] = np.concatenate(gains)
    noise = np.zeros((len(rows), len(rows)))
    for i, block in enumerate(blocks):
        noise[np.ix_(rows == i, rows == i)] = block
    cov = np.linalg.inv(np.linalg.inv(prior) + G.T @ np.linalg.solve(noise, G))
    return cov @ G.T @ np.linalg.solve(noise, np.concatenate(values)), cov


def test_the_joint_density_is_that_of_the_dense_gaussian():
    """Its mode and its curvature are those of the dense posterior, whose density is quadratic."""
    make, filter = KINDS["linear"]
    series, batch = records(), fd.stack(records())
    model = population(make, filter)
    args = (batch.times, batch.observations)
    joint = lambda v: log_density(model, args, {}, {"mean": v[0], "level": v[1:]})[0]
    mean, cov = dense_posterior(series)
    np.testing.assert_allclose(jax.jit(jax.grad(joint))(jnp.asarray(mean)), 0.0, atol=1e-9)
    curvature = jax.jit(jax.hessian(joint))(jnp.zeros(COUNT + 1))
    np.testing.assert_allclose(np.linalg.inv(-curvature), cov, rtol=1e-8, atol=1e-10)


@pytest.fixture(scope="module")
def sampled():
    make, filter = KINDS["a field"]
    batch = fd.stack(records())
    model = population(make, filter)
    mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=1500, progress_bar=False)
    calls.clear()
    mcmc.run(jax.random.key(0), batch.times, batch.observations)
    return mcmc, model, batch, len(calls)


@pytest.mark.slow
def test_nuts_samples_the_dense_posterior(sampled):
    """(The field is linear, so that the extended filter is exact but for the Runge-Kutta steps.) Means within
    5 standard errors of 1,500 draws, which are about independent; spreads within 12 %."""
    mcmc, _, _, _ = sampled
    samples = mcmc.get_samples()
    draws = np.column_stack([samples["mean"], samples["level"]])
    mean, cov = dense_posterior(records())
    sd = np.sqrt(np.diag(cov))
    assert (np.abs(draws.mean(0) - mean) < 5 * sd / np.sqrt(1000) + 1e-3).all()
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.12)


@pytest.mark.long
@pytest.mark.slow
def test_more_series_and_other_data_are_not_traced_again(sampled):
    """How often the field is looked at in Python does not depend on how many series there are, and a second
    run of the same shapes looks only to find its start."""
    before = sampled[-1]
    make, filter = KINDS["a field"]
    other = fd.stack(records(seed=1))
    calls.clear()
    model = population(make, filter)
    many = fd.stack(records(seed=2, lengths=(9, 5, 12, 4, 7, 3, 11, 6)))
    settings = dict(num_warmup=5, num_samples=5, progress_bar=False)
    more = MCMC(NUTS(model), **settings)
    more.run(jax.random.key(0), many.times, many.observations)
    assert len(calls) == before

    def of_data(times, y):
        return model(times, y)

    again = MCMC(NUTS(of_data), jit_model_args=True, **settings)
    calls.clear()
    again.run(jax.random.key(0), jnp.asarray(other.times), other.observations)
    first = len(calls)
    batch = fd.stack(records(seed=3))
    calls.clear()
    again.run(jax.random.key(1), jnp.asarray(batch.times), batch.observations)
    assert 2 * len(calls) <= first


@pytest.mark.slow
def test_replicates_and_the_tree_have_an_axis_of_series(sampled):
    mcmc, model, batch, _ = sampled
    longest = max(LENGTHS)
    posterior = {name: x[:50] for name, x in mcmc.get_samples().items()}
    replicated = Predictive(model, posterior)(jax.random.key(1), batch.times)["y"]
    assert replicated.shape == (50, COUNT, longest, 1)
    tree = fd.to_datatree(posterior, model, batch.times, batch.observations)
    assert tree["posterior"]["level"].dims == ("chain", "draw", "series")
    assert tree["posterior_predictive"]["y"].dims == (
        "chain", "draw", "series", "time", "observation",
    )  # fmt: skip
    assert tree["log_likelihood"]["y"].sizes["row"] == sum(LENGTHS) - 1
    whole = tree["log_likelihood"]["y"].values.sum(-1)[0]
    make, filter = KINDS["a field"]
    levels = posterior["level"]
    for draw in range(0, 50, 25):
        expected = sum(
            float(separate(make, filter, one, levels[draw, i])) for i, one in enumerate(records())
        )
        assert whole[draw] == pytest.approx(expected, abs=1e-6)
