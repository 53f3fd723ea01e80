"""Every filter, row by row: the numbers of the batch, and a stop through a file in the middle."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

TOLERANCE = 1e-12 if jax.config.jax_enable_x64 else 1e-5
NAN = np.nan
INITIAL = dist.MultivariateNormal(jnp.array([0.2, -0.1]), jnp.diag(jnp.array([1.0, 0.5])))
SEEN = fd.LinearObservation(np.array([[1.0, 0.0], [0.5, 1.0]]), np.array([0.3, 0.2]))
TIMES = np.array([0.0, 0.4, 0.4, 1.1, 2.0, 2.2])
Y = np.array([[0.3, -0.2], [NAN, 0.4], [0.1, NAN], [NAN, NAN], [0.9, 0.5], [-0.4, 0.2]])
LINEAR = fd.LinearSDE(np.array([[-0.3, 1.0], [-1.0, -0.4]]), 0.4 * np.eye(2))
BENT = fd.SDE(lambda t, x, u: jnp.stack([x[1], -jnp.sin(x[0]) - 0.3 * x[1]]), 0.4, substeps=1)
TAPER = fd.GaspariCohn(3.0, np.arange(2.0))


def driver(t, x, u):
    return dist.Normal(0.9 * x, 0.3).to_event(1)


def given(t, n, to, u):
    return np.array([[0.8]]), jnp.tanh(to), np.array([[0.2]])


MIXED = fd.ConditionallyLinear(driver, given, 1)
CASES = {
    "diffuse start": (fd.Diffuse(2), LINEAR, fd.KalmanFilter()),
    "adaptive noise": (INITIAL, LINEAR, fd.KalmanFilter(adaptive=fd.AdaptiveNoise())),
    "unscented": (INITIAL, BENT, fd.UnscentedKalmanFilter()),
    "cubature": (INITIAL, BENT, fd.CubatureKalmanFilter()),
    "Gauss-Hermite": (INITIAL, BENT, fd.GaussHermiteKalmanFilter(3)),
    "stochastic": (INITIAL, BENT, fd.EnsembleKalmanFilter(6)),
    "deterministic": (INITIAL, BENT, fd.EnsembleKalmanFilter(6, "deterministic")),
    "transform": (INITIAL, BENT, fd.EnsembleKalmanFilter(6, "transform")),
    "serial": (INITIAL, BENT, fd.EnsembleKalmanFilter(6, "serial")),
    "local": (INITIAL, BENT, fd.EnsembleKalmanFilter(6, "local", localization=TAPER)),
    "adaptive inflation": (
        INITIAL, BENT, fd.EnsembleKalmanFilter(6, "transform", inflation=fd.AdaptiveInflation()),
    ),
    "particle": (INITIAL, BENT, fd.ParticleFilter(16, ess_threshold=1.0)),
    "Rao-Blackwellised": (INITIAL, MIXED, fd.RaoBlackwellizedParticleFilter(8)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_stream_that_stops_in_the_middle_gives_the_batch(name, tmp_path):
    initial, dynamics, filter = CASES[name]
    times = np.arange(len(TIMES), dtype=float) if dynamics is MIXED else TIMES
    model = fd.StateSpaceModel(initial, dynamics, SEEN)
    batch = fd.filter(model, fd.Series(times, Y), filter, key=jr.key(4))
    assert batch.status == fd.Status.OK
    online = fd.OnlineFilter(model, filter, num_inputs=0)
    state, steps = online.init(times[0], key=jr.key(4)), []
    for k, (t, y) in enumerate(zip(times, Y, strict=True)):
        if k == 3:
            online.save(tmp_path / "state", state, position=k)
            loaded, _ = fd.OnlineFilter(model, filter).load(tmp_path / "state")
            for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
                np.testing.assert_array_equal(a, b)
            state = loaded
        state, step = online.step(state, t, y)
        steps.append(step)
    whole = dict(mean=batch.mean, cov=batch.cov, log_likelihood=batch.log_likelihoods)
    for part, expected in whole.items():
        found = np.stack([getattr(step, part) for step in steps])
        scale = TOLERANCE * float(np.nanmax(np.abs(expected)))
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=scale, err_msg=part)
    np.testing.assert_allclose(state.log_likelihood, batch.log_likelihood, rtol=TOLERANCE)
    assert online.compile_count == 1
