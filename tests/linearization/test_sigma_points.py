"""Sigma-point rules against exact Gaussian moments and against the textbook's weighted sums."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import filterdyn as fd
from filterdyn.linalg import PSD
from filterdyn.linearization import Cubature, GaussHermite, Taylor, Unscented

if not jax.config.jax_enable_x64:
    pytest.skip("exactness is tested in float64", allow_module_level=True)

MEAN = np.array([0.3, -0.8, 0.5])
COV = np.array([[0.5, 0.2, -0.1], [0.2, 0.4, 0.1], [-0.1, 0.1, 0.3]])


def belief(mean=MEAN, cov=COV):
    return fd.Gaussian(jnp.asarray(mean), jnp.asarray(cov))


def error_cov(found):
    return np.asarray(found.error.matrix)


def normal_moment(powers):
    """E x_1^a x_2^b ... for a standard normal: double factorials, 0 for an odd power."""
    return math.prod(0 if a % 2 else math.prod(range(a - 1, 0, -2)) for a in powers)


def exponents(n, degree, each=None):
    largest = degree if each is None else each
    every = itertools.product(range(largest + 1), repeat=n)
    return [a for a in every if each is not None or sum(a) <= degree]


DEGREES = {
    "unscented": (Unscented(), 2, 3, None),
    "unscented, five states": (Unscented(), 5, 3, None),
    "unscented, one state": (Unscented(), 1, 5, None),
    "unscented, small alpha": (Unscented(0.1, 2.0, 0.0), 3, 3, None),
    "cubature": (Cubature(), 4, 3, None),
    **{f"fifth-degree cubature, {n}": (Cubature(5), n, 5, None) for n in (1, 2, 3, 4, 5, 7)},
    "Gauss-Hermite 2": (GaussHermite(2), 3, None, 3),
    "Gauss-Hermite 3": (GaussHermite(3), 2, None, 5),
    "Gauss-Hermite 5": (GaussHermite(5), 2, None, 9),
}


@pytest.mark.parametrize("name", DEGREES)
def test_means_of_polynomials_are_exact_up_to_the_degree(name):
    rule, n, degree, each = DEGREES[name]
    powers = exponents(n, degree, each)
    table = jnp.asarray(powers)
    monomials = lambda x: jnp.where(table == 0, 1.0, x ** jnp.maximum(table, 1)).prod(1)
    found = rule(monomials, belief(np.zeros(n), np.eye(n)))
    exact = np.array([normal_moment(a) for a in powers], float)
    np.testing.assert_allclose(found.value, exact, atol=1e-11 * max(1, exact.max()))


@pytest.mark.parametrize(
    "rule, n, power",
    [(Unscented(), 2, (2, 2)), (Cubature(3), 2, (4, 0)), (Cubature(5), 3, (6, 0, 0)),
     (GaussHermite(2), 2, (4, 0))],
)  # fmt: skip
def test_the_next_even_degree_is_not_exact(rule, n, power):
    found = rule(lambda x: jnp.prod(x ** jnp.asarray(power))[None], belief(np.zeros(n), np.eye(n)))
    assert abs(float(found.value[0]) - normal_moment(power)) > 0.1


def bend(x):
    return jnp.stack([jnp.sin(x[0]) * x[1], jnp.exp(0.5 * x[2]) + x[0] ** 2])


def weighted_sums(points, mean_weights, cov_weights):
    """Mean, covariance and cross-covariance with x, as any textbook has them."""
    z = np.array([bend(jnp.asarray(x)) for x in points])
    mean = mean_weights @ z
    cov = (cov_weights[:, None] * (z - mean)).T @ (z - mean)
    return mean, cov, (cov_weights[:, None] * (points - MEAN)).T @ (z - mean)


def unscented_sums(alpha, beta, kappa):
    n = 3
    scale = alpha**2 * (n + kappa)
    arms = math.sqrt(scale) * np.linalg.cholesky(COV).T
    points = np.concatenate([MEAN[None], MEAN + arms, MEAN - arms])
    mean_weights = np.full(2 * n + 1, 0.5 / scale)
    mean_weights[0] = 1 - n / scale
    cov_weights = mean_weights.copy()
    cov_weights[0] += 1 - alpha**2 + beta
    return weighted_sums(points, mean_weights, cov_weights)


def gauss_hermite_sums(order):
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / math.sqrt(2 * math.pi)
    root = np.linalg.cholesky(COV)
    points = np.array([MEAN + root @ u for u in itertools.product(nodes, repeat=3)])
    products = np.array([math.prod(w) for w in itertools.product(weights, repeat=3)])
    return weighted_sums(points, products, products)


def cubature_sums():
    arms = math.sqrt(3) * np.linalg.cholesky(COV).T
    points = np.concatenate([MEAN + arms, MEAN - arms])
    return weighted_sums(points, np.full(6, 1 / 6), np.full(6, 1 / 6))


TEXTBOOK = {
    "unscented 1, 2, 1": (Unscented(1.0, 2.0, 1.0), lambda: unscented_sums(1.0, 2.0, 1.0)),
    "unscented 0.3, 2, -1": (Unscented(0.3, 2.0, -1.0), lambda: unscented_sums(0.3, 2.0, -1.0)),
    "unscented 1.5, 0, 0.5": (Unscented(1.5, 0.0, 0.5), lambda: unscented_sums(1.5, 0.0, 0.5)),
    "unscented default": (Unscented(), lambda: unscented_sums(1.0, 0.0, 0.0)),
    "cubature": (Cubature(), cubature_sums),
    "Gauss-Hermite 4": (GaussHermite(4), lambda: gauss_hermite_sums(4)),
    "Gauss-Hermite 3": (GaussHermite(3), lambda: gauss_hermite_sums(3)),
}


@pytest.mark.parametrize("name", TEXTBOOK)
def test_slope_and_error_add_up_to_the_weighted_sums_of_the_textbook(name):
    rule, sums = TEXTBOOK[name]
    mean, cov, cross = sums()
    found = rule(bend, belief())
    np.testing.assert_allclose(found.value, mean, rtol=1e-12)
    np.testing.assert_allclose(COV @ found.slope.T, cross, rtol=1e-12, atol=1e-13)
    total = found.slope @ COV @ found.slope.T + error_cov(found)
    np.testing.assert_allclose(total, cov, rtol=1e-12)


RULES = {
    "unscented": Unscented(),
    "unscented, small alpha": Unscented(1e-2, 2.0, 0.0),
    "cubature": Cubature(),
    "fifth-degree cubature": Cubature(5),
    "Gauss-Hermite": GaussHermite(3),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@every_rule
def test_an_affine_function_is_its_own_linearisation(rule):
    A, b = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]), np.array([10.0, -4.0])
    found = rule(lambda x: jnp.asarray(A) @ x + b, belief())
    np.testing.assert_allclose(found.value, A @ MEAN + b, rtol=1e-10)
    np.testing.assert_allclose(found.slope, A, rtol=1e-9, atol=1e-11)
    assert np.abs(error_cov(found)).max() < 1e-20


@every_rule
def test_states_that_are_copies_of_others_leave_the_rest_its_slope(rule):
    """x2 copies x1 but for rounding, x3 is independent, x4 = x1 + x3: P has rank 2."""
    s = np.array([[1.0, 0.0], [1.0, 1e-17], [0.0, 2.0], [1.0, 2.0]]) * np.array(
        [[3.0], [3], [1], [1]]
    )
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    cov = PSD.from_factor(jnp.asarray(s @ turn))
    A = np.array([[1.0, -2.0, 0.5, 0.3], [0.0, 1.0, 1.0, -1.0]])
    at = fd.Gaussian(jnp.ones(4), spread=cov)
    found = rule(lambda x: jnp.asarray(A) @ x, at)
    P = s @ s.T
    np.testing.assert_allclose(found.slope @ P, A @ P, rtol=1e-10, atol=1e-10)
    assert np.abs(error_cov(found)).max() < 1e-20


@every_rule
def test_a_point_is_mapped_to_a_point(rule):
    found = rule(bend, belief(cov=np.zeros((3, 3))))
    np.testing.assert_allclose(found.value, bend(jnp.asarray(MEAN)), rtol=1e-12)
    assert np.abs(found.slope).max() == 0
    assert np.abs(error_cov(found)).max() < 1e-20


@every_rule
def test_the_rule_tends_to_taylor_as_the_belief_narrows(rule):
    """The slope differs by third derivatives times the variance."""
    exact = Taylor()(bend, belief())
    distance = lambda scale: np.abs(
        rule(bend, belief(cov=scale**2 * COV)).slope - exact.slope
    ).max()
    wide, narrow = distance(1e-1), distance(1e-2)
    assert wide < 0.02
    assert 80 < wide / narrow < 125


@every_rule
def test_average_covariance_is_the_weighted_mean(rule):
    cov = lambda x: jnp.array([[1.0 + x[0] ** 2, x[1]], [x[1], 4.0 + x[2]]])
    factor = lambda x: jnp.linalg.cholesky(cov(x))
    exact = np.asarray(cov(jnp.asarray(MEAN))) + np.diag([COV[0, 0], 0.0])  # degree two: exact
    np.testing.assert_allclose(rule.average(cov, belief()), exact, rtol=1e-10)
    found = rule.average(lambda x: PSD.from_factor(factor(x)), belief())
    np.testing.assert_allclose(found.matrix, exact, rtol=1e-10)
    np.testing.assert_allclose(found.factor @ found.factor.T, exact, rtol=1e-10)


def test_the_error_is_positive_semi_definite_at_a_negative_weight_of_the_centre():
    """alpha = 0.1 puts weight -99 on the centre; the bound on beta is met with equality."""
    rule = Unscented(0.1, 0.0, 0.0)
    found = rule(lambda x: jnp.stack([x @ x, jnp.abs(x).sum(), jnp.cos(x[0])]), belief())
    values = np.linalg.eigvalsh(error_cov(found))
    assert values.min() >= -1e-15 * values.max() and values.max() > 1e-3


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Unscented(alpha=0.0), "`alpha` is 0.0; expected a positive number"),
        (lambda: Unscented(kappa=np.nan), "`kappa` is nan; expected a finite number"),
        (lambda: Cubature(4), "`degree` is 4; expected 3 or 5"),
        (lambda: GaussHermite(1), "`order` is 1; expected an integer >= 2"),
        (lambda: Unscented(kappa=-3.0).check("Filter", 3), "`kappa` is -3.0 for 3 states"),
        (lambda: Unscented(kappa=-1.0).check("Filter", 4), "`beta` >= -alpha\\^2 kappa / dx = 0.25"),
        (lambda: Cubature(5).check("Filter", 20), "more than 40000 points for 20 states"),
        (lambda: GaussHermite(3).check("Filter", 12), "more than 40000 points for 12 states"),
    ],
)  # fmt: skip
def test_rules_that_do_not_exist_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_negative_kappa_is_taken_where_no_covariance_can_become_indefinite():
    Unscented(beta=0.25, kappa=-1.0).check("Filter", 4)
    Unscented(alpha=1e-3, beta=2.0, kappa=-1.0).check("Filter", 4)
