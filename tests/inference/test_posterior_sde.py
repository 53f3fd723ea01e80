"""A posterior SDE against closed forms of Ornstein-Uhlenbeck processes and the Kalman filter."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import filterdyn as fd
from filterdyn.inference import PathEncoder, PosteriorSDE, VariationalSeries, path_elbo

X64 = jax.config.jax_enable_x64
a, s, P0, R = 0.8, 0.7, 1.5, 0.1
times = np.array([0.0, 0.4, 0.5, 0.5, 1.1, 2.0])
y = np.array([[0.9], [np.nan], [0.2], [0.4], [-0.3], [1.0]])
series = fd.Series(times, y)


def ornstein_uhlenbeck(rate=a, size=s, substeps=8, initial=None):
    initial = dist.Normal(jnp.zeros(1), jnp.sqrt(P0)).to_event(1) if initial is None else initial
    dynamics = fd.SDE(lambda t, x, u: -rate * x, size, substeps=substeps)
    return fd.StateSpaceModel(initial, dynamics, fd.LinearObservation([[1.0]], [[R]]))


def exact(data=series):
    initial = dist.Normal(jnp.zeros(1), jnp.sqrt(P0)).to_event(1)
    dynamics = fd.LinearSDE(-a * jnp.eye(1), s * jnp.eye(1))
    model = fd.StateSpaceModel(initial, dynamics, fd.LinearObservation([[1.0]], [[R]]))
    return fd.log_likelihood(model, data, fd.KalmanFilter())


def back(info, left):
    """What later measurements say of an earlier state, log h = -J x^2 / 2 + h x, so much time before."""
    flow = jnp.exp(-a * left)
    q = s**2 * (1 - flow**2) / (2 * a)
    precision, eta = info[0], info[1]
    shrunk = 1 + q * precision
    return jnp.stack([flow**2 * precision / shrunk, flow * eta / shrunk])


def later(gaps, observations, inputs, index):
    """J and h at every row, by the backward information filter."""
    there = ~jnp.isnan(observations[:, 0])
    seen = jnp.where(there, 1 / R, 0.0)
    said = jnp.where(there, observations[:, 0] / R, 0.0)
    until = jnp.append(gaps[1:], 0.0)

    def step(info, row):
        until, seen, said = row
        info = back(info, until) + jnp.stack([seen, said])
        return info, info

    zero = jnp.zeros(2, observations.dtype)
    return jax.lax.scan(step, zero, (until, seen, said), reverse=True)[1]


def smoothing(t, x, context):
    precision, eta = back(context[:2], context[2])
    return s * (eta - precision * x)


def smoothed_start(context):
    """For the number z of x0 = sqrt(P0) z."""
    variance = 1 / (1 + P0 * context[0])
    return variance * jnp.sqrt(P0) * context[1][None], jnp.sqrt(variance)[None, None]


optimal = PosteriorSDE(smoothing, later, smoothed_start)


def test_the_divergence_of_two_ornstein_uhlenbeck_processes_is_the_closed_form():
    """KL = (a - b)^2 / (2 s^2) times the integral of E x^2, with E x^2 = v (1 - e^-2bt) + x0^2 e^-2bt
    and v = s^2 / 2b under the posterior. 4 standard errors: a false alarm in 16,000."""
    b, x0, end = 2.0, 1.3, 1.5
    model = ornstein_uhlenbeck(substeps=150, initial=dist.Delta(jnp.array([x0]), event_dim=1))
    posterior = PosteriorSDE(
        lambda t, x, context: (a - b) / s * x,
        lambda gaps, y, u, index: jnp.zeros((len(y), 0)),
        lambda context: (jnp.zeros(1), jnp.eye(1)),
    )
    blank = fd.Series([0.0, end], [[np.nan], [np.nan]])
    bound = path_elbo(model, blank, posterior, key=jr.key(0), num_samples=2000)
    v, decay = s**2 / (2 * b), (1 - np.exp(-2 * b * end)) / (2 * b)
    expected = (a - b) ** 2 / (2 * s**2) * (v * (end - decay) + x0**2 * decay)
    # Held over steps of 0.01 the control's energy is off by 0.3 %.
    error = float(bound.standard_error)
    assert error < 0.04 * expected
    assert abs(float(bound.kl) - expected) < 4 * error + 4e-3 * expected
    # There is nothing to explain, and the bound is the divergence, by another estimate.
    assert abs(float(bound.value) + expected) < 4 * error + 4e-3 * expected


def test_the_bound_reaches_the_likelihood_with_the_optimal_control():
    """The control is held over a step, so the gap is of first order in it, about 1 / steps a gap."""
    expected = float(exact())
    gaps = []
    for substeps in (8, 32):
        bound = path_elbo(
            ornstein_uhlenbeck(substeps=substeps), series, optimal, key=jr.key(1), num_samples=1000
        )
        assert bound.status == fd.Status.OK
        parts = bound.log_likelihoods.sum() - bound.kl
        assert abs(float(parts - bound.value)) < 4 * 2.5 / 1000**0.5  # a sample has 2.5
        gaps.append(expected - float(bound.value))
        assert gaps[-1] > -4 * float(bound.standard_error)
        assert float(bound.value) < float(bound.weighted_value)
        assert abs(float(bound.weighted_value) - expected) < 4 * float(bound.standard_error)
    assert gaps[1] < 0.08
    assert gaps[1] < 0.5 * gaps[0]


@pytest.mark.slow
def test_any_other_control_is_below_the_likelihood():
    model = ornstein_uhlenbeck(substeps=16)
    posterior = PosteriorSDE.per_series(model, rows=len(times), key=jr.key(0))
    bound = path_elbo(model, series, posterior, key=jr.key(1), num_samples=500)
    np.testing.assert_allclose(bound.kl, 0.0, atol=1e-12)  # it begins at the prior
    assert float(bound.value) + 4 * float(bound.standard_error) < float(exact())
    assert "not used by the posterior" in bound.warning
    assert path_elbo(model, series, optimal, key=jr.key(1), num_samples=500).warning is None


def perturbed(tree, key):
    leaves, structure = jax.tree.flatten(tree)
    keys = jr.split(key, len(leaves))
    moved = [x + 0.3 * jr.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


@pytest.mark.slow
@pytest.mark.skipif(not X64, reason="finite differences need float64")
def test_gradients_are_finite_differences():
    size, rate = jnp.array(s), jnp.array(a)
    model = ornstein_uhlenbeck(substeps=2)
    encoder = PathEncoder(1, key=jr.key(2), width=4, size=2)
    posterior = PosteriorSDE.amortized(model, encoder, key=jr.key(3), width=4)
    weights, static = eqx.partition(posterior, eqx.is_inexact_array)
    weights = perturbed(weights, jr.key(4))

    def value(parameters):
        rate, size, weights = parameters
        dynamics = fd.SDE(
            lambda t, x, u: -rate * x, lambda t, x, u: size * (1 + 0.1 * jnp.cos(x)), substeps=2
        )
        varied = fd.StateSpaceModel(model.initial, dynamics, model.observation)
        posterior = eqx.combine(weights, static)
        return VariationalSeries(varied, times, posterior=posterior, key=jr.key(5)).log_prob(y)

    point = (rate, size, weights)
    gradient = jax.jit(jax.grad(value))(point)
    still = [bool((g == 0).all()) for g in jax.tree.leaves(gradient)]
    assert sum(still) == 2  # centre and scale of the measurements, which are data
    direction = jax.tree.map(
        lambda x, g: jnp.where((g == 0).all(), 0.0, jr.normal(jr.key(6), x.shape)), point, gradient
    )
    value = jax.jit(value)
    moved = lambda h: value(jax.tree.map(lambda x, d: x + h * d, point, direction))
    slope = sum(
        jnp.vdot(g, d)
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(slope, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-6)


def test_padding_and_missing_rows_change_no_context():
    encoder = PathEncoder(1, key=jr.key(2), width=8, size=3)
    there = ~np.isnan(y[:, 0])
    short = fd.Series(times[there], y[there])
    long = fd.stack([fd.Series(times, y), fd.Series(np.arange(9.0), np.zeros((9, 1)))])[0]
    found = encoder(long.gaps, long.observations, None, 0)[: len(times)][there]
    expected = encoder(short.gaps, short.observations, None, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    changed = y.copy()
    changed[0] = 5.0  # nothing after row 0 knows of it
    np.testing.assert_array_equal(
        encoder(series.gaps, jnp.asarray(changed), None, 0)[1:],
        encoder(series.gaps, series.observations, None, 0)[1:],
    )


@pytest.mark.slow
def test_a_batch_is_its_series_one_by_one():
    model = ornstein_uhlenbeck(substeps=32)
    other = fd.Series([0.0, 1.0], [[0.3], [-0.2]])
    batch = fd.stack([series, other])
    together = path_elbo(model, batch, optimal, key=jr.key(1), num_samples=500)
    alone = path_elbo(model, other, optimal, key=jr.key(2), num_samples=500)
    error = np.hypot(together.standard_error[1], alone.standard_error)
    assert abs(together.value[1] - alone.value) < 4 * error
    assert together.kl_moves.shape == (2, 5, 1)
    np.testing.assert_array_equal(together.kl_moves[1, 1:], 0.0)
    found = VariationalSeries(
        model, batch.times, posterior=optimal, key=jr.key(3), num_samples=500, batch_shape=(2,)
    ).log_prob(batch.observations)
    # This one keeps the part of mean zero that `path_elbo` leaves out.
    np.testing.assert_allclose(found, together.value, atol=4 * 2.5 / 500**0.5)


@pytest.mark.slow
def test_a_failed_path_is_a_status_of_its_series_and_harms_no_gradient():
    def value(rate, y):
        dynamics = fd.SDE(lambda t, x, u: -jnp.sqrt(rate - x), s, path_solver=diffrax.Euler())
        model = fd.StateSpaceModel(
            dist.Delta(y[0], event_dim=1), dynamics, fd.LinearObservation([[1.0]], [[R]])
        )
        bound = path_elbo(model, fd.Series(times, y), prior, key=jr.key(0))
        return bound.value, bound.status

    prior = PosteriorSDE(
        lambda t, x, context: jnp.zeros(1), later, lambda context: (jnp.zeros(1), jnp.eye(1))
    )
    starts = jnp.stack([jnp.full((6, 1), 0.1), jnp.full((6, 1), 9.0)])

    def total(rate):
        found, status = jax.vmap(lambda y: value(rate, y))(starts)
        return jnp.where(jnp.isfinite(found), found, 0.0).sum(), (found, status)

    gradient, (found, status) = jax.jit(jax.grad(total, has_aux=True))(5.0)
    assert np.isfinite(found[0]) and found[1] == -np.inf
    assert status.tolist() == [fd.Status.OK, fd.Status.MODEL_NOT_FINITE]
    assert np.isfinite(gradient)


def test_paths_that_failed_count_as_nothing_in_the_weighted_bound():
    """A drift that no path above a limit can follow: with weight 0 for those, what is left is below the
    bound of the same paths without the limit, which is below the likelihood."""

    @jax.jit
    def bound(limit):
        drift = lambda t, x, u: -a * x + 0 * jnp.sqrt(jnp.where(x < limit, 1.0, -1.0))
        initial = dist.Normal(jnp.zeros(1), jnp.sqrt(P0)).to_event(1)
        seen = fd.LinearObservation([[1.0]], [[R]])
        model = fd.StateSpaceModel(initial, fd.SDE(drift, s, substeps=8), seen)
        found = path_elbo(model, series, optimal, key=jr.key(1), num_samples=200)
        return found.value, found.weighted_value, found.status

    (_, whole, fine), (value, some, failed), (_, none, _) = map(bound, (jnp.inf, 1.0, -jnp.inf))
    assert (fine, failed) == (fd.Status.OK, fd.Status.MODEL_NOT_FINITE)
    assert value == none == -jnp.inf
    assert float(whole) - 5 < float(some) < float(whole)


@pytest.mark.long
@pytest.mark.slow
def test_svi_finds_path_and_parameter_together():
    """The rate unknown, 24 series: its posterior is that of the exact likelihood within a standard
    deviation, and the networks lose at most 0.25 nats a series to the control that is optimal."""
    model = ornstein_uhlenbeck(substeps=4)
    simulated = fd.simulate(model, times, key=jr.key(0), num_samples=24)
    values = np.where(np.isnan(y), np.nan, simulated.observations)
    batch = fd.stack([fd.Series(times, one) for one in values])
    encoder = PathEncoder(1, key=jr.key(1), width=16, size=4)
    networks = PosteriorSDE.amortized(model, encoder, key=jr.key(2), width=16)

    def program(values):
        rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.5))
        posterior = eqx_module("posterior", networks)
        distribution = VariationalSeries(
            ornstein_uhlenbeck(rate, substeps=4), times, posterior=posterior, key=numpyro.prng_key()
        )
        with numpyro.plate("series", len(values)):
            numpyro.sample("y", distribution, obs=values)

    guide = AutoNormal(program)
    svi = SVI(program, guide, optax.adam(1e-2), Trace_ELBO())
    result = svi.run(jr.key(3), 1000, values, progress_bar=False)

    def marginal(values):
        rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.5))
        distribution = fd.ObservedSeries(
            fd.StateSpaceModel(
                model.initial,
                fd.LinearSDE(-rate * jnp.eye(1), s * jnp.eye(1)),
                model.observation,
            ),
            times,
            filter=fd.KalmanFilter(),
        )
        with numpyro.plate("series", len(values)):
            numpyro.sample("y", distribution, obs=values)

    outer = SVI(marginal, AutoNormal(marginal), optax.adam(1e-2), Trace_ELBO())
    expected = outer.run(jr.key(3), 1000, values, progress_bar=False)
    median, spread = (float(expected.params[f"rate_auto_{k}"]) for k in ("loc", "scale"))
    assert abs(float(result.params["rate_auto_loc"]) - median) < spread
    excess = float(jnp.mean(result.losses[-200:]) - jnp.mean(expected.losses[-200:]))
    held = path_elbo(model, batch, optimal, key=jr.key(4), num_samples=200).value.mean()
    lost = float(exact(batch).mean() - held)  # by holding the control over a step
    assert -0.5 < excess < (lost + 0.25) * len(values)


def test_what_does_not_fit_is_refused_by_name():
    model = ornstein_uhlenbeck()
    linear = fd.StateSpaceModel(
        model.initial, fd.LinearSDE(-jnp.eye(1), jnp.eye(1)), model.observation
    )
    with pytest.raises(TypeError, match="`dynamics` is LinearSDE; expected an SDE"):
        path_elbo(linear, series, optimal, key=jr.key(0))
    with pytest.raises(ValueError, match="`key` is None"):
        VariationalSeries(model, times, posterior=optimal)
    with pytest.raises(TypeError, match="`posterior` is function"):
        path_elbo(model, series, smoothing, key=jr.key(0))
    short = PosteriorSDE.per_series(model, rows=3, key=jr.key(0))
    with pytest.raises(ValueError, match="has 6 rows; expected 3"):
        path_elbo(model, series, short, key=jr.key(0))
    wrong = PosteriorSDE(lambda t, x, context: jnp.zeros(2), later, smoothed_start)
    with pytest.raises(ValueError, match=r"returned shape \(2,\)"):
        path_elbo(model, series, wrong, key=jr.key(0))
    with pytest.raises(ValueError, match="`index` has shape"):
        path_elbo(model, series, optimal, key=jr.key(0), index=[1, 2])
