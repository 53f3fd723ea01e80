"""Changes of a parameter and of sensor noise: false alarms, delays, and whether they are told apart.

    python benchmarks/change_detection.py [--quick] [--write]

A mass on a spring is pushed by a known force and its position measured 5 times a second. In row 200 its
stiffness, or the noise of its sensor, changes by a factor, or one row is an outlier. `WatchedFilter` looks
on, around the Kalman filter of the stiffness that was, and around an augmented filter that learns it.
"""

import argparse
import sys
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from harness import number, surroundings, table, write_section
from scipy.stats import chi2

import filterdyn as fd

jax.config.update("jax_enable_x64", True)

DT, CHANGE, ROWS, STIFFNESS, NOISE = 0.2, 200, 400, 2.0, 0.1
#: What can be planted: a kind, the factor (of an outlier: how many standard deviations).
STEPS = [
    *(("stiffness", f) for f in (0.5, 0.7, 1.5, 2.0, 3.0)),
    *(("noise", f) for f in (0.4, 1.5, 2.0, 3.0, 6.0)),
    *(("outlier", f) for f in (6.0, 10.0)),
]
RIGHT = dict(
    stiffness=fd.ChangeKind.DYNAMICS,
    noise=fd.ChangeKind.SENSOR_NOISE,
    outlier=fd.ChangeKind.OUTLIER,
)


def spring(p):
    k = p["stiffness"]
    F = jnp.array([[1 - DT * DT * k, DT * (1 - 0.3 * DT)], [-DT * k, 1 - 0.3 * DT]])
    g = jnp.array([DT, 1.0])
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        fd.LinearTransition(F, 0.004 * jnp.outer(g, g) + 1e-9 * jnp.eye(2), B=DT * g[:, None]),
        fd.LinearObservation([[1.0, 0.0]], R=NOISE**2),
    )


KNOWN = spring(dict(stiffness=STIFFNESS))
LEARNT = fd.ParametricModel(
    spring,
    prior=dict(stiffness=dist.LogNormal(np.log(STIFFNESS), 0.5)),
    evolution=fd.RandomWalk(dict(stiffness=0.01)),
)
FILTERS = {
    "Kalman filter": (KNOWN, fd.KalmanFilter()),
    "augmented filter, which learns": (LEARNT, fd.AugmentedFilter(fd.ExtendedKalmanFilter())),
}


def forces(key, rows):
    steps = jax.random.normal(key, (-(-rows // 5), 1))
    return jnp.repeat(steps, 5, 0)[:rows]


def record(key, stiffness, noise, outlier, rows, change):
    """Measurements (rows, 1) and forces of one run."""
    of_force, of_start, of_state, of_sensor = jax.random.split(key, 4)
    before, after = (spring(dict(stiffness=k)).dynamics for k in (STIFFNESS, STIFFNESS * stiffness))
    root, us = jnp.linalg.cholesky(before.Q), forces(of_force, rows)

    def step(x, row):
        i, e, v, u = row
        y = x[0] + NOISE * (jnp.where(i < change, 1.0, noise) * v + outlier * (i == change))
        F = jnp.where(i + 1 < change, before.F, after.F)
        return F @ x + before.B @ u + root @ e, y

    given = (
        jnp.arange(rows),
        jax.random.normal(of_state, (rows, 2)),
        jax.random.normal(of_sensor, (rows,)),
        us,
    )
    ys = jax.lax.scan(step, jax.random.normal(of_start, (2,)), given)[1]
    return ys[:, None], us


class Told(NamedTuple):
    raised: np.ndarray
    kind: np.ndarray
    evidence: np.ndarray
    failed: np.ndarray


class Watched:
    """All runs of one filter, in one program."""

    def __init__(self, name):
        model, inner = FILTERS[name]
        self.filter = fd.WatchedFilter(inner, false_alarm_every=10_000.0)

        @partial(jax.jit, static_argnames="runs")
        def told(seed, stiffness, noise, outlier, change, runs):
            def one(key):
                ys, us = record(key, stiffness, noise, outlier, ROWS, change)
                result = fd.filter(model, fd.Series(jnp.arange(float(ROWS)), ys, us), self.filter)
                found = result.alarms
                strongest = found.evidence[:, :-1].max(-1)
                return found.raised > 0, found.kind, strongest, result.status != fd.Status.OK

            return jax.vmap(one)(jax.random.split(jax.random.key(seed), runs))

        self._told = told

    def __call__(self, seed, runs, kind=None, size=1.0):
        stiffness = size if kind == "stiffness" else 1.0
        noise = size if kind == "noise" else 1.0
        outlier = size if kind == "outlier" else 0.0
        change = ROWS + 1 if kind is None else CHANGE
        found = self._told(seed, stiffness, noise, outlier, change, runs)
        return Told(*(np.asarray(x) for x in found))


def run_length(evidence, threshold):
    """Rows to the first alarm with 95 % limits, if its time is exponential: the rows until then, or until
    the end of the run, over the number of alarms."""
    beyond = evidence >= threshold
    count = int(beyond.any(1).sum())
    total = int(np.where(beyond.any(1), beyond.argmax(1) + 1, evidence.shape[1]).sum())
    low = total / (chi2.ppf(0.975, 2 * count + 2) / 2)
    high = total / (chi2.ppf(0.025, 2 * count) / 2) if count else np.inf
    return total / max(count, 1), low, high


def first_after(told, change=CHANGE):
    """Of each run: rows from the change to the alarm and to the decision, -1 without, and what it was."""
    raised, kind = told.raised[:, change:], told.kind[:, change:]
    decided = kind > 0
    when = lambda x: np.where(x.any(1), x.argmax(1), -1)
    what = np.where(decided.any(1), kind[np.arange(len(kind)), decided.argmax(1)], 0).astype(int)
    return when(raised), when(decided), what


def study(name, runs, calm_runs, batch):
    watched, lengths, rows, failures = Watched(name), [], [], 0
    calm = [watched(k, batch) for k in range(calm_runs // batch)]
    evidence = np.concatenate([told.evidence for told in calm])
    raising = np.exp(watched.filter.threshold(1)) / watched.filter.false_alarm_every
    for every in (30.0, 100.0, 300.0, 1000.0):
        threshold = np.log(raising * every)
        found, low, high = run_length(evidence, threshold)
        lengths.append(
            [f"{every:,.0f}", f"{threshold:.2f}", number(found), f"{number(low)} to {number(high)}"]
        )
    for k, (kind, size) in enumerate(STEPS):
        told = watched(1000 + k, runs, kind, size)
        failures += int(told.failed.sum())
        alarm, decision, what = first_after(told)
        got = alarm >= 0
        middle = lambda x: "-" if not (x >= 0).any() else f"{np.mean(x[x >= 0]):.1f}"
        high = f"{np.percentile(alarm[got], 90):.0f}" if got.any() else "-"
        counts = np.bincount(what, minlength=4)
        rows.append(
            [
                f"{kind} {'+' if kind == 'outlier' else 'x'}{size:g}",
                f"{got.mean():.0%}",
                middle(alarm),
                high,
                middle(decision),
                *(str(counts[k]) for k in (2, 1, 3, 0)),
                f"{counts[RIGHT[kind]] / max(counts[1:].sum(), 1):.1%}",
            ]
        )
    head = [
        "change",
        "noticed",
        "delay",
        "90 %",
        "decided",
        "dynamics",
        "noise",
        "outlier",
        "none",
        "right",
    ]
    return "\n\n".join(
        [
            f"### {name[0].upper() + name[1:]}",
            f"Rows to the first false alarm ({calm_runs:,} runs of {ROWS} rows without a change):",
            table(["at least", "threshold, nats", "measured", "95 %"], lengths),
            f"A change in row {CHANGE} of {ROWS}, {runs} runs each, `false_alarm_every=10_000` (threshold "
            f"{watched.filter.threshold(1):.1f} nats). Delays in rows, means of those noticed; then what was "
            f"decided first, and how much of that was right; failures of the filter: {failures}.",
            table(head, rows),
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    sizes = (20, 40, 20) if chosen.quick else (250, 2000, 250)
    text = "\n\n".join([surroundings("jax"), *(study(name, *sizes) for name in FILTERS)])
    print(text)
    if chosen.write:
        write_section("change_detection", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
