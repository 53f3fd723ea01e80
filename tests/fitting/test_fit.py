"""Fitting: the maximum is the maximum, what is not trained stays, and a stopped fit goes on."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from scipy.optimize import minimize

import filterdyn as fd

pytestmark = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="optima in float64")
FILTER = fd.KalmanFilter()
RNG = np.random.default_rng(2)
LEVEL = np.cumsum(1.5 * RNG.normal(size=40))
LONG = fd.Series(np.arange(40.0), LEVEL + RNG.normal(size=40))
SHORT = fd.Series(np.arange(15.0), 1.0 + RNG.normal(size=15))


def make(log_q=0.0, log_r=0.0):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 3.0).to_event(1),
        fd.LinearTransition(jnp.eye(1), jnp.exp(log_q) * jnp.eye(1)),
        fd.LinearObservation(jnp.eye(1), jnp.exp(log_r) * jnp.eye(1)),
    )


class Noise(eqx.Module):
    scale: jax.Array
    drift: jax.Array

    def __call__(self, t, x, u):
        return dist.MultivariateNormal(x + self.drift, scale_tril=self.scale * jnp.eye(1))


def walk(scale=0.8):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 3.0).to_event(1),
        fd.Transition(Noise(jnp.asarray(scale), jnp.zeros(1))),
        fd.LinearObservation(jnp.eye(1), jnp.eye(1)),
    )


EKF = fd.ExtendedKalmanFilter()
SCALE = lambda m: m.dynamics.fn.value.scale


def run(steps, optimizer=optax.adam(0.1), **options):
    return fd.fit(walk(), [LONG, SHORT], EKF, optimizer=optimizer, steps=steps, **options)


@pytest.fixture(scope="module")
def ten():
    return run(10, positive=SCALE, trainable=SCALE, chunk=5)


def test_the_maximum_is_the_one_that_scipy_finds():
    found = fd.fit(walk(), LONG, EKF, optimizer=optax.lbfgs(), steps=15, positive=SCALE)
    y = np.asarray(LONG.observations)[:, 0]

    def loss(p):
        """The scalar Kalman filter of a textbook."""
        mean, variance, total = 0.0, 9.0, 0.0
        for k, value in enumerate(y):
            if k:
                mean, variance = mean + p[1], variance + np.exp(2 * p[0])
            s = variance + 1.0
            total += 0.5 * (np.log(2 * np.pi * s) + (value - mean) ** 2 / s)
            mean, variance = mean + variance / s * (value - mean), variance / s
        return total

    best = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12})
    fitted = found.model.dynamics.fn.value
    np.testing.assert_allclose(np.log(fitted.scale), best.x[0], atol=1e-5)
    np.testing.assert_allclose(fitted.drift, best.x[1:], atol=1e-5)
    np.testing.assert_allclose(np.nanmin(found.losses), best.fun / 40, rtol=1e-9)


def test_what_is_not_trained_stays_to_the_bit(ten):
    before, after = walk(), ten.model
    assert SCALE(after) != SCALE(before)
    for a, b in zip(
        jax.tree.leaves(eqx.tree_at(lambda m: m.dynamics.fn.arrays[0], before, 0.0)),
        jax.tree.leaves(eqx.tree_at(lambda m: m.dynamics.fn.arrays[0], after, 0.0)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_fit_that_goes_on_is_the_one_that_was_not_stopped(ten):
    half = run(5, positive=SCALE, trainable=SCALE, chunk=5)
    whole = run(5, positive=SCALE, trainable=SCALE, chunk=5, resume=half)
    np.testing.assert_array_equal(whole.losses, ten.losses)
    np.testing.assert_array_equal(SCALE(whole.model), SCALE(ten.model))


def test_a_step_that_is_not_finite_is_skipped_counted_and_said():
    def fence(model):
        return jnp.where(SCALE(model) < 0.85, 0.0, jnp.nan)

    # Steps of 0.2 in a scale that wants to rise over the fence.
    with pytest.warns(UserWarning, match="steps were skipped"):
        found = run(8, optax.adam(0.2), trainable=SCALE, log_prior=fence)
    assert found.skipped == np.isnan(found.losses).sum() > 0
    assert SCALE(found.model) < 0.85
    assert all(np.isfinite(leaf).all() for leaf in found.state.parameters)


def test_training_stops_when_the_validation_loss_does_not_fall():
    # What is trained on moves more than the model says at first, what is looked at does not move at all.
    found = fd.fit(
        walk(),
        LONG,
        EKF,
        optimizer=optax.adam(0.05),
        steps=60,
        positive=SCALE,
        trainable=SCALE,
        chunk=3,
        validation=SHORT,
        patience=2,
    )
    looks = found.validation_losses
    assert found.stopped_early and len(found.losses) == 9 and len(looks) == 3
    value = -fd.log_likelihood(found.model, SHORT, EKF) / 15
    np.testing.assert_allclose(value, looks.min(), rtol=1e-10)


@pytest.mark.slow
def test_rows_of_the_burn_in_are_not_scored():
    found = fd.fit(walk(), LONG, EKF, optimizer=optax.adam(0.1), steps=1, burn_in=10)
    scored = fd.filter(walk(), LONG, EKF).log_likelihoods[10:]
    np.testing.assert_allclose(found.losses[0], -scored.mean(), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["prediction", "simulation"])
def test_the_loss_before_the_first_step_is_the_mean_of_squares(objective):
    found = run(1, trainable=SCALE, objective=objective, burn_in=5)
    squares = 0.0
    for s in (LONG, SHORT):
        result = fd.filter(walk(), s, EKF)
        y = np.asarray(s.observations)
        # A random walk stays, when nothing is seen, where the last row of the burn-in left it.
        free = y - np.asarray(result.mean)[4]
        errors = np.asarray(result.innovations) if objective == "prediction" else free
        squares += (errors[5:] ** 2).sum()
    np.testing.assert_allclose(found.losses[0], squares / 45, rtol=1e-10)


def test_errors_name_argument_value_and_what_was_expected():
    with pytest.raises(TypeError, match="`optimizer` is float; expected one of Optax"):
        run(1, 0.1)
    with pytest.raises(ValueError, match="`trainable` picked no array"):
        run(1, trainable=lambda m: ())
    with pytest.raises(ValueError, match="`patience` is given without `validation`"):
        run(1, patience=2)
    with pytest.raises(ValueError, match="a series in `series` has 15 rows; expected fewer"):
        run(1, burn_in=15)
    with pytest.raises(ValueError, match="`positive` picked a leaf with entries"):
        run(1, positive=lambda m: m.dynamics.fn.value.drift)
    with pytest.raises(ValueError, match="hold no arrays; expected `trainable`"):
        fd.fit(make(), LONG, FILTER, optimizer=optax.adam(0.1), steps=1)
