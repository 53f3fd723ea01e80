"""Thresholded least squares against textbook answers and exhaustive search."""

from itertools import combinations
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm, t

import filterdyn as fd
from filterdyn.inference.sparse_regression import student_t_bound

X64 = jax.config.read("jax_enable_x64")
TIGHT = 1e-9 if X64 else 2e-3
Library = fd.inference.TermLibrary
pointwise = fd.inference.pointwise_regression
stlsq = fd.inference.thresholded_least_squares
RANDOM = np.random.default_rng(3)
STATES = RANDOM.normal(size=(60, 2)) + np.array([1.0, 2.0])


def rates(states, noise=0.0, seed=0):
    x, y = states.T
    exact = np.stack([1.3 * x - 0.9 * x * y, 0.8 * x * y - 1.8 * y], axis=1)
    return exact + noise * np.random.default_rng([seed, 7]).normal(size=exact.shape)


def orthonormal(n=40, p=4):
    """A design with orthonormal columns, as terms of one's own that look up rows."""
    q = np.linalg.qr(RANDOM.normal(size=(n, p)))[0]
    table = jnp.asarray(q)
    pick = lambda j: lambda t, x, u: table[x[0].astype(int), j]
    library = Library(
        ["x"], degree=0, constant=False, functions={f"q{j}": pick(j) for j in range(p)}
    )
    return library, np.arange(float(n))[:, None], q


@pytest.mark.parametrize("selection", ["extended_bic", "bic", "cross_validation"])
def test_exact_rates_give_exact_terms(selection):
    library = Library(["x", "y"], degree=3, sines=[1.0])
    found = stlsq(pointwise(library, STATES, rates(STATES)), selection=selection)
    assert found.terms == (("x", "x"), ("x", "x y"), ("y", "y"), ("y", "x y"))
    values = found.coefficients[found.found]
    np.testing.assert_allclose(values, [1.3, -0.9, -1.8, 0.8], rtol=TIGHT)
    x = jnp.array([0.4, 4.6])
    np.testing.assert_allclose(found.field(0.0, x), rates(np.array([x]))[0], rtol=10 * TIGHT)


def test_equations_are_printed():
    library = Library(["x", "y"], degree=2)
    found = stlsq(pointwise(library, STATES, rates(STATES) + np.array([2.0, 0.0]), covariance=1e-4))
    assert found.equations() == "dx/dt = 2.00 + 1.30 x - 0.900 x y\ndy/dt = -1.80 y + 0.800 x y"
    low, high = found.interval("x", "x y")
    assert f"0.900 [{low:.3f}, {high:.3f}] x y" in str(found)
    nothing = stlsq(pointwise(library, STATES, 0 * STATES, covariance=1.0))
    assert nothing.equations() == "dx/dt = 0\ndy/dt = 0"


def test_on_orthonormal_terms_small_shares_are_cut_off():
    library, states, q = orthonormal()
    weights = np.array([3.0, -1.0, 0.3, 0.1])
    regression = pointwise(library, states, (q @ weights)[:, None])
    shares = np.abs(weights) / np.linalg.norm(weights)
    for threshold in (0.01, 0.05, 0.2, 0.5, 0.99):
        found = stlsq(regression, threshold=threshold, ridge=0.0).coefficients[0]
        expected = np.where(shares >= threshold, weights, 0.0)
        np.testing.assert_allclose(found, expected, atol=1e-6 if not X64 else 1e-12)


def test_terms_below_the_threshold_are_dropped_again_and_again():
    """The loop of the paper in ten lines of NumPy, on columns that are not orthogonal."""
    library = Library(["x", "y"], degree=3)
    values = rates(STATES, noise=0.5)
    A = np.asarray(library.evaluate(STATES), float)
    for threshold in (0.02, 0.1, 0.3):
        found = stlsq(pointwise(library, STATES, values), threshold=threshold, ridge=0.0)
        for i in range(2):
            b, kept = values[:, i], np.ones(A.shape[1], bool)
            while True:
                c = np.zeros(A.shape[1])
                c[kept] = np.linalg.lstsq(A[:, kept], b, rcond=None)[0]
                share = np.abs(c) * np.linalg.norm(A, axis=0) / np.linalg.norm(b)
                if (share[kept] >= threshold).all():
                    break
                kept &= share >= threshold
            np.testing.assert_allclose(found.coefficients[i], c, rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("selection", ["bic", "extended_bic"])
@pytest.mark.parametrize("known", [True, False])
def test_the_support_is_the_best_of_all_supports(selection, known):
    library = Library(["x", "y"], degree=2)
    A, n, p = np.asarray(library.evaluate(STATES), float), len(STATES), 6
    for seed in range(4):
        values = rates(STATES, noise=1.0, seed=seed)
        found = stlsq(
            pointwise(library, STATES, values, covariance=1.0 if known else None),
            selection=selection,
        )
        for i in range(2):

            def score(support, b=values[:, i]):
                rest = b
                if support:
                    X = A[:, support]
                    rest = rest - X @ np.linalg.lstsq(X, rest, rcond=None)[0]
                k = len(support)
                extra = 2 * np.log(comb(p, k)) if selection == "extended_bic" else 0.0
                misfit = rest @ rest if known else n * np.log(rest @ rest / n)
                return misfit + k * np.log(n) + extra

            every = [s for k in range(p + 1) for s in combinations(range(p), k)]
            assert tuple(np.flatnonzero(found.found[i])) == min(every, key=score)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_intervals_are_those_of_the_linear_model(level):
    library = Library(["x", "y"], degree=2).take(["x", "x y"])
    values = rates(STATES, noise=0.3)
    A, n = np.asarray(library.evaluate(STATES), float), len(STATES)
    inverse = np.linalg.inv(A.T @ A)
    for known in (None, 0.3**2):
        found = stlsq(
            pointwise(library, STATES, values, covariance=known), threshold=0.0, level=level
        )
        c = inverse @ A.T @ values[:, 0]
        variance, quantile = 0.3**2, norm.ppf(0.5 + level / 2)
        if known is None:
            variance = np.sum((values[:, 0] - A @ c) ** 2) / (n - 2)
            quantile = t.ppf(0.5 + level / 2, n - 2)
        half = quantile * np.sqrt(variance * np.diag(inverse))
        np.testing.assert_allclose(found.low[0], c - half, rtol=TIGHT)
        np.testing.assert_allclose(found.high[0], c + half, rtol=TIGHT)
        assert found.settings["misfit"]["x"] == pytest.approx(
            np.sum((values[:, 0] - A @ c) ** 2) / (n - 2) / (known or 1.0), rel=100 * TIGHT
        )


def test_correlated_errors_are_weighted_by_their_covariance():
    library = Library(["x", "y"], degree=1)
    gaps = np.abs(np.arange(60)[:, None] - np.arange(60))
    covariances = np.stack([np.exp(-gaps / 5.0), 0.5 * np.exp(-gaps / 2.0)])
    values = rates(STATES, noise=1.0)
    A = np.asarray(library.evaluate(STATES), float)
    found = stlsq(pointwise(library, STATES, values, covariance=covariances), threshold=0.0)
    for i in range(2):
        weight = np.linalg.inv(covariances[i])
        cov = np.linalg.inv(A.T @ weight @ A)
        c = cov @ A.T @ weight @ values[:, i]
        np.testing.assert_allclose(found.coefficients[i], c, rtol=100 * TIGHT)
        half = norm.ppf(0.95) * np.sqrt(np.diag(cov))
        np.testing.assert_allclose(found.high[i], c + half, rtol=100 * TIGHT)


def test_repetitions_agree_with_the_linear_model_where_selection_is_certain():
    """400 repetitions: the standard error of a quantile is about 0.1 standard deviations; 5 of them: 1e-6."""
    library = Library(["x", "y"], degree=2).take(["x", "y", "x y"])
    settings = dict(threshold=0.0, bootstrap=400, key=jax.random.key(0))
    for known in (None, 0.04):
        regression = pointwise(library, STATES, rates(STATES, noise=0.2), covariance=known)
        once, many = stlsq(regression, threshold=0.0), stlsq(regression, **settings)
        sd = (once.high - once.low) / (2 * 1.645)
        for ends in ("low", "high"):
            assert (np.abs(getattr(many, ends) - getattr(once, ends)) < 0.5 * sd).all()


def test_repetitions_say_how_often_a_term_is_selected():
    """Two columns that are the same but for a hundredth, with noise of the size of their difference."""
    shifted = lambda t, x, u: x[0] + 0.01 * x[1]
    library = Library(["x", "y"], degree=1, constant=False, functions={"almost x": shifted})
    values = STATES + np.array([0.05, 0.01]) * np.random.default_rng(5).normal(size=STATES.shape)
    regression = pointwise(library, STATES, values, covariance=np.array([0.05, 0.01]) ** 2)
    found = stlsq(regression, bootstrap=100, key=jax.random.key(0))
    assert found.inclusion[1].tolist() == pytest.approx([0, 1, 0], abs=0.1)
    either = found.inclusion[0, [0, 2]]
    assert either.min() > 0.01 and either.sum() == pytest.approx(1.0, abs=0.1)


def test_intervals_cover_as_often_as_they_say():
    """1,200 intervals of level 0.9: within 4 standard errors of it, a false alarm in 15,000."""
    library = Library(["x", "y"], degree=2).take(["x", "y", "x y"])
    truth, inside = np.array([[1.3, 0.0, -0.9], [0.0, -1.8, 0.8]]), []
    for seed in range(200):
        regression = pointwise(library, STATES, rates(STATES, noise=0.2, seed=seed))
        found = stlsq(regression, threshold=0.0)
        inside.append((found.low <= truth) & (truth <= found.high))
    assert np.mean(inside) == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / np.size(inside)))


@pytest.mark.parametrize("freedom", [1, 3, 30, 1000])
@pytest.mark.parametrize("level", [0.1, 0.9, 0.999])
def test_bounds_are_quantiles_of_students_t(freedom, level):
    expected = t.ppf(0.5 + level / 2, freedom)
    assert student_t_bound(level, freedom) == pytest.approx(expected, rel=1e-7 if X64 else 5e-3)


def test_rows_that_are_not_finite_are_left_out():
    library = Library(["x", "y"], degree=2)
    values = rates(STATES, noise=0.2)
    values[[3, 7]] = np.nan
    covariance = np.diag(np.linspace(0.5, 1.5, 60))
    some = stlsq(pointwise(library, STATES, values, covariance=covariance))
    kept = np.isfinite(values[:, 0])
    without = stlsq(
        pointwise(library, STATES[kept], values[kept], covariance=covariance[kept][:, kept])
    )
    np.testing.assert_array_equal(some.coefficients, without.coefficients)


def regression():
    return pointwise(Library(["x", "y"]), STATES, rates(STATES))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "`regression` is tuple", lambda: stlsq((1, 2))),
        (ValueError, "`threshold` is 2.0", lambda: stlsq(regression(), threshold=2.0)),
        (ValueError, "`ridge` is -1.0", lambda: stlsq(regression(), ridge=-1.0)),
        (ValueError, "`selection` is 'aic'", lambda: stlsq(regression(), selection="aic")),
        (ValueError, "`level` is 90", lambda: stlsq(regression(), level=90)),
        (ValueError, "`key` is None", lambda: stlsq(regression(), bootstrap=10)),
        (ValueError, "`folds` is 61", lambda: stlsq(regression(), selection="cross_validation", folds=61)),
        (ValueError, r"`values` has shape \(3, 2\)",
         lambda: pointwise(Library(["x", "y"]), STATES, np.zeros((3, 2)))),
        (ValueError, r"`covariance` has shape \(5,\)",
         lambda: pointwise(Library(["x", "y"]), STATES, STATES, covariance=np.ones(5))),
        (ValueError, "`covariance` has variances",
         lambda: pointwise(Library(["x", "y"]), STATES, STATES, covariance=-1.0)),
        (ValueError, "finite in no row", lambda: pointwise(Library(["x", "y"]), STATES, np.nan * STATES)),
        (KeyError, "no term 'z'", lambda: stlsq(regression()).interval("x", "z")),
        (KeyError, "no state 'z'", lambda: stlsq(regression()).interval("z", "x")),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()
