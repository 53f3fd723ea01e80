"""What ensemble filters are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import filterdyn as fd
from filterdyn._groups import in_groups
from filterdyn.ensembles.inflation import relaxed
from filterdyn.ensembles.inverse_root import inverse_root
from filterdyn.ensembles.localization import taper
from filterdyn.ensembles.lower import inverse_lower
from filterdyn.ensembles.rotation import rotation

X64 = jax.config.read("jax_enable_x64")


def test_the_taper_is_one_at_home_zero_far_away_and_close_to_a_gaussian():
    z = np.linspace(0, 5, 501)
    w = taper(z)
    assert w[0] == 1 and (np.diff(w) <= 1e-12).all()
    assert (w[z >= 2 * np.sqrt(10 / 3)] == 0).all()
    assert np.abs(w - np.exp(-0.5 * z**2)).max() < 0.06


def test_a_taper_over_a_ring_is_positive_semidefinite_and_wraps_around():
    ring = fd.GaspariCohn(4.0, np.arange(40.0), period=40.0)
    c = np.asarray(ring.observations_observations)
    assert np.linalg.eigvalsh(c).min() > -1e-5
    np.testing.assert_allclose(c[0, 39], c[0, 1])
    np.testing.assert_allclose(c, c.T)


def test_neighbours_hold_the_positive_part_of_the_taper():
    places = np.random.default_rng(0).uniform(0, 10, (30, 2))
    found = fd.GaspariCohn(0.8, places, places[:12])
    dense = np.zeros((30, 12))
    for i in range(30):
        np.add.at(dense[i], np.asarray(found.neighbours[i]), np.asarray(found.weights[i]))
    np.testing.assert_allclose(dense, found.states_observations, atol=1e-7)


def test_neighbours_of_many_states_are_found_across_the_edges_too():
    draws = np.random.default_rng(0).uniform(size=(600, 2)) * [50.0, 9.0]
    found = fd.GaspariCohn(1.3, draws, draws[::2], period=[50.0, 9.0])
    for near, weights, whole in (
        (found.neighbours, found.weights, found.states_observations),
        (found.state_neighbours, found.state_weights, found.among(jnp.arange(600))),
    ):
        dense = np.zeros(whole.shape)
        np.add.at(dense, (np.arange(600)[:, None], np.asarray(near)), np.asarray(weights))
        assert near.shape[1] < 200
        np.testing.assert_allclose(dense, whole, atol=1e-9 if X64 else 1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(radius=0.0, states=np.arange(3.0)), "`radius` is 0.0"),
        (dict(radius=1.0, states=np.zeros((3, 2)), observations=np.zeros(2)), "2 coordinates"),
        (dict(radius=1.0, states=np.arange(3.0), period=-1.0), "expected positive"),
        (dict(radius=1.0, states=np.array([0.0, np.nan])), "finite coordinates"),
    ],
)
def test_a_taper_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fd.GaspariCohn(**arguments)


@pytest.mark.parametrize("most", [11, 4, 1])
def test_states_in_groups_are_those_taken_at_once(most):
    x = jnp.arange(11.0)
    square, pair = in_groups(lambda at: (at[0] ** 2, jnp.stack(at)), (x, -x), most)
    np.testing.assert_array_equal(square, x**2)
    np.testing.assert_array_equal(pair, jnp.stack([x, -x], 1))


def test_a_rotation_keeps_mean_and_covariance():
    a = jax.random.normal(jax.random.key(0), (7, 4))
    a = a - a.mean(0)
    turned = rotation(jax.random.key(1), 7, a.dtype) @ a
    tolerance = 1e-12 if X64 else 1e-5
    np.testing.assert_allclose(turned.mean(0), 0.0, atol=tolerance)
    np.testing.assert_allclose(turned.T @ turned, a.T @ a, atol=10 * tolerance)
    assert jnp.abs(turned - a).max() > 0.1


def test_the_inverse_root_is_that_of_an_eigendecomposition():
    z = jax.random.normal(jax.random.key(0), (6, 3))
    values, v = np.linalg.eigh(np.eye(6) + np.asarray(z @ z.T, float))
    np.testing.assert_allclose(inverse_root(z), v / np.sqrt(values) @ v.T, atol=1e-5)


@pytest.mark.skipif(not X64, reason="differences need float64")
def test_the_inverse_root_has_derivatives_where_eigenvalues_coincide():
    """I + Z Z^T of rank 2 in six dimensions: four eigenvalues are 1. Second ones too."""
    z = jax.random.normal(jax.random.key(0), (6, 2))
    direction = jax.random.normal(jax.random.key(1), (6, 2))
    weights = jax.random.normal(jax.random.key(2), (6, 6))

    def exact(s):
        moved = np.asarray(z + s * direction)
        values, v = np.linalg.eigh(np.eye(6) + moved @ moved.T)
        return float((np.asarray(weights) * (v / np.sqrt(values) @ v.T)).sum())

    along = lambda s: (weights * inverse_root(z + s * direction, precise=False)).sum()
    h = 1e-4
    first = (exact(h) - exact(-h)) / (2 * h)
    second = (exact(h) - 2 * exact(0.0) + exact(-h)) / h**2
    np.testing.assert_allclose(jax.grad(along)(0.0), first, rtol=1e-7)
    np.testing.assert_allclose(jax.jacfwd(jax.grad(along))(0.0), second, rtol=1e-5)


def test_a_precise_measurement_does_not_cost_the_other_directions_their_digits():
    z = jnp.zeros((5, 2)).at[0, 0].set(1e6 if X64 else 1e3).at[1, 1].set(0.5)
    root = inverse_root(z)
    np.testing.assert_allclose(root[1, 1], 1 / np.sqrt(1.25), rtol=1e-12 if X64 else 1e-6)
    np.testing.assert_allclose(root[2, 2], 1.0, rtol=1e-12 if X64 else 1e-6)


def test_a_triangular_inverse_by_halves():
    a = np.tril(np.random.default_rng(0).normal(size=(80, 80))) / 9 + 2 * np.eye(80)
    np.testing.assert_allclose(
        inverse_lower(jnp.asarray(a)), np.linalg.inv(a), atol=1e-12 if X64 else 1e-5
    )


def test_relaxation_by_one_restores_the_spread_and_by_zero_changes_nothing():
    a = jax.random.normal(jax.random.key(0), (9, 3))
    a = a - a.mean(0)
    before = jnp.array([4.0, 0.5, 0.0])
    after = relaxed(a, before, 1.0)
    np.testing.assert_allclose((after**2).sum(0)[:2] / 8, before[:2], rtol=1e-5)
    np.testing.assert_array_equal(after[:, 2], a[:, 2])
    np.testing.assert_allclose(relaxed(a, before, 0.0), a, rtol=1e-6)


def test_adaptive_inflation_finds_the_factor_that_is_missing():
    """Innovations of variance 2.25 v + 1 where the members say v + 1: the factor on the spread is 1.5."""
    v, noise = jnp.array([2.0, 0.5, 1.0, 3.0]), jnp.ones(4)
    learner = fd.AdaptiveInflation(1.0, change=0.2)
    keys = jax.random.split(jax.random.key(0), 3000)
    seen = jnp.ones(4, bool)

    def row(factor, key):
        d = jax.random.normal(key, (4,)) * jnp.sqrt(2.25 * v + 1.0)
        factor = learner.learned(factor, d, v, noise, seen)
        return factor, factor

    _, factors = jax.lax.scan(row, jnp.asarray(1.0), keys)
    # The filter of the squared factor forgets over about 100 rows, with a standard deviation of 0.15:
    # that of the average over 2000 rows is 0.05, and of its root 0.016. One false alarm in 1e4, with
    # room for the bias of a gain that depends on the factor.
    np.testing.assert_allclose(factors[1000:].mean(), 1.5, atol=0.08)


def test_a_belief_tells_its_moments():
    members = jax.random.normal(jax.random.key(0), (50, 3))
    ensemble, particles = fd.Ensemble(members), fd.Particles(members, jnp.zeros(50))
    np.testing.assert_allclose(ensemble.cov, np.cov(members.T), rtol=1e-5)
    np.testing.assert_allclose(ensemble.variances, np.diag(np.cov(members.T)), rtol=1e-5)
    np.testing.assert_allclose(particles.cov, np.cov(members.T, bias=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(particles.effective_sample_size, 50.0, rtol=1e-5)
    one = fd.Particles(members, jnp.where(jnp.arange(50) == 3, 0.0, -jnp.inf))
    np.testing.assert_allclose(one.mean, members[3], rtol=1e-6)
    np.testing.assert_array_equal(one.sample(jax.random.key(1)), members[3])
    with pytest.raises(ValueError, match="`log_weights` has shape"):
        fd.Particles(members, jnp.zeros(3))
