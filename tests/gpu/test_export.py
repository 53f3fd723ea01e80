"""A step that was exported for both runs on a GPU.

Skipped where JAX sees no GPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import filterdyn as fd

GPUS = [device for device in jax.devices() if device.platform == "gpu"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPUS, reason="JAX sees no GPU (jax.devices() has none)"),
]


def test_an_exported_step_gives_on_a_gpu_what_the_filter_gives_on_a_cpu(tmp_path):
    swing = fd.SDE(
        lambda t, x, u: jnp.array([x[1], -9.81 * jnp.sin(x[0]) + u[0]]),
        jnp.array([0.0, 0.2]),
        dt=0.05,
        max_substeps=16,
    )
    start = dist.Normal(jnp.array([1.0, 0.0]), 0.3).to_event(1)
    model = fd.StateSpaceModel(start, swing, fd.LinearObservation([[1.0, 0.0]], 0.01))
    online = fd.OnlineFilter(model, fd.ExtendedKalmanFilter(), num_inputs=1)
    fd.export(online, tmp_path / "pendulum")

    def run(filter):
        state = filter.init(0.0, [0.0])
        for t, y in ((0.0, 1.0), (0.3, 0.4), (0.3, np.nan), (1.0, -0.8)):
            state, step = filter.step(state, t, y, [0.1])
        return [np.asarray(part) for part in (step.mean, step.cov, step.log_likelihood)]

    with jax.default_device(GPUS[0]):
        exported = fd.load_exported(tmp_path / "pendulum")
        found = run(exported)
        assert exported.init(0.0, [0.0]).vectors[0].devices() == {GPUS[0]}
    with jax.default_device(jax.devices("cpu")[0]):
        expected = run(online)
    tolerance = 1e-9 if jax.config.jax_enable_x64 else 2e-4
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
