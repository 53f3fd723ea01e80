"""Learned gains and noise against the Kalman filters that know everything, on the problems of KalmanNet.

    python benchmarks/kalmannet.py [--quick] [--write] [--seeds N] [--torch PYTHON] [--torch-steps N]
        [--only linear-2 linear-5 lorenz noise mismatch mismatch-states tails]

**Linear** (Revach et al. 2022, section IV-B): F is the identity with a first row of ones, H the identity (two
states) or the reverse canonical form (five), Q = 0.01 I, R = I, 100 rows from a known state; 1,000 series to
train on, 200 to test. Learned filters start from a model whose Q is 100 times too large. Errors in decibel,
10 log10 of the mean square over states. R is right in that model and stays (`sensors=False`). Rows with
"smoothed" are of `fd.smooth` over the same beliefs. `--torch` names a Python that has PyTorch, for KalmanNet
itself; its published training has 4,000 steps (`--torch-steps`), fewer are for its time only. "ms a step" is
the CPU time of one gradient over 30 series, without compilation, "train" that of a whole training with it.

**Lorenz** (section IV-D): five terms of the Taylor series of the flow over 0.02, noise at -20 dB, H turned by
1 degree about each axis. The angles are fitted by the likelihood of 50 series of measurements, without any
state, and judged by intervals from the curvature of the likelihood.

**Noise**: the same with H the identity and 1/r2 = 0 dB, through a filter whose Q is 100 times too large and
whose R is 10 times too small.

**Mismatch** (section IV-D.4): a Lorenz system integrated finely, 3,000 rows 0.02 apart, R = I, and fresh
trajectories for training and test. The filters step by five Taylor terms, or by two Runge-Kutta steps; their
Q is the best constant one by the likelihood of five series to train on (times the identity, or any). Learned
filters are trained over it on windows of the measurements of twenty, with R known (`sensors=False`).
**Mismatch, states**: a gain over five Taylor terms that is trained on the states of five.

**Tails** (Campbell et al. 2021): a chaotic network of 5 or 20 units, measurement errors 0.1 t_2.

The exit status says whether what is wanted of answers is reached; it is not about speed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import optax
from harness import Aim, aims, number, surroundings, table, write_section

import filterdyn as fd

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpy", "equinox", "optax")
HEAD = [
    "filter",
    "MSE (dB)",
    "NEES/dx",
    "90 % coverage",
    "NLL",
    "parameters",
    "train (s)",
    "ms a step",
]
NAMES = ["linear-2", "linear-5", "lorenz", "noise", "mismatch", "mismatch-states", "tails"]
#: What is trained goes on from these learning rates to 0.
RATE = 1e-2


def decibel(squares):
    """10 log10 of the mean over series, and its standard error by the delta method."""
    mean = squares.mean()
    error = squares.std() / np.sqrt(len(squares))
    return 10 * np.log10(mean), 10 / np.log(10) * error / mean


class Smoothed(NamedTuple):
    """What `Scores` reads of smoothed series."""

    mean: jax.Array
    cov: jax.Array
    log_likelihood: jax.Array
    status: jax.Array


def smooth(model, batch, filter):
    """`fd.smooth` for a batch of series that have their times in common."""

    def one(y):
        found = fd.smooth(model, fd.Series(np.asarray(batch.times)[0], y), filter)
        return Smoothed(found.mean, found.cov, found.log_likelihood, found.status)

    return jax.jit(jax.vmap(one))(batch.observations)


class Scores:
    """What a filter (or `verb`) made of test series (B, T, ...), whose states are NaN where they do not
    count."""

    def __init__(self, model, batch, states, filter, verb=fd.filter):
        result = verb(model, batch, filter)
        self.failed = int((np.asarray(result.status) != 0).sum())
        errors = np.asarray(result.mean, float) - states
        covs = np.asarray(result.cov, float)
        use = ~np.isnan(errors).any(-1)
        self.db, self.error = decibel(np.nanmean(errors**2, axis=(1, 2)))
        e, p = errors[use], covs[use]
        self.nees = float(np.einsum("ni,ni->n", e, np.linalg.solve(p, e[..., None])[..., 0]).mean())
        self.nees /= errors.shape[-1]
        sd = np.sqrt(np.diagonal(p, axis1=1, axis2=2))
        self.coverage = float((np.abs(e) < 1.6449 * sd).mean())
        seen = (~np.isnan(np.asarray(batch.observations))).sum()
        self.nll = -float(np.sum(np.asarray(result.log_likelihood, float))) / seen

    def row(self, name, parameters="-", seconds="-", step="-"):
        name = name if not self.failed else f"{name} ({self.failed} diverged)"
        return [
            name,
            f"{self.db:.2f} ± {self.error:.2f}",
            f"{self.nees:.3f}",
            f"{self.coverage:.3f}",
            f"{self.nll:.4f}",
            parameters,
            seconds,
            step,
        ]


class Spread:
    """Scores of several seeds."""

    def __init__(self, scores):
        self.db = float(np.mean([s.db for s in scores]))
        self.error = float(np.mean([s.error for s in scores]))
        self.nees = float(np.mean([s.nees for s in scores]))
        self.coverage = float(np.mean([s.coverage for s in scores]))
        self.nll = float(np.mean([s.nll for s in scores]))
        self.failed = sum(s.failed for s in scores)
        self.worst_db = float(np.max([s.db for s in scores]))

    row = Scores.row


def size_of(filter):
    return sum(x.size for x in jax.tree.leaves(eqx.filter(filter.network, eqx.is_inexact_array)))


class Trained:
    """Filters from several seeds, trained by `fd.fit` on windows of the series; how long that took."""

    def __init__(self, make, model, series, steps, seeds, length, **options):
        rule = optax.adam(optax.cosine_decay_schedule(options.pop("rate", RATE), steps))
        self.filters, self.seconds, self.skipped = [], [], 0
        for seed in range(seeds):
            began = time.process_time()
            found = fd.fit(
                model,
                series,
                make(jr.key(seed)),
                optimizer=rule,
                steps=steps,
                trainable=lambda m: (),
                window=length,
                key=jr.key(100 + seed),
                chunk=steps // 4,
                clip=10.0,
                **options,
            )
            self.seconds.append(time.process_time() - began)
            self.skipped += found.skipped
            self.filters.append(found.filter)
        self.parameters = size_of(self.filters[0])

    def scores(self, model, batch, states, verb=fd.filter):
        return Spread([Scores(model, batch, states, f, verb) for f in self.filters])


def step_time(model, batch, filter):
    """Milliseconds of CPU time of one gradient of the likelihood of `batch`, after compilation."""
    arrays, rest = eqx.partition(filter, eqx.is_inexact_array)

    @jax.jit
    def slope(arrays):
        loss = lambda a: -fd.log_likelihood(model, batch, eqx.combine(a, rest)).sum()
        return jax.value_and_grad(loss)(arrays)

    jax.block_until_ready(slope(arrays))
    found = []
    for _ in range(15):
        began = time.process_time()
        jax.block_until_ready(slope(arrays))
        found.append(time.process_time() - began)
    return 1e3 * float(np.median(found))


def simulated(model, times, count, seed):
    """States (B, T, dx) and series, of which the first row, where the state is known, is not measured and
    does not count."""
    drawn = fd.simulate(model, times, key=jr.key(seed), num_samples=count)
    states, y = np.array(drawn.states, float), np.array(drawn.observations)
    states[:, 0], y[:, 0] = np.nan, np.nan
    return states, [fd.Series(times, one) for one in y]


# --- linear -------------------------------------------------------------------------------------------


def matrices(m):
    f, h = np.eye(m), np.eye(m)
    f[0] = 1.0
    if m > 2:
        h = np.eye(m)[::-1].copy()
        h[0] = 1.0
    return f, h


def canonical(m, q2):
    f, h = matrices(m)
    eye = jnp.eye(m, dtype=jnp.float32)
    return fd.StateSpaceModel(
        dist.Delta(jnp.zeros(m, jnp.float32), event_dim=1),
        fd.LinearTransition(jnp.asarray(f, jnp.float32), q2 * eye),
        fd.LinearObservation(jnp.asarray(h, jnp.float32), jnp.ones(m, jnp.float32)),
    )


def torch_rows(python, m, train, test, steps):
    """KalmanNet itself, in a process of its own."""
    script = Path(__file__).parent / "contestants" / "kalmannet.py"
    f, h = matrices(m)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        arrays = dict(F=f, H=h)
        for name, (states, series) in dict(train=train, test=test).items():
            arrays[f"{name}_x"] = states[:, 1:]
            arrays[f"{name}_y"] = np.stack([np.asarray(s.observations)[1:] for s in series])
        np.savez(path, **arrays)
        done = subprocess.run(
            [python, str(script), str(path), str(steps)], capture_output=True, text=True, check=True
        )
    found = json.loads(done.stdout.splitlines()[-1])
    db, error = decibel(np.asarray(found["squares"]))
    name = f"KalmanNet (PyTorch), {steps:,} steps on states"
    row = [name, f"{db:.2f} ± {error:.2f}", "none", "none", "none", f"{found['parameters']:,}"]
    return [*row, f"{found['seconds']:.0f}", f"{found['step']:.0f}"], found["step"]


def linear(m, quick, seeds, torch, torch_steps):
    train_count, test_count, steps = (60, 20, 8) if quick else (1000, 200, 800)
    batch = 10 if quick else 100
    times = np.arange(101.0)
    truth, nominal = canonical(m, 0.01), canonical(m, 1.0)
    states, series = simulated(truth, times, train_count, 0)
    test_states, test_series = simulated(truth, times, test_count, 1)
    test = fd.stack(test_series)
    thirty = fd.stack(series[:30])
    exact = Scores(truth, test, test_states, fd.KalmanFilter())
    wrong = Scores(nominal, test, test_states, fd.KalmanFilter())
    lines = [exact.row("exact Kalman filter"), wrong.row("Kalman filter, Q 100 times too large")]
    own = {
        "LearnedNoiseFilter, on measurements": (
            lambda key: fd.LearnedNoiseFilter(m, m, key=key, width=8, sensors=False),
            dict(objective="likelihood", batch=batch, rate=2e-2),
        ),
        "LearnedGainFilter, on states": (
            lambda key: fd.LearnedGainFilter(
                m, m, key=key, width=8, architecture="kalmannet-1", sensors=False
            ),
            dict(objective="state_likelihood", states=list(states), batch=30),
        ),
    }
    found, smoothed, speed = {}, {}, {}
    for name, (make, options) in own.items():
        runs = Trained(make, nominal, series, steps, seeds, 101, **options)
        found[name] = runs.scores(nominal, test, test_states)
        smoothed[name.split(",")[0]] = runs.scores(nominal, test, test_states, smooth)
        speed[name] = step_time(nominal, thirty, runs.filters[0])
        seconds = f"{np.mean(runs.seconds):.0f}"
        lines.append(found[name].row(name, f"{runs.parameters:,}", seconds, f"{speed[name]:.1f}"))
    torch_step = None
    if torch is not None:
        row, torch_step = torch_rows(
            torch, m, (states, series), (test_states, test_series), torch_steps
        )
        lines.append(row)
    smoother = Scores(truth, test, test_states, fd.KalmanFilter(), smooth)
    lines.append(smoother.row("exact smoother"))
    lines += [spread.row(f"{name}, smoothed") for name, spread in smoothed.items()]
    checks = []
    for name, spread in found.items():
        checks += [
            Aim(f"{name}: dB above the exact filter", spread.db - exact.db, 0.1),
            Aim(f"{name}: NEES/dx away from 1", abs(spread.nees - 1), 0.1),
            Aim(f"{name}: coverage away from 0.9", abs(spread.coverage - 0.9), 0.05),
        ]
        if torch_step is not None:
            faster = torch_step / speed[name]
            checks.append(Aim(f"{name}: steps in one of KalmanNet's", faster, 10.0, at_least=True))
    for name, spread in smoothed.items():
        checks += [
            Aim(f"{name}, smoothed: dB above the exact smoother", spread.db - smoother.db, 0.1),
            Aim(f"{name}, smoothed: NEES/dx away from 1", abs(spread.nees - 1), 0.1),
        ]
    text = table(HEAD, lines) + "\n\n" + aims(checks)
    fine = all(c.measured <= c.limit for c in checks if not c.at_least)
    return text, fine


# --- Lorenz -------------------------------------------------------------------------------------------

GAP = 0.02
ONE = np.ones(3)


def taylor_step(x):
    """x' = F(x) x with five terms of exp(A(x) dt), A(x) x being the Lorenz field."""
    z = jnp.zeros((), x.dtype)
    a = GAP * jnp.stack(
        [
            jnp.stack([z - 10, z + 10, z]),
            jnp.stack([28 - x[2], z - 1, z]),
            jnp.stack([x[1], z, z - 8 / 3]),
        ]
    )
    total = term = x
    for j in range(1, 6):
        term = (a * term).sum(1) / j
        total = total + term
    return total


def field(x):
    return jnp.array([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])


def runge_kutta(x, h, count):
    for _ in range(count):
        k1 = field(x)
        k2 = field(x + 0.5 * h * k1)
        k3 = field(x + 0.5 * h * k2)
        k4 = field(x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def runge_kutta_step(x):
    return runge_kutta(x, GAP / 2, 2)


class Turned(eqx.Module):
    """Measurements of a state turned about each axis."""

    angles: jax.Array

    def __call__(self, t, x, u):
        (c0, c1, c2), (s0, s1, s2) = jnp.cos(self.angles), jnp.sin(self.angles)
        z, one = jnp.zeros((), c0.dtype), jnp.ones((), c0.dtype)
        first = jnp.stack([jnp.stack(r) for r in ([one, z, z], [z, c0, -s0], [z, s0, c0])])
        second = jnp.stack([jnp.stack(r) for r in ([c1, z, s1], [z, one, z], [-s1, z, c1])])
        third = jnp.stack([jnp.stack(r) for r in ([c2, -s2, z], [s2, c2, z], [z, z, one])])
        for turn in (first, second, third):
            x = (turn.astype(x.dtype) * x).sum(1)
        return x


class Move(eqx.Module):
    """A step of the Lorenz system and Gaussian noise."""

    sd: jax.Array
    step: object = eqx.field(static=True)

    def __call__(self, t, x, u):
        return dist.Normal(self.step(x), self.sd.astype(x.dtype)).to_event(1)


class MoveTogether(eqx.Module):
    """A step of the Lorenz system and noise with the covariance L L^T, L lower triangular."""

    root: jax.Array
    step: object = eqx.field(static=True)

    def __call__(self, t, x, u):
        return dist.MultivariateNormal(self.step(x), scale_tril=jnp.tril(self.root))


def lorenz(q2, r2, angles=0.0, step=taylor_step, initial=None):
    initial = dist.Delta(jnp.asarray(ONE), event_dim=1) if initial is None else initial
    turn = Turned(jnp.broadcast_to(jnp.asarray(angles, float), (3,)))
    return fd.StateSpaceModel(
        initial,
        fd.Transition(Move(jnp.asarray(float(q2) ** 0.5), step)),
        fd.GaussianObservation(turn, jnp.asarray(float(r2))),
    )


def turned(quick):
    train_count, test_count = (4, 6) if quick else (50, 200)
    times, angle = np.arange(101.0), np.deg2rad(1.0)
    ekf = fd.ExtendedKalmanFilter()
    lines, checks, angle_lines, missed = [], [], [], 0
    for level in (0, 10, 20):
        r2 = 10 ** (-level / 10)
        truth, untrue = lorenz(r2 / 100, r2, angle), lorenz(r2 / 100, r2)
        _, series = simulated(truth, times, train_count, level)
        states, test_series = simulated(truth, times, test_count, 1000 + level)
        test = fd.stack(test_series)
        full = Scores(truth, test, states, ekf)
        began = time.process_time()
        fitted = fd.fit(
            untrue, series, ekf, optimizer=optax.lbfgs(), steps=12, trainable=pick_angles
        )
        seconds = time.process_time() - began
        batch = fd.stack(series)
        value = lambda a, batch=batch, r2=r2: fd.log_likelihood(
            lorenz(r2 / 100, r2, a), batch, ekf
        ).sum()
        found = pick_angles(fitted.model)
        sd = np.sqrt(np.diag(np.linalg.inv(-np.asarray(jax.jit(jax.hessian(value))(found)))))
        away = np.abs(np.asarray(found) - angle) / sd
        own = Scores(fitted.model, test, states, ekf)
        lines += [
            full.row(f"EKF that knows all, 1/r2 = {level} dB"),
            Scores(untrue, test, states, ekf).row("EKF, H the identity"),
            own.row("EKF, angles by likelihood", "3", f"{seconds:.0f}"),
        ]
        shown = [
            f"{np.rad2deg(a):.3f} ± {1.96 * np.rad2deg(s):.3f}"
            for a, s in zip(found, sd, strict=True)
        ]
        angle_lines.append([f"{level} dB", *shown])
        checks += [
            Aim(f"angles, {level} dB: dB above the EKF that knows all", own.db - full.db, 0.1),
        ]
        missed += int((away > 1.96).sum())
    checks.append(Aim("angles outside of their 95 % intervals, of 9", missed, 1))
    text = table(HEAD, lines) + "\n\n"
    text += table(["1/r2", "angle 1 (degrees, truth 1)", "angle 2", "angle 3"], angle_lines)
    return f"{text}\n\n{aims(checks)}", all(c.measured <= c.limit for c in checks)


def pick_angles(model):
    return model.observation.h.value.angles


def noise_unknown(quick, seeds):
    """Lorenz with the right equations, and a noise model that is wrong in both covariances."""
    train_count, test_count, steps = (30, 6, 8) if quick else (1000, 200, 1600)
    times = np.arange(101.0)
    truth, nominal = lorenz(0.01, 1.0), lorenz(1.0, 0.1)
    _, series = simulated(truth, times, train_count, 5)
    states, test_series = simulated(truth, times, test_count, 1005)
    test, ekf = fd.stack(test_series), fd.ExtendedKalmanFilter()
    runs = Trained(
        lambda key: fd.LearnedNoiseFilter(3, 3, key=key, width=8),
        nominal,
        series,
        steps,
        seeds,
        101,
        batch=120,
        rate=2e-2,
    )
    found = runs.scores(nominal, test, states)
    full = Scores(truth, test, states, ekf)
    lines = [
        full.row("EKF that knows all, 1/r2 = 0 dB, H the identity"),
        Scores(nominal, test, states, ekf).row(
            "EKF, q2 100 times too large, r2 10 times too small"
        ),
        found.row(
            "LearnedNoiseFilter over it, on measurements",
            f"{runs.parameters:,}",
            f"{np.mean(runs.seconds):.0f}",
        ),
    ]
    checks = [
        Aim("noise: dB above the EKF that knows all", found.db - full.db, 0.1),
        Aim("noise: NEES/dx away from 1", abs(found.nees - 1), 0.1),
        Aim("noise: coverage away from 0.9", abs(found.coverage - 0.9), 0.05),
    ]
    fine = all(c.measured <= c.limit for c in checks)
    return f"{table(HEAD, lines)}\n\n{aims(checks)}", fine


# --- mismatch -----------------------------------------------------------------------------------------


def fresh(count, rows, seed):
    """Trajectories from points on the attractor, by Runge-Kutta steps of 0.001, and measurements."""

    def one(x):
        def body(x, _):
            new = jax.lax.fori_loop(0, 20, lambda _, x: runge_kutta(x, 1e-3, 1), x)
            return new, new

        return jax.lax.scan(body, x, length=rows + 500)[1][500:]

    key_start, key_noise = jr.split(jr.key(seed))
    starts = jnp.asarray(ONE) + jr.normal(key_start, (count, 3))
    states = np.asarray(jax.jit(jax.vmap(one))(starts))
    y = states + np.asarray(jr.normal(key_noise, states.shape))
    times = np.arange(float(rows))
    return states.astype(float), [fd.Series(times, one) for one in y]


def trajectories(quick, train_count=5):
    """States and series to train on and to test on, and where a window may start."""
    rows, train_count, test_count = (130, 3, 2) if quick else (3000, train_count, 10)
    start = dist.MultivariateNormal(jnp.array([0.0, 0.0, 25.0]), 100.0 * jnp.eye(3))
    return fresh(train_count, rows, 0), fresh(test_count, rows, 1), start


def mismatch(quick, seeds):
    """Three filters that are trained on measurements alone. What the sensors do is known."""
    (_, series), (states, test_series), start = trajectories(quick, 20)
    test, few, ekf = fd.stack(test_series), series[:5], fd.ExtendedKalmanFilter()
    batch, grid = fd.stack(few), 10.0 ** np.arange(-5, 1.01, 0.5)
    value = eqx.filter_jit(lambda model: fd.log_likelihood(model, batch, ekf).sum())
    lines, best, checks = [], {}, []
    for name, step in (("five Taylor terms", taylor_step), ("Runge-Kutta", runge_kutta_step)):
        values = [float(value(lorenz(q2, 1.0, 0.0, step, start))) for q2 in grid]
        q2 = float(grid[np.argmax(values)])
        best[name] = model = lorenz(q2, 1.0, 0.0, step, start)
        lines.append(Scores(model, test, states, ekf).row(f"EKF, {name}, q2 = {q2:.2g}", "1"))
    of_root = lambda model: model.dynamics.fn.value.root
    taylor = best["five Taylor terms"]
    root = taylor.dynamics.fn.value.sd * jnp.eye(3)
    together = fd.StateSpaceModel(
        start, fd.Transition(MoveTogether(root, taylor_step)), taylor.observation
    )
    best["five Taylor terms"] = together = fd.fit(
        together, few, ekf, optimizer=optax.lbfgs(), steps=3 if quick else 25, trainable=of_root
    ).model
    own = Scores(together, test, states, ekf)
    lines.append(own.row("EKF, five Taylor terms, the best constant Q", "6"))
    # A window must be longer than the filter's memory, and the burn-in forget where it started.
    short = dict(length=50, burn_in=10) if quick else dict(length=200, burn_in=30, batch=15)
    long = dict(length=60, burn_in=20) if quick else dict(length=600, burn_in=100, batch=6)
    noise = lambda key: fd.LearnedNoiseFilter(3, 3, key=key, width=8, sensors=False)
    gain = lambda key: fd.LearnedGainFilter(
        3, 3, key=key, width=8, architecture="kalmannet-1", sensors=False
    )
    filters = [
        ("LearnedNoiseFilter", "five Taylor terms", noise, 8 if quick else 400, short),
        ("LearnedGainFilter", "five Taylor terms", gain, 8 if quick else 400, short),
        ("LearnedNoiseFilter", "Runge-Kutta", noise, 8 if quick else 300, long),
    ]
    for kind, name, make, steps, options in filters:
        runs = Trained(make, best[name], series, steps, seeds, **options)
        found = runs.scores(best[name], test, states)
        seconds = f"{np.mean(runs.seconds):.0f}"
        lines.append(found.row(f"{kind}, {name}", f"{runs.parameters:,}", seconds))
        checks += [
            Aim(f"{kind}, {name}: NEES/dx away from 1", abs(found.nees - 1), 0.1),
            Aim(f"{kind}, {name}: coverage away from 0.9", abs(found.coverage - 0.9), 0.05),
        ]
    return f"{table(HEAD, lines)}\n\n{aims(checks)}", True


def mismatch_on_states(quick, seeds):
    """A gain that is trained on known states over the step by five Taylor terms."""
    (known, series), (states, test_series), start = trajectories(quick)
    test, model = fd.stack(test_series), lorenz(0.1, 1.0, 0.0, taylor_step, start)
    runs = Trained(
        lambda key: fd.LearnedGainFilter(3, 3, key=key, width=8, architecture="kalmannet-1"),
        model,
        series,
        8 if quick else 300,
        seeds,
        100,
        burn_in=20,
        batch=30,
        objective="state_likelihood",
        states=list(known),
    )
    found = runs.scores(model, test, states)
    ekf = Scores(model, test, states, fd.ExtendedKalmanFilter())
    name, seconds = "LearnedGainFilter, on states", f"{np.mean(runs.seconds):.0f}"
    lines = [
        ekf.row("EKF, five Taylor terms, q2 = 0.1", "1"),
        found.row(name, f"{runs.parameters:,}", seconds),
    ]
    checks = [
        Aim("NEES/dx away from 1", abs(found.nees - 1), 0.1),
        Aim("coverage away from 0.9", abs(found.coverage - 0.9), 0.05),
    ]
    fine = all(c.measured <= c.limit for c in checks)
    return f"{table(HEAD, lines)}\n\n{aims(checks)}", fine


# --- tails --------------------------------------------------------------------------------------------


def chaotic(d, seed):
    """The network of d units, with errors that are Gaussian in the model's words (R = 0.01) and t_2 in
    truth."""
    weights = jr.normal(jr.key(seed), (d, d)) / jnp.sqrt(1.0 * d)

    def move(t, x, u):
        mean = x + 0.001 * (-x + 2.5 * (weights * jnp.tanh(x)).sum(1)) / 0.025
        return dist.Normal(mean, 0.1).to_event(1)

    initial = dist.Normal(jnp.zeros(d), 1.0).to_event(1)
    tails = fd.Observation(lambda t, x, u: dist.StudentT(2.0, x, 0.1).to_event(1))
    plain = fd.LinearObservation(jnp.eye(d), 0.01 * jnp.ones(d))
    transition = fd.Transition(move)
    return (fd.StateSpaceModel(initial, transition, o) for o in (tails, plain))


def tails(quick, seeds):
    rows = 60 if quick else 500
    lines, checks = [], []
    for d, particles in ((5, 100 if quick else 10_000), (20, 100 if quick else 1_000)):
        errors, times = {}, {}
        for seed in range(seeds):
            truth, plain = chaotic(d, seed)
            drawn = fd.simulate(truth, np.arange(float(rows)), key=jr.key(50 + seed))
            series = fd.Series(np.arange(float(rows)), drawn.observations)
            own = {
                "measurements": None,
                "EKF, R = 0.01": (plain, fd.ExtendedKalmanFilter()),
                "EKF with StudentTNoise(2)": (
                    plain,
                    fd.ExtendedKalmanFilter(outliers=fd.StudentTNoise(2.0)),
                ),
                f"ParticleFilter, {particles:,}": (truth, fd.ParticleFilter(particles)),
            }
            for name, pair in own.items():
                mean = series.observations
                if pair is not None:
                    model, filter = pair
                    key = jr.key(seed) if isinstance(filter, fd.ParticleFilter) else None
                    run = lambda m=model, f=filter, k=key, s=series: jax.block_until_ready(
                        fd.filter(m, s, f, key=k).mean
                    )
                    run()
                    began = time.process_time()
                    mean = run()
                    times.setdefault(name, []).append(time.process_time() - began)
                error = np.asarray(mean - drawn.states)[50:]
                errors.setdefault(name, []).append(np.sqrt(np.mean(error**2)))
        for name, found in errors.items():
            spent = times.get(name)
            seconds = "-" if spent is None else number(1e3 * float(np.median(spent)))
            shown = f"{np.mean(found):.3f} ± {np.std(found) / np.sqrt(len(found)):.3f}"
            lines.append([f"{d} units: {name}", shown, seconds])
        robust, cloud = "EKF with StudentTNoise(2)", f"ParticleFilter, {particles:,}"
        if d == 5:
            worse = float(np.mean(errors[robust]) / np.mean(errors[cloud]))
            checks.append(Aim("5 units: error over that of the particle filter", worse, 1.02))
            faster = float(np.median(times[cloud]) / np.median(times[robust]))
            checks.append(Aim("5 units: times faster", faster, 50.0, at_least=True))
        else:
            checks.append(Aim("20 units: error", float(np.mean(errors[robust])), 0.11))
    text = table(["filter", "RMSE", "ms (CPU)"], lines)
    return f"{text}\n\n{aims(checks)}", all(c.measured <= c.limit for c in checks if not c.at_least)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--only", nargs="*", default=NAMES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--torch", help="a Python that has PyTorch")
    parser.add_argument("--torch-steps", type=int, default=4000)
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    options = parser.parse_args()
    quick, seeds, right = options.quick, 1 if options.quick else options.seeds, True
    steps = 2 if quick else options.torch_steps
    sections = {
        "linear-2": lambda: linear(2, quick, seeds, options.torch, steps),
        "linear-5": lambda: linear(5, quick, 1, options.torch, steps),
        "lorenz": lambda: turned(quick),
        "noise": lambda: noise_unknown(quick, seeds),
        "mismatch": lambda: mismatch(quick, seeds),
        "mismatch-states": lambda: mismatch_on_states(quick, seeds),
        "tails": lambda: tails(quick, seeds),
    }
    for name, section in sections.items():
        if name not in options.only:
            continue
        # KalmanNet's own precision where it is compared.
        jax.config.update("jax_enable_x64", not name.startswith("linear"))
        text, fine = section()
        right &= fine or quick
        text = f"{text}\n\n{surroundings(*PACKAGES)}"
        print(f"\n{name}\n\n{text}", flush=True)
        if options.write:
            write_section(f"kalmannet-{name}", text)
    sys.exit(not right)


if __name__ == "__main__":
    main()
