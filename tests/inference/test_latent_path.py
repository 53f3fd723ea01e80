"""The path of the state as a variable of a NumPyro model, against the joint Gaussian of all states."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density
from scipy.stats import multivariate_normal

import filterdyn as fd

NAN = np.nan
F, Q = np.array([[0.9, 0.3], [-0.2, 0.8]]), np.array([[0.2, 0.05], [0.05, 0.1]])
B, H = np.array([[0.5], [1.0]]), np.array([[1.0, 0.5]])
m0, P0 = np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 2.0]])
R = np.array([[0.3]])
times, rows = np.array([0.0, 1.0, 2.0, 2.5, 4.0]), np.arange(5.0)
inputs = np.array([[1.0], [0.0], [-2.0], [0.5], [1.5]])
y = np.array([[0.3], [1.1], [NAN], [-0.7], [0.2]])
start = dist.MultivariateNormal(jnp.asarray(m0), jnp.asarray(P0))
seen = fd.LinearObservation(H, R)
linear = fd.StateSpaceModel(start, fd.LinearTransition(F, Q, B=B), seen)
tolerance = dict(rtol=0, atol=1e-9 if jax.config.jax_enable_x64 else 2e-4)


def path_moments(steps):
    """Mean and covariance of all states of x' = F x + c + N(0, Q), one (F, c, Q) per move."""
    mean, cov = [m0], {(0, 0): P0}
    for k, (f, c, q) in enumerate(steps):
        mean.append(f @ mean[-1] + c)
        for j in range(k + 1):
            cov[k + 1, j] = f @ cov[k, j]
            cov[j, k + 1] = cov[k + 1, j].T
        cov[k + 1, k + 1] = f @ cov[k, k] @ f.T + q
    n = len(mean)
    return np.concatenate(mean), np.block([[cov[i, j] for j in range(n)] for i in range(n)])


def of_transitions():
    return path_moments([(F, B @ u, Q) for u in inputs[:-1]])


def some_path():
    return m0 + np.random.default_rng(0).normal(size=(5, 2))


def test_the_density_of_a_path_is_that_of_the_joint_gaussian():
    found = fd.LatentPath(linear, rows, inputs).log_prob(some_path())
    mean, cov = of_transitions()
    expected = multivariate_normal(mean, cov).logpdf(some_path().ravel())
    np.testing.assert_allclose(found, expected, **tolerance)


def test_path_and_measurements_together_are_bayes_rule():
    """log p(y) = log p(x) + log p(y | x) - log p(x | y), whatever x, with an entry missing."""
    path = some_path()
    joint = fd.LatentPath(linear, rows, inputs).log_prob(path) + fd.PathObservations(
        linear, rows, path, inputs
    ).log_prob(y)
    mean, cov = of_transitions()
    there = ~np.isnan(y[:, 0])
    h = np.kron(np.eye(5), H)[there]
    gain = cov @ h.T @ np.linalg.inv(h @ cov @ h.T + R * np.eye(4))
    after = multivariate_normal(mean + gain @ (y[there, 0] - h @ mean), cov - gain @ h @ cov)
    series = fd.Series(rows, y, inputs)
    expected = fd.log_likelihood(linear, series, fd.KalmanFilter())
    np.testing.assert_allclose(joint - after.logpdf(path.ravel()), expected, **tolerance)


def test_a_path_of_irregular_times_has_the_density_of_its_filter():
    """With states measured almost exactly the likelihood of a filter is the density of the path."""
    dynamics = fd.LinearSDE([[0.0, 1.0], [-2.0, -0.3]], [[0.2, 0.0], [0.1, 0.4]])
    exactly = fd.LinearObservation(np.eye(2), 1e-12 * np.eye(2))
    model = fd.StateSpaceModel(start, dynamics, exactly)
    path = some_path()
    expected = fd.log_likelihood(model, fd.Series(times, path), fd.KalmanFilter())
    found = fd.LatentPath(model, times).log_prob(path)
    np.testing.assert_allclose(found, expected, rtol=1e-6 if jax.config.jax_enable_x64 else 1e-3)


def pushed(latent, dx=2):
    """Mean and covariance of the path that standard normal numbers make, by its derivative."""
    shapes = latent.normals()
    sizes = [int(np.prod(s)) for s in shapes]

    def path(z):
        return latent.driven_by(
            *(a.reshape(s) for a, s in zip(jnp.split(z, sizes[:1]), shapes, strict=True))
        ).ravel()

    z = jnp.zeros(sum(sizes))
    slope = np.asarray(jax.jacfwd(path)(z))
    return np.asarray(path(z)), slope @ slope.T


def test_normal_numbers_make_paths_of_the_right_distribution():
    mean, cov = pushed(fd.LatentPath(linear, rows, inputs))
    expected = of_transitions()
    np.testing.assert_allclose(mean, expected[0], **tolerance)
    np.testing.assert_allclose(cov, expected[1], **tolerance)


def test_normal_numbers_drive_every_step_of_a_solver():
    A, L = np.array([[0.0, 1.0], [-2.0, -0.3]]), np.array([[0.0], [0.4]])
    dynamics = fd.SDE(lambda t, x, u: A @ x, L, substeps=3, path_solver=diffrax.Euler())
    mean, cov = pushed(fd.LatentPath(fd.StateSpaceModel(start, dynamics, seen), times))
    steps = []
    for gap in np.diff(times):
        step, noise = np.eye(2) + gap / 3 * A, gap / 3 * L @ L.T
        flow, q = np.eye(2), np.zeros((2, 2))
        for _ in range(3):
            flow, q = step @ flow, step @ q @ step.T + noise
        steps.append((flow, np.zeros(2), q))
    expected = path_moments(steps)
    np.testing.assert_allclose(mean, expected[0], **tolerance)
    np.testing.assert_allclose(cov, expected[1], **tolerance)


@pytest.mark.parametrize(
    "dynamics, initial",
    [
        (fd.ODE(lambda t, x, u: -x), start),
        (fd.Transition(lambda t, x, u: dist.LogNormal(x, 0.1).to_event(1)), start),
        (
            fd.Transition(lambda t, x, u: dist.Normal(x, 0.1).to_event(1)),
            dist.Delta(m0, event_dim=1),
        ),
    ],
)
def test_the_numbers_zero_make_the_path_of_the_medians(dynamics, initial):
    latent = fd.LatentPath(fd.StateSpaceModel(initial, dynamics, seen), times)
    shapes = latent.normals()
    path = latent.driven_by(*(jnp.zeros(s) for s in shapes))
    assert path.shape == (5, 2)
    np.testing.assert_allclose(path[0], m0, **tolerance)
    expected = {0: np.exp(-times[1])}.get(shapes[1][-1])
    if expected is not None:
        np.testing.assert_allclose(path[1], expected * m0, rtol=1e-5)


@pytest.mark.slow
def test_an_impossible_path_has_density_zero_and_no_derivative():
    doubled = np.array([0.0, 1.0, 1.0, 2.0, 3.0])
    path = some_path()
    latent = fd.LatentPath(linear, doubled, inputs)
    value, slope = jax.value_and_grad(latent.log_prob)(jnp.asarray(path))
    assert value == -np.inf and np.isfinite(slope).all()
    path[2] = path[1]
    assert np.isfinite(latent.log_prob(path))


@pytest.mark.slow
def test_derivatives_are_finite_differences():
    def density(q, path):
        model = eqx.tree_at(lambda m: m.dynamics.Q, linear, q * jnp.asarray(Q))
        measured = fd.PathObservations(model, times, path, inputs).log_prob(y)
        return fd.LatentPath(model, times, inputs).log_prob(path) + measured

    path = jnp.asarray(some_path())
    by_q, by_path = jax.grad(density, (0, 1))(1.3, path)
    step = 1e-5 if jax.config.jax_enable_x64 else 1e-2
    nudge = step * jnp.eye(5, 2)
    close = dict(rtol=1e-6 if jax.config.jax_enable_x64 else 2e-2)
    difference = (density(1.3 + step, path) - density(1.3 - step, path)) / (2 * step)
    np.testing.assert_allclose(by_q, difference, **close)
    difference = (density(1.3, path + nudge) - density(1.3, path - nudge)) / (2 * step)
    np.testing.assert_allclose((by_path * jnp.eye(5, 2)).sum(), difference, **close)


def experiment(count, data=None):
    q = numpyro.sample("q", dist.LogNormal(0.0, 1.0))
    level = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition(jnp.eye(1), q * jnp.eye(1)),
        fd.LinearObservation(jnp.eye(1), 0.5 * jnp.eye(1)),
    )
    x = numpyro.sample("x", fd.LatentPath(level, np.arange(count)))
    numpyro.sample("y", fd.PathObservations(level, np.arange(count), x), obs=data)


def marginal(count, data=None):
    q = numpyro.sample("q", dist.LogNormal(0.0, 1.0))
    level = fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition(jnp.eye(1), q * jnp.eye(1)),
        fd.LinearObservation(jnp.eye(1), 0.5 * jnp.eye(1)),
    )
    numpyro.sample(
        "y", fd.ObservedSeries(level, np.arange(count), filter=fd.KalmanFilter()), obs=data
    )


non_centred = handlers.reparam(experiment, config={"x": fd.inference.PathReparam()})


def test_the_reparameterised_model_has_the_same_joint_density():
    """Up to the volume by which normal numbers are stretched to a path, |d path / d normals|."""
    z = np.random.default_rng(3).normal(size=(4, 1))
    path = np.cumsum(np.concatenate([z[:1], np.sqrt(2.0) * z[1:]]), axis=0)
    data = np.array([[0.1], [0.4], [NAN], [1.0]])
    given = {"q": 2.0, "x_start": z[0], "x_moves": z[1:]}
    found, trace = log_density(non_centred, (4, data), {}, given)
    np.testing.assert_allclose(trace["x"]["value"], path, **tolerance)
    expected, _ = log_density(experiment, (4, data), {}, {"q": 2.0, "x": path})
    np.testing.assert_allclose(found, expected + 3 * np.log(np.sqrt(2.0)), **tolerance)


def test_predictive_draws_paths_and_measurements():
    drawn = Predictive(non_centred, num_samples=400)(jr.key(0), 4)
    assert drawn["x"].shape == drawn["y"].shape == (400, 4, 1)
    spread = np.asarray(drawn["y"] - drawn["x"])
    assert abs(spread.var() / 0.5 - 1) < 4 * np.sqrt(2 / spread.size)
    with_q = Predictive(experiment, {"q": jnp.full(400, 2.0)})(jr.key(1), 4)
    steps = np.diff(np.asarray(with_q["x"])[..., 0], axis=1)
    assert abs(steps.var() / 2.0 - 1) < 4 * np.sqrt(2 / steps.size)


def test_a_batch_is_its_models_one_by_one():
    make = eqx.filter_vmap(
        lambda q: fd.StateSpaceModel(
            start, fd.LinearTransition(jnp.asarray(F), q * jnp.asarray(Q), B=jnp.asarray(B)), seen
        )
    )
    scales = jnp.array([0.5, 1.0, 2.0])
    paths = jnp.stack([some_path() + k for k in range(3)])
    latent = fd.LatentPath(make(scales), rows, inputs, batch_shape=(3,))
    measured = fd.PathObservations(make(scales), rows, paths, inputs)
    assert latent.sample(jr.key(0), (2,)).shape == (2, 3, 5, 2)
    assert measured.sample(jr.key(0), (2,)).shape == (2, 3, 5, 1)
    drawn = latent.driven_by(*(jnp.ones((3, *s)) for s in latent.normals()))
    for k, scale in enumerate(scales):
        one = eqx.tree_at(lambda m: m.dynamics.Q, linear, scale * jnp.asarray(Q))
        alone = fd.LatentPath(one, rows, inputs)
        np.testing.assert_allclose(latent.log_prob(paths)[k], alone.log_prob(paths[k]), **tolerance)
        expected = fd.PathObservations(one, rows, paths[k], inputs).log_prob(y)
        np.testing.assert_allclose(measured.log_prob(y)[k], expected, **tolerance)
        expected = alone.driven_by(*(jnp.ones(s) for s in alone.normals()))
        np.testing.assert_allclose(drawn[k], expected, **tolerance)


def test_a_plate_of_paths():
    def many(data):
        with numpyro.plate("series", 3):
            x = numpyro.sample("x", fd.LatentPath(linear, rows, inputs))
            numpyro.sample("y", fd.PathObservations(linear, rows, x, inputs), obs=data)

    paths = np.stack([some_path() + k for k in range(3)])
    data = np.stack([y + k for k in range(3)])
    found, _ = log_density(many, (data,), {}, {"x": paths})
    alone = lambda k: (
        fd.LatentPath(linear, rows, inputs).log_prob(paths[k])
        + fd.PathObservations(linear, rows, paths[k], inputs).log_prob(data[k])
    )
    np.testing.assert_allclose(found, sum(alone(k) for k in range(3)), **tolerance)
    drawn = Predictive(
        handlers.reparam(many, config={"x": fd.inference.PathReparam()}), num_samples=2
    )(jr.key(0), None)
    assert drawn["x"].shape == (2, 3, 5, 2) and drawn["y"].shape == (2, 3, 5, 1)


def test_positive_states_stay_positive():
    grow = fd.Transition(lambda t, x, u: dist.Gamma(5.0, 5.0 / x).to_event(1))
    model = fd.StateSpaceModel(dist.Gamma(2.0, 1.0).expand([2]).to_event(1), grow, seen)
    latent = fd.LatentPath(model, times)
    assert latent.support(jnp.ones((5, 2))) and not latent.support(-jnp.ones((5, 2)))
    assert (dist.biject_to(latent.support)(jnp.full((5, 2), -3.0)) > 0).all()
    with pytest.raises(TypeError, match="`initial` is Gamma, which is not known as a function"):
        latent.normals()


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: fd.LatentPath(linear, rows, inputs).log_prob(np.ones((4, 2))), ValueError,
         r"the value has shape \(4, 2\); expected \(..., 5, 2\)"),
        (lambda: fd.PathObservations(linear, rows, np.ones((4, 2)), inputs), ValueError,
         r"`path` has shape \(4, 2\); expected \(..., 5, 2\)"),
        (lambda: fd.PathObservations(linear, rows, np.ones((5, 2)), inputs).log_prob(np.ones((5, 2))),
         ValueError, r"the value has shape \(5, 2\); expected \(..., 5, 1\)"),
        (lambda: fd.LatentPath(
            fd.StateSpaceModel(fd.Diffuse(2), fd.LinearTransition(F, Q), seen), times),
         ValueError, "`initial` is Diffuse"),
        (lambda: fd.LatentPath(
            fd.StateSpaceModel(start, fd.ODE(lambda t, x, u: -x), seen), times).log_prob(some_path()),
         TypeError, "ODE has no transition density"),
        (lambda: handlers.trace(handlers.seed(handlers.reparam(
            lambda: numpyro.sample("x", dist.Normal()), config={"x": fd.inference.PathReparam()}),
            jr.key(0))).get_trace(), TypeError, "the site 'x' is a Normal; expected a LatentPath"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("sampled", [experiment, non_centred])
def test_sampling_the_path_too_gives_the_same_posterior(sampled):
    rng = np.random.default_rng(5)
    states = np.cumsum(np.sqrt(0.8) * rng.normal(size=(15, 1)), axis=0)
    data = states + np.sqrt(0.5) * rng.normal(size=(15, 1))
    data[6:8] = NAN

    def run(model, draws):
        mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=draws, progress_bar=False)
        mcmc.run(jr.key(0), 15, data)
        return mcmc

    jointly, alone = run(sampled, 3000), run(marginal, 3000)
    errors = []
    for mcmc in (jointly, alone):
        log_q = np.log(np.asarray(mcmc.get_samples()["q"]))
        effective = numpyro.diagnostics.effective_sample_size(log_q[None])
        assert effective > 150
        errors.append((log_q.mean(), log_q.std(), log_q.std() / np.sqrt(effective)))
    (a, sd_a, error_a), (b, sd_b, error_b) = errors
    assert abs(a - b) < 4 * np.hypot(error_a, error_b)
    assert 0.8 < sd_a / sd_b < 1.25
    tree = fd.to_datatree(jointly, sampled, 15, data)
    assert tree["posterior_predictive"]["y"].shape == (1, 3000, 15, 1)
    assert tree["log_likelihood"]["y"].shape == (1, 3000, 13)
