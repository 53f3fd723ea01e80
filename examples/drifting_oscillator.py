"""An oscillator whose spring wears out, followed live: the stiffness as it is now, with its interval.

A mass on a spring is shaken and its position measured ten times a second, with noise. The stiffness
wanders and, half way, a part of the spring breaks; nobody tells the filters when. Three follow the same
stream, one measurement at a time and in constant memory. One believes that the stiffness stands still,
one that it moves as it does on ordinary days, one that it may move five times as fast. The first becomes
ever more certain of a stiffness that is gone; the third catches up with the break soonest, and pays for it
with an estimate that is noisier at all other times. The likelihood says which to believe.

    python examples/drifting_oscillator.py            # twenty seconds; a figure in examples/output
    python examples/drifting_oscillator.py --quick    # a part of the record
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import filterdyn as fd

numpyro.enable_x64()

OUTPUT = Path(__file__).parent / "output"
STEP = 0.1  # s
NOISE = 0.05  # m, of a measurement
SHAKING = 0.4  # m / s^1.5
DAMPING = 0.15  # 1 / s
FIRST = 4.0  # 1 / s^2, the stiffness (over the mass) of the first day
#: Of the logarithm of the stiffness, per square root of a second: 3 % in ten seconds.
WANDERING = 0.01
BROKEN = 0.7  # what is left of the stiffness


def oscillator(p):
    """Position (m) and speed (m/s)."""
    A = jnp.array([[0.0, 1.0], [0.0, -DAMPING]]) - p["stiffness"] * jnp.array(
        [[0.0, 0.0], [1.0, 0.0]]
    )
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        fd.LinearSDE(A, L=[[0.0], [SHAKING]]),
        fd.LinearObservation(H=[[1.0, 0.0]], R=NOISE**2),
    )


def unknown(evolution):
    """The stiffness is not known but roughly."""
    prior = dict(stiffness=dist.LogNormal(np.log(FIRST), 0.3))
    return fd.ParametricModel(oscillator, prior, evolution=evolution)


def record(rows, key):
    """Times, the stiffness that nobody sees, and measurements."""
    times = STEP * np.arange(rows)
    moves = WANDERING * np.sqrt(STEP) * np.random.default_rng(3).standard_normal(rows)
    stiffness = FIRST * np.exp(np.cumsum(moves))
    stiffness[rows // 2 :] *= BROKEN
    # (To simulate it, the stiffness is an input.)
    world = fd.StateSpaceModel(
        dist.Normal(jnp.array([0.5, 0.0]), 0.1).to_event(1),
        fd.SDE(lambda t, x, u: jnp.stack([x[1], -u[0] * x[0] - DAMPING * x[1]]), [0.0, SHAKING]),
        fd.LinearObservation(H=[[1.0, 0.0]], R=NOISE**2),
    )
    return times, stiffness, np.asarray(fd.simulate(world, times, stiffness, key=key).observations)


def follow(model, filter, times, ys):
    """The stream: median and 90 % interval of the stiffness after every measurement, the log-likelihood."""
    online = fd.OnlineFilter(model, filter)
    state, found = online.init(times[0]), []
    for t, y in zip(times, ys, strict=True):
        state, step = online.step(state, t, y)
        now = step.parameters
        found.append((now.unconstrained_mean[0], np.sqrt(now.unconstrained_cov[0, 0])))
    centre, sd = np.array(found).T
    low, high = np.exp(centre - 1.645 * sd), np.exp(centre + 1.645 * sd)
    return np.exp(centre), low, high, float(state.log_likelihood)


def summary(name, truth, found):
    """How a filter did in the half minute before the break, and in the minute after it."""
    centre, low, high, log_likelihood = found
    half, width = len(truth) // 2, int(30 / STEP)
    before, after = slice(half - width, half), slice(half + width, half + 3 * width)
    inside = (low < truth) & (truth < high)
    error = lambda rows: np.sqrt(np.mean((centre[rows] / truth[rows] - 1) ** 2))
    print(
        f"{name:<12} error before {error(before):5.1%}, from 30 s after the break {error(after):5.1%}; "
        f"truth inside the 90 % interval in {inside[width:].mean():4.0%} of the rows; "
        f"log-likelihood {log_likelihood:.1f}"
    )
    return error(before), error(after), inside[width:].mean()


def draw(times, truth, runs, ys, path):
    figure, axes = plt.subplots(
        1 + len(runs), 1, figsize=(9, 9), sharex=True, sharey=False, layout="constrained"
    )
    axes[0].plot(times, ys[:, 0], ".", color="#555555", markersize=2)
    axes[0].set(ylabel="position (m)", title="what is measured")
    for ax, (name, (centre, low, high, _)) in zip(axes[1:], runs.items(), strict=True):
        ax.fill_between(times, low, high, color="#0072B2", alpha=0.25, label="90 % interval")
        ax.plot(times, centre, color="#0072B2", linewidth=1, label="estimate")
        ax.plot(times, truth, color="#D55E00", linewidth=1, label="truth")
        ax.set(ylabel="stiffness (1/s²)", title=f"stiffness that {name}", ylim=(1.5, 7))
    axes[1].legend(ncols=3, loc="upper right")
    axes[-1].set_xlabel("time (s)")
    figure.savefig(path, dpi=130)


def main(quick, output):
    output.mkdir(exist_ok=True)
    times, truth, ys = record(1800 if quick else 4000, jax.random.key(7))
    learner = fd.AugmentedFilter(fd.UnscentedKalmanFilter())
    beliefs = {
        "stands still": None,
        "wanders": fd.RandomWalk(dict(stiffness=WANDERING)),
        "runs": fd.RandomWalk(dict(stiffness=5 * WANDERING)),
    }
    runs = {name: follow(unknown(e), learner, times, ys) for name, e in beliefs.items()}
    print(
        f"the stiffness falls from {truth[len(truth) // 2 - 1]:.2f} to {truth[len(truth) // 2]:.2f}"
    )
    found = {name: summary(name, truth, run) for name, run in runs.items()}
    draw(times, truth, runs, ys, output / "drifting_oscillator.png")
    best = max(runs, key=lambda name: runs[name][3])
    fine = found["wanders"][1] < 0.1 and found["stands still"][1] > 2 * found["wanders"][1]
    print(
        f"{'OK' if fine else 'FAILED'}: likeliest is a stiffness that {best}; after the break one "
        f"that wanders is known to {found['wanders'][1]:.0%}, and by the filter that takes it for "
        f"constant to {found['stands still'][1]:.0%}"
    )
    return bool(fine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a part of the record")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figure")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
