"""A GPU against the CPU cores beside it: who should run what.

    python benchmarks/gpu.py [--quick] [--write]

Seconds on the wall of the second and later calls, medians of up to five, float32, with the answers of both
compared. Without a GPU in `jax.devices()` it says so and leaves. Problems that are one long chain of
small steps are here to be lost: a GPU starts a kernel for each step.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from harness import number, surroundings, table, write_section

import filterdyn as fd

PACKAGES = ("filterdyn", "jax", "jaxlib", "diffrax", "numpyro")
#: Seconds after which no further sample is taken.
BUDGET = 10.0


def linear(times):
    a = jnp.array([[0.0, 1.0, 0, 0], [-1.0, -0.1, 0.2, 0], [0, 0, 0, 1.0], [0.2, 0, -2.0, -0.1]])
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(4), scale_tril=jnp.eye(4)),
        fd.LinearSDE(a, jnp.array([[0.0, 0], [0.3, 0], [0, 0], [0, 0.3]])),
        fd.LinearObservation(jnp.eye(4)[::2], 0.1 * jnp.eye(2)),
    )
    y = np.random.default_rng(0).normal(size=(len(times), 2)).astype(np.float32)
    return model, y


def long_series(follow, rows):
    """The log-likelihood of one long series: measurements at irregular times, four states."""
    times = np.cumsum(np.random.default_rng(1).uniform(0.05, 0.15, rows))
    model, y = linear(times)
    value = lambda y: fd.log_likelihood(model, fd.Series(times, y), follow)
    return jax.jit(value), (y,)


def fleet(size, rows):
    """Gradients of the log-likelihoods of many pendulums, each at its own stiffness."""

    def model_of(stiffness):
        move = lambda t, x, u: dist.Normal(
            jnp.stack([x[0] + 0.05 * x[1], x[1] - 0.05 * stiffness * jnp.sin(x[0])]),
            jnp.array([0.01, 0.05]),
        ).to_event(1)
        return fd.StateSpaceModel(
            dist.Normal(jnp.array([0.5, 0.0]), 0.4).to_event(1),
            fd.Transition(move),
            fd.GaussianObservation(lambda t, x, u: jnp.sin(x[:1]), 0.1),
        )

    times = 0.05 * np.arange(rows)
    draw = lambda stiffness, key: fd.simulate(model_of(stiffness), times, key=key).observations
    value = lambda stiffness, y: fd.log_likelihood(
        model_of(stiffness), fd.Series(times, y), fd.ExtendedKalmanFilter()
    )
    stiffness = np.linspace(5, 15, size, dtype=np.float32)
    y = np.asarray(jax.vmap(draw)(stiffness, jr.split(jr.key(2), size)))
    return jax.jit(jax.vmap(jax.grad(value))), (stiffness, y)


def volatility(size, rows):
    """A bootstrap filter on stochastic volatility."""
    model = fd.StateSpaceModel(
        dist.Normal(jnp.full(1, -1.0), 1.0).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(-0.02 + 0.98 * x, 0.2).to_event(1)),
        fd.Observation(lambda t, x, u: dist.Normal(0.0, jnp.exp(x / 2)).to_event(1)),
    )
    y = 0.5 * np.random.default_rng(3).normal(size=(rows, 1)).astype(np.float32)
    follow = fd.ParticleFilter(size)
    key = jr.key(0)
    value = lambda y: fd.log_likelihood(model, fd.Series(np.arange(rows), y), follow, key=key)
    return jax.jit(value), (y,)


def atmosphere(cells, members, rows):
    """A transform filter on a Lorenz-96 ring, every other cell measured."""
    rate = lambda x: (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + 8.0

    def move(t, x, u):
        k1 = rate(x)
        k2 = rate(x + 0.025 * k1)
        k3 = rate(x + 0.025 * k2)
        k4 = rate(x + 0.05 * k3)
        mean = x + 0.05 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return dist.Normal(mean, 0.03).to_event(1)

    model = fd.StateSpaceModel(
        dist.Normal(jnp.full(cells, 8.0), 1.0).to_event(1),
        fd.Transition(move),
        fd.GaussianObservation(lambda t, x, u: x[::2], jnp.ones(cells // 2)),
    )
    y = np.random.default_rng(4).normal(3.0, 3.0, size=(rows, cells // 2)).astype(np.float32)
    follow = fd.EnsembleKalmanFilter(members, "transform")
    key = jr.key(0)
    value = lambda y: fd.log_likelihood(
        model, fd.Series(0.05 * np.arange(rows), y), follow, key=key
    )
    return jax.jit(value), (y,)


def cases(quick):
    """Name -> (maker, arguments), and how far apart float32 sums in other orders may be (relative)."""
    few = lambda n: max(10, n // 100) if quick else n
    return {
        "log-likelihood, one series, row by row": (
            long_series, (fd.KalmanFilter(), few(20_000)), 1e-3),
        "log-likelihood, one series, all rows at once": (
            long_series, (fd.ParallelKalmanFilter(), few(20_000)), 1e-3),
        "gradients of a fleet of extended filters": (fleet, (few(10_000), few(200)), 1e-2),
        "particle filter": (volatility, (few(1_000_000), few(200)), 1e-2),
        "ensemble transform filter": (atmosphere, (few(10_000), 64, few(50)), 1e-2),
    }  # fmt: skip


def size_of(arguments):
    return ", ".join(f"{x:,}" for x in arguments if isinstance(x, int))


def timed(device, make, arguments):
    """The answer, seconds of the first call and the median of later ones."""
    with jax.default_device(device):
        begin = time.perf_counter()
        call, given = make(*arguments)
        given = jax.device_put(given, device)
        answer = jax.block_until_ready(call(*given))
        first = time.perf_counter() - begin
        samples = []
        while len(samples) < 5 and sum(samples) < BUDGET:
            begin = time.perf_counter()
            jax.block_until_ready(call(*given))
            samples.append(time.perf_counter() - begin)
    return np.asarray(answer, float), first, statistics.median(samples)


def gpu_name():
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return jax.devices("gpu")[0].device_kind
    return found.strip().splitlines()[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    asked = parser.parse_args()
    if asked.quick and asked.write:
        parser.error("a quick run shows that all runs, its figures are not worth writing down")
    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    if not gpus and not asked.quick:
        print("JAX sees no GPU: nothing to compare")
        return 0
    cpu = jax.devices("cpu")[0]
    lines, off = [], 0
    for name, (make, arguments, tolerance) in cases(asked.quick).items():
        print(f"  {name}", file=sys.stderr, flush=True)
        on_gpu = timed(gpus[0] if gpus else cpu, make, arguments)
        on_cpu = timed(cpu, make, arguments)
        apart = float(np.max(np.abs(on_gpu[0] - on_cpu[0])) / np.max(np.abs(on_cpu[0])))
        off += not apart <= tolerance
        lines.append([name, size_of(arguments), number(on_gpu[2]), number(on_cpu[2]),
                      f"{on_cpu[2] / on_gpu[2]:.3g}x", number(on_gpu[1]), number(on_cpu[1]),
                      f"{apart:.0e}"])  # fmt: skip
    head = ["float32", "size", "GPU s", "CPU s", "faster", "first GPU s", "first CPU s", "apart"]
    text = (
        f"{table(head, lines)}\n\nThe GPU is one {gpu_name() if gpus else 'CPU (a quick run)'}; the "
        f"CPU has {os.cpu_count()} cores. \"Apart\": the largest difference of\nthe answers over the "
        "largest answer. A particle filter's draws are the same on both, but a rounding may choose\n"
        f"another particle.\n\n{surroundings(*PACKAGES)}"
    )  # fmt: skip
    print(text)
    if asked.write:
        write_section("gpu", text)
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
