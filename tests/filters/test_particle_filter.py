"""The particle filter: what it does with rows, keys, types and failures."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

MODEL = fd.StateSpaceModel(
    dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
    fd.LinearTransition([[0.9, 0.3], [0.0, 0.8]], [[0.3, 0.1], [0.1, 0.2]]),
    fd.LinearObservation([[1.0, 0.0], [0.5, 0.5]], [[0.3, 0.1], [0.1, 0.4]]),
)


@pytest.fixture(scope="module")
def series():
    times = np.array([0.0, 1.0, 2.0, 2.0, 3.0])
    y = np.array(fd.simulate(MODEL, times, key=jr.key(6)).observations)
    y[1], y[2, 0] = np.nan, np.nan
    return fd.Series(times, y)


@pytest.fixture(scope="module")
def result(series):
    return fd.filter(MODEL, series, fd.ParticleFilter(4000), key=jr.key(0), history="beliefs")


def test_moments_are_those_of_the_kalman_filter(series, result):
    exact = fd.filter(MODEL, series, fd.KalmanFilter())
    sd = np.sqrt(np.diagonal(exact.cov, axis1=1, axis2=2))
    # Standard errors are below 0.03: five of them.
    assert np.abs((result.mean - exact.mean) / sd).max() < 0.15
    close = lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=0.2)
    close(result.cov, exact.cov)
    close(result.predicted_mean, exact.predicted_mean)
    close(result.innovations, exact.innovations)
    close(result.innovation_covs, exact.innovation_covs)
    assert result.log_likelihood == pytest.approx(float(exact.log_likelihood), abs=0.15)
    assert not result.moments_matched


def test_a_missing_row_adds_nothing_to_the_likelihood_and_changes_no_weight(result):
    assert result.log_likelihoods[1] == 0
    before, after = result.predicted, result.filtered
    np.testing.assert_allclose(after.log_weights[1], before.log_weights[1], atol=1e-12)


def test_a_repeated_time_moves_nobody(result):
    positions = result.filtered.positions
    np.testing.assert_array_equal(positions[3], positions[2])


def test_effective_sample_size_and_resampling_are_reported(result):
    ess = result.effective_sample_sizes
    np.testing.assert_allclose(ess, result.filtered.effective_sample_size, rtol=1e-9)
    resampled = np.asarray(result.diagnostics["resampled"])
    # Before a move, where fewer than half are left.
    moved = np.diff(np.asarray(result.times)) > 0
    np.testing.assert_array_equal(resampled[1:], (np.asarray(ess)[:-1] < 2000) & moved)


@pytest.mark.slow
def test_a_stream_repeats_the_numbers_of_the_batch(series):
    filter = fd.ParticleFilter(100)
    batch = fd.filter(MODEL, series, filter, key=jr.key(1))
    online = fd.OnlineFilter(MODEL, filter)
    state = online.init(0.0, key=jr.key(1))
    means = []
    for t, y in zip(series.times, series.observations, strict=True):
        state, step = online.step(state, t, y)
        means.append(step.mean)
    np.testing.assert_allclose(means, batch.mean, rtol=1e-10)


def test_float32_particles_stay_float32_beside_float64_settings():
    model = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1, jnp.float32), jnp.ones(1, jnp.float32)).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(0.9 * x, np.float64(0.3)).to_event(1)),
        fd.Observation(lambda t, x, u: dist.Poisson(jnp.exp(x)).to_event(1)),
    )
    series = fd.Series(np.arange(3.0), jnp.array([1.0, 0.0, 2.0], jnp.float32))
    filter = fd.ParticleFilter(16)
    found = jax.eval_shape(
        lambda key: fd.filter(model, series, filter, key=key, history="beliefs"), jr.key(2)
    )
    assert found.filtered.positions.dtype == jnp.float32
    assert found.log_likelihood.dtype == jnp.float32


def branches(jaxpr):
    """How many `cond` there are, in loops and calls too."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "cond"
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                count += branches(inner)
    return count


def test_resampling_in_every_row_has_no_branch_and_by_need_has_one(series):
    def count(threshold):
        filter = fd.ParticleFilter(16, ess_threshold=threshold)
        trace = jax.make_jaxpr(lambda key: fd.log_likelihood(MODEL, series, filter, key=key))
        return branches(trace(jr.key(0)).jaxpr)

    never = count(0.0)
    assert count(1.0) == never and count(0.5) == never + 1


@pytest.mark.slow
def test_a_particle_that_leaves_the_real_line_gets_weight_zero():
    """x' = sqrt(x) from both sides of 0: half of the particles have no next state."""
    model = fd.StateSpaceModel(
        dist.Normal(0.0, 1.0).expand([1]).to_event(1),
        fd.Transition(
            lambda t, x, u: dist.Normal(jnp.sqrt(x), 0.1, validate_args=False).to_event(1)
        ),
        fd.LinearObservation([[1.0]], [[1.0]]),
    )
    series = fd.Series([0.0, 1.0], [np.nan, 0.5])
    found = fd.filter(model, series, fd.ParticleFilter(200), key=jr.key(3), history="beliefs")
    assert found.status == fd.Status.OK
    assert jnp.isfinite(found.filtered.positions).all()
    share = (found.filtered.weights[1] > 0).mean()
    assert 0.35 < share < 0.65  # 4 standard deviations


@pytest.mark.slow
def test_dependent_entries_that_are_partly_missing_are_a_status():
    model = fd.StateSpaceModel(
        dist.Normal(0.0, 1.0).expand([2]).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(x, 1.0).to_event(1)),
        fd.Observation(lambda t, x, u: dist.MultivariateStudentT(4.0, x, jnp.eye(2))),
    )
    series = fd.Series([0.0, 1.0], np.array([[0.1, 0.2], [np.nan, 0.2]]))
    found = fd.filter(model, series, fd.ParticleFilter(8), key=jr.key(4))
    assert found.status == fd.Status.MARGINAL_NOT_AVAILABLE and found.failed_at == 1


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"size": 0}, ValueError, "size"),
        ({"resampling": fd.Systematic}, TypeError, "resampling"),
        ({"ess_threshold": 1.5}, ValueError, "ess_threshold"),
        ({"proposal": 3}, TypeError, "proposal"),
        (
            {"proposal": fd.ExtendedKalmanFilter(adaptive=fd.AdaptiveNoise())},
            ValueError,
            "proposal",
        ),
        ({"auxiliary": 3}, TypeError, "auxiliary"),
        ({"gradient": "best"}, ValueError, "gradient"),
        ({"gradient": "stop", "resampling": fd.OptimalTransport()}, ValueError, "gradient"),
        ({"discount": 0.9}, ValueError, "discount"),
        ({"discount": 2.0, "gradient": "score"}, ValueError, "discount"),
        ({"paths": 5}, TypeError, "paths"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options, error, match):
    with pytest.raises(error, match=match):
        fd.ParticleFilter(**{"size": 10, **options})


def test_models_that_do_not_fit_are_refused(series):
    diffuse = fd.StateSpaceModel(fd.Diffuse(2), MODEL.dynamics, MODEL.observation)
    with pytest.raises(TypeError, match="Diffuse"):
        fd.log_likelihood(diffuse, series, fd.ParticleFilter(8), key=jr.key(0))
    for filter in (
        fd.ParticleFilter(8, gradient="sorted"),
        fd.ParticleFilter(8, fd.SortedTransport()),
    ):
        with pytest.raises(ValueError, match="one state"):
            fd.log_likelihood(MODEL, series, filter, key=jr.key(0))
    with pytest.raises(ValueError, match="key"):
        fd.log_likelihood(MODEL, series, fd.ParticleFilter(8))


def test_gradient_of_a_transport_is_its_own():
    assert fd.ParticleFilter(8, fd.OptimalTransport()).gradient == "entropic"
    assert fd.ParticleFilter(8, fd.SortedTransport()).gradient == "sorted"


def test_counts_have_the_score_as_their_gradient():
    """A Poisson draw has no derivative: any other mode would give zero, silently."""
    times = np.arange(4.0)
    series = fd.Series(times, np.array([5.0, 3.0, 4.0, 6.0]))

    def value(rate, gradient):
        model = fd.StateSpaceModel(
            dist.Poisson(5.0).expand([1]).to_event(1),
            fd.Transition(lambda t, x, u: dist.Poisson(0.5 * x + rate).to_event(1)),
            fd.Observation(lambda t, x, u: dist.Normal(x, 1.0).to_event(1)),
        )
        filter = fd.ParticleFilter(16, gradient=gradient)
        return fd.log_likelihood(model, series, filter, key=jr.key(7))

    found = jax.jit(jax.grad(value), static_argnums=1)
    assert found(2.0, None) != 0
    assert found(2.0, None) == found(2.0, "score")
    with pytest.raises(ValueError, match="score"):
        found(2.0, "affine")
