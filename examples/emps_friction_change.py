"""A drive whose friction grows while it runs: how much, since when, and that it is not the sensor.

A motor pushes a carriage to and fro; a force and an encoder's reading come a thousand times a second. Mass
and noises are those that examples/emps.py has found on a good day. Half way the guides run dry: from then
on viscous friction is larger by 80 N s/m. The change is planted in the record of a real machine: the force
that would overcome it, the added friction times the measured speed, is added to the recorded force. So the
motion is as real as before, and the friction that explains force and motion is known.

Viscous and dry friction, forth and back (they differ), are four parameters that wander slowly. A filter
follows the position, the speed and all of them, in constant memory, and says what it knows with intervals.
It is watched: beside it run copies that explain the measurements by friction that has changed, and by an
encoder that has become noisier. When one of them gains enough the alarm is raised, the filter says which,
and goes on with gains that suit it.

The record is that of the EMPS benchmark, looked for in the folder that the environment variable
FILTERDYN_DATA names. Where there is none a simulated drive stands in.

    python examples/emps_friction_change.py            # a minute; a figure in examples/output
    python examples/emps_friction_change.py --quick    # a part of the record
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from emps import Drive, Encoder, resolution
from streaming_emps import FOUND

import filterdyn as fd

numpyro.enable_x64()

OUTPUT = Path(__file__).parent / "output"
MORE = 80.0  # N s/m, by which viscous friction grows
#: Of the logarithm of each friction, per square root of a row: 5 % in ten seconds.
WANDERING = 5e-4
CHUNK = 500  # rows that are handed over at once
UNITS = {"viscous_forth": "N s/m", "viscous_back": "N s/m", "dry_forth": "N", "dry_back": "N"}


class BothWays(Drive):
    """The drive of examples/emps.py with a friction for each direction."""

    def field(self, x, force):
        p = self.p
        side = jnp.tanh(x[1] / p["creep"])
        forth = 0.5 * (1 + side)
        viscous = forth * p["viscous_forth"] + (1 - forth) * p["viscous_back"]
        dry = forth * p["dry_forth"] + (1 - forth) * p["dry_back"]
        return jnp.array([x[1], (force - viscous * x[1] - dry * side - p["offset"]) / p["mass"]])


def worn(step):
    """The model whose frictions are not known, and wander; `step` (m) is the encoder's."""

    def make(frictions):
        known = {name: jnp.asarray(value) for name, value in FOUND.items()}
        noise = known.pop("sensor_noise")
        return fd.StateSpaceModel(
            dist.Normal(jnp.zeros(2), jnp.array([0.01, 0.1])).to_event(1),
            fd.Transition(BothWays(known | frictions)),
            fd.Observation(Encoder(noise, jnp.asarray(step))),
        )

    about = lambda value: dist.LogNormal(np.log(value), 0.2)
    prior = {name: about(FOUND[name.partition("_")[0]]) for name in UNITS}
    return fd.ParametricModel(make, prior, evolution=fd.RandomWalk(WANDERING))


def watched():
    """One false alarm in a million seconds, if the model were right."""
    return fd.WatchedFilter(
        fd.AugmentedFilter(fd.ExtendedKalmanFilter()), false_alarm_every=1e9, noise_factors=[3.0]
    )


def record(rows):
    """The record with the planted change: times, positions (T,), forces (T,), where it changes, and the
    encoder's step."""
    recordings = fd.datasets.emps(stand_in=True)
    series = recordings.train
    print(
        "EMPS drive" if recordings.real else "a simulated drive (FILTERDYN_DATA names no recording)"
    )
    rows = min(rows, len(series))
    times = np.asarray(series.times)[:rows]
    position = np.asarray(series.observations)[:rows, 0]
    force = np.array(series.inputs)[:rows, 0]
    # The speed over 20 ms to each side of a row.
    window = np.hanning(41) / np.hanning(41).sum()
    speed = np.convolve(np.pad(np.gradient(position, times), 20, mode="edge"), window, mode="valid")
    changed = rows // 2
    force[changed:] += MORE * speed[changed:]
    return times, position, force, changed, resolution(series)


def follow(online, times, position, force):
    """The stream in chunks: of every row the medians and 90 % intervals of the frictions, and the alarm."""
    state, found, alarms = online.init(times[0], force[0]), [], []
    for k in range(0, len(times), CHUNK):
        rows = slice(k, k + CHUNK)
        state, steps = online.step_many(state, times[rows], position[rows], force[rows])
        now = steps.parameters
        median, interval = now.median, now.interval(0.9)
        found.append({name: np.stack([median[name], *interval[name]]) for name in UNITS})
        kind, since = np.asarray(steps.alarm.kind), np.asarray(steps.alarm.rows)
        alarms += [
            (k + i, fd.ChangeKind(int(kind[i])), int(since[i])) for i in np.flatnonzero(kind)
        ]
    return {name: np.concatenate([part[name] for part in found], axis=1) for name in UNITS}, alarms


def draw(times, frictions, alarms, changed, path):
    figure, axes = plt.subplots(4, 1, figsize=(10, 9), sharex=True, layout="constrained")
    for ax, (name, unit) in zip(axes, UNITS.items(), strict=True):
        median, low, high = frictions[name]
        ax.fill_between(times, low, high, color="#0072B2", alpha=0.25, label="90 % interval")
        ax.plot(times, median, color="#0072B2", linewidth=1, label="estimate")
        ax.axvline(
            times[changed], color="black", linewidth=1, linestyle="--", label="planted change"
        )
        for kind, color, label in (
            (fd.ChangeKind.DYNAMICS, "#D55E00", "alarm: friction"),
            (fd.ChangeKind.SENSOR_NOISE, "#009E73", "alarm: encoder"),
        ):
            at = [times[row] for row, found, _ in alarms if found == kind]
            bottom = np.full(len(at), low.min())
            ax.plot(at, bottom, "^", color=color, label=label)
        ax.set(ylabel=f"{name.replace('_', ', ')} ({unit})")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=5, loc="outside upper center")
    axes[-1].set_xlabel("time (s)")
    figure.savefig(path, dpi=130)


def main(quick, output):
    output.mkdir(exist_ok=True)
    times, position, force, changed, step = record(16_000 if quick else 10**9)
    online = fd.OnlineFilter(worn(step), watched(), num_inputs=1)
    frictions, alarms = follow(online, times, position, force)
    for row, kind, since in alarms:
        print(f"{times[row]:7.3f} s: {kind.name.lower().replace('_', ' ')}, since {since} ms or so")
    end = len(times) - 1
    for name, unit in UNITS.items():
        before, after = frictions[name][:, changed - 1], frictions[name][:, end]
        said = [f"{x[0]:6.1f} (90 %: {x[1]:.1f} to {x[2]:.1f})" for x in (before, after)]
        print(f"{name:<14} before {said[0]}, at the end {said[1]} {unit}")
    grown = np.mean(
        [frictions[name][0, end] - frictions[name][0, changed - 1] for name in list(UNITS)[:2]]
    )
    draw(times, frictions, alarms, changed, output / "emps_friction_change.png")

    first = next((a for a in alarms if a[0] >= changed), None)
    quiet = not any(changed - 3000 <= row < changed for row, _, _ in alarms)
    fine = (
        first is not None and first[1] == fd.ChangeKind.DYNAMICS and abs(grown - MORE) < 0.3 * MORE
    )
    fine = fine and first[0] - changed < 1000 and (quick or quiet)
    delay = f"{1e3 * (times[first[0]] - times[changed]):.0f} ms after it" if first else "never"
    print(
        f"{'OK' if fine else 'FAILED'}: the change of friction was noticed {delay}; viscous friction has "
        f"grown by {grown:.0f} N s/m, planted were {MORE:.0f}"
    )
    return bool(fine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a part of the record")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figure")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
