"""A stream that runs for long: memory, compilations, and the sum of a million log-likelihoods."""

import json
import math
import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

STEPS, WARM = 1_000_000, 50_000
A, Q, R = 0.97, 0.05, 0.4

WORKER = """
import json, re, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, numpyro.distributions as dist
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_enable_async_dispatch", False)
import filterdyn as fd
steps, warm, a, q, r = json.loads(sys.argv[1])

def memory():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024

model = fd.StateSpaceModel(
    dist.MultivariateNormal(jnp.zeros(1), jnp.eye(1)),
    fd.LinearTransition(a * np.eye(1), q * np.eye(1)), fd.LinearObservation(np.eye(1), r * np.eye(1)))
online = fd.OnlineFilter(model, fd.KalmanFilter())
rng = np.random.default_rng(0)
state, total, before = online.init(0.0), 0.0, None
for start in range(0, steps, warm):
    y = rng.normal(size=(warm, 1))
    for k in range(warm):
        state, result = online.step(state, float(start + k), y[k])
        total = result.log_likelihood
    before = memory() if before is None else before
print(json.dumps(dict(
    grown=memory() - before, compiled=online.compile_count,
    log_likelihood=float(state.log_likelihood), mean=float(state.mean[0]), last=float(total))))
"""


def exact():
    """By the recursion for one number, summed without rounding."""
    rng, m, p, terms = np.random.default_rng(0), 0.0, 1.0, []
    for start in range(0, STEPS, WARM):
        for k, y in enumerate(rng.normal(size=WARM).tolist()):
            if start + k:
                m, p = A * m, A * A * p + Q
            s, e = p + R, y - m
            terms.append(-0.5 * (math.log(2 * math.pi * s) + e * e / s))
            m, p = m + p / s * e, p * R / s
    return m, math.fsum(terms), terms[-1]


@pytest.mark.slow
@pytest.mark.skipif(not jax.config.jax_enable_x64, reason="of float64")
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_a_million_steps_keep_memory_compilations_and_digits():
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORKER), json.dumps([STEPS, WARM, A, Q, R])],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    found = json.loads(found.stdout)
    mean, log_likelihood, last = exact()
    assert found["grown"] < 20, f"memory grew by {found['grown']} MB"
    assert found["compiled"] == 1
    np.testing.assert_allclose(found["log_likelihood"], log_likelihood, rtol=1e-10)
    np.testing.assert_allclose([found["mean"], found["last"]], [mean, last], rtol=1e-10)
