"""Recursive identification: against analytic recursive maximum likelihood, batch maximum likelihood, the best
joint filter, and over a million rows.

    python benchmarks/learning.py [--quick] [--write] [--only maximum-likelihood]

**Maximum likelihood**: ten states in the manner of Campbell et al. (2021, section 5.1): x' = diag(a) x +
N(0, 0.1), y = C x + N(0, 0.25), a learnt from one stream. The analytic recursion is the textbook filter
with derivatives written down by hand. **Step change**: the stiffness of an oscillator jumps from 2 to 3; the
oracle is the joint unscented filter whose random walk is the best in hindsight on these same records.
**Endurance**: time, memory and estimates over a million rows.
"""

import argparse
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from harness import Aim, aims, memory, number, surroundings, table, write_section

import filterdyn as fd

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpy", "numpyro")
CHUNK = 10_000


def say(text):
    print(f"  {text}", file=sys.stderr, flush=True)


def streamed(online, times, ys, inputs=None):
    """The state after a stream of so many rows, and CPU seconds per row of each chunk but for compiling."""
    us = lambda s: None if inputs is None else inputs[s]
    state = online.init(0.0, us(0))
    online.step_many(state, times[:CHUNK], ys[:CHUNK], us(slice(0, CHUNK)))
    seconds = []
    for start in range(0, len(times), CHUNK):
        s = slice(start, start + CHUNK)
        begin = time.process_time()
        state, _ = online.step_many(state, times[s], ys[s], us(s))
        seconds.append((time.process_time() - begin) / len(times[s]))
    return state, seconds


def size_of(state):
    """Bytes of what is carried from row to row."""
    return sum(np.asarray(v).nbytes for v in state.vectors)


# Ten states.

D = 10
RNG = np.random.default_rng(0)
RATES = RNG.uniform(0.5, 0.95, D)
C = np.eye(D) + 0.2 * RNG.normal(size=(D, D))
Q, R = 0.1, 0.25


def ten_states(p):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(D), 1.0).to_event(1),
        fd.LinearTransition(jnp.diag(p["rates"]), Q * jnp.eye(D)),
        fd.LinearObservation(C, R * jnp.eye(D)),
    )


def analytic(start, information, gain, ys):
    """Recursive maximum likelihood with the derivatives of the Kalman filter by a = tanh(theta / 2) written
    down: the end of theta and of the information. `gain(t)` steps along the score, `None` by information."""
    eye = jnp.eye(D)
    diagonals = jax.vmap(jnp.diag)(eye)

    def row(carry, y):
        theta, J, m, P, dm, dP, t = carry
        a = jnp.tanh(theta / 2)
        slope = 0.5 * (1 - a * a)
        first = t == 0
        m1, P1 = a * m, a[:, None] * P * a + Q * eye
        dm1 = a * dm + jnp.diag(slope * m)
        dF = slope[:, None, None] * diagonals
        dP1 = a[:, None] * dP * a + dF @ P * a + a[:, None] * P @ dF
        m, P, dm, dP = (jnp.where(first, x, z) for x, z in ((m, m1), (P, P1), (dm, dm1), (dP, dP1)))
        S = C @ P @ C.T + R * eye
        Si = jnp.linalg.inv(S)
        e, de, dS = y - C @ m, -dm @ C.T, C @ dP @ C.T
        w, SidS = Si @ e, Si @ dS
        score = (
            -de @ w
            + 0.5 * jnp.einsum("a,kab,b->k", w, dS, w)
            - 0.5 * jnp.trace(SidS, axis1=1, axis2=2)
        )
        new = J + de @ Si @ de.T + 0.5 * jnp.einsum("iab,jba->ij", SidS, SidS)
        K = P @ C.T @ Si
        dK = (dP @ C.T - K @ dS) @ Si
        left = eye - K @ C
        m, dm = m + K @ e, dm + dK @ e + de @ K.T
        dP = left @ dP - dK @ C @ P
        P = left @ P
        if gain is None:
            theta = theta + jnp.linalg.solve(new, score)
        else:
            theta = theta + gain(t) * score
        return (theta, new, m, 0.5 * (P + P.T), dm, 0.5 * (dP + dP.swapaxes(1, 2)), t + 1), None

    zeros = jnp.zeros
    carry = (start, information, zeros(D), eye, zeros((D, D)), zeros((D, D, D)), zeros(()))
    (theta, J, *_), _ = jax.lax.scan(row, carry, ys)
    return theta, J


def maximum_likelihood(quick):
    rows, seeds = (2_000, 1) if quick else (50_000, 2)
    model = fd.ParametricModel(
        ten_states, dict(rates=dist.Uniform(-1.0, 1.0).expand([D]).to_event(1))
    )
    online = fd.OnlineFilter(model, fd.RecursiveMaximumLikelihood(fd.KalmanFilter()))
    times = np.arange(float(rows))
    prior = jnp.linalg.inv(model.prior_cov)
    ours_by_hand = jax.jit(lambda ys: analytic(model.prior_mean, prior, None, ys))
    gains = {f"t^-{power}": power for power in (0.6,)}
    first_order = {
        name: jax.jit(
            lambda ys, power=power: analytic(
                model.prior_mean, prior, lambda t: (1 + t) ** -power, ys
            )[0]
        )
        for name, power in gains.items()
    }
    batch = jax.jit(
        jax.value_and_grad(
            lambda theta, ys: fd.log_likelihood(
                model.at(theta), fd.Series(times, ys), fd.KalmanFilter()
            )
        )
    )
    truth = dict(rates=jnp.asarray(RATES))
    OURS, HAND, BATCH = "RecursiveMaximumLikelihood", "analytic, by information", "batch"
    names = [BATCH, HAND, OURS, *(f"analytic, score times {name}" for name in gains)]
    squares = {name: [] for name in names}
    apart = {name: [] for name in names}
    seconds, bytes_carried = [], 0
    for seed in range(seeds):
        say(f"ten states, seed {seed}")
        ys = fd.simulate(ten_states(truth), times, key=jax.random.key(1 + seed)).observations
        state, per_row = streamed(online, times, np.asarray(ys))
        assert state.status == fd.Status.OK
        seconds += per_row
        bytes_carried = size_of(state)
        by_hand, information = ours_by_hand(ys)
        best = by_hand
        for _ in range(4):
            best = best + jnp.linalg.solve(information, batch(best, ys)[1])
        ends = {BATCH: best, HAND: by_hand, OURS: state.parameters.unconstrained_mean}
        for name, run in first_order.items():
            ends[f"analytic, score times {name}"] = run(ys)
        sd = np.sqrt(np.diagonal(np.linalg.inv(information)))
        for name, theta in ends.items():
            error = model.space.named(jnp.asarray(theta))["rates"] - RATES
            squares[name].append(np.mean(np.square(error)))
            apart[name].append(np.mean(np.square((theta - best) / sd)))
    rms = lambda found: {name: float(np.sqrt(np.mean(x))) for name, x in found.items()}
    error, distance = rms(squares), rms(apart)
    lines = [
        [name, f"{error[name]:.5f}", f"{error[name] / error[BATCH]:.3f}", number(distance[name])]
        for name in names
    ]
    head = [
        f"{rows:,} rows",
        "error of a",
        "over batch",
        "from batch, sd",
    ]
    goals = [
        Aim("error over that of the analytic recursion", error[OURS] / error[HAND], 1.1),
        Aim("distance from batch over its", distance[OURS] / distance[HAND], 1.1),
        Aim("error over that of batch maximum likelihood", error[OURS] / error[BATCH], 1.1),
    ]
    note = (
        f"{seeds} streams, ten parameters from a uniform prior; root mean squares. {bytes_carried:,} bytes "
        f"are carried from row to row; a row takes {1e6 * np.median(seconds):.0f} us of CPU time."
    )
    return f"{table(head, lines)}\n\n{note}\n\n{aims(goals)}", goals


# A step in the stiffness.

STEP, BEFORE, AFTER = 0.1, 2.0, 3.0


def oscillator(stiffness):
    A = jnp.array([[0.0, 1.0], [0.0, -0.3]]) - stiffness * jnp.array([[0.0, 0.0], [1.0, 0.0]])
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), 0.5).to_event(1),
        fd.LinearSDE(A, L=[[0.0], [0.2]], B=[[0.0], [1.0]]),
        fd.LinearObservation(H=[[1.0, 0.0]], R=0.05**2),
    )


def of_stiffness(p):
    return oscillator(p["stiffness"])


class Tracking(NamedTuple):
    whole: float
    after: float


def with_a_step(count, rows):
    """Records in which the stiffness jumps in the middle, and what it was."""
    times, half = STEP * np.arange(rows), rows // 2
    pushes = np.random.default_rng(0).choice([-1.0, 1.0], size=(count, rows // 10))
    records = []
    for i, u in enumerate(np.repeat(pushes, 10, axis=1)):
        first, second = jax.random.split(jax.random.key(i))
        u = u[:, None]
        a = fd.simulate(oscillator(BEFORE), times[:half], u[:half], key=first)
        at = dist.Delta(a.states[-1], event_dim=1)
        later = oscillator(AFTER)
        later = fd.StateSpaceModel(at, later.dynamics, later.observation)
        b = fd.simulate(later, times[half - 1 :], u[half - 1 :], key=second)
        records.append(fd.Series(times, np.concatenate([a.observations, b.observations[1:]]), u))
    return fd.stack(records), np.where(np.arange(rows) < half, BEFORE, AFTER)


def step_change(quick):
    count, rows = (2, 100) if quick else (16, 1200)
    series, truth = with_a_step(count, rows)
    settled, jump = rows // 12, rows // 2
    prior = dict(stiffness=dist.LogNormal(np.log(BEFORE), 0.3))

    def tracked(learner, walk=None):
        evolution = None if walk is None else fd.RandomWalk(walk)
        model = fd.ParametricModel(of_stiffness, prior, evolution=evolution)
        say(f"step change: {type(learner).__name__}")
        found = fd.filter(model, series, learner)
        assert (found.status == fd.Status.OK).all()
        errors = np.square(np.asarray(found.parameters.median["stiffness"]) - truth)
        rms = lambda x: float(np.sqrt(x.mean()))
        return Tracking(rms(errors[:, settled:]), rms(errors[:, jump : jump + rows // 6]))

    joint = fd.AugmentedFilter(fd.UnscentedKalmanFilter())
    extended = fd.AugmentedFilter(fd.ExtendedKalmanFilter())
    errors_of = lambda **options: fd.RecursivePredictionError(fd.KalmanFilter(), **options)
    likelihood = fd.RecursiveMaximumLikelihood(fd.KalmanFilter(), forgetting=0.97)
    walks = (0.05,) if quick else (0.03, 0.05, 0.08)
    factors = (0.97,) if quick else (0.95, 0.97, 0.98)
    found = {f"joint unscented, random walk {sd}": tracked(joint, sd) for sd in walks}
    oracle = min(found.values(), key=lambda t: t.whole)
    walk = dict(zip(found.values(), walks, strict=True))[oracle]
    found[f"joint extended, random walk {walk}"] = by_extended = tracked(extended, walk)
    found[f"RecursivePredictionError, random walk {walk}"] = by_walk = tracked(errors_of(), walk)
    forgetful = {
        f"RecursivePredictionError, forgetting {f}": tracked(errors_of(forgetting=f))
        for f in factors
    }
    found |= forgetful
    found["RecursiveMaximumLikelihood, forgetting 0.97"] = tracked(likelihood)
    lines = [
        [name, number(t.whole), number(t.after), f"{t.whole / oracle.whole:.3f}"]
        for name, t in found.items()
    ]
    head = ["error of the stiffness", "whole record", "20 s after the step", "over the oracle's"]
    usual = forgetful["RecursivePredictionError, forgetting 0.97"]
    worst = max(t.whole for t in forgetful.values())
    goals = [
        Aim("prediction errors, forgetting 0.97", usual.whole / oracle.whole, 1.2),
        Aim("prediction errors, the worst of these factors", worst / oracle.whole, 1.2),
        Aim("prediction errors, that random walk", by_walk.whole / oracle.whole, 1.2),
        Aim("joint extended filter, that random walk", by_extended.whole / oracle.whole, 1.2),
    ]
    note = (
        f"{count} records of {rows} rows; root mean square errors, without the first {settled * STEP:.0f} s. "
        f"The oracle is the joint filter with random walk {walk}, the best in hindsight."
    )
    return f"{table(head, lines)}\n\n{note}\n\n{aims(goals)}", goals


# A million rows.


def scalar(p):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition(p["rate"] * jnp.eye(1), p["drive"] * jnp.eye(1)),
        fd.LinearObservation([[1.0]], p["noise"]),
    )


def as_type(model, dtype):
    is_number = lambda x: jnp.issubdtype(getattr(x, "dtype", int), jnp.floating)
    return jax.tree.map(lambda x: x.astype(dtype) if is_number(x) else x, model)


def waves(t, u):
    return jnp.stack([jnp.ones_like(u[0]), u[0], u[1]])


def endurance(quick):
    rows = 2 * CHUNK if quick else 1_000_000
    rng = np.random.default_rng(1)
    times = np.arange(float(rows))
    u = rng.normal(size=(rows, 2))
    y = u @ [1.0, -2.0] + 0.5 + 0.1 * rng.normal(size=rows)
    wide = dist.Normal(0.0, 10.0).expand([3]).to_event(1)
    line = fd.Regression(waves, 0.01, dict(weights=wide))
    prior = dict(
        rate=dist.Uniform(0.0, 1.0),
        drive=dist.LogNormal(-1.0, 0.5),
        noise=dist.LogNormal(-1.0, 0.5),
    )
    decay = fd.ParametricModel(scalar, prior)
    seen = fd.simulate(
        scalar(dict(rate=0.8, drive=0.5, noise=0.2)), times, key=jax.random.key(0)
    ).observations
    seen = np.asarray(seen)
    kalman = fd.KalmanFilter()
    cases = {
        "RecursiveLeastSquares": (line, fd.RecursiveLeastSquares(), y, u),
        "RecursiveLeastSquares, forgetting 0.999": (
            line,
            fd.RecursiveLeastSquares(forgetting=0.999),
            y,
            u,
        ),
        "RecursiveMaximumLikelihood": (decay, fd.RecursiveMaximumLikelihood(kalman), seen, None),
    }
    lines, goals = [], []
    for name, (model, learner, ys, inputs) in cases.items():
        ends, first, last, grown = {}, 0.0, 0.0, 0.0
        for dtype in (np.float64, np.float32):
            say(f"endurance: {name}, {np.dtype(dtype).name}")
            online = fd.OnlineFilter(as_type(model, dtype), learner)
            some = None if inputs is None else inputs.astype(dtype)
            before = memory("VmRSS")
            state, seconds = streamed(online, times, ys.astype(dtype), some)
            assert state.status == fd.Status.OK
            ends[dtype] = state
            if dtype is np.float64:
                half = len(seconds) // 2
                first, last = np.median(seconds[:half]), np.median(seconds[half:])
                grown = memory("VmRSS") - before
        exact, single = (ends[d] for d in (np.float64, np.float32))
        cov = exact.belief.memory.spread.matrix
        sd = np.sqrt(np.diagonal(cov))
        away = (
            np.abs(single.parameters.unconstrained_mean - exact.parameters.unconstrained_mean) / sd
        )
        lines.append(
            [
                name,
                number(1e6 * first),
                number(1e6 * last),
                f"{size_of(exact):,}",
                number(grown),
                number(away.max()),
            ]
        )
        goals.append(
            Aim(f"{name}: time of the second half over that of the first", last / first, 1.25)
        )
        goals.append(Aim(f"{name}: float32 from float64, sd", float(away.max()), 0.25))
    head = ["", "us a row, first half", "second half", "bytes carried", "MB grown", "float32, sd"]
    note = f"{rows:,} rows, of which what is carried from row to row keeps its size; times in CPU time."
    return f"{table(head, lines)}\n\n{note}\n\n{aims(goals)}", goals


PARTS = {
    "maximum-likelihood": maximum_likelihood,
    "step-change": step_change,
    "endurance": endurance,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rows")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--only", choices=PARTS, help="one of the parts")
    asked = parser.parse_args()
    if asked.quick and asked.write:
        parser.error("a quick run shows that all runs, its figures are not worth writing down")
    numpyro.enable_x64()
    for name, part in PARTS.items():
        if asked.only in (None, name):
            text, _ = part(asked.quick)
            text = f"{text}\n\n{surroundings(*PACKAGES)}"
            print(text)
            if asked.write:
                write_section(f"learning-{name}", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
