"""The chi-square distribution against SciPy's."""

import numpy as np
from scipy import stats

from filterdyn.diagnostics import chi_square


def test_tails_are_those_of_scipy_far_out_and_for_many_degrees_of_freedom():
    x, dof = np.meshgrid([1e-3, 0.5, 3.0, 20.0, 100.0, 700.0], [0.5, 1.0, 2.0, 7.0, 60.0, 1000.0])
    np.testing.assert_allclose(
        chi_square.survival(x, dof), stats.chi2.sf(x, dof), rtol=1e-9, atol=1e-15
    )


def test_quantiles_are_those_of_scipy():
    p, dof = np.meshgrid([1e-5, 0.025, 0.5, 0.975, 1 - 1e-9], [1.0, 2.0, 9.0, 400.0, 20000.0])
    np.testing.assert_allclose(chi_square.quantile(p, dof), stats.chi2.ppf(p, dof), rtol=1e-8)


def test_no_degrees_of_freedom_is_a_point_at_zero():
    assert chi_square.quantile(0.5, 0) == 0
    assert chi_square.survival(1.0, 0) == 0
