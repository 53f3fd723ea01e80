"""Fitting through learned filters, and to known states by their density."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from scipy.stats import multivariate_normal

import filterdyn as fd

pytestmark = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="losses in float64")
COUNT = 12


def model():
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        fd.LinearTransition(jnp.array([[1.0, 0.1], [-0.1, 0.9]]), 0.1 * jnp.eye(2)),
        fd.LinearObservation(jnp.array([[1.0, 0.0]]), 0.3 * jnp.eye(1)),
    )


def record():
    drawn = fd.simulate(model(), np.arange(COUNT), key=jr.key(0))
    return np.array(drawn.states), fd.Series(np.arange(COUNT), drawn.observations)


STATES, SERIES = record()
STATES[4, 1] = np.nan
START = fd.LearnedNoiseFilter(2, 1, key=jr.key(1), width=3)


@pytest.fixture(scope="module")
def fitted():
    return fd.fit(
        model(),
        SERIES,
        START,
        objective="state_likelihood",
        states=STATES,
        burn_in=2,
        trainable=lambda m: (),
        optimizer=optax.adam(0.05),
        steps=8,
        chunk=8,
    )


@pytest.mark.slow
def test_the_first_loss_is_the_density_of_the_states_that_are_known(fitted):
    result = fd.filter(model(), SERIES, fd.KalmanFilter())
    rows = [k for k in range(2, COUNT) if k != 4]
    mean, cov = np.asarray(result.mean), np.asarray(result.cov)
    total = sum(multivariate_normal(mean[k], cov[k]).logpdf(STATES[k]) for k in rows)
    np.testing.assert_allclose(fitted.losses[0], -total / (2 * len(rows)), rtol=1e-9)


@pytest.mark.slow
def test_the_network_of_a_learned_filter_is_trained_and_nothing_else(fitted):
    assert fitted.losses[-1] < fitted.losses[0] and fitted.skipped == 0
    before, after = (jax.tree.leaves(f.network) for f in (START, fitted.filter))
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    for a, b in zip(jax.tree.leaves(model()), jax.tree.leaves(fitted.model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_density_of_states_needs_states_and_a_gaussian_belief():
    options = dict(optimizer=optax.adam(0.1), steps=1, objective="state_likelihood")
    with pytest.raises(ValueError, match=r"`states` is missing; objective=\"state_likelihood\""):
        fd.fit(model(), SERIES, START, **options)
    with pytest.raises(ValueError, match="needs Gaussian beliefs, which ParticleFilter has"):
        fd.fit(model(), SERIES, fd.ParticleFilter(9), states=STATES, key=jr.key(0), **options)


def test_picking_nothing_is_refused_where_no_network_is_trained():
    with pytest.raises(ValueError, match="`trainable` picked no array"):
        fd.fit(
            model(),
            SERIES,
            fd.KalmanFilter(),
            trainable=lambda m: (),
            optimizer=optax.adam(0.1),
            steps=1,
        )
