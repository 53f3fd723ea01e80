"""Streams: one event, a fleet of a thousand systems, and a fleet of a hundred thousand.

    python benchmarks/online.py [--quick] [--write]

Four states and two sensors, measured with filterpy in one process and in rounds. An event is timed twice:
with JAX as it comes, and with `jax_cpu_enable_async_dispatch` off, which the documentation recommends for
a stream on a CPU: a step is then run where it is called and not handed to another thread.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np
import problems
from harness import (
    Aim,
    aims,
    forget_peak,
    interleave,
    measured,
    memory,
    number,
    ratio,
    surroundings,
    table,
    write_section,
)  # fmt: skip

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpy", "filterpy")
OURS, WITH, READ = "filterdyn", "filterdyn, log-likelihood read", "filterdyn, all parts read"
THEIRS, THEIRS_WITH = "filterpy", "filterpy, with log-likelihood"
ROWS = 500


def steppers(problem):
    """What goes through the rows one by one, and returns the log-likelihood where it reads it."""
    from contestants.ours import linear_model

    import filterdyn as fd

    follow = fd.OnlineFilter(linear_model(problem, problem.parameters), fd.KalmanFilter())
    clock = [float(k) for k in range(len(problem.ys))]
    looks = {
        OURS: lambda result: 0.0,
        WITH: lambda result: result.log_likelihood,
        READ: lambda r: (r.mean, r.cov, r.innovation, r.nis, r.status) and r.log_likelihood,
    }

    def ours(look):
        state, total = follow.init(0.0), 0.0
        for t, y in zip(clock, problem.ys, strict=True):
            state, result = follow.step(state, t, y)
            total += look(result)
        # (What is still under way counts too.)
        return float(total or state.log_likelihood)

    runs = {name: lambda look=look: ours(look) for name, look in looks.items()}
    try:
        from contestants import filterpy
    except ImportError:
        return runs

    def theirs(read):
        filter, total = filterpy.make(problem), 0.0
        for row, y in enumerate(problem.ys):
            if row:
                filter.predict()
            filter.update(y)
            if read:
                total += filter.log_likelihood
        return total

    return runs | {THEIRS: lambda: theirs(False), THEIRS_WITH: lambda: theirs(True)}


def one_event(rounds):
    """CPU and wall seconds per event of everyone, and whether they agree."""
    problem = problems.linear(4, 2, ROWS)
    runs = steppers(problem)
    answers = {name: call() for name, call in runs.items()}
    reference = answers.get(THEIRS_WITH, answers[OURS])
    agree = all(abs(a - reference) < 1e-6 for name, a in answers.items() if name != THEIRS)
    timers = {name: lambda n, call=call: measured(call, n) for name, call in runs.items()}
    costs = interleave(timers, rounds, 8.0)
    return {name: (c.cpu / ROWS, c.wall / ROWS) for name, c in costs.items()}, agree


def fleet(keys, calls, rounds, square_root=True):
    """CPU seconds per event of a bank, its compiled call alone, and the memory it takes."""
    import jax
    from contestants.ours import linear_model

    import filterdyn as fd
    from filterdyn.online.bank_schedule import in_blocks

    problem = problems.fleet(keys, calls)
    model = linear_model(problem, problem.parameters)
    before = memory("VmRSS")
    forget_peak()
    bank = fd.FilterBank(model, fd.KalmanFilter(square_root=square_root), donate=True)
    names, state = np.arange(keys), bank.init()
    cpu, wall, totals = [], [], np.zeros(keys)
    for call in range(calls):
        ys = np.ascontiguousarray(problem.ys[:, call])
        start = time.process_time(), time.perf_counter()
        state, result = bank.step(state, names, float(call), ys)
        totals += result.log_likelihood
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    after, peak = memory("VmRSS"), memory("VmHWM")
    # A few of the keys by the batch verb.
    agree = True
    for key in range(0, keys, max(1, keys // 5)):
        series = fd.Series(np.arange(float(problem.ys.shape[1])), problem.ys[key])
        expected = float(fd.log_likelihood(model, series, fd.KalmanFilter()))
        agree &= abs(totals[key] - expected) < 1e-6
    kernel = bank._kernel(state.layout)
    lanes = kernel.lanes
    blocks = in_blocks(np.arange(keys), np.zeros(keys, int), 1, lanes)
    rows = np.zeros((*blocks.slots.shape[:2], kernel.kernel.width, lanes))
    rows[:, :, 1] = 1.0
    tables = state.tables

    def inside(repeats):
        nonlocal tables

        def call():
            nonlocal tables
            tables, record = kernel.advance(tables, blocks.slots, rows, blocks.counts)
            jax.block_until_ready(record)

        return measured(call, repeats)

    inside(1)
    alone = interleave({"call": inside}, rounds, 5.0)["call"]
    skip = min(3, calls - 1)
    return dict(
        cpu=float(np.median(cpu[skip:])) / keys,
        wall=float(np.median(wall[skip:])) / keys,
        inside=alone.cpu / keys,
        total=sum(wall),
        data=problem.ys.nbytes / 2**20,
        before=before,
        after=after,
        peak=peak,
        compiled=bank.compile_count,
    ), bool(agree)


PARTS = {
    "event": lambda quick: one_event(2 if quick else 11),
    "thousand": lambda quick: fleet(1_000, 5 if quick else 100, 2 if quick else 11),
    "covariances": lambda quick: fleet(1_000, 5 if quick else 100, 2 if quick else 11, False),
    "hundred thousand": lambda quick: fleet(2_000 if quick else 100_000, 4 if quick else 100, 3),
}


def alone(part, quick, inline):
    """A part in a process of its own."""
    flags = ["--part", part, *(["--quick"] if quick else []), *(["--inline"] if inline else [])]
    print(f"  {part}{', inline' if inline else ''}", file=sys.stderr, flush=True)
    found = subprocess.run(
        [sys.executable, __file__, *flags], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def report(quick):
    plain, agree = alone("event", quick, False)
    inline, also = alone("event", quick, True)
    some, thousand = alone("thousand", quick, True)
    form, other = alone("covariances", quick, True)
    many, hundred = alone("hundred thousand", quick, True)
    us = lambda seconds: number(None if seconds is None else seconds * 1e6)
    both = lambda cost: f"{us(cost[0])} [{us(cost[1])}]"
    rows = [[name, both(plain[name]), both(inline[name])] for name in plain]
    text = table(["us of CPU time per event [wall]", "JAX as it comes", "run inline"], rows)
    fleets = [
        [what, us(f["inside"]), us(f["cpu"]), us(f["wall"]), f["compiled"]]
        for what, f in (
            ("1,000 keys", some),
            ("1,000 keys, covariance form", form),
            ("100,000 keys", many),
        )
    ]
    head = ["us per event", "inside the call", "with all of Python", "wall", "compilations"]
    text += f"\n\n{table(head, fleets)}"
    text += (
        f"\n\n100,000 keys with 100 events each took {many['total']:.1f} s in one process. Memory was "
        f"{many['before']:.0f} MB with the data ({many['data']:.0f} MB) and the library,\n"
        f"{many['after']:.0f} MB at the end, {many['peak']:.0f} MB at the highest."
    )
    theirs, theirs_with = (inline.get(name, [None])[0] for name in (THEIRS, THEIRS_WITH))
    goals = [
        Aim("one event, log-likelihood: filterpy / filterdyn", ratio(theirs_with, inline[WITH][0]), 4, True),
        Aim("one event: filterdyn / filterpy without its log-likelihood", ratio(inline[OURS][0], theirs), 1),
        Aim("1,000 keys: us per event inside one call", some["inside"] * 1e6, 0.25),
        Aim("1,000 keys, covariance form: the same", form["inside"] * 1e6, 0.25),
        Aim("1,000 keys: filterpy / filterdyn in one call", ratio(theirs_with, some["inside"]), 100, True),
        Aim("1,000 keys: filterpy / filterdyn, all of Python", ratio(theirs_with, some["cpu"]), 100, True),
    ]  # fmt: skip
    ok = agree and also and thousand and other and hundred
    return f"{text}\n\n{aims(goals)}\n\n{surroundings(*PACKAGES)}", ok


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few events and few rounds")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--inline", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        import jax

        jax.config.update("jax_enable_x64", True)
        if asked.inline:
            jax.config.update("jax_cpu_enable_async_dispatch", False)
        print(json.dumps(PARTS[asked.part](asked.quick)))
        return 0
    if asked.quick and asked.write:
        parser.error("a quick run shows that all runs, its figures are not worth writing down")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    text, agree = report(asked.quick)
    print(text)
    if asked.write:
        write_section("online", text)
    if not agree:
        print("log-likelihoods differ", file=sys.stderr)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
