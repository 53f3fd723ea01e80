"""A state-space model as a NumPyro distribution."""

import os
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers, optim
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, autoguide, log_likelihood
from numpyro.infer.util import log_density
from oracles import dense
from scipy.stats import norm

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip(
        "compared with float64 answers; float32 has a process of its own", allow_module_level=True
    )

NAN = np.nan
m0, P0 = np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 2.0]])
F, Q = np.array([[0.9, 0.3], [-0.2, 0.8]]), np.array([[0.2, 0.05], [0.05, 0.1]])
B, H = np.array([[0.5], [1.0]]), np.array([[1.0, 0.5], [0.0, 1.0]])
R, D = np.array([[0.3, 0.1], [0.1, 0.4]]), np.array([[0.2], [-0.5]])
y = np.array([[0.3, -0.8], [1.1, NAN], [NAN, NAN], [NAN, 0.4], [-0.7, 0.9]])
inputs = np.array([[1.0], [0.0], [-2.0], [0.5], [1.5]])
times = np.array([0.0, 1.0, 1.0, 2.0, 3.0])
early = dict(t0=-1.0, u0=np.array([0.7]))
initial = dist.MultivariateNormal(jnp.asarray(m0), jnp.asarray(P0))
seen = fd.LinearObservation(H, R, D=D)
model = fd.StateSpaceModel(initial, fd.LinearTransition(F, Q, B=B), seen)
exact = fd.KalmanFilter()
extended = fd.ExtendedKalmanFilter()


def drift(t, x, u):
    return jnp.sin(x) + jnp.asarray(B) @ u


def pelts(t, x, u):
    return dist.LogNormal(x, 0.3).to_event(1)


def counts(t, x, u):
    return dist.Poisson(jnp.exp(x)).to_event(1)


def reading(t, x, u):
    return dist.Normal(x, 0.5).to_event(1)


def observed_as(fn):
    dynamics = fd.LinearSDE(-0.5 * np.eye(2), 0.4)
    return fd.StateSpaceModel(initial, dynamics, fd.Observation(fn))


def rows(y=y, **start):
    return dense.discrete_rows(m0, P0, F, Q, H, R, y, B=B, D=D, inputs=inputs, times=times, **start)


def observed(**settings):
    return fd.ObservedSeries(model, times, inputs, filter=exact, **settings)


def close(value, expected, rtol=1e-10):
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=rtol)


def fails(error, message, call):
    with pytest.raises(error, match=message):
        call()


# --- one series


@pytest.mark.parametrize("start", [{}, early], ids=["prior at the first row", "prior before it"])
def test_log_prob_is_the_joint_density_of_what_was_observed(start):
    close(observed(**start).log_prob(y), dense.path(rows(**start))[2])


MODELS = {
    "LinearSDE": (fd.StateSpaceModel(initial, fd.LinearSDE(-F, Q, B=B), seen), exact, y),
    "SDE": (fd.StateSpaceModel(initial, fd.SDE(drift, 0.3, substeps=2), seen), extended, y),
    "LogNormal": (observed_as(pelts), extended, np.exp(y)),
}


@pytest.mark.parametrize("name", MODELS)
def test_log_prob_is_the_log_likelihood_of_the_filter(name):
    model, filter, y = MODELS[name]
    distribution = fd.ObservedSeries(model, times, inputs, filter=filter, **early)
    series = fd.Series(times, y, inputs)
    close(distribution.log_prob(y), fd.log_likelihood(model, series, filter, **early))


def test_terms_of_the_rows_sum_to_log_prob():
    terms = observed(**early).log_likelihoods(y)
    assert terms.shape == (5,)
    close(terms.sum(), observed(**early).log_prob(y))
    close(terms, dense.answer(rows(**early)).log_likelihoods)
    assert terms[2] == 0.0


def test_a_series_is_one_event():
    distribution = observed()
    assert distribution.event_shape == (5, 2)
    assert distribution.batch_shape == ()
    assert distribution.event_dim == 2


def test_the_number_of_observed_quantities_comes_from_the_model():
    one = fd.StateSpaceModel(
        initial, model.dynamics, fd.LinearObservation(H[:1], R[:1, :1], D=D[:1])
    )
    assert fd.ObservedSeries(one, times, inputs, filter=exact).event_shape == (5, 1)


def test_lists_and_integers_are_taken():
    whole = fd.ObservedSeries(model, [0, 1, 1, 2, 3], inputs.tolist(), filter=exact)
    close(whole.log_prob(y.tolist()), observed().log_prob(y))


def test_a_missing_series_has_density_one():
    assert observed().log_prob(np.full((5, 2), NAN)) == 0.0


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_samples_have_the_sample_shape_in_front(shape):
    assert observed().sample(jr.key(0), shape).shape == (*shape, 5, 2)


def test_samples_have_the_moments_of_the_joint_distribution():
    """Bonferroni over all 10 means and 55 covariances: false alarm 1e-6."""
    count = 20_000
    draws = np.asarray(observed(**early).sample(jr.key(1), (count,))).reshape(count, 10)
    mean, cov, _ = dense.joint_observation(rows(**early))
    mean, cov = mean[2:], cov[2:, 2:]  # the first row is the prior, which nobody sees
    variance, centred = np.diag(cov), draws - mean
    scores = centred.mean(0) / np.sqrt(variance / count)
    products = (centred.T @ centred / count - cov) / np.sqrt(
        (np.outer(variance, variance) + cov**2) / count
    )
    bound = norm.isf(1e-6 / 2 / 65)
    assert np.abs(scores).max() < bound
    assert np.abs(products).max() < bound


def test_samples_of_one_instant_share_the_state():
    sharp = fd.StateSpaceModel(initial, model.dynamics, fd.LinearObservation(H, 1e-20, D=0 * D))
    draws = fd.ObservedSeries(sharp, times, inputs, filter=exact).sample(jr.key(0), (4,))
    close(draws[:, 1], draws[:, 2], 1e-6)


def test_a_distribution_is_a_pytree():
    distribution = observed(**early)
    leaves, structure = jax.tree.flatten(distribution)
    again = jax.tree.unflatten(structure, leaves)
    assert again.event_shape == (5, 2)
    close(again.log_prob(y), distribution.log_prob(y))


def test_a_distribution_passes_through_jit():
    distribution = observed(**early)
    value = jax.jit(lambda distribution, y: distribution.log_prob(y))(distribution, y)
    close(value, distribution.log_prob(y))
    again = jax.jit(lambda distribution: distribution)(distribution)
    close(again.log_prob(y), distribution.log_prob(y))


def test_value_and_gradient_inside_jit_are_those_outside():
    def log_prob(scale):
        scaled = fd.StateSpaceModel(initial, fd.LinearTransition(F, scale * Q, B=B), seen)
        return fd.ObservedSeries(scaled, times, inputs, filter=exact).log_prob(y)

    close(jax.jit(log_prob)(1.3), log_prob(1.3))
    step = 1e-5
    finite = (log_prob(1.3 + step) - log_prob(1.3 - step)) / (2 * step)
    close(jax.jit(jax.grad(log_prob))(1.3), finite, 1e-7)


# --- several series of one model


several = np.stack([y, 0.5 * y, y + 1.0])


def test_further_leading_axes_are_further_series():
    each = np.array([observed().log_prob(one) for one in several])
    close(observed().log_prob(several), each)
    close(observed().log_prob(several[None, :2]), each[None, :2])
    terms = observed().log_likelihoods(several)
    assert terms.shape == (3, 5)
    close(terms.sum(-1), each)


def test_a_distribution_expands():
    wide = observed().expand([3])
    assert wide.batch_shape == (3,)
    close(wide.log_prob(several), observed().log_prob(several))
    close(wide.log_prob(y), np.full(3, observed().log_prob(y)))
    assert wide.sample(jr.key(0), (2,)).shape == (2, 3, 5, 2)
    assert len(np.unique(wide.sample(jr.key(0))[:, 0, 0])) == 3
    close(wide.to_event(1).log_prob(several), observed().log_prob(several).sum())


def test_a_masked_series_adds_nothing():
    assert observed().mask(False).log_prob(y) == 0.0
    some = observed().expand([3]).mask(jnp.array([True, False, True]))
    close(some.log_prob(several), np.array([1, 0, 1]) * observed().log_prob(several))


def test_a_plate_holds_several_series_of_one_model():
    def program(y=None):
        with numpyro.plate("series", 3):
            numpyro.sample("y", observed(), obs=y)

    close(log_density(program, (several,), {}, {})[0], observed().log_prob(several).sum())
    assert Predictive(program, num_samples=4)(jr.key(0))["y"].shape == (4, 3, 5, 2)


def test_a_subsampled_plate_scales_the_density():
    def program(y):
        with numpyro.plate("series", 3, subsample_size=2):
            batch = numpyro.subsample(y, event_dim=2)
            numpyro.sample("y", observed(), obs=batch)

    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        program(several)
    with handlers.seed(rng_seed=0):
        value = log_density(program, (several,), {}, {})[0]
    close(value, 1.5 * observed().log_prob(trace["y"]["value"]).sum())


def test_a_series_that_fails_leaves_its_neighbours_alone():
    seen_as = observed_as(pelts)
    values = np.exp(np.where(np.isnan(several), NAN, several))
    bad = values.copy()
    bad[1, 0, 0] = -1.0

    def log_prob(scale, values):
        dynamics = fd.LinearSDE(-0.5 * np.eye(2), scale)
        scaled = fd.StateSpaceModel(seen_as.initial, dynamics, seen_as.observation)
        return fd.ObservedSeries(scaled, times, filter=extended).log_prob(values)

    good = np.array([0, 2])
    assert log_prob(0.4, bad)[1] == -np.inf
    close(log_prob(0.4, bad)[good], log_prob(0.4, values)[good])
    gradient = jax.jit(jax.jacfwd(log_prob))(0.4, values)
    close(jax.jit(jax.grad(lambda s: log_prob(s, bad).sum()))(0.4), gradient[good].sum())


# --- a batch of models


class Rate(eqx.Module):
    """A drift with its parameter in an array field."""

    rate: jax.Array

    def __call__(self, t, x, u):
        return -self.rate * jnp.sin(x)


def make(rate, level):
    start = dist.Normal(level * jnp.ones(2), 1.0).to_event(1)
    return fd.StateSpaceModel(
        start, fd.SDE(Rate(rate), 0.3, substeps=2), fd.LinearObservation(H, R)
    )


rates, levels = jnp.array([0.3, 0.7, 1.5]), jnp.array([0.0, 1.0, -2.0])
models = eqx.filter_vmap(make)(rates, levels)


def test_a_batch_of_models_is_a_batch_of_distributions():
    distribution = fd.ObservedSeries(models, times, filter=extended, batch_shape=(3,))
    assert distribution.batch_shape == (3,)
    assert distribution.event_shape == (5, 2)
    single = [
        fd.ObservedSeries(make(*p), times, filter=extended) for p in zip(rates, levels, strict=True)
    ]
    each = np.array([d.log_prob(one) for d, one in zip(single, several, strict=True)])
    close(distribution.log_prob(several), each)
    close(distribution.log_likelihoods(several).sum(-1), each)
    close(distribution.log_prob(y), np.array([d.log_prob(y) for d in single]))
    close(distribution.log_prob(np.stack([several, several]))[1], each)
    draws = distribution.sample(jr.key(0), (2000,))
    assert draws.shape == (2000, 3, 5, 2)
    # H m at the first row has sd below 1.3 per draw: 6 standard errors are 0.18.
    close(draws[:, :, 0].mean(0), levels[:, None] * H.sum(1), 0.18)


def test_parameters_of_each_series_have_their_own_gradient_in_a_plate():
    def program(y):
        with numpyro.plate("series", 3):
            rate = numpyro.sample("rate", dist.LogNormal(0.0, 1.0))
            batch = eqx.filter_vmap(make)(rate, levels)
            distribution = fd.ObservedSeries(batch, times, filter=extended, batch_shape=(3,))
            numpyro.sample("y", distribution, obs=y)

    def total(rate):
        return log_density(program, (several,), {}, {"rate": rate})[0]

    def alone(rate, level, one):
        likelihood = fd.ObservedSeries(make(rate, level), times, filter=extended).log_prob(one)
        return dist.LogNormal(0.0, 1.0).log_prob(rate) + likelihood

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(alone)))(rates, levels, several)
    value, gradient = jax.jit(jax.value_and_grad(total))(rates)
    close(value, values.sum())
    close(gradient, gradients)


def test_a_start_of_its_own_for_every_series():
    starts = np.array([-1.0, 0.0, -0.5])
    distribution = fd.ObservedSeries(models, times, filter=extended, batch_shape=(3,), t0=starts)
    for k in range(3):
        alone = fd.ObservedSeries(make(rates[k], levels[k]), times, filter=extended, t0=starts[k])
        close(distribution.log_prob(several)[k], alone.log_prob(several[k]))


def test_ragged_series_are_a_batch_with_times_of_their_own():
    short = fd.Series([0.5, 0.7], y[:2], inputs[:2])
    long = fd.Series(np.array([0.0, 0.1, 0.4, 1.9, 5.0]), y[::-1], inputs)
    batch = fd.stack([short, long])
    continuous = MODELS["LinearSDE"][0]
    distribution = fd.ObservedSeries(
        continuous, batch.times, batch.inputs, filter=exact, batch_shape=(2,)
    )
    expected = [fd.log_likelihood(continuous, one, exact) for one in (short, long)]
    close(distribution.log_prob(batch.observations), np.array(expected))
    assert distribution.sample(jr.key(0), (3,)).shape == (3, 2, 5, 2)

    def program(y):
        with numpyro.plate("series", 2):
            numpyro.sample("y", distribution, obs=y)

    close(log_density(program, (batch.observations,), {}, {})[0], np.sum(expected))


def test_one_model_may_be_declared_as_a_batch():
    distribution = observed(batch_shape=(3,))
    assert distribution.batch_shape == (3,)
    close(distribution.log_prob(several), observed().log_prob(several))


# --- support and validation


def test_support_is_that_of_every_entry_and_missing_is_allowed():
    real = observed().support
    assert real(y)
    positive = fd.ObservedSeries(observed_as(pelts), times, filter=extended).support
    assert positive(np.exp(y))
    assert not positive(np.where(np.isnan(y), NAN, -1.0))
    assert not positive.is_discrete
    whole = fd.ObservedSeries(observed_as(counts), times, filter=extended).support
    assert whole.is_discrete
    assert whole(np.where(np.isnan(y), NAN, 3.0))
    assert not whole(np.where(np.isnan(y), NAN, 0.5))
    several_at_once = real(np.stack([y, np.zeros_like(y)]))
    assert several_at_once.shape == (2,)


@pytest.mark.parametrize("fn", [reading, pelts, counts])
def test_samples_lie_in_the_support(fn):
    distribution = fd.ObservedSeries(observed_as(fn), times, filter=extended)
    assert distribution.support(distribution.sample(jr.key(0), (3,))).all()


def test_missing_entries_pass_validation():
    close(observed(validate_args=True).log_prob(y), observed().log_prob(y))

    def program(y):
        numpyro.sample("y", observed(), obs=y)

    with numpyro.validation_enabled():
        close(log_density(program, (y,), {}, {})[0], observed().log_prob(y))
        wide = observed().expand([3])
        close(wide.log_prob(several), observed().log_prob(several))


@pytest.mark.parametrize("fn", [reading, pelts])
def test_an_unobserved_series_is_a_latent_site_with_a_bijection(fn):
    distribution = fd.ObservedSeries(observed_as(fn), times, filter=extended)
    bijection = dist.biject_to(distribution.support)
    free = jr.normal(jr.key(0), (5, 2))
    value = bijection(free)
    assert distribution.support(value)
    close(bijection.inv(value), free)
    assert bijection.log_abs_det_jacobian(free, value).shape == ()


# --- errors


def test_a_batch_of_models_must_be_declared():
    fails(
        ValueError,
        r"`model` is a batch of shape \(3,\) but `batch_shape` is \(\); give batch_shape=\(3,\)",
        lambda: fd.ObservedSeries(models, times, filter=extended),
    )
    fails(
        ValueError,
        r"`model` is a batch of shape \(3,\) but `batch_shape` is \(2,\)",
        lambda: fd.ObservedSeries(models, times, filter=extended, batch_shape=(2,)),
    )


def test_a_batch_of_times_must_be_declared():
    fails(
        ValueError,
        r"`times` has shape \(2, 5\) but `batch_shape` is \(\); .* batch_shape=\(2,\)",
        lambda: fd.ObservedSeries(model, np.stack([times, times]), filter=exact),
    )


@pytest.mark.parametrize("shape", [(4, 2), (5, 3), (5,), (2, 5, 1)])
def test_a_value_of_another_shape_is_an_error(shape):
    message = r"the value has shape .*; expected \(..., 5, 2\)"
    fails(ValueError, message, lambda: observed().log_prob(np.zeros(shape)))


def test_a_value_that_does_not_fit_the_batch_is_an_error():
    distribution = observed(batch_shape=(3,))
    message = r"the value has shape \(2, 5, 2\); expected \(..., 3, 5, 2\)"
    fails(ValueError, message, lambda: distribution.log_prob(several[:2]))


def test_infinite_values_are_an_error():
    value = np.where(np.isnan(y), np.inf, y)
    fails(ValueError, "the value has infinite entries", lambda: observed().log_prob(value))


def test_a_traced_infinite_value_has_density_zero():
    value = np.where(np.isnan(y), np.inf, y)
    assert jax.jit(observed().log_prob)(value) == -np.inf


def test_arguments_of_another_kind_are_errors():
    fails(
        TypeError, "expected a StateSpaceModel", lambda: fd.ObservedSeries(1, times, filter=exact)
    )
    fails(
        TypeError,
        "expected a filter",
        lambda: fd.ObservedSeries(model, times, filter=fd.KalmanFilter),
    )
    fails(
        TypeError,
        r"use fd.ExtendedKalmanFilter\(\)",
        lambda: fd.ObservedSeries(observed_as(pelts), times, filter=exact),
    )
    decreasing = times[::-1]
    fails(ValueError, "decreases", lambda: fd.ObservedSeries(model, decreasing, filter=exact))
    fails(
        ValueError,
        r"`inputs` has shape \(4, 1\) but `times` has shape \(5,\)",
        lambda: fd.ObservedSeries(model, times, inputs[:4], filter=exact),
    )
    fails(ValueError, "`t0` is 1.0", lambda: observed(t0=1.0).log_prob(y))


# --- inference in NumPyro, on a model whose posterior is known


ticks = np.arange(10.0)
data = np.array([0.4, 1.3, NAN, 2.2, 2.4, 3.9, 3.1, NAN, 4.8, 4.1])[:, None]
PRIOR_SD, NOISE = np.array([2.0, 0.5]), 0.3


def program(times, y=None):
    """A level that starts near `start` and is pushed by `push`: both have Gaussian posteriors."""
    start = numpyro.sample("start", dist.Normal(0.0, PRIOR_SD[0]))
    push = numpyro.sample("push", dist.Normal(0.0, PRIOR_SD[1]))
    one = jnp.eye(1)
    level = fd.StateSpaceModel(
        dist.Normal(start[None], 1.0).to_event(1),
        fd.LinearTransition(0.9 * one, 0.1 * one, b=push[None]),
        fd.LinearObservation(one, NOISE * one),
    )
    numpyro.sample("y", fd.ObservedSeries(level, times, filter=fd.KalmanFilter()), obs=y)


def known_posterior():
    """Mean and covariance of (start, push), which here are two more states that never move."""
    a, b = PRIOR_SD**2
    transition = np.array([[0.9, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    start_cov = np.array([[a + 1.0, a, 0.0], [a, a, 0.0], [0.0, 0.0, b]])
    augmented = dense.discrete_rows(
        np.zeros(3), start_cov, transition, np.diag([0.1, 0.0, 0.0]),
        np.array([[1.0, 0.0, 0.0]]), np.array([[NOISE]]), data,
    )  # fmt: skip
    answer = dense.answer(augmented)
    return answer.smoothed_mean[-1, 1:], answer.smoothed_cov[-1, 1:, 1:]


@pytest.fixture(scope="module")
def mcmc():
    mcmc = MCMC(
        NUTS(program),
        num_warmup=300,
        num_samples=1000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(0), ticks, data)
    return mcmc


def test_nuts_samples_the_posterior(mcmc):
    """With 2,000 draws a mean has a standard error of 0.03 sd, a standard deviation one of 2 %."""
    mean, cov = known_posterior()
    samples = mcmc.get_samples()
    draws = np.stack([samples["start"], samples["push"]], 1)
    sd = np.sqrt(np.diag(cov))
    close((draws.mean(0) - mean) / sd, 0.0, 0.15)
    close(draws.std(0) / sd, 1.0, 0.1)
    assert abs(np.corrcoef(draws.T)[0, 1] - cov[0, 1] / sd.prod()) < 0.1
    assert not mcmc.get_extra_fields()["diverging"].any()


def test_replicated_data_come_from_the_posterior(mcmc):
    mean, _ = known_posterior()
    draws = Predictive(program, mcmc.get_samples())(jr.key(1), ticks)["y"]
    assert draws.shape == (2000, 10, 1)
    decay = 0.9**ticks
    expected = decay * mean[0] + (1 - decay) / 0.1 * mean[1]
    # A replicate has sd below 1.5; with 2,000 of them 0.2 is more than 5 standard errors.
    close(draws[..., 0].mean(0), expected, 0.2)


def test_prior_predictive_needs_no_data():
    draws = Predictive(program, num_samples=7)(jr.key(1), ticks)
    assert draws["y"].shape == (7, 10, 1)
    assert draws["start"].shape == (7,)


def test_numpyros_log_likelihood_is_that_of_the_filter(mcmc):
    samples = {name: x[:5] for name, x in mcmc.get_samples().items()}
    values = log_likelihood(program, samples, ticks, data)["y"]
    assert values.shape == (5,)
    for k in range(5):
        one = {name: x[k] for name, x in samples.items()}
        with handlers.seed(rng_seed=0), handlers.substitute(data=one):
            trace = handlers.trace(program).get_trace(ticks, data)
        close(values[k], trace["y"]["fn"].log_prob(data))


@pytest.mark.parametrize(
    "guide",
    [
        pytest.param(guide, marks=pytest.mark.slow)
        for guide in (autoguide.AutoNormal, autoguide.AutoMultivariateNormal)
    ],
)
def test_variational_inference_finds_the_gaussian_posterior(guide):
    """A full Gaussian finds it exactly, one without correlations finds the conditional variances."""
    mean, cov = known_posterior()
    full = guide is autoguide.AutoMultivariateNormal
    sd = np.sqrt(np.diag(cov)) if full else 1 / np.sqrt(np.diag(np.linalg.inv(cov)))
    rate = lambda step: 0.05 * 0.997**step
    fitted = guide(program)
    svi = SVI(program, fitted, optim.Adam(rate), Trace_ELBO(num_particles=8))
    result = svi.run(jr.key(0), 2000, ticks, data, progress_bar=False)
    draws = fitted.sample_posterior(jr.key(1), result.params, sample_shape=(10_000,))
    found = np.stack([draws["start"], draws["push"]], 1)
    close((found.mean(0) - mean) / np.sqrt(np.diag(cov)), 0.0, 0.2)
    close(found.std(0) / sd, 1.0, 0.15)


def test_nuts_samples_an_unobserved_series():
    """A site without data is a latent variable: here a log-normal series, whose logarithm is
    Gaussian with a known mean and covariance. With 1,000 draws a mean has a standard error of at
    most 0.05 sd."""
    one = np.eye(1)
    start = dist.Normal(jnp.zeros(1), 1.0).to_event(1)
    walk = fd.StateSpaceModel(start, fd.LinearTransition(one, one), fd.Observation(pelts))

    def latent():
        numpyro.sample("y", fd.ObservedSeries(walk, np.arange(3.0), filter=extended))

    mcmc = MCMC(NUTS(latent), num_warmup=300, num_samples=1000, progress_bar=False)
    mcmc.run(jr.key(0))
    draws = np.log(mcmc.get_samples()["y"][..., 0])
    expected = np.minimum.outer(np.arange(1, 4), np.arange(1, 4)) + 0.09 * np.eye(3)
    close(draws.mean(0) / np.sqrt(np.diag(expected)), 0.0, 0.25)
    close(np.cov(draws.T), expected, 0.6)


@pytest.mark.slow
def test_float32_inference_in_a_process_without_float64():
    script = """
        import jax.numpy as jnp, jax.random as jr, numpy as np, numpyro
        import numpyro.distributions as dist
        from numpyro.infer import MCMC, NUTS, Predictive, SVI, Trace_ELBO, log_likelihood
        from numpyro.infer.autoguide import AutoNormal
        import filterdyn as fd

        def program(times, y=None):
            rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.5))
            model = fd.StateSpaceModel(
                dist.Normal(jnp.zeros(2), 1.0).to_event(1),
                fd.SDE(lambda t, x, u: -rate * jnp.sin(x), 0.3, substeps=2),
                fd.Observation(lambda t, x, u: dist.LogNormal(x, 0.2).to_event(1)),
            )
            site = fd.ObservedSeries(model, times, filter=fd.ExtendedKalmanFilter())
            numpyro.sample("y", site, obs=y)

        times = np.cumsum(np.full(30, 0.3)) + 1.7e9
        y = Predictive(program, num_samples=1)(jr.key(0), times)["y"][0].at[3, 1].set(jnp.nan)
        mcmc = MCMC(NUTS(program), num_warmup=150, num_samples=150, num_chains=2,
                    chain_method="vectorized", progress_bar=False)
        mcmc.run(jr.key(1), times, y)
        rate = mcmc.get_samples(group_by_chain=True)["rate"]
        assert rate.dtype == jnp.float32 and jnp.isfinite(rate).all()
        assert numpyro.diagnostics.gelman_rubin(np.asarray(rate)) < 1.1
        assert mcmc.get_extra_fields()["diverging"].sum() == 0
        values = log_likelihood(program, mcmc.get_samples(), times, y)["y"]
        assert values.dtype == jnp.float32 and jnp.isfinite(values).all()
        svi = SVI(program, AutoNormal(program), numpyro.optim.Adam(0.05), Trace_ELBO())
        losses = svi.run(jr.key(2), 200, times, y, progress_bar=False).losses
        assert jnp.isfinite(losses).all() and losses[-50:].mean() < losses[:10].mean()
        print("fine")
    """
    environment = {**os.environ, "JAX_ENABLE_X64": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("fine")
