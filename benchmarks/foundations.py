"""What everything stands on: import time, first number, memory, compilations, one step online.

    python benchmarks/foundations.py [--quick] [--write]

The exit status tells whether the answers are right (filterpy's and the textbook's), not whether they are
fast.
"""

import argparse
import json
import statistics
import subprocess
import sys
import textwrap

import numpy as np
import numpyro
import problems
from harness import (
    Aim,
    aims,
    interleave,
    measured,
    number,
    surroundings,
    table,
    write_section,
)
from worker import Worker

import filterdyn as fd

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpyro", "diffrax", "numpy", "filterpy")


def fresh(code):
    """What a program prints as JSON in a process of its own."""
    program = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def import_ratio(rounds):
    """CPU seconds of `import filterdyn` and of what it builds on, medians of alternating processes."""
    program = (
        "import json, time; t = time.process_time(); import {}; print(time.process_time() - t)"
    )
    names = ("filterdyn", "numpyro, diffrax")
    seconds = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            seconds[name].append(fresh(program.format(name)))
    ours, base = (statistics.median(seconds[name]) for name in names)
    row = ["import filterdyn", f"{number(ours)} s, numpyro and diffrax {number(base)} s"]
    return [row], [Aim("import / import of numpyro and diffrax", ours / base, 1.5)]


def first_numbers(rows):
    """Seconds by the clock until value and gradient are there, for few rows and for many."""
    found, agree = [], True
    for count in (100, rows):
        sizes = ("linear", 4, 2, count)
        worker = Worker("ours", "linear", sizes, "gradient")
        first = worker.first()
        worker.close()
        reference = by_the_book(problems.linear(*sizes[1:]))
        agree &= abs(first["log_likelihood"] - reference) <= 1e-6 * abs(reference)
        found.append(first)
    few, many = (first["wall"] for first in found)
    row = ["first value and gradient", f"{number(few)} s of 100 rows, {number(many)} s of {rows:,}"]
    goals = [Aim(f"first value and gradient, {rows:,} rows, s", many, 3.0)]
    return [row], goals, agree


def big_gradient(rows):
    """The most memory that a value and gradient of a long series needs, and what it costs."""
    worker = Worker("ours", "linear", ("linear", 4, 2, rows), "gradient")
    first = worker.first()
    again = worker.timer(1)
    worker.close()
    size = f"{rows:,} rows"
    row = [
        f"value and gradient, {size}",
        f"{number(first['megabytes'])} MB, {number(again.cpu)} s of CPU time",
    ]
    return [row], [Aim(f"memory of value and gradient, {size}, MB", first["megabytes"], 2000)]


def by_the_book(problem):
    m, P, total = problem.m0, problem.P0, 0.0
    for y in problem.ys:
        m, P, more = problems.update(m, P, y, problem.H, problem.R)
        m, P, total = problem.F @ m, problem.F @ P @ problem.F.T + problem.Q, total + more
    return total


def compilations():
    """How many compilations five series of one shape cost after the first, which must cost some."""
    import jax
    from contestants.ours import linear_model

    count = [0] * 6

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            count[seed] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    for seed in range(6):
        problem = problems.linear(2, 1, 50, seed)
        series = fd.Series(np.arange(50.0), problem.ys)
        fd.log_likelihood(linear_model(problem, problem.parameters), series, fd.KalmanFilter())
    first, later = count[0], sum(count[1:])
    row = ["compilations", f"{first} with the first series, {later} with five more"]
    goal = Aim("compilations of five further series of one shape", float(later), 0)
    return [row], [goal], first > 0


def online(rounds):
    """One step of `OnlineFilter` and of filterpy, four states and two sensors."""
    from contestants.ours import linear_model

    problem = problems.linear(4, 2, 200)
    follow = fd.OnlineFilter(linear_model(problem, problem.parameters), fd.KalmanFilter())
    times = np.arange(200.0)

    def ours():
        state, means = follow.init(0.0), []
        for t, y in zip(times, problem.ys, strict=True):
            state, result = follow.step(state, t, y)
            means.append(np.asarray(result.mean))
        return means

    runs = {"filterdyn": ours}
    try:
        from contestants import filterpy
    except ImportError:
        agree = True
    else:
        theirs = filterpy.linear(problem).moments
        agree = bool(np.abs(np.stack(ours()) - theirs()[1]).max() < 1e-9)
        runs["filterpy"] = theirs
    timers = {name: lambda n, call=call: measured(call, n) for name, call in runs.items()}
    costs = interleave(timers, rounds, 10.0)
    rows = [
        [f"one step online, {name}", f"{number(cost.cpu / 200 * 1e6)} us of CPU time"]
        for name, cost in costs.items()
    ]
    goals = []
    if "filterpy" in costs:
        quotient = costs["filterdyn"].cpu / costs["filterpy"].cpu
        goals.append(Aim("one step online: filterdyn / filterpy", quotient, 1.0))
    return rows, goals, agree


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short series and few rounds")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    asked = parser.parse_args()
    if asked.quick and asked.write:
        parser.error("a quick run shows that all runs, its figures are not worth writing down")
    numpyro.enable_x64()
    rows, goals, wrong = [], [], []
    parts = {
        "import": lambda: import_ratio(1 if asked.quick else 5),
        "first numbers": lambda: first_numbers(1_000 if asked.quick else 10_000),
        "memory": lambda: big_gradient(2_000 if asked.quick else 100_000),
        "compilations": compilations,
        "online": lambda: online(2 if asked.quick else 15),
    }
    for name, part in parts.items():
        print(f"  {name}", file=sys.stderr, flush=True)
        more, aimed, *agree = part()
        rows += more
        goals += aimed
        wrong += [name] if agree == [False] else []
    text = f"{table(['', 'measured'], rows)}\n\n{aims(goals)}\n\n{surroundings(*PACKAGES)}"
    print(text)
    if asked.write:
        write_section("foundations", text)
    for name in wrong:
        print(f"wrong answer: {name}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
