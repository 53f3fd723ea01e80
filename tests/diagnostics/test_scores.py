"""Scores of predictions, beside their definitions."""

import numpy as np
import pytest
from scipy import integrate, stats

import filterdyn as fd

SCORES = fd.diagnostics.scores
RNG = np.random.default_rng(4)
Y = RNG.normal(size=(60, 2)) * [1.0, 5.0] + [0.0, 3.0]
MEAN = Y + RNG.normal(size=(60, 2))
VARIANCE = RNG.uniform(0.5, 2.0, (60, 2))


def test_errors_are_those_of_their_definitions():
    found = SCORES(Y, MEAN)
    rmse = np.sqrt(np.mean((Y - MEAN) ** 2, axis=0))
    ratio = rmse / np.std(Y, axis=0)
    np.testing.assert_allclose(found.rmse, rmse)
    np.testing.assert_allclose(found.nrmse, ratio)
    np.testing.assert_allclose(found.fit, 100 * (1 - ratio))
    residual, total = ((Y - MEAN) ** 2).sum(0), ((Y - Y.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(found.r2, 1 - residual / total)
    assert found.nll is None and found.crps is None and found.coverage is None


def test_scores_of_a_gaussian_are_those_of_scipy_and_of_quadrature():
    found = SCORES(Y, MEAN, VARIANCE, probability=0.8)
    gaussian = stats.norm(MEAN, np.sqrt(VARIANCE))
    np.testing.assert_allclose(found.nll, -gaussian.logpdf(Y).mean(0))
    inside = (gaussian.ppf(0.1) <= Y) & (gaussian.ppf(0.9) >= Y)
    np.testing.assert_allclose(found.coverage, inside.mean(0))

    one = stats.norm(0.3, 1.7)
    below = integrate.quad(lambda x: one.cdf(x) ** 2, -20, 1.1)[0]
    above = integrate.quad(lambda x: (1 - one.cdf(x)) ** 2, 1.1, 20)[0]
    np.testing.assert_allclose(SCORES([1.1], [0.3], [1.7**2]).crps, below + above, rtol=1e-6)


def test_missing_measurements_are_left_out_and_missing_predictions_are_not():
    y = Y.copy()
    y[::3, 0] = np.nan
    found, seen = SCORES(y, MEAN, VARIANCE), ~np.isnan(y[:, 0])
    alone = SCORES(y[seen, 0], MEAN[seen, 0], VARIANCE[seen, 0])
    for name in ("rmse", "r2", "nll", "crps", "coverage"):
        np.testing.assert_allclose(getattr(found, name)[0], getattr(alone, name)[0])
    mean = MEAN.copy()
    mean[1] = np.nan
    assert np.isnan(SCORES(y, mean).rmse).all()


def test_a_certain_prediction_has_its_absolute_error_as_crps():
    np.testing.assert_allclose(SCORES([1.0, 2.0], [0.5, 4.0], [0.0, 0.0]).crps, 1.25)


def test_errors_name_argument_value_and_what_was_expected():
    with pytest.raises(ValueError, match=r"`mean` has shape \(59, 2\); expected \(60, 2\)"):
        SCORES(Y, MEAN[1:])
    with pytest.raises(ValueError, match="`variance` has a negative entry"):
        SCORES(Y, MEAN, -VARIANCE)
    with pytest.raises(ValueError, match="`measured` has a column of NaN only"):
        SCORES([np.nan], [0.0])
