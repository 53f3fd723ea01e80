"""What is known of parameters, in their own units."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import integrate, stats

import filterdyn as fd

PRIOR = dict(
    mass=dist.LogNormal(0.2, 0.4),
    share=dist.Beta(3.0, 2.0),
    angle=dist.Uniform(-1.0, 2.0),
    slope=dist.Normal(jnp.zeros((2, 1)), jnp.array([[1.0], [2.0]])).to_event(2),
)
SPACE = fd.ParameterSpace.of("test", PRIOR)


def test_a_point_goes_there_and_back():
    parameters = dict(mass=2.0, share=0.3, angle=0.5, slope=jnp.array([[1.0], [-2.0]]))
    vector = SPACE.vector(parameters)
    assert vector.shape == (5,) == (SPACE.size,)
    np.testing.assert_allclose(vector[:2], [np.log(2.0), np.log(0.3 / 0.7)], rtol=1e-6)
    for name, value in SPACE.named(vector).items():
        np.testing.assert_allclose(value, parameters[name], rtol=1e-6)
    with pytest.raises(ValueError, match="'mass' is -1"):
        SPACE.vector(parameters | dict(mass=-1.0))
    with pytest.raises(KeyError, match="share"):
        SPACE.vector(dict(mass=2.0))


def test_moments_and_intervals_of_a_gaussian_are_those_of_quadrature():
    mean, sd = jnp.array([0.2, 0.5, -0.7, 1.0, 2.0]), jnp.array([0.4, 0.8, 0.5, 0.1, 0.2])
    found = fd.ParameterEstimate(SPACE, mean, jnp.diag(sd**2))
    ways = dict(
        mass=np.exp, share=stats.logistic.cdf, angle=lambda z: -1 + 3 * stats.logistic.cdf(z)
    )
    for k, (name, way) in enumerate(ways.items()):
        density = stats.norm(float(mean[k]), float(sd[k]))
        power = lambda z, p, way=way, density=density: way(z) ** p * density.pdf(z)
        first, second = (integrate.quad(power, -12, 12, args=(p,))[0] for p in (1, 2))
        np.testing.assert_allclose(found.mean[name], first, rtol=1e-5)
        np.testing.assert_allclose(found.sd[name], np.sqrt(second - first**2), rtol=1e-4)
        np.testing.assert_allclose(
            found.interval(0.8)[name], way(density.ppf([0.1, 0.9])), rtol=1e-6
        )
    assert found.mean["slope"].shape == (2, 1)
    many = fd.ParameterEstimate(SPACE, jnp.stack([mean, mean]), jnp.stack([jnp.diag(sd**2)] * 2))
    np.testing.assert_allclose(many.sd["mass"], [found.sd["mass"]] * 2, rtol=1e-6)
    np.testing.assert_allclose(
        many.interval()["slope"][0][1], found.interval()["slope"][0], rtol=1e-6
    )


def test_weighted_draws_have_their_own_quantiles():
    rng = np.random.default_rng(1)
    draws = jnp.asarray(rng.exponential(size=(4000, 5)))
    weights = jnp.asarray(rng.uniform(size=4000))
    found = fd.ParameterEstimate.of_draws(SPACE, draws, weights / weights.sum())
    # (Quantiles of 4,000 draws: 5 % is known to 4 % of itself, 95 % to 2.5 %; five times that.)
    low, high = found.interval(0.9)["slope"]
    np.testing.assert_allclose(low, stats.expon.ppf(0.05), rtol=0.2)
    np.testing.assert_allclose(high, stats.expon.ppf(0.95), rtol=0.12)
    np.testing.assert_allclose(found.mean["slope"], 1.0, atol=0.1)
    with pytest.raises(ValueError, match="claims no posterior"):
        fd.ParameterEstimate(SPACE, draws[0]).sd  # noqa: B018


def test_priors_enter_by_their_moments_without_limits():
    def make(p):
        scale = p["mass"] + p["share"] + p["angle"] + p["slope"].sum()
        return fd.StateSpaceModel(
            dist.Normal(0.0, 1.0).expand([1]).to_event(1),
            fd.LinearTransition([[0.5]], [[1.0]]),
            fd.LinearObservation(scale * jnp.eye(1), 1.0),
        )

    model = fd.ParametricModel(make, PRIOR)
    np.testing.assert_allclose(model.prior_mean[jnp.array([0, 3, 4])], [0.2, 0.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(
        jnp.diagonal(model.prior_cov)[jnp.array([0, 3, 4])], [0.16, 1.0, 4.0], rtol=1e-6
    )
    # The logit of a Beta(a, b) has mean psi(a) - psi(b) and variance psi'(a) + psi'(b).
    from scipy.special import polygamma, psi

    np.testing.assert_allclose(model.prior_mean[1], psi(3.0) - psi(2.0), rtol=1e-3)
    np.testing.assert_allclose(
        model.prior_cov[1, 1], polygamma(1, 3.0) + polygamma(1, 2.0), rtol=2e-3
    )
    # A uniform one is a standard logistic.
    np.testing.assert_allclose(model.prior_mean[2], 0.0, atol=1e-6)
    np.testing.assert_allclose(model.prior_cov[2, 2], np.pi**2 / 3, rtol=2e-3)


def test_evolutions_move_as_they_say():
    cov = jnp.diag(jnp.arange(1.0, 6.0))
    walk = fd.RandomWalk(dict(mass=0.5, slope=jnp.array([[0.1], [0.2]])))
    np.testing.assert_allclose(
        jnp.diagonal(walk.move(SPACE, cov, jnp.asarray(2.0)).noise),
        [0.5, 0, 0, 0.02, 0.08],
        rtol=1e-6,
    )
    found = fd.Forgetting(0.8).move(SPACE, cov, jnp.asarray(2.0))
    np.testing.assert_allclose(cov + found.noise, cov / 0.8, rtol=1e-6)
    found = fd.Shrinkage(0.9).move(SPACE, cov, jnp.asarray(2.0))
    np.testing.assert_allclose(found.slope**2 * cov + found.noise, cov, rtol=1e-6)
    for wrong in (
        lambda: fd.RandomWalk(-1.0),
        lambda: fd.Forgetting(0.0),
        lambda: fd.Shrinkage(0.2),
    ):
        with pytest.raises(ValueError, match="expected"):
            wrong()


def test_draws_from_the_prior_lie_as_the_parameters_do_whatever_jax_did_to_the_model():
    """JAX gives a dictionary back in the order of its keys."""
    model = fd.ParametricModel(
        lambda p: fd.StateSpaceModel(
            dist.Normal(jnp.zeros(1), 1.0).to_event(1),
            fd.LinearTransition(p["b"] * jnp.eye(1), jnp.eye(1)),
            fd.LinearObservation(jnp.eye(1), p["a"] * jnp.eye(1)),
        ),
        dict(b=dist.Normal(100.0, 1.0), a=dist.LogNormal(-100.0, 1.0)),
    )
    plain = model.sample_prior(jax.random.key(0), 3)
    passed = jax.jit(lambda model: model.sample_prior(jax.random.key(0), 3))(model)
    np.testing.assert_allclose(passed, plain, rtol=1e-6)
    assert (plain[:, 0] > 50).all() and (plain[:, 1] < -50).all()
