"""Resampling schemes: numbers of copies against what their definitions say."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from filterdyn.resampling import (
    Killing,
    Multinomial,
    OptimalTransport,
    Residual,
    SortedTransport,
    Stratified,
    Systematic,
)

COPYING = [Systematic(), Stratified(), Multinomial(), Residual(), Killing()]
TRANSPORT = [OptimalTransport(), SortedTransport()]
name = lambda r: type(r).__name__
copying = pytest.mark.parametrize("resampling", COPYING, ids=name)
transporting = pytest.mark.parametrize("resampling", TRANSPORT, ids=name)

WEIGHTS = np.array([0.02, 0.31, 0.0, 0.11, 0.24, 0.135, 0.18, 0.005])
DRAWS = 20_000


#: Compiled once per scheme and number of particles: the tests below share their numbers, 8 and 1e5.
ancestors_of = jax.jit(lambda resampling, key, log_weights: resampling.ancestors(key, log_weights))
counts_of = jax.jit(
    lambda resampling, keys, log_weights: jax.vmap(
        lambda key: jnp.bincount(resampling.ancestors(key, log_weights), length=len(log_weights))
    )(keys)
)
transported = jax.jit(lambda resampling, x, log_weights: resampling.transport(x, log_weights))


@pytest.fixture(scope="module")
def counts():
    keys, log_weights = jr.split(jr.key(0), DRAWS), jnp.log(WEIGHTS)
    return {name(r): np.asarray(counts_of(r, keys, log_weights)) for r in COPYING}


@copying
def test_numbers_of_copies_are_n_times_the_weights_on_average(counts, resampling):
    found, expected = counts[name(resampling)], len(WEIGHTS) * WEIGHTS
    error = np.abs(found.mean(0) - expected)
    standard = found.std(0) / np.sqrt(DRAWS)
    # 5 standard errors, 40 comparisons: false alarms 2e-5.
    assert np.all(error <= 5 * standard + 1e-6)


@copying
def test_there_are_always_n_copies_and_none_of_weight_zero(counts, resampling):
    found = counts[name(resampling)]
    assert np.all(found.sum(1) == len(WEIGHTS))
    assert np.all(found[:, WEIGHTS == 0] == 0)


def test_systematic_copies_are_the_expected_number_rounded(counts):
    expected = len(WEIGHTS) * WEIGHTS
    found = counts["Systematic"]
    assert np.all((found >= np.floor(expected)) & (found <= np.ceil(expected)))


def test_stratified_copies_are_within_two_of_the_expected_number(counts):
    expected = len(WEIGHTS) * WEIGHTS
    assert np.all(np.abs(counts["Stratified"] - expected) < 2)


def test_residual_copies_are_at_least_the_expected_number_rounded_down(counts):
    assert np.all(counts["Residual"] >= np.floor(len(WEIGHTS) * WEIGHTS))


def test_multinomial_counts_have_the_binomial_distribution(counts):
    n = len(WEIGHTS)
    for i in (1, 4, 6):
        found = np.bincount(counts["Multinomial"][:, i], minlength=n + 1)
        expected = DRAWS * stats.binom(n, WEIGHTS[i]).pmf(np.arange(n + 1))
        low = expected < 5
        merged = lambda x, low=low: np.append(x[~low], x[low].sum())
        # Three tests at 1e-5 each.
        assert stats.chisquare(merged(found), merged(expected)).pvalue > 1e-5


def test_variance_falls_from_multinomial_to_residual_and_stratified(counts):
    """Of the sum of a monotone function over the copies (Douc, Cappé, Moulines 2005)."""
    f = np.arange(len(WEIGHTS)) ** 1.5
    var = {key: (found @ f).var() for key, found in counts.items()}
    # The ratios are below 0.7, and a ratio of variances has a standard error of 1.4 %.
    assert var["Residual"] < var["Multinomial"]
    assert var["Stratified"] < var["Multinomial"]
    assert var["Systematic"] < var["Multinomial"]
    assert var["Killing"] < var["Multinomial"]


@copying
def test_equal_weights_move_nobody_but_under_independent_draws(resampling):
    found = ancestors_of(resampling, jr.key(1), jnp.zeros(8))
    if isinstance(resampling, (Systematic, Residual, Killing)):
        np.testing.assert_array_equal(found, np.arange(8))
    assert found.shape == (8,)


@copying
@pytest.mark.parametrize(
    "log_weights",
    [
        [-np.inf] * 3 + [3.0] + [-np.inf] * 4,
        [-np.inf] * 7 + [-1e4],
        [0.0] + [-np.inf] * 6 + [np.nan],
    ],
)
def test_a_single_survivor_is_copied_everywhere(resampling, log_weights):
    found = ancestors_of(resampling, jr.key(2), jnp.asarray(log_weights))
    np.testing.assert_array_equal(found, np.nanargmax(log_weights))


@copying
def test_where_all_weights_are_zero_every_ancestor_is_some_particle(resampling):
    found = np.asarray(ancestors_of(resampling, jr.key(3), jnp.full(8, -jnp.inf)))
    assert np.all((found >= 0) & (found < 8))


@copying
def test_one_particle_is_its_own_ancestor(resampling):
    np.testing.assert_array_equal(ancestors_of(resampling, jr.key(4), jnp.array([-7.0])), [0])


@copying
def test_a_shift_of_all_log_weights_changes_nothing(resampling):
    log_weights = 2 * jr.normal(jr.key(5), (8,))
    ancestors = lambda shift: ancestors_of(resampling, jr.key(6), log_weights + shift)
    np.testing.assert_array_equal(ancestors(0.0), ancestors(-512.0))


large = pytest.mark.parametrize(
    "resampling",
    [r if isinstance(r, Systematic) else pytest.param(r, marks=pytest.mark.slow) for r in COPYING],
    ids=name,
)


@large
def test_a_hundred_thousand_float32_particles_are_copied_as_their_weights_say(resampling):
    """Float32 sums of 1e5 weights must not misplace anybody: counts over blocks of 1000 particles."""
    n = 100_000
    log_weights = 2 * jr.normal(jr.key(7), (n,), jnp.float32)
    ancestors = np.asarray(ancestors_of(resampling, jr.key(8), log_weights))
    weights = np.exp(np.asarray(log_weights, np.float64))
    expected = (n * weights / weights.sum()).reshape(100, -1).sum(1)
    found = np.bincount(ancestors, minlength=n).reshape(100, -1).sum(1)
    assert found.sum() == n
    # Multinomial is the most variable: 6 of its standard deviations; systematic is off by one at most.
    limit = 1.01 if isinstance(resampling, Systematic) else 6 * np.sqrt(expected)
    assert np.all(np.abs(found - expected) <= limit)


def test_systematic_in_float32_agrees_with_exact_arithmetic():
    n = 100_000
    key = jr.key(9)
    log_weights = 2 * jr.normal(jr.key(7), (n,), jnp.float32)
    found = np.asarray(ancestors_of(Systematic(), key, log_weights))
    u = float(jr.uniform(key, (), jnp.float32))
    weights = np.exp(np.asarray(log_weights, np.float64) - float(log_weights.max()))
    ends = np.cumsum(weights)
    counts = np.ceil(n * ends / ends[-1] - u)
    exact = np.searchsorted(counts, np.arange(n), side="right")
    # A float32 sum by ceil(N W - u) misplaces 0.3 %, a serial one 24 %.
    assert np.mean(found != exact) < 5e-4


@large
def test_a_weight_of_zero_is_never_copied_in_float32(resampling):
    """Half of 1e5 particles are impossible, and rounding must not bring one of them back."""
    log_weights = jr.normal(jr.key(10), (100_000,), jnp.float32)
    dead = jr.bernoulli(jr.key(11), 0.5, (100_000,))
    ancestors = ancestors_of(resampling, jr.key(12), jnp.where(dead, -jnp.inf, log_weights))
    assert not bool(dead[ancestors].any())


@transporting
def test_transport_keeps_the_mean_and_shrinks_the_spread(resampling):
    x = jr.normal(jr.key(13), (200, 1))
    log_weights = -0.5 * (x[:, 0] - 1.0) ** 2
    w = np.asarray(jax.nn.softmax(log_weights))
    mean = w @ np.asarray(x)[:, 0]
    moved = np.asarray(transported(resampling, x, log_weights))[:, 0]
    var = w @ (np.asarray(x)[:, 0] - mean) ** 2
    np.testing.assert_allclose(moved.mean(), mean, atol=2e-3)
    assert 0.4 * var < moved.var() < var


def test_sorted_transport_is_the_optimal_plan():
    """Against a linear programme over all plans."""
    from scipy.optimize import linprog

    rng = np.random.default_rng(0)
    n = 6
    x, w = rng.normal(size=n), rng.dirichlet(np.ones(n))
    moved = transported(SortedTransport(), jnp.asarray(x)[:, None], jnp.log(jnp.asarray(w)))
    targets = np.sort(rng.normal(size=n))  # on the line the plan depends on order alone
    cost = (x[:, None] - targets) ** 2
    rows = np.kron(np.eye(n), np.ones(n))
    columns = np.kron(np.ones(n), np.eye(n))
    plan = linprog(
        cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.r_[w, np.full(n, 1 / n)]
    ).x.reshape(n, n)
    np.testing.assert_allclose(np.asarray(moved)[:, 0], n * plan.T @ x, atol=1e-8)


@pytest.mark.slow
def test_entropic_transport_solves_its_own_problem():
    """Against Sinkhorn's iteration carried to the end, on the scaled cost."""
    rng = np.random.default_rng(1)
    n, epsilon = 30, 0.5
    x, w = rng.normal(size=(n, 2)), rng.dirichlet(np.ones(n))
    z = (x - x.mean(0)) / (x.std(0).max() * np.sqrt(2))
    kernel = np.exp(-0.5 * ((z[:, None] - z) ** 2).sum(-1) / epsilon)
    v = np.ones(n)
    for _ in range(2000):
        u = w / (kernel @ v)
        v = (1 / n) / (kernel.T @ u)
    plan = u[:, None] * kernel * v
    resampling = OptimalTransport(epsilon, threshold=1e-7, max_iterations=500)
    found = transported(resampling, jnp.asarray(x), jnp.log(jnp.asarray(w)))
    np.testing.assert_allclose(found, n * plan.T @ x, atol=1e-5)


def test_sorted_transport_of_equal_weights_moves_nobody():
    x = jr.normal(jr.key(14), (20, 1))
    found = transported(SortedTransport(), x, jnp.zeros(20))
    np.testing.assert_allclose(found, jnp.sort(x, axis=0), atol=1e-12)


@pytest.mark.slow
@transporting
def test_transport_of_particles_without_weight_is_finite_with_its_derivative(resampling):
    x = jr.normal(jr.key(15), (8, 1))

    total = jax.jit(jax.value_and_grad(lambda log_w: (resampling.transport(x, log_w) ** 2).sum()))
    for log_weights in (jnp.full(8, -jnp.inf), jnp.array([0.0] + [-jnp.inf] * 7)):
        value, slope = total(log_weights)
        assert jnp.isfinite(value) and jnp.isfinite(slope).all()


@transporting
def test_transport_runs_in_float32(resampling):
    x = jax.ShapeDtypeStruct((16, 1), jnp.float32)
    log_weights = jax.ShapeDtypeStruct((16,), jnp.float32)
    assert jax.eval_shape(resampling.transport, x, log_weights).dtype == jnp.float32


def test_only_copying_is_called_unbiased():
    assert all(r.is_unbiased for r in COPYING) and not any(r.is_unbiased for r in TRANSPORT)


def test_sorting_refuses_more_than_one_state():
    with pytest.raises(ValueError, match="one state only"):
        SortedTransport().check("ParticleFilter", 2)


@pytest.mark.parametrize("option", [{"epsilon": 0.0}, {"scaling": 1.5}, {"threshold": -1.0}])
def test_optimal_transport_refuses_options_out_of_range(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        OptimalTransport(**option)
