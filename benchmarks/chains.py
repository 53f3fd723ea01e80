"""One chain of NUTS in a process of its own: what `inference.py` and `nuts.py` share.

Imports JAX and NumPyro only when something is sampled, so that a script can time their import.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from harness import measured

#: A damped oscillator or pendulum: time between rows, mean and covariance of the start, parameters.
DT, START, SPREAD = 0.1, np.zeros(2), np.eye(2)
TRUTH = {"stiffness": 2.0, "damping": 0.4, "diffusion": 0.3, "noise": 0.1}


def alone(script, *arguments):
    """What `script --alone *arguments` prints last, as JSON, in a process without flags for XLA."""
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, str(Path(script).resolve()), "--alone", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def compiled_draws(kernel, state, draws):
    """A compiled function of a state of the kernel: `draws` further draws. (NumPyro's `run` compiles at
    every call, which would be most of what is measured.)"""
    import jax

    def draw(state, _):
        state = kernel.sample(state, (), {})
        return state, (state.z, state.num_steps, state.diverging)

    run = jax.jit(lambda state: jax.lax.scan(draw, state, length=draws))
    return run.lower(state).compile()


def drawn(run, state):
    """What `run` costs from `state`, and what came of it. The priors are log-normal."""
    import jax
    from numpyro.diagnostics import effective_sample_size

    out = []
    cost = measured(lambda: out.append(jax.block_until_ready(run(state))))
    _, (z, steps, diverging) = out[0]
    found = {name: np.exp(np.asarray(z[name])) for name in TRUTH}
    return {
        "cpu": cost.cpu,
        "wall": cost.wall,
        "steps": float(np.mean(steps)),
        "diverging": int(np.sum(diverging)),
        "mean": {name: float(x.mean()) for name, x in found.items()},
        "sd": {name: float(x.std()) for name, x in found.items()},
        "effective": {name: float(effective_sample_size(x[None])) for name, x in found.items()},
    }


def least(one):
    """Effective samples of the parameter that has fewest."""
    return min(one["effective"].values())


def apart(a, b):
    """The largest difference of means in Monte Carlo standard errors."""
    return max(
        abs(a["mean"][n] - b["mean"][n])
        / np.sqrt(sum(one["sd"][n] ** 2 / one["effective"][n] for one in (a, b)))
        for n in TRUTH
    )
