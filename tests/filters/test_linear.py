"""Linear Gaussian models: covariances at rest are not computed again, and series share them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd


def textbook(F, Q, H, R, m, P, ys):
    """The filter as books have it, in NumPy: log-likelihood, filtered means and covariances."""
    total, means, covs = 0.0, [], []
    for k, y in enumerate(ys):
        if k:
            m, P = F @ m, F @ P @ F.T + Q
        seen = ~np.isnan(y)
        h, r, e = H[seen], R[np.ix_(seen, seen)], (y - H @ m)[seen]
        S = h @ P @ h.T + r
        gain = np.linalg.solve(S, h @ P).T
        m, P = m + gain @ e, P - gain @ S @ gain.T
        total -= 0.5 * (
            e @ np.linalg.solve(S, e) + np.linalg.slogdet(S)[1] + seen.sum() * np.log(2 * np.pi)
        )
        means.append(m)
        covs.append(P)
    return total, np.stack(means), np.stack(covs)


def system(dx, dy, seed=0):
    """A stable system with full matrices whose covariance is at rest after some fifty rows."""
    rng = np.random.default_rng([dx, dy, seed])
    F = 0.9 * np.linalg.qr(rng.normal(size=(dx, dx)))[0]
    H = rng.normal(size=(dy, dx)) / np.sqrt(dx)
    root = np.tril(rng.normal(size=(dx, dx))) * 0.2 + 0.3 * np.eye(dx)
    noise = np.tril(rng.normal(size=(dy, dy))) * 0.2 + 0.5 * np.eye(dy)
    return F, root @ root.T, H, noise @ noise.T


def model_of(F, Q, H, R):
    dx = len(F)
    return fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(dx), jnp.eye(dx)),
        fd.LinearTransition(F, Q),
        fd.LinearObservation(H, R),
    )


def observations(rows, dy, seed=0, series=()):
    return np.random.default_rng(seed).normal(size=(*series, rows, dy))


@pytest.mark.parametrize("square_root", [True, False])
@pytest.mark.parametrize(("dx", "dy"), [(3, 2), (14, 3)])
def test_rows_after_the_covariance_came_to_rest_are_those_of_the_textbook(dx, dy, square_root):
    """With missing rows and entries in the middle, after which it has to come to rest again."""
    parts = system(dx, dy)
    ys = observations(600, dy)
    ys[300:303] = np.nan
    ys[400, 0] = np.nan
    series = fd.Series(np.arange(600), ys)
    found = fd.filter(model_of(*parts), series, fd.KalmanFilter(square_root=square_root))
    total, means, covs = textbook(*parts, np.zeros(dx), np.eye(dx), ys)
    np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-12)
    np.testing.assert_allclose(found.mean, means, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.cov, covs, rtol=1e-10, atol=1e-12)
    # At rest it does not change any more, to the bit.
    late = np.asarray(found.cov)[[250, 298]]
    assert (late[0] == late[1]).all()


def test_a_slow_mode_is_followed_until_it_is_at_rest():
    """A time constant of 5,000 rows: changes from row to row soon look like rounding."""
    F, H = np.diag([1 - 1e-4, 0.5]), np.eye(2)
    Q, R = np.diag([1e-10, 0.1]), np.eye(2)
    ys = observations(4000, 2)
    found = fd.filter(model_of(F, Q, H, R), fd.Series(np.arange(4000), ys), fd.KalmanFilter())
    total, _, covs = textbook(F, Q, H, R, np.zeros(2), np.eye(2), ys)
    np.testing.assert_allclose(found.cov[:, 0, 0], covs[:, 0, 0], rtol=1e-11)
    np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-12)


def test_gradients_at_rest_are_those_of_the_textbook():
    F, Q, H, R = system(3, 2)
    ys = observations(200, 2)
    names = dict(F=F, Q=Q, H=H, R=R)

    def by_filterdyn(p):
        series = fd.Series(np.arange(200), ys)
        return fd.log_likelihood(model_of(**p), series, fd.KalmanFilter())

    gradient = jax.jit(jax.grad(by_filterdyn))({k: jnp.asarray(v) for k, v in names.items()})
    rng = np.random.default_rng(0)
    for name, value in names.items():
        direction = rng.normal(size=value.shape)
        if name in "QR":
            direction = direction + direction.T
        step = 1e-5
        ends = [
            textbook(**{**names, name: value + s * step * direction}, **start(3), ys=ys)[0]
            for s in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient[name] * direction), slope, rtol=1e-7)


def start(dx):
    return dict(m=np.zeros(dx), P=np.eye(dx))


@pytest.fixture(scope="module")
def fleet():
    """Seventy series of one system, more than go through the rows side by side."""
    parts = system(3, 2)
    return model_of(*parts), observations(40, 2, 1, (70,))


def missing(ys, how):
    ys = ys.copy()
    if how == "the same entries":
        ys[:, 5:8, 0] = ys[:, 20] = np.nan
    elif how == "different entries":
        ys[np.random.default_rng(2).random(ys.shape) < 0.2] = np.nan
    return ys


@pytest.mark.parametrize("how", ["nothing", "the same entries", "different entries"])
def test_a_batch_has_the_likelihoods_of_its_series(fleet, how):
    model, ys = fleet
    ys = missing(ys, how)
    clock = np.arange(40)
    kalman = fd.KalmanFilter()
    expected = [textbook(*system(3, 2), **start(3), ys=y)[0] for y in ys]
    batch = fd.stack([fd.Series(clock, y) for y in ys])
    found = fd.log_likelihood(model, batch, kalman)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    distribution = fd.ObservedSeries(model, clock, filter=kalman)
    np.testing.assert_allclose(distribution.log_prob(ys), expected, rtol=1e-12)
    in_a_trace = jax.jit(lambda y: fd.ObservedSeries(model, clock, filter=kalman).log_prob(y))
    np.testing.assert_allclose(in_a_trace(ys), expected, rtol=1e-12)


def test_a_filtered_batch_is_its_filtered_series(fleet):
    model, ys = fleet
    ys, clock = missing(ys, "the same entries")[:3], np.arange(40)
    series = [fd.Series(clock, y) for y in ys]
    batch = fd.filter(model, fd.stack(series), fd.KalmanFilter())
    each = [fd.filter(model, one, fd.KalmanFilter()) for one in series]
    for name in ("mean", "cov", "innovations", "innovation_covs", "nis", "log_likelihoods"):
        expected = np.stack([getattr(one, name) for one in each])
        np.testing.assert_allclose(getattr(batch, name), expected, rtol=1e-11, atol=1e-13)
    assert batch.status.tolist() == [fd.Status.OK] * 3
    assert batch.failed_at.tolist() == [-1] * 3


def test_series_with_clocks_of_their_own_and_any_filter_make_a_batch():
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        fd.LinearSDE(jnp.array([[0.0, 1.0], [-1.0, -0.3]]), jnp.array([0.1, 0.5])),
        fd.GaussianObservation(lambda t, x, u: jnp.sin(x[:1]), 0.1),
    )
    rng = np.random.default_rng(0)
    series = [
        fd.Series(np.cumsum(rng.uniform(0.1, 1.0, 12)), rng.normal(size=(12, 1))) for _ in range(3)
    ]
    found = fd.log_likelihood(model, fd.stack(series), fd.ExtendedKalmanFilter())
    expected = [fd.log_likelihood(model, one, fd.ExtendedKalmanFilter()) for one in series]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_series_of_a_batch_that_start_at_times_of_their_own_share_nothing():
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        fd.LinearSDE(jnp.array([[0.0, 1.0], [-1.0, -0.3]]), jnp.array([0.1, 0.5])),
        fd.LinearObservation(jnp.eye(2)[:1], 0.1),
    )
    starts, kalman = np.array([0.0, -1.0, -3.0]), fd.KalmanFilter()
    series = [fd.Series(np.arange(10), y) for y in observations(10, 1, 3, (3,))]
    found = fd.log_likelihood(model, fd.stack(series), kalman, t0=starts)
    expected = [
        fd.log_likelihood(model, one, kalman, t0=t0) for one, t0 in zip(series, starts, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_series_of_a_batch_have_inputs_of_their_own():
    F, Q, H, R = system(3, 2)
    rng = np.random.default_rng(0)
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)),
        fd.LinearTransition(F, Q, B=rng.normal(size=(3, 1))),
        fd.LinearObservation(H, R, D=rng.normal(size=(2, 1))),
    )
    series = [
        fd.Series(np.arange(15), rng.normal(size=(15, 2)), rng.normal(size=(15, 1)))
        for _ in range(3)
    ]
    found = fd.log_likelihood(model, fd.stack(series), fd.KalmanFilter())
    expected = [fd.log_likelihood(model, one, fd.KalmanFilter()) for one in series]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_an_overflow_fails_its_own_series_only(fleet):
    model, ys = fleet
    ys = ys[:3].copy()
    ys[1, 10] = 1e200
    batch = fd.stack([fd.Series(np.arange(40), y) for y in ys])
    found = fd.filter(model, batch, fd.KalmanFilter())
    assert found.status.tolist() == [fd.Status.OK, fd.Status.MODEL_NOT_FINITE, fd.Status.OK]
    assert found.failed_at.tolist() == [-1, 10, -1]
    assert np.isneginf(found.log_likelihood[1])
    assert np.isnan(found.cov[1, 10:]).all() and np.isfinite(found.cov[::2]).all()


def test_a_failed_series_has_a_finite_gradient():
    """Two sensors without noise that say the same are a singular innovation."""

    def value(scale):
        model = fd.StateSpaceModel(
            dist.MultivariateNormal(jnp.zeros(1), jnp.eye(1)),
            fd.LinearTransition(jnp.eye(1) * scale, jnp.eye(1)),
            fd.LinearObservation(jnp.ones((2, 1)), jnp.zeros(2)),
        )
        return fd.log_likelihood(model, fd.Series(np.arange(4), np.ones((4, 2))), fd.KalmanFilter())

    found, slope = jax.jit(jax.value_and_grad(value))(0.5)
    assert np.isneginf(found) and np.isfinite(slope)


def test_evenly_spaced_times_are_one_gap_whatever_rounding_made_of_them():
    dynamics = fd.LinearSDE(jnp.array([[-1.0]]), 1.0)
    times = 0.1 * np.arange(500)
    gaps = np.diff(times, prepend=0.0)
    assert len(np.unique(gaps)) > 5
    plan = dynamics.plan(gaps)
    assert plan.rows is None and np.allclose(plan.gaps[0], 0.1, rtol=1e-13)
    other = dynamics.plan(np.array([0.0, 0.1, 0.1 * (1 + 1e-11)]))
    assert other.rows.tolist() == [0, 0, 1]
