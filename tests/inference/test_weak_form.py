"""The weak form against integrals by quadrature, finite differences and known systems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import filterdyn as fd
from filterdyn.inference.weak_form import _operators, estimated_variances

if not jax.config.jax_enable_x64:
    pytest.skip("compared with float64 answers", allow_module_level=True)

Library = fd.inference.TermLibrary
weak = fd.inference.weak_regression
stlsq = fd.inference.thresholded_least_squares
LV = Library(["x", "y"], degree=3)
TRUTH = np.zeros((2, 10))
TRUTH[0, 1], TRUTH[0, 4], TRUTH[1, 2], TRUTH[1, 4] = 1.3, -0.9, -1.8, 0.8


def path(times):
    field = lambda t, z: [1.3 * z[0] - 0.9 * z[0] * z[1], 0.8 * z[0] * z[1] - 1.8 * z[1]]
    span, start = (times[0], times[-1]), [0.44249296, 4.6280594]
    return solve_ivp(field, span, start, t_eval=times, rtol=1e-10, atol=1e-10).y.T


def clock(count, span, regular, seed=0):
    if regular:
        return np.linspace(0.0, span, count)
    gaps = np.random.default_rng(seed).uniform(0.5, 1.5, count - 1)
    return np.append(0.0, np.cumsum(gaps) * span / gaps.sum())


def measured(relative, seed, regular=True, count=201, span=10.0):
    times = clock(count, span, regular, seed)
    exact = path(times)
    noise = relative * exact.mean(0)
    random = np.random.default_rng([seed, regular, int(1000 * relative)])
    return fd.Series(times, exact + noise * random.normal(size=exact.shape)), noise**2


@pytest.mark.parametrize("regular", [True, False])
def test_integrals_of_cubics_are_exact(regular):
    times = clock(25, 3.0, regular)
    starts, width, order = np.array([0.0, 0.77, 2.0]), 1.0, 4
    values, slopes = _operators(times, starts, width, order)
    g = np.polynomial.Polynomial([0.3, -1.0, 0.5, 0.7])
    for a, start in enumerate(starts):
        phi = (
            np.polynomial.Polynomial(
                [
                    1.0 - (1 + 2 * start / width) ** 2,
                    4 / width * (1 + 2 * start / width),
                    -4 / width**2,
                ]
            )
            ** order
        )
        for matrix, weight in ((values, phi), (slopes, phi.deriv())):
            whole = (weight * g).integ()
            exact = whole(start + width) - whole(start)
            assert matrix[a] @ g(times) == pytest.approx(exact, abs=1e-7)
        # By parts.
        assert slopes[a] @ g(times) == pytest.approx(-values[a] @ g.deriv()(times), abs=1e-11)


@pytest.mark.parametrize("regular", [True, False])
def test_without_noise_the_terms_are_found_up_to_the_error_of_interpolation(regular):
    error = []
    for count in (101, 401):
        times = clock(count, 10.0, regular)
        regression = weak(LV, fd.Series(times, path(times)), noise=1e-8)
        residual = regression.targets - regression.design @ TRUTH.T
        error.append(np.abs(residual).max() / np.abs(regression.targets).max())
    # (Of fourth order or better: 256 times less in quarters of the steps; half of that is asked.)
    assert error[1] < 2e-5 and error[1] < error[0] / 128


def test_errors_have_the_covariance_of_the_noise_that_enters_linearly():
    """The residual's derivative by every measurement, by central differences."""
    times = clock(12, 3.0, False)
    y, noise = path(times), np.array([[2e-6, 5e-7], [5e-7, 1e-6]])
    known = lambda t, x, u: jnp.array([jnp.sin(x[1]), x[0] * x[1]])
    library = Library(["x", "y"], degree=2)
    coefficients = np.random.default_rng(0).normal(size=(2, 6))
    settings = dict(noise=noise, known=known, width=1.5, count=4)

    def residual(y):
        found = weak(library, fd.Series(times, y), **settings)
        return found.targets - found.design @ coefficients.T

    jacobian = np.zeros((4, 2, 12, 2))
    for k in range(12):
        for d in range(2):
            step = np.zeros_like(y)
            step[k, d] = 1e-4
            jacobian[..., k, d] = (residual(y + step) - residual(y - step)) / 2e-4
    errors = weak(library, fd.Series(times, y), **settings).errors
    for i in range(2):
        expected = np.einsum("akd,de,bke->ab", jacobian[:, i], noise, jacobian[:, i])
        found = errors.covariance(i, coefficients[i])
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_noise_does_not_move_the_mean_of_the_terms():
    """E (x + e)^2 = x^2 + R: 100 noises, 10 monomials, 6 standard errors."""
    times = clock(40, 10.0, True)
    y, R, random = path(times), np.array([0.04, 0.01]), np.random.default_rng(0)
    exact = weak(LV, fd.Series(times, y), noise=1e-12).design
    designs = [
        weak(LV, fd.Series(times, y + np.sqrt(R) * random.normal(size=y.shape)), noise=R).design
        for _ in range(100)
    ]
    error = np.std(designs, axis=0) / 10
    mean = np.mean(designs, axis=0)
    assert (np.abs(mean - exact) < 6 * error + 1e-9).all()
    # Without the second derivatives there would be a difference to see: that of x^2 is R.
    shift = 0.04 * weak(LV, fd.Series(times, y), noise=1e-12).design[:, 0]
    assert (np.abs(mean[:, 3] - exact[:, 3] - shift) > 6 * error[:, 3]).any()


def right(found):
    return (found.found == (TRUTH != 0)).all()


@pytest.mark.parametrize("regular", [True, False])
def test_a_noisy_series_gives_the_right_terms(regular):
    """5 % of noise."""
    series, noise = measured(0.05, 0, regular)
    found = stlsq(weak(LV, series, noise=noise))
    assert right(found)
    ratio = found.coefficients[TRUTH != 0] / TRUTH[TRUTH != 0]
    assert np.abs(ratio - 1).max() < 0.1
    assert all(0.5 < m < 1.5 for m in found.settings["misfit"].values())


@pytest.mark.slow
def test_intervals_of_the_right_terms_cover_as_often_as_they_say():
    """30 noises: the intervals of an equation go together, so 180 are as good as 60: 4 standard errors."""
    inside, count = [], 0
    for seed in range(30):
        series, noise = measured(0.05, seed, regular=False)
        found = stlsq(weak(LV, series, noise=noise))
        count += bool(right(found))
        known = stlsq(weak(LV.take(["x", "y", "x y"]), series, noise=noise), threshold=0.0)
        truth = np.array([[1.3, 0.0, -0.9], [0.0, -1.8, 0.8]])
        inside.append((known.low <= truth) & (truth <= known.high))
    assert count >= 24
    assert np.mean(inside) == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / 60))


def test_the_noise_is_estimated_where_it_is_not_given():
    """Chi-square with about 200 / 3 degrees of freedom, for differences overlap: 4 standard errors."""
    for regular in (True, False):
        series, noise = measured(0.05, 0, regular)
        times, y = np.asarray(series.times), np.asarray(series.observations)
        estimate = estimated_variances(times, y, np.ones(len(y)))
        np.testing.assert_allclose(estimate, noise, rtol=4 * np.sqrt(2 / 67))
    assert right(stlsq(weak(LV, series)))


def test_what_is_known_is_taken_off():
    series, noise = measured(0.01, 0)
    known = lambda t, x, u: jnp.array([1.3 * x[0], -1.8 * x[1]])
    found = stlsq(weak(LV, series, noise=noise, known=known))
    assert found.terms == (("x", "x y"), ("y", "x y"))
    np.testing.assert_allclose(found.coefficients[:, 4], [-0.9, 0.8], rtol=0.01)


def test_inputs_and_time_are_terms_too():
    times = np.linspace(0.0, 10.0, 201)
    u = np.sin(2 * times)
    field = lambda t, x: -1.5 * x + 2.0 * np.sin(2 * t) + 0.3 * t
    x = solve_ivp(field, (0, 10), [1.0], t_eval=times, rtol=1e-10, atol=1e-10).y.T
    library = Library(["x"], ["u"], degree=2, functions={"t": lambda t, x, u: t})
    y = x + 1e-3 * np.random.default_rng(0).normal(size=x.shape)
    found = stlsq(weak(library, fd.Series(times, y, u), noise=1e-6))
    assert found.terms == (("x", "x"), ("x", "u"), ("x", "t"))
    np.testing.assert_allclose(found.coefficients[found.found], [-1.5, 2.0, 0.3], rtol=0.01)


def test_missing_rows_are_left_out_and_repeated_ones_averaged():
    series, noise = measured(0.01, 0, count=40, span=5.0)
    times, y = np.asarray(series.times), np.array(series.observations)
    holes = y.copy()
    holes[5], holes[20, 1] = np.nan, np.nan
    kept = np.delete(np.arange(40), [5, 20])
    some = weak(LV, fd.Series(times, holes), noise=noise)
    without = weak(LV, fd.Series(times[kept], y[kept]), noise=noise)
    np.testing.assert_array_equal(some.design, without.design)
    twice = weak(LV, fd.Series(np.repeat(times, 2), np.repeat(y, 2, axis=0)), noise=2 * noise)
    once = weak(LV, series, noise=noise)
    np.testing.assert_allclose(twice.design, once.design, rtol=1e-12)
    np.testing.assert_allclose(
        twice.errors.covariance(0, TRUTH[0]), once.errors.covariance(0, TRUTH[0]), rtol=1e-9
    )


def short(**settings):
    series, _ = measured(0.01, 0, count=20, span=2.0)
    return weak(settings.pop("library", LV), settings.pop("series", series), **settings)


@pytest.mark.parametrize(
    ("error", "message", "settings"),
    [
        (TypeError, "`series` is tuple", dict(series=(1, 2))),
        (ValueError, "2 observation columns", dict(library=Library(["x"]))),
        (ValueError, "5 times with all entries", dict(series=fd.Series(np.arange(5.0), np.ones((5, 2))))),
        (ValueError, "`width` is 3.0", dict(width=3.0)),
        (ValueError, "`count` is 0", dict(count=0)),
        (ValueError, "`order` is 1", dict(order=1)),
        (ValueError, r"`noise` has shape \(3,\)", dict(noise=np.ones(3))),
        (ValueError, "`noise` is not", dict(noise=-1.0)),
        (TypeError, "`known` is float", dict(known=1.0)),
        (ValueError, r"`known\(t, x, u\)` has shape \(3,\)", dict(known=lambda t, x, u: jnp.zeros(3))),
        (ValueError, "`inputs` is None", dict(library=Library(["x", "y"], ["u"]))),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(error, message, settings):
    with pytest.raises(error, match=message):
        short(**settings)


def test_a_state_that_never_changes_needs_its_noise_and_then_has_no_terms():
    times = np.linspace(0.0, 5.0, 60)
    x = np.exp(-times) + 1e-3 * np.random.default_rng(0).normal(size=60)
    series = fd.Series(times, np.column_stack([x, np.full(60, 2.0)]))
    library = Library(["x", "y"], degree=1)
    with pytest.raises(ValueError, match=r"same number in all rows of \['y'\], .*; give `noise`"):
        weak(library, series)
    # "1" and "y" are the same column twice: either may stand for it, with finite intervals.
    found = stlsq(weak(library, series, noise=1e-6))
    np.testing.assert_array_equal(found.coefficients[1], 0.0)
    np.testing.assert_allclose(found.coefficients[0, 1], -1.0, atol=0.02)
    assert np.isfinite(found.low).all() and np.isfinite(found.high).all()
    both = stlsq(weak(library, series, noise=1e-6), threshold=0.0)
    assert np.isfinite(both.coefficients).all() and np.isfinite(both.high).all()
