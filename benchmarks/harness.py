"""Timing, tables, and the sections of RESULTS.md that a script writes."""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "RESULTS.md"
#: A sample lasts at least so long, of as many calls as that takes.
SAMPLE_SECONDS = 0.02


class Cost(NamedTuple):
    """Seconds of one call: of CPU time over all threads, and by the clock on the wall."""

    cpu: float
    wall: float


def measured(call: Callable[[], object], repeats: int = 1) -> Cost:
    """The cost of a call, averaged over `repeats`."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        call()
    return Cost((time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats)


def interleave(
    timers: Mapping[str, Callable[[int], Cost]], rounds: int, budget: float
) -> dict[str, Cost]:
    """Medians over rounds in each of which everyone runs once, so that all meet the same machine.

    `timers` take the number of calls to average over, and have run before. Who has used `budget`
    seconds (and made three samples) sits out the rounds that are left.
    """
    repeats, samples = {}, {name: [] for name in timers}
    for name, timer in timers.items():
        repeats[name] = max(1, round(SAMPLE_SECONDS / max(timer(1).wall, 1e-6)))
    spent = dict.fromkeys(timers, 0.0)
    for _ in range(rounds):
        for name, timer in timers.items():
            if spent[name] < budget or len(samples[name]) < min(3, rounds):
                sample = timer(repeats[name])
                spent[name] += sample.wall * repeats[name]
                samples[name].append(sample)
    return {
        name: Cost(*(statistics.median(column) for column in zip(*found, strict=True)))
        for name, found in samples.items()
    }


def memory(field: str) -> float:
    """MB of this process: `VmRSS` now, `VmHWM` at the highest (0 where there is no /proc)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return int(re.search(rf"{field}:\s+(\d+)", status).group(1)) / 1024


def forget_peak() -> None:
    """Let the highest memory be that of now, where the kernel allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def processor() -> str:
    """The name of the CPU."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or "unknown"


def surroundings(*packages: str) -> str:
    """One paragraph: when, on what, under what load, with which versions."""
    versions = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} absent")
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return (
        f"{date.today()}, {processor()}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.machine()}; load average {load} at the end. {', '.join(versions)}."
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    align = lambda row: [
        cell.ljust(w) if k == 0 else cell.rjust(w)
        for k, (cell, w) in enumerate(zip(row, widths, strict=True))
    ]
    rule = [("-" * w) if k == 0 else "-" * (w - 1) + ":" for k, w in enumerate(widths)]
    lines = [align(head), rule, *(align(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(x: float | None, digits: int = 3) -> str:
    """`x` to so many digits, without an exponent where that is readable."""
    if x is None:
        return "-"
    if x == 0:
        return "0"
    if not 1e-3 <= abs(x) < 1e6:
        return f"{x:.{digits - 1}e}"
    rounded = float(f"{x:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


class Aim(NamedTuple):
    """A figure to reach: `measured <= limit`, or `>=` for a speed-up."""

    what: str
    measured: float | None
    limit: float
    at_least: bool = False

    def row(self) -> list[str]:
        if self.measured is None:
            return [self.what, "-", "", "not measured"]
        met = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        sign = ">=" if self.at_least else "<="
        return [
            self.what,
            f"{self.measured:.3g}",
            f"{sign} {self.limit:g}",
            "met" if met else "missed",
        ]


def aims(found: list[Aim]) -> str:
    return table(["aim", "measured", "wanted", ""], [aim.row() for aim in found])


def ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _parts(name: str) -> tuple[str, str, str]:
    """RESULTS.md before this section's first marker, between the two, and after the second."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    whole = RESULTS.read_text()
    if begin not in whole or end not in whole:
        raise ValueError(f"{RESULTS} has no markers {begin} and {end}")
    before, rest = whole.split(begin)
    inside, after = rest.split(end)
    return before, inside.strip(), after


def read_section(name: str) -> str:
    """What stands between the markers of this section in RESULTS.md."""
    return _parts(name)[1]


def write_section(name: str, text: str) -> None:
    """Replace what stands between the markers of this section in RESULTS.md."""
    before, _, after = _parts(name)
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    RESULTS.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")
