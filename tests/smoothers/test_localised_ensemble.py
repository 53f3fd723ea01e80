"""Smoothing through a localised ensemble against exact smoothers of independent blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.linalg import block_diag

import filterdyn as fd
from filterdyn.ensembles.localization import taper as gaspari_cohn
from filterdyn.smoothers import near_regression

X64 = jax.config.read("jax_enable_x64")
KEY = jax.random.key(0)
F = jnp.array([[0.9, 0.2, 0.0], [-0.1, 0.8, 0.3], [0.0, 0.1, 0.7]])
H = jnp.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
R = jnp.array([0.3, 0.2])
#: Two blocks, each at one place, far from each other.
STATES, SENSORS = np.repeat([0.0, 1000.0], 3), np.repeat([0.0, 1000.0], 2)


def both(start):
    return fd.StateSpaceModel(
        start,
        fd.LinearTransition(block_diag(F, F), jnp.zeros((6, 6))),
        fd.LinearObservation(block_diag(H, H), jnp.tile(R, 2)),
    )


def alone(mean, cov, y):
    """The exact smoother of one block (Rauch, Tung, Striebel 1965)."""
    f, h, r = (np.asarray(a, np.float64) for a in (F, H, jnp.diag(R)))
    m, p = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    filtered, predicted = [], []
    for row in np.asarray(y, np.float64):
        m, p = (f @ m, f @ p @ f.T) if filtered else (m, p)
        predicted.append((m, p))
        seen = ~np.isnan(row)
        gain = p @ h[seen].T @ np.linalg.inv(h[seen] @ p @ h[seen].T + r[np.ix_(seen, seen)])
        m, p = m + gain @ (row[seen] - h[seen] @ m), p - gain @ h[seen] @ p
        filtered.append((m, p))
    means, covs = [m], [p]
    for (m, p), (m1, p1) in zip(filtered[-2::-1], predicted[:0:-1], strict=True):
        back = p @ f.T @ np.linalg.inv(p1)
        means.append(m + back @ (means[-1] - m1))
        covs.append(p + back @ (covs[-1] - p1) @ back.T)
    return np.array(means[::-1]), np.array(covs[::-1])


@pytest.mark.parametrize("kind", ["local", pytest.param("serial", marks=pytest.mark.slow)])
def test_independent_blocks_are_smoothed_each_as_if_alone(kind):
    model = both(dist.MultivariateNormal(jnp.zeros(6), jnp.eye(6)))
    y = jax.random.normal(jax.random.key(3), (8, 4)).at[3].set(jnp.nan).at[5, 2].set(jnp.nan)
    near = fd.GaspariCohn(1.0, STATES, SENSORS)
    filter = fd.EnsembleKalmanFilter(8, kind, localization=near)
    found = fd.smooth(model, fd.Series(jnp.arange(8.0), y), filter, key=KEY)
    start = filter.init(model, F.dtype, jax.random.fold_in(KEY, 0))
    # The members of the two blocks are correlated by chance.
    assert jnp.abs(start.cov[:3, 3:]).max() > 0.2
    tolerance = 1e-9 if X64 else 2e-2
    for states, sensors in (np.s_[:3], np.s_[:2]), (np.s_[3:], np.s_[2:]):
        mean, cov = alone(start.mean[states], start.cov[states, states], y[:, sensors])
        np.testing.assert_allclose(found.mean[:, states], mean, atol=tolerance)
        np.testing.assert_allclose(found.cov[:, states, states], cov, atol=tolerance)


def members(seed, n=6, dx=12):
    keys = jax.random.split(jax.random.key(seed), 3)
    x, ahead, missed = (jax.random.normal(k, (n, dx)) for k in keys)
    # States of very different units, and one that is known.
    return x, (ahead + x).at[:, 4].set(2.0) * 10.0 ** jnp.arange(-3, 3).repeat(2), missed


def by_hand(x, ahead, missed, near, rho):
    """G_i of every state i from the states `near` it, in units as they are."""
    x, ahead, missed = (np.asarray(a, np.float64) for a in (x, ahead, missed))
    a, b = x - x.mean(0), ahead - ahead.mean(0)
    moved = np.zeros_like(x)
    for i, neighbours in enumerate(near):
        j = np.array([k for k in neighbours if k != 4])
        cov = rho[np.ix_(j, j)] * (b[:, j].T @ b[:, j])
        moved[:, i] = missed[:, j] @ np.linalg.solve(cov, rho[i, j] * (b[:, j].T @ a[:, i]))
    return moved


@pytest.mark.skipif(not X64, reason="numbers of very different sizes")
@pytest.mark.parametrize("way", ["all at once", "one by one", "in groups"])
def test_the_regression_is_that_of_tapered_covariances(monkeypatch, way):
    ring = np.arange(12.0)
    gap = np.abs(ring[:, None] - ring)
    rho = gaspari_cohn(np.minimum(gap, 12 - gap) / 0.9)
    near = [range(12)] * 12
    if way != "all at once":
        monkeypatch.setattr(near_regression, "_MOST_OF_ALL", 0)
        near = [np.flatnonzero(row) for row in rho]
        assert {len(states) for states in near} == {7}
    if way == "in groups":
        monkeypatch.setattr(near_regression, "_MOST_ENTRIES", 5 * 7**2)
    regress = near_regression.near_regression(fd.GaspariCohn(0.9, ring, ring[::3], period=12))
    at = members(1)
    np.testing.assert_allclose(
        jax.jit(regress)(*at), by_hand(*at, near, rho), rtol=1e-8, atol=1e-10
    )


def wind(x):
    return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + 8.0


def runge_kutta(t, x, u):
    h = 0.05
    k1 = wind(x)
    k2 = wind(x + h / 2 * k1)
    k3 = wind(x + h / 2 * k2)
    k4 = wind(x + h * k3)
    return dist.Delta(x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), event_dim=1)


def storm():
    """Forty cells of Lorenz 1996, each measured with error 1; the truth, and a model that knows it."""
    n = 40
    far = jax.lax.fori_loop(
        0, 400, lambda _, x: runge_kutta(0, x, None).v, jnp.full(n, 8.0).at[0].add(0.01)
    )
    model = fd.StateSpaceModel(
        dist.Normal(far, 0.03).to_event(1),
        fd.Transition(runge_kutta),
        fd.GaussianObservation(lambda t, x, u: x, 1.0),
    )
    truth = fd.simulate(model, 0.05 * jnp.arange(200), key=jax.random.key(5))
    return model, truth.states, fd.Series(truth.times, truth.observations)


@pytest.mark.slow
def test_ten_members_know_chaos_better_after_the_whole_series():
    model, truth, series = storm()
    near = fd.GaspariCohn(4.0, np.arange(40.0), period=40)
    filter = fd.EnsembleKalmanFilter(10, "local", inflation=1.04, localization=near)
    error = lambda mean: jnp.sqrt(jnp.mean((mean - truth)[50:-10] ** 2))
    found = fd.smooth(model, series, filter, key=KEY)
    filtered = fd.filter(model, series, filter, key=KEY)
    # (Seen: 0.12 of 0.22, of 400 rows.)
    assert error(found.mean) < 0.75 * error(filtered.mean) < 0.25
    paths = fd.sample_paths(model, series, filter, key=KEY, num_samples=2)
    assert error(paths[0]) < error(filtered.mean)
    assert jnp.abs(paths[0] - paths[1]).max() > 0


@pytest.mark.slow
def test_ten_thousand_states_are_smoothed_without_a_matrix_of_them():
    n = 10_000
    where = np.arange(float(n))
    wide = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(n), 1.0).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(0.9 * x, 0.1).to_event(1)),
        fd.GaussianObservation(lambda t, x, u: x[::10], 0.5),
    )
    near = fd.GaspariCohn(3.0, where, where[::10], period=n)
    filter = fd.EnsembleKalmanFilter(16, "local", localization=near)
    times = jnp.arange(3.0)
    run = jax.jit(lambda y: fd.smooth(wide, fd.Series(times, y), filter, key=KEY).mean)
    compiled = run.lower(jnp.ones((3, n // 10))).compile()
    # A matrix of the states would take 400 or 800 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 300e6
    mean = compiled(jnp.ones((3, n // 10)))
    # Measured states are drawn to 1, also before they are measured.
    measured = mean[:, ::10].mean(1)
    assert (measured > 0.5).all() and jnp.abs(mean[:, 5::10].mean()) < 0.3
