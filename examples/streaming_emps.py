"""A drive followed live, and its filter killed in the middle of the run.

A motor pushes a carriage to and fro; a force and an encoder's reading come a thousand times a second.
With what examples/emps.py has found (mass, friction, noises), an online filter says where the carriage
is and how fast it moves, which nobody measures. The filter runs in a process of its own, which reads
the events line by line and leaves snapshots behind:

    filterdyn stream --model streaming_emps:online --checkpoint snapshots \\
        --output estimates.jsonl < events.jsonl

Half way the encoder is silent for 0.4 s, and in the middle of that the process is killed (`kill -9`).
Started again, it goes on from its last snapshot. The estimates are then the same, number for number,
as those of a filter that nobody has killed, and the readings that were withheld show how far off they
are while there is nothing but the force to go by.

The record is that of the EMPS benchmark, looked for in the folder that the environment variable
FILTERDYN_DATA names. Where there is none a simulated drive stands in.

    python examples/streaming_emps.py            # half a minute; a figure in examples/output
    python examples/streaming_emps.py --quick    # a few seconds of the record
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import numpyro
from emps import drive, resolution

import filterdyn as fd

numpyro.enable_x64()

OUTPUT = Path(__file__).parent / "output"
#: What examples/emps.py finds in the other record.
FOUND = {
    "mass": 95.01,  # kg
    "viscous": 196.9,  # N s/m
    "dry": 21.17,  # N
    "offset": -3.293,  # N
    "creep": 4.836e-4,  # m/s
    "force_noise": 0.1012,  # N sqrt(s)
    "reversal_noise": 0.2506,  # N sqrt(s)
    "reversal_speed": 0.01463,  # m/s
    "sensor_noise": 1.321e-8,  # m
}
SILENT = 400  # readings
HALF_WIDTH = 1.645  # of a 90 % interval, in standard deviations


def record():
    """The second record of the drive, with pulses of force, which identified nothing."""
    return fd.datasets.emps(stand_in=True).tests["pulses"]


def online():
    """The filter, as `filterdyn stream` asks for it."""
    return fd.OnlineFilter(drive(FOUND, resolution(record())), fd.ExtendedKalmanFilter())


def write_events(times, readings, forces, path):
    with path.open("w") as file:
        for k, (t, y, u) in enumerate(zip(times, readings, forces, strict=True)):
            y = None if np.isnan(y) else float(y)
            event = dict(time=float(t), y=y, u=float(u), seq=k)
            file.write(json.dumps(event) + "\n")


def start(folder):
    """The filter in a process of its own."""
    command = f"filterdyn stream --model streaming_emps:online --checkpoint {folder}/snapshots"
    with (folder / "events.jsonl").open() as events:
        return subprocess.Popen(
            [sys.executable, "-m", *command.split(), "--output", f"{folder}/estimates.jsonl"],
            cwd=Path(__file__).parent,
            stdin=events,
        )


def wait_for(process, path, rows):
    """Until there are so many rows, or the process has ended."""
    found, end = path.read_bytes().count(b"\n") if path.exists() else 0, 0
    while found < rows and process.poll() is None:
        time.sleep(0.01)
        if path.exists():
            with path.open("rb") as file:
                file.seek(end)
                new = file.read()
            found, end = (found if end else 0) + new.count(b"\n"), end + len(new)
    return found


def follow_and_kill(folder, rows):
    """The estimates by two processes, of which the first is killed; how many rows it had written, and
    how many a second the second one wrote."""
    estimates = folder / "estimates.jsonl"
    process = start(folder)
    wait_for(process, estimates, rows // 2)
    process.kill()
    process.wait()
    with estimates.open("rb") as file:
        written = file.read().count(b"\n")
    process = start(folder)
    first, begun = wait_for(process, estimates, written + 1), time.perf_counter()
    last = wait_for(process, estimates, rows)
    speed = (last - first) / (time.perf_counter() - begun)
    if process.wait() != 0:
        raise SystemExit("FAILED: the second process did not end well")
    return [json.loads(line) for line in estimates.open()], written, speed


def undisturbed(times, readings, forces):
    """What the same filter says in this process."""
    filter = online()
    state, found = filter.init(times[0]), []
    for t, y, u in zip(times, readings, forces, strict=True):
        state, step = filter.step(state, t, y, u)
        found.append(dict(mean=step.mean.tolist(), sd=np.sqrt(np.diagonal(step.cov)).tolist()))
    return found


def draw(rows, measured, silent, killed_at, path):
    """Position, velocity and innovations of the run; the errors where the encoder was silent."""
    times = np.array([row["time"] for row in rows])
    mean, sd = (1e3 * np.array([row[name] for row in rows]) for name in ("mean", "sd"))
    innovation, nis = (
        np.array([np.nan if v is None else v for v in values])
        for values in ([row["innovation"][0] for row in rows], [row["nis"] for row in rows])
    )
    figure, axes = plt.subplot_mosaic("ab;cd;ee", figsize=(11, 10), layout="constrained")
    around = slice(max(silent.start - 100, 0), silent.stop + 100)
    truths = (1e3 * measured, 1e3 * np.gradient(measured, times))
    for k, (whole, part, name) in enumerate(
        (("a", "b", "position (mm)"), ("c", "d", "velocity (mm/s)"))
    ):
        axes[whole].plot(times, mean[:, k], color="#0072B2", linewidth=1)
        axes[whole].set(ylabel=name)
        band = HALF_WIDTH * sd[around, k]
        axes[part].fill_between(times[around], -band, band, color="#0072B2", alpha=0.25)
        axes[part].plot(times[around], (truths[k] - mean[:, k])[around], color="#D55E00")
        axes[part].set(ylabel=f"error of the {name}")
    axes["a"].set_title("all of the run; black: killed, and gone on")
    axes["b"].set_title("encoder silent: error (red) and 90 % band")
    axes["e"].plot(times, np.sign(innovation) * np.sqrt(nis), ".", color="#555555", markersize=1)
    for side in (-HALF_WIDTH, HALF_WIDTH):
        axes["e"].axhline(side, color="#009E73", linewidth=1)
    axes["e"].set(ylim=(-6, 6), ylabel="innovation / its sd", title="90 % belong between the lines")
    for ax in axes.values():
        ax.set_xlabel("time (s)")
        ax.axvline(killed_at, color="black", linewidth=0.8)
    figure.savefig(path, dpi=130)


def main(quick, output):
    output.mkdir(exist_ok=True)
    series = record()[:3000] if quick else record()
    times, forces = series.times, np.asarray(series.inputs)[:, 0]
    measured = np.asarray(series.observations)[:, 0]
    count, seconds = len(series), float(times[-1] - times[0])
    silent = slice(count // 2 - SILENT // 2, count // 2 + SILENT // 2)
    readings = measured.copy()
    readings[silent] = np.nan
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_events(times, readings, forces, folder / "events.jsonl")
        rows, written, speed = follow_and_kill(folder, count)
    factor = speed * seconds / count
    print(f"{len(rows)} rows of {seconds:.1f} s; the process was killed after {written} of them")
    print(f"{speed:.0f} rows a second: {factor:.1f} times as fast as they were measured")

    same = [dict(mean=r["mean"], sd=r["sd"]) for r in rows] == undisturbed(times, readings, forces)
    print("the same numbers as without the kill:", "yes" if same else "no")
    nis = np.array([row["nis"] for row in rows[20:] if row["nis"] is not None])
    inside = np.mean(nis < HALF_WIDTH**2)
    print(f"{inside:.1%} of the readings in the 90 % interval of their prediction")
    position, sd = (np.array([row[name][0] for row in rows])[silent] for name in ("mean", "sd"))
    error = measured[silent] - position
    print(
        f"after {SILENT} readings withheld the position is {1e3 * error[-1]:.2f} mm off, "
        f"the 90 % interval +- {1e3 * HALF_WIDTH * sd[-1]:.2f} mm"
    )
    draw(rows, measured, silent, times[min(written, count) - 1], output / "streaming_emps.png")

    fine = same and (quick or factor > 1) and written < count and 0.8 < inside < 0.97
    print(
        f"{'OK' if fine else 'FAILED'}: killed at row {written} of {count}, gone on with "
        f"{'the same' if same else 'other'} numbers, {factor:.1f} times as fast as real time"
    )
    return bool(fine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a part of the record")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figure")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
