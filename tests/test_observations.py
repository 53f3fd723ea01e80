"""Observations that are not Gaussian: transformed Gaussians exactly, other families by moments."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms
from scipy import stats

import filterdyn as fd

if not jax.config.jax_enable_x64:
    pytest.skip("compared with scipy in float64", allow_module_level=True)

NAN = np.nan
EKF = fd.ExtendedKalmanFilter()
start = dist.MultivariateNormal(jnp.array([0.3, -0.2]), jnp.array([[0.5, 0.1], [0.1, 0.4]]))
spiral = fd.LinearTransition([[0.9, 0.3], [-0.2, 0.8]], [[0.2, 0.05], [0.05, 0.1]])
R = np.array([[0.3, 0.1], [0.1, 0.2]])


def result_of(observation, y, dynamics=spiral, initial=start, **options):
    model = fd.StateSpaceModel(initial, dynamics, observation)
    return fd.filter(model, fd.Series(np.arange(len(y)), y), EKF, **options)


# Entrywise transforms T of a Gaussian: (T, its inverse, log |dz / dy|), in NumPy.
ENTRYWISE = {
    "log-normal": (
        lambda x: dist.LogNormal(x, jnp.sqrt(0.3)).to_event(1),
        np.log,
        lambda y: -np.log(y),
        np.exp,
    ),
    "logit-normal": (
        lambda x: dist.TransformedDistribution(
            dist.Normal(x, jnp.sqrt(0.3)), transforms.SigmoidTransform()
        ).to_event(1),
        lambda y: np.log(y / (1 - y)),
        lambda y: -np.log(y * np.abs(1 - y)),
        lambda z: 1 / (1 + np.exp(-z)),
    ),
    "log-normal in other units": (
        lambda x: dist.TransformedDistribution(
            dist.Normal(x, jnp.sqrt(0.3)),
            [transforms.ExpTransform(), transforms.AffineTransform(2.0, 5.0)],
        ).to_event(1),
        lambda y: np.log((y - 2) / 5),
        lambda y: -np.log(y - 2),
        lambda z: 2 + 5 * np.exp(z),
    ),
}
Z = np.array([[0.3, -0.8], [1.1, NAN], [NAN, NAN], [NAN, 0.4], [-0.7, 0.9]])


@pytest.mark.parametrize("family", ENTRYWISE)
def test_a_transformed_gaussian_is_the_gaussian_filter_on_transformed_data_plus_log_jacobian(
    family,
):
    make, inverse, log_jacobian, forward = ENTRYWISE[family]
    y = forward(Z)
    result = result_of(fd.Observation(lambda t, x, u: make(x)), y)
    plain = result_of(fd.LinearObservation(np.eye(2), 0.3), inverse(y))
    np.testing.assert_allclose(result.mean, plain.mean, rtol=1e-12)
    np.testing.assert_allclose(result.cov, plain.cov, rtol=1e-12)
    terms = np.where(np.isnan(y), 0.0, log_jacobian(np.where(np.isnan(y), 3.0, y))).sum(1)
    np.testing.assert_allclose(
        result.log_likelihoods, plain.log_likelihoods + terms, rtol=1e-11, atol=1e-13
    )
    assert result.log_likelihoods[2] == 0.0
    assert not result.moments_matched


def test_the_gradient_of_a_log_normal_likelihood_with_missing_entries_is_that_of_the_gaussian_one():
    def log_likelihood(theta, make, y):
        model = fd.StateSpaceModel(start, spiral, fd.Observation(lambda t, x, u: make(theta * x)))
        return fd.log_likelihood(model, fd.Series(np.arange(5), y), EKF)

    theta = jnp.asarray(1.3)
    log_normal = jax.grad(log_likelihood)(
        theta, lambda m: dist.LogNormal(m, 0.5).to_event(1), np.exp(Z)
    )
    gaussian = jax.grad(log_likelihood)(theta, lambda m: dist.Normal(m, 0.5).to_event(1), Z)
    np.testing.assert_allclose(log_normal, gaussian, rtol=1e-11)


def test_a_joint_affine_transform_is_the_gaussian_it_is():
    scale = jnp.array([[1.0, 0.0], [0.5, 2.0]])

    def pushed(t, x, u):
        noise = dist.MultivariateNormal(x, jnp.asarray(R))
        return dist.TransformedDistribution(
            noise, transforms.LowerCholeskyAffine(jnp.array([1.0, -1.0]), scale)
        )

    y = np.array([[0.3, -0.8], [NAN, NAN], [1.0, 2.0]])
    result = result_of(fd.Observation(pushed), y)
    direct = fd.LinearObservation(scale, scale @ R @ scale.T, d=[1.0, -1.0])
    plain = result_of(direct, y)
    np.testing.assert_allclose(result.mean, plain.mean, rtol=1e-12)
    np.testing.assert_allclose(result.log_likelihoods, plain.log_likelihoods, rtol=1e-12)


def test_half_a_row_of_a_joint_transform_is_a_status():
    def pushed(t, x, u):
        noise = dist.MultivariateNormal(x, jnp.asarray(R))
        return dist.TransformedDistribution(
            noise, transforms.LowerCholeskyAffine(jnp.zeros(2), jnp.eye(2))
        )

    result = result_of(fd.Observation(pushed), np.array([[0.3, -0.8], [NAN, 1.0]]))
    assert (result.status, result.failed_at) == (fd.Status.MARGINAL_NOT_AVAILABLE, 1)


@pytest.mark.parametrize("y", [0.0, -1.0])
def test_a_measurement_out_of_the_support_is_a_status(y):
    log_normal = fd.Observation(lambda t, x, u: dist.LogNormal(x[:1], 0.5).to_event(1))
    result = result_of(log_normal, np.array([[1.0], [y], [2.0]]))
    assert (result.status, result.failed_at) == (fd.Status.OBSERVATION_OUT_OF_SUPPORT, 1)
    assert result.log_likelihood == -np.inf
    assert np.isfinite(result.mean[0]).all() and np.isnan(result.mean[1:]).all()


# Moments, against scipy.
UNIVARIATE = {
    "Poisson": (dist.Poisson(jnp.array([0.5, 4.0])), stats.poisson([0.5, 4.0])),
    "Gamma": (
        dist.Gamma(jnp.array([2.0, 5.0]), jnp.array([3.0, 0.5])),
        stats.gamma([2.0, 5.0], scale=[1 / 3, 2.0]),
    ),
    "Student-t": (
        dist.StudentT(jnp.array([3.0, 5.0]), jnp.array([1.0, -2.0]), jnp.array([0.5, 2.0])),
        stats.t([3.0, 5.0], [1.0, -2.0], [0.5, 2.0]),
    ),
    "negative binomial": (
        dist.NegativeBinomialProbs(jnp.array([3.0, 4.0]), jnp.array([0.4, 0.7])),
        stats.nbinom([3.0, 4.0], [0.6, 0.3]),
    ),
    "binomial": (dist.Binomial(10, jnp.array([0.2, 0.7])), stats.binom(10, [0.2, 0.7])),
    "Bernoulli": (dist.Bernoulli(jnp.array([0.2, 0.7])), stats.bernoulli([0.2, 0.7])),
    "Beta": (dist.Beta(jnp.array([2.0, 0.5]), 3.0), stats.beta([2.0, 0.5], 3.0)),
    "exponential": (dist.Exponential(jnp.array([0.5, 3.0])), stats.expon(scale=[2.0, 1 / 3])),
    "log-normal": (
        dist.LogNormal(jnp.array([0.5, -1.0]), 0.7),
        stats.lognorm(0.7, scale=np.exp([0.5, -1.0])),
    ),
    "Laplace": (dist.Laplace(jnp.array([0.5, -1.0]), 0.7), stats.laplace([0.5, -1.0], 0.7)),
    "logistic": (dist.Logistic(jnp.array([0.5, -1.0]), 0.7), stats.logistic([0.5, -1.0], 0.7)),
    "Gumbel": (dist.Gumbel(jnp.array([0.5, -1.0]), 0.7), stats.gumbel_r([0.5, -1.0], 0.7)),
    "Weibull": (
        dist.Weibull(jnp.array([0.5, 1.0]), jnp.array([2.0, 1.5])),
        stats.weibull_min([2.0, 1.5], scale=[0.5, 1.0]),
    ),
    "inverse Gamma": (
        dist.InverseGamma(jnp.array([3.0, 5.0]), 2.0),
        stats.invgamma([3.0, 5.0], scale=2.0),
    ),
    "truncated normal": (
        dist.TruncatedNormal(jnp.array([0.0, 1.0]), 1.0, low=0.0),
        stats.truncnorm([0.0, -1.0], np.inf, loc=[0.0, 1.0]),
    ),
    "half normal": (dist.HalfNormal(jnp.array([1.0, 2.0])), stats.halfnorm(scale=[1.0, 2.0])),
    "uniform": (dist.Uniform(jnp.array([0.0, -1.0]), 2.0), stats.uniform([0, -1], [2, 3])),
    "normal": (dist.Normal(jnp.array([0.0, -1.0]), 2.0), stats.norm([0, -1], 2)),
}


@pytest.mark.parametrize("family", UNIVARIATE)
def test_moments_of_a_vector_of_scalars_are_those_of_scipy(family):
    ours, theirs = UNIVARIATE[family]
    moments = fd.conditional_moments(ours.to_event(1))
    np.testing.assert_allclose(moments.mean, theirs.mean(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moments.cov.matrix, np.diag(theirs.var()), rtol=1e-10)
    np.testing.assert_allclose(
        moments.cov.factor @ moments.cov.factor.T, np.diag(theirs.var()), rtol=1e-10
    )
    assert moments.exact == (family == "normal")


SHAPE = np.array([[1.0, 0.4], [0.4, 2.0]])
P = np.array([0.2, 0.5, 0.3])
JOINT = {
    "multivariate Student-t": (
        dist.MultivariateStudentT(5.0, jnp.array([1.0, -1.0]), jnp.linalg.cholesky(SHAPE)),
        np.array([1.0, -1.0]),
        SHAPE * 5 / 3,
    ),
    "Multinomial": (
        dist.Multinomial(7, jnp.asarray(P)),
        stats.multinomial(7, P).mean(),
        stats.multinomial(7, P).cov(),
    ),
    "Multinomial by logits": (
        dist.Multinomial(7, logits=jnp.log(P) + 1.0),
        7 * P,
        stats.multinomial(7, P).cov(),
    ),
    "Dirichlet": (
        dist.Dirichlet(jnp.array([2.0, 5.0, 3.0])),
        stats.dirichlet([2.0, 5.0, 3.0]).mean(),
        stats.dirichlet([2.0, 5.0, 3.0]).cov(),
    ),
    "low-rank Gaussian": (
        dist.LowRankMultivariateNormal(
            jnp.zeros(3), jnp.array([[1.0], [2.0], [0.5]]), jnp.array([0.1, 0.2, 0.3])
        ),
        np.zeros(3),
        np.outer([1.0, 2.0, 0.5], [1.0, 2.0, 0.5]) + np.diag([0.1, 0.2, 0.3]),
    ),
    "Gaussian by its precision": (
        dist.MultivariateNormal(jnp.zeros(2), precision_matrix=jnp.linalg.inv(SHAPE)),
        np.zeros(2),
        SHAPE,
    ),
}


@pytest.mark.parametrize("family", JOINT)
def test_moments_of_a_joint_family_have_every_entry_of_the_covariance(family):
    ours, mean, cov = JOINT[family]
    moments = fd.conditional_moments(ours)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moments.cov.matrix, cov, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        moments.cov.factor @ moments.cov.factor.T, cov, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("family", ["multivariate Student-t", "Multinomial", "Dirichlet"])
def test_moments_of_a_joint_family_are_those_of_its_samples(family):
    # 40 000 draws: each of at most 12 numbers within 5 standard errors (false alarm < 1e-5).
    ours, _, _ = JOINT[family]
    moments = fd.conditional_moments(ours)
    draws = np.asarray(ours.sample(jax.random.key(0), (40_000,)), float)
    centred = draws - np.asarray(moments.mean)
    error = centred.std(0) / 200
    assert np.all(np.abs(centred.mean(0)) < 5 * error)
    products = centred[:, :, None] * centred[:, None, :]
    assert np.all(np.abs(products.mean(0) - moments.cov.matrix) < 5 * products.std(0) / 200)


@pytest.mark.parametrize(
    ("distribution", "name"),
    [
        (dist.DirichletMultinomial(jnp.ones(2), 5), "DirichletMultinomial"),
        (dist.GaussianRandomWalk(1.0, 3), "GaussianRandomWalk"),
        (dist.ProjectedNormal(jnp.ones(2)), "ProjectedNormal"),
        (
            dist.VonMises(jnp.zeros(2), 1.0).to_event(1),
            "VonMises",
        ),
        (dist.Normal(jnp.zeros(2), 1.0).mask(False).to_event(1), "masked"),
        (
            dist.TransformedDistribution(
                dist.Gamma(jnp.ones(2), 1.0), transforms.ExpTransform()
            ).to_event(1),
            "TransformedDistribution",
        ),
    ],
)  # fmt: skip
def test_a_family_whose_moments_are_not_known_is_refused_by_name(distribution, name):
    with pytest.raises(TypeError, match=rf"conditional_moments: .*{name}"):
        fd.conditional_moments(distribution)


def test_a_filter_refuses_an_unknown_joint_family_by_name():
    walk = fd.Observation(lambda t, x, u: dist.GaussianRandomWalk(jnp.exp(x[0]), 2))
    with pytest.raises(TypeError, match="the covariance of GaussianRandomWalk is not known"):
        result_of(walk, np.ones((2, 2)))


INFINITE = {
    "Cauchy": lambda x, df: dist.Cauchy(x).to_event(1),
    "StudentT": lambda x, df: dist.StudentT(df, x).to_event(1),
    "MultivariateStudentT": lambda x, df: dist.MultivariateStudentT(df, x, jnp.eye(2)),
    "InverseGamma": lambda x, df: dist.InverseGamma(df, jnp.ones(2)).to_event(1),
}


@pytest.mark.parametrize("family", INFINITE)
def test_moments_known_to_be_infinite_are_refused(family):
    make = INFINITE[family]
    message = rf"{family} has an infinite or undefined mean or variance"
    with pytest.raises(ValueError, match=message):
        fd.conditional_moments(make(jnp.zeros(2), 1.5))
    with pytest.raises(ValueError, match=message):
        result_of(fd.Observation(lambda t, x, u: make(x, 1.5)), np.ones((2, 2)))


@pytest.mark.parametrize("family", ["StudentT", "MultivariateStudentT"])
def test_moments_that_turn_out_infinite_are_a_status(family):
    @jax.jit
    def run(df):
        result = result_of(
            fd.Observation(lambda t, x, u: INFINITE[family](x, df)), np.array([[NAN, NAN], [1, 2]])
        )
        return result.status, result.log_likelihood

    status, value = run(1.5)
    assert (status, value) == (fd.Status.MOMENTS_NOT_FINITE, -jnp.inf)
    status, value = run(3.0)
    assert status == fd.Status.OK and np.isfinite(value)


# Moments inside the filter.
def test_one_update_with_poisson_counts_is_the_textbook_update_with_their_moments():
    """lambda = exp(x) at the prior mean m: innovation y - e^m, slope e^m, noise variance e^m."""
    m, p, y = 0.4, 0.3, 3.0
    counts = fd.Observation(lambda t, x, u: dist.Poisson(jnp.exp(x)).to_event(1))
    initial = dist.Normal(jnp.array([m]), np.sqrt(p)).to_event(1)
    walk = fd.LinearTransition([[1]], [[1]])
    result = result_of(counts, np.array([[y]]), walk, initial)
    rate = np.exp(m)
    s = rate**2 * p + rate
    np.testing.assert_allclose(result.innovation_covs[0, 0, 0], s, rtol=1e-12)
    np.testing.assert_allclose(result.mean[0, 0], m + p * rate / s * (y - rate), rtol=1e-12)
    np.testing.assert_allclose(result.cov[0, 0, 0], p - (p * rate) ** 2 / s, rtol=1e-12)
    np.testing.assert_allclose(
        result.log_likelihood, stats.norm.logpdf(y, rate, np.sqrt(s)), rtol=1e-12
    )
    assert result.moments_matched


def test_multinomial_counts_enter_with_their_singular_covariance():
    """Counts add up to n, so one of them says nothing new: the update is that of all but one."""
    counts = fd.Observation(
        lambda t, x, u: dist.Multinomial(
            20, logits=jnp.concatenate([x, jnp.zeros(1)]), total_count_max=20
        )
    )
    y = np.array([[8.0, 7.0, 5.0]])
    result = result_of(counts, y)
    m, cov = np.array([0.3, -0.2]), np.array([[0.5, 0.1], [0.1, 0.4]])
    p = np.exp([*m, 0.0]) / np.exp([*m, 0.0]).sum()
    noise = 20 * (np.diag(p) - np.outer(p, p))[:2, :2]
    slope = noise
    s = slope @ cov @ slope.T + noise
    gain = cov @ slope.T @ np.linalg.inv(s)
    np.testing.assert_allclose(result.mean[0], m + gain @ (y[0, :2] - 20 * p[:2]), rtol=1e-8)
    np.testing.assert_allclose(result.cov[0], cov - gain @ s @ gain.T, rtol=1e-8)


@pytest.mark.parametrize(
    ("observation", "transition", "matched"),
    [
        (lambda x: dist.Normal(x, 1.0).to_event(1), "linear", False),
        (lambda x: dist.MultivariateNormal(x, jnp.eye(2)), "linear", False),
        (lambda x: dist.LogNormal(x, 1.0).to_event(1), "linear", False),
        (lambda x: dist.Gamma(jnp.exp(x), 1.0).to_event(1), "linear", True),
        (lambda x: dist.StudentT(4.0, x, 1.0).to_event(1), "linear", True),
        (lambda x: dist.Normal(x, 1.0).to_event(1), "Gaussian", False),
        (lambda x: dist.Normal(x, 1.0).to_event(1), "Laplace", True),
    ],
)
def test_a_result_says_whether_moments_were_matched(observation, transition, matched):
    dynamics = {
        "linear": spiral,
        "Gaussian": fd.Transition(lambda t, x, u: dist.Normal(x, 1.0).to_event(1)),
        "Laplace": fd.Transition(lambda t, x, u: dist.Laplace(x, 1.0).to_event(1)),
    }[transition]
    observed = fd.Observation(lambda t, x, u: observation(x))
    assert result_of(observed, np.ones((1, 2)), dynamics).moments_matched is matched


def test_a_start_that_is_not_gaussian_is_said_to_be_matched():
    plain = fd.LinearObservation(np.eye(2), 1)
    gamma = dist.Gamma(jnp.ones(2), 1.0).to_event(1)
    result = result_of(plain, np.ones((1, 2)), initial=gamma)
    assert result.moments_matched
    one = result_of(plain, np.ones((1, 2)), initial=dist.Normal(jnp.ones(2), 1.0).to_event(1))
    np.testing.assert_allclose(result.log_likelihood, one.log_likelihood, rtol=1e-12)


# A state that is known exactly: the likelihood is the sum of the log densities.
DECAY, TIMES = 0.7, np.array([0.0, 0.5, 1.25, 1.25, 3.0])
COUNTS = np.array([[9.0], [NAN], [4.0], [5.0], [1.0]])
FAMILIES = {
    "Poisson": lambda x: dist.Poisson(x).to_event(1),
    "negative binomial": lambda x: dist.NegativeBinomial2(x, 3.0).to_event(1),
    "Student-t": lambda x: dist.StudentT(3.0, x, 0.5).to_event(1),
    "log-normal": lambda x: dist.LogNormal(jnp.log(x), 0.5).to_event(1),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_known_state_the_likelihood_is_the_sum_of_log_prob(family):
    make = FAMILIES[family]

    def log_likelihood(rate):
        decay = fd.ODE(lambda t, x, u: -rate * x, substeps=20)
        model = fd.StateSpaceModel(
            dist.Delta(jnp.array([10.0]), event_dim=1),
            decay,
            fd.Observation(lambda t, x, u: make(x)),
        )
        return fd.log_likelihood(model, fd.Series(TIMES, COUNTS), EKF)

    def regression(rate):
        paths = 10.0 * jnp.exp(-rate * TIMES)[:, None]
        log_probs = jax.vmap(lambda x, y: make(x).log_prob(y))(
            paths, np.nan_to_num(COUNTS, nan=1.0)
        )
        return jnp.where(np.isnan(COUNTS[:, 0]), 0.0, log_probs).sum()

    value, gradient = jax.jit(jax.value_and_grad(log_likelihood))(DECAY)
    exact, exact_gradient = jax.value_and_grad(regression)(DECAY)
    np.testing.assert_allclose(value, exact, rtol=1e-9)
    np.testing.assert_allclose(gradient, exact_gradient, rtol=1e-7)


def test_a_vector_of_counts_with_a_missing_entry_counts_the_entries_that_are_there():
    still = fd.ODE(lambda t, x, u: 0 * x, substeps=1)
    counts = fd.Observation(lambda t, x, u: dist.Poisson(x).to_event(1))
    y = np.array([[1.0, NAN], [NAN, 3.0], [NAN, NAN], [2.0, 2.0]])
    result = result_of(counts, y, still, dist.Delta(jnp.array([2.0, 5.0]), event_dim=1))
    log_prob = np.where(np.isnan(y), 0.0, stats.poisson([2.0, 5.0]).logpmf(np.nan_to_num(y)))
    np.testing.assert_allclose(result.log_likelihoods, log_prob.sum(1), rtol=1e-12)
