"""Gaussian filters against a C floor and against other libraries: values, gradients, first calls, memory.

    python benchmarks/gaussian.py [--quick] [--only linear-2 lorenz ...] [--write]

Everyone must first agree on the log-likelihood to 1e-6. Then two kinds of measurement: all in this process,
interleaved, which compares algorithms; and each in a process of its own without flags for XLA, interleaved
too, which compares what users get. CPU time over all threads, medians. The exit status tells whether
filterdyn's answers are right, not whether it is fast.
"""

import argparse
import sys
from importlib import import_module
from typing import NamedTuple

import numpy as np
import numpyro
import problems
from harness import (
    Aim,
    Cost,
    aims,
    interleave,
    measured,
    number,
    ratio,
    surroundings,
    table,
    write_section,
)
from worker import Worker

import filterdyn  # noqa: F401  (before JAX starts, so that small loops are fused)

TOLERANCE = 1e-6
PACKAGES = (
    "filterdyn",
    "jax",
    "jaxlib",
    "numpy",
    "dynamax",
    "cd-dynamax",
    "cuthbert",
    "kalman-py",
    "statsmodels",
    "filterpy",
    "simdkalman",
)


class Entry(NamedTuple):
    """A contestant in a case: what the tables call it, its module and its function."""

    label: str
    module: str
    function: str

    @property
    def is_ours(self):
        return self.module == "ours"

    @property
    def is_jax(self):
        return self.module in ("dynamax", "cd_dynamax", "cuthbert", "kalman_py", "textbook")


class Case(NamedTuple):
    """A problem with those who solve it. The first that is not ours is the reference."""

    title: str
    problem: tuple
    quick: tuple
    entries: tuple[Entry, ...]
    #: Are first calls, memory and users' timings measured as well, each in a process of its own?
    alone: bool = False


OURS, COVARIANCE = "filterdyn", "filterdyn, covariance form"
#: `MultivariateNormal(..., covariance_matrix=Q)` in the transition, which NumPyro would factor in every row.
UNFACTORED = "filterdyn, covariance_matrix=Q"
#: No public call: compiled for the log-likelihood alone, as kalman-py's own `fit_noise` does.
INSIDE = "kalman-py's inner function"
LINEAR = (
    Entry("C floor", "floor", "linear"),
    Entry("textbook scan", "textbook", "linear"),
    Entry(OURS, "ours", "linear"),
    Entry(COVARIANCE, "ours", "linear_covariance"),
    Entry("dynamax", "dynamax", "linear"),
    Entry("cuthbert", "cuthbert", "linear"),
    Entry("kalman-py (JAX)", "kalman_py", "linear"),
    Entry(INSIDE, "kalman_py", "linear_inside"),
    Entry("statsmodels", "statsmodels", "linear"),
    Entry("filterpy", "filterpy", "linear"),
    Entry("simdkalman", "simdkalman", "linear"),
)
EXTENDED = (
    Entry("textbook scan", "textbook", "extended"),
    Entry(OURS, "ours", "extended"),
    Entry(COVARIANCE, "ours", "extended_covariance"),
    Entry(UNFACTORED, "ours", "extended_with_covariance"),
    Entry("dynamax", "dynamax", "extended"),
    Entry("cuthbert", "cuthbert", "extended"),
    Entry("kalman-py (JAX)", "kalman_py", "extended"),
)
UNSCENTED = (
    Entry(OURS, "ours", "unscented"),
    Entry("dynamax", "dynamax", "unscented"),
    Entry("kalman-py (JAX)", "kalman_py", "unscented"),
)
AS_ACCURATE = "filterdyn, 7 substeps"
LORENZ = (
    Entry(OURS, "ours", "lorenz"),
    Entry(AS_ACCURATE, "ours", "lorenz_seven_substeps"),
    Entry("cd-dynamax", "cd_dynamax", "lorenz"),
)
VMAP = "filterdyn, vmap"
FLEET = (
    Entry("textbook scan, vmap", "textbook", "fleet"),
    Entry(OURS, "ours", "fleet"),
    Entry(VMAP, "ours", "fleet_vmap"),
    Entry("dynamax, vmap", "dynamax", "fleet"),
    Entry("simdkalman", "simdkalman", "fleet"),
)


def _linear(dx, dy, rows, alone=False):
    title = f"Kalman filter, {dx} states, {dy} sensors, {rows:,} rows"
    return Case(title, ("linear", dx, dy, rows), ("linear", dx, dy, 200), LINEAR, alone)


CASES = {
    "linear-2": _linear(2, 1, 10_000, alone=True),
    "linear-4": _linear(4, 2, 10_000, alone=True),
    "linear-8": _linear(8, 4, 10_000),
    "linear-16": _linear(16, 8, 10_000),
    "linear-64": _linear(64, 16, 1_000),
    "extended": Case(
        "Extended filter, pendulum, 10,000 rows",
        ("pendulum", 10_000),
        ("pendulum", 200),
        EXTENDED,
        True,
    ),
    "unscented": Case(
        "Unscented filter, pendulum, 10,000 rows",
        ("pendulum", 10_000),
        ("pendulum", 200),
        UNSCENTED,
        True,
    ),
    "lorenz": Case(
        "Continuous-discrete extended filter, Lorenz-63, 500 irregular times",
        ("lorenz", 500),
        ("lorenz", 40),
        LORENZ,
        True,
    ),
    "fleet": Case(
        "1,000 series of 1,000 rows, one system of 4 states and 2 sensors",
        ("fleet", 1_000, 1_000),
        ("fleet", 20, 50),
        FLEET,
    ),
}
KINDS = ("value", "gradient", "moments")


class Found(NamedTuple):
    """What is known about an entry: by kind, in this process and alone."""

    #: Differences to the reference: of the log-likelihood and the gradient (relative), and of the
    #: filtered means (root mean square).
    difference: float
    gradient_difference: float | None
    means_difference: float | None
    here: dict[str, Cost]
    alone: dict[str, Cost]
    first: dict[str, dict]


def apart(a, b):
    """The largest relative difference of log-likelihoods."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    gap = np.abs(a - b) / np.maximum(1.0, np.abs(b))
    return float(np.where(np.isnan(gap), np.inf, gap).max())


def gradients_apart(a, b):
    """The same for gradients. Those by covariances are compared as symmetric matrices."""
    if a is None or b is None:
        return None
    worst = 0.0
    for name, one in a.items():
        one, other = np.asarray(one), np.asarray(b[name])
        if name in "QR":
            one, other = (one + one.T) / 2, (other + other.T) / 2
        gap = np.abs(one - other).max() / np.abs(other).max()
        worst = max(worst, np.inf if np.isnan(gap) else float(gap))
    return worst


def means_apart(a, b):
    """Root mean square difference of the rows that both have: some leave out the first."""
    if a is None or b is None:
        return None
    rows = min(len(a), len(b))
    return float(np.sqrt(np.mean(np.square(np.asarray(a)[-rows:] - np.asarray(b)[-rows:]))))


class Answer(NamedTuple):
    """What an entry says of a problem."""

    log_likelihood: np.ndarray
    gradient: dict | None
    means: np.ndarray | None


def prepare(case, problem):
    """Every entry that can be had, with its answer."""
    runs, answers, absent = {}, {}, []
    for entry in case.entries:
        try:
            module = import_module(f"contestants.{entry.module}")
            made = getattr(module, entry.function)(problem)
        except ImportError as error:
            absent.append(f"{entry.label}: {error}")
            continue
        gradient = made.gradient()[1] if made.gradient else None
        # (The floor writes every gradient into the same arrays.)
        copied = gradient and {name: np.array(value) for name, value in gradient.items()}
        means = made.moments()[1] if made.moments else None
        answers[entry.label] = Answer(np.asarray(made.value()), copied, means)
        runs[entry.label] = made
        print(f"  {entry.label} compiled", file=sys.stderr, flush=True)
    return runs, answers, absent


def reference(case, problem, answers):
    """The answer to compare with, and whose it is."""
    peers = [e.label for e in case.entries if not e.is_ours and e.label in answers]
    first = lambda field: next(
        (x for x in (getattr(answers[p], field) for p in peers) if x is not None), None
    )
    if hasattr(problem, "times"):
        value, means = problems.lorenz_exactly(problem)
        return Answer(value, first("gradient"), means), "the exact moment equations"
    if not peers:
        return None, None
    return Answer(*(first(field) for field in Answer._fields)), peers[0]


def measure(case, sizes, rounds, budget):
    """All there is to know about a case: `Found` by label, the reference's name, and who is absent."""
    make, *numbers = sizes
    problem = getattr(problems, make)(*numbers)
    runs, answers, absent = prepare(case, problem)
    truth, source = reference(case, problem, answers)
    truth = truth or Answer(answers[OURS].log_likelihood, None, None)
    differences = {
        label: (
            apart(answer.log_likelihood, truth.log_likelihood),
            gradients_apart(answer.gradient, truth.gradient),
            means_apart(answer.means, truth.means),
        )
        for label, answer in answers.items()
    }
    trusted = [label for label in runs if differences[label][0] <= TOLERANCE]
    here = {kind: {} for kind in KINDS}
    for kind in KINDS:
        calls = {label: getattr(runs[label], kind) for label in trusted}
        timers = {
            label: lambda repeats, call=call: measured(call, repeats)
            for label, call in calls.items()
            if call is not None
        }
        here[kind] = interleave(timers, rounds, budget)
    own, first = ({kind: {} for kind in KINDS} for _ in range(2))
    if case.alone:
        entries = [entry for entry in case.entries if entry.label in trusted]
        for kind in KINDS:
            able = [e for e in entries if getattr(runs[e.label], kind) and e.module != "floor"]
            own[kind], first[kind] = alone(able, sizes, kind, rounds, budget)
    found = {
        label: Found(
            *differences[label],
            *({k: by[k][label] for k in KINDS if label in by[k]} for by in (here, own, first)),
        )
        for label in runs
    }
    return found, source, absent


def alone(entries, sizes, kind, rounds, budget):
    """Timings and first calls with each in a process of its own, one after the other in rounds."""
    workers, first = {}, {}
    try:
        for entry in entries:
            worker = Worker(entry.module, entry.function, sizes, kind)
            workers[entry.label] = worker
            first[entry.label] = worker.first()
            print(f"  {entry.label}, alone: {kind} ran", file=sys.stderr, flush=True)
        timers = {label: worker.timer for label, worker in workers.items()}
        return interleave(timers, rounds, budget), first
    finally:
        for worker in workers.values():
            worker.close()


def steps(sizes):
    """How many rows a call of this problem filters."""
    make, *numbers = sizes
    return int(np.prod(numbers)) if make == "fleet" else numbers[-1]


def cpu(found, label, kind, where="here"):
    """Seconds of CPU time of a call, if it was measured."""
    return getattr(found[label], where)[kind].cpu if kind in has(found, label, where) else None


def has(found, label, where):
    return getattr(found[label], where) if label in found else {}


def fastest(found, labels, kind, where):
    """The least CPU time among these, and whose it is."""
    times = [(cpu(found, label, kind, where), label) for label in labels]
    return min(((t, label) for t, label in times if t is not None), default=(None, None))


def in_process_table(found, rows):
    floor = "C floor"
    head = [""]
    kinds = [kind for kind in KINDS if any(kind in f.here for f in found.values())]
    for kind in kinds:
        head += [f"{kind}, ns (wall)"] + ([f"{kind} / floor"] if floor in found else [])
    head += ["difference", "of gradient", "of means"]
    lines = []
    for label, entry in found.items():
        line = [label]
        for kind in kinds:
            cost = entry.here.get(kind)
            shown = cost and f"{number(cost.cpu / rows * 1e9)} ({number(cost.wall / rows * 1e9)})"
            line.append(shown or "-")
            if floor in found:
                line.append(number(ratio(cost and cost.cpu, cpu(found, floor, kind))))
        wrong = entry.difference > TOLERANCE
        line.append(number(entry.difference, 2) + (" **differs**" if wrong else ""))
        line += [number(entry.gradient_difference, 2), number(entry.means_difference, 2)]
        lines.append(line)
    return table(head, lines)


def alone_table(found, rows):
    kinds = [kind for kind in KINDS if any(kind in f.alone for f in found.values())]
    head = ["", *(f"{kind}, ns" for kind in kinds)]
    head += [f"first {kind}, s" for kind in kinds] + [f"{kind}, MB" for kind in kinds]
    lines = []
    for label, entry in found.items():
        if not entry.alone:
            continue
        get = lambda by, kind, field: by[kind][field] if kind in by else None
        line = [label]
        line += [
            number(entry.alone[k].cpu / rows * 1e9 if k in entry.alone else None) for k in kinds
        ]
        line += [number(get(entry.first, k, "wall")) for k in kinds]
        line += [number(get(entry.first, k, "megabytes")) for k in kinds]
        lines.append(line)
    return table(head, lines)


def wanted(name, case, found):
    """What the case is meant to reach."""
    peers = [e.label for e in case.entries if e.is_jax and e.module != "textbook"]
    peers = [label for label in peers if label != INSIDE]
    others = [e.label for e in case.entries if not e.is_ours and e.module != "floor"]
    floor = lambda label, kind: ratio(cpu(found, label, kind), cpu(found, "C floor", kind))
    faster = lambda label, kind, than, where: ratio(
        than if not isinstance(than, str) else cpu(found, than, kind, where),
        cpu(found, label, kind, where),
    )
    goals = []
    if name in ("linear-2", "linear-4"):
        goals += [
            Aim("value, square-root form / floor", floor(OURS, "value"), 3.2),
            Aim("value, covariance form / floor", floor(COVARIANCE, "value"), 1.6),
            Aim("gradient, square-root form / floor", floor(OURS, "gradient"), 3.0),
        ]
        for kind in ("value", "moments"):
            best, who = fastest(found, peers, kind, "alone")
            speed = faster(OURS, kind, best, "alone")
            goals.append(Aim(f"{kind}, alone: {who or 'nobody'} / filterdyn", speed, 10, True))
        speed = faster(OURS, "gradient", "dynamax", "alone")
        goals.append(Aim("gradient, alone: dynamax / filterdyn", speed, 30, True))
    if name in ("linear-16", "linear-64"):
        for kind in ("value", "gradient"):
            best, who = fastest(found, others, kind, "here")
            form = min(cpu(found, label, kind) or np.inf for label in (OURS, COVARIANCE))
            goals.append(
                Aim(f"{kind}, best form: filterdyn / {who or 'nobody'}", ratio(form, best), 1.0)
            )
    if name in ("extended", "unscented"):
        for kind in ("value", "gradient"):
            speed = faster(OURS, kind, "dynamax", "alone")
            goals.append(Aim(f"{kind}, alone: dynamax / filterdyn", speed, 10, True))
    if name == "lorenz" and "cd-dynamax" in found:
        goals.append(
            Aim(
                "error of means, 7 substeps: filterdyn / cd-dynamax",
                ratio(found[AS_ACCURATE].means_difference, found["cd-dynamax"].means_difference),
                1.0,
            )
        )
        for kind in ("value", "gradient"):
            speed = faster(AS_ACCURATE, kind, "cd-dynamax", "alone")
            goals.append(Aim(f"{kind}, alone: cd-dynamax / filterdyn", speed, 5, True))
    if name == "fleet":
        speed = faster(OURS, "value", "textbook scan, vmap", "here")
        goals.append(Aim("value: textbook scan, vmap / filterdyn", speed, 10, True))
    if case.alone:
        for kind in ("value", "gradient"):
            firsts = [found[p].first[kind]["wall"] for p in peers if kind in has(found, p, "first")]
            ours = has(found, OURS, "first").get(kind)
            best = min(firsts, default=None)
            what = f"first {kind}: filterdyn / fastest JAX peer"
            goals.append(Aim(what, ratio(ours and ours["wall"], best), 1.5))
    return goals


def losses(case, found):
    """Where somebody is faster than filterdyn's default, in words."""
    lines = []
    for entry in case.entries:
        if entry.is_ours:
            continue
        for where, name in (("here", "in one process"), ("alone", "alone")):
            for kind in KINDS:
                quotient = ratio(
                    cpu(found, OURS, kind, where), cpu(found, entry.label, kind, where)
                )
                if quotient is not None and quotient > 1:
                    lines.append(f"{entry.label} ({kind}, {name}): {quotient:.3g} times faster")
    return "; ".join(lines) + "." if lines else "nowhere."


def report(name, case, sizes, found, source, absent):
    rows = steps(sizes)
    text = [f"### {case.title}", ""]
    if sizes != case.problem:
        text += [f"(Quick run: {sizes[1:]}.)", ""]
    text += [f"In one process, per row; differences are to {source or 'nobody'}.", ""]
    text += [in_process_table(found, rows), ""]
    if any(f.alone for f in found.values()):
        text += [
            "Each in a process of its own, CPU time per row.",
            "",
            alone_table(found, rows),
            "",
        ]
    goals = wanted(name, case, found)
    if goals:
        text += [aims(goals), ""]
    text += [f"Faster than filterdyn's default: {losses(case, found)}", ""]
    if absent:
        text += ["Absent: " + "; ".join(absent) + ".", ""]
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short series and two rounds")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    asked = parser.parse_args()
    if asked.quick and asked.write:
        parser.error("a quick run shows that all runs, its figures are not worth writing down")
    numpyro.enable_x64()
    rounds, budget = (2, 1.0) if asked.quick else (15, 6.0)
    wrong = []
    for name in asked.only:
        case = CASES[name]
        sizes = case.quick if asked.quick else case.problem
        print(f"{name}: {case.title}", file=sys.stderr, flush=True)
        found, source, absent = measure(case, sizes, rounds, budget)
        text = report(name, case, sizes, found, source, absent)
        print(text, flush=True)
        if asked.write:
            write_section(name, f"{text}\n{surroundings(*PACKAGES)}")
        ours = [e.label for e in case.entries if e.is_ours]
        wrong += [f"{name}: {x}" for x in ours if found[x].difference > TOLERANCE]
    print(surroundings(*PACKAGES))
    for label in wrong:
        print(f"wrong log-likelihood: {label}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
