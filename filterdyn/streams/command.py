"""The command `filterdyn`."""

import argparse
import datetime
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import filterdyn as fd
from filterdyn.online.late import AbstractLatePolicy
from filterdyn.streams.stream_command import stream

_DESCRIPTION = """\
Filter a stream: one measurement in JSON on each line in, one estimate on each line out.

  filterdyn stream --model plant:online --checkpoint snapshots < events.jsonl

with, in plant.py,

  online = fd.OnlineFilter(model, fd.KalmanFilter())
"""

_EPILOG = """\
a line in
  {"time": 12.5, "y": [20.3, null], "u": 0.5, "seq": 17}
  time   a number, or ISO 8601 with its zone: "2026-11-28T10:00:00.25Z"
  y      a list, a number, or by name with --names; null is missing
  u      if there are inputs: those from this time on
  seq    if there is one: a number by which a repeated event is known

a line out
  {"line": 1, "seq": 17, "time": 12.5, "fate": "new", "mean": [...], "sd": [...],
   "innovation": [...], "nis": 1.1, "log_likelihood": -0.7, "status": "OK"}
  fate   new, replayed (late, and put in its place; "latest" is the newest estimate),
         late or duplicate (not used)

snapshots
  DIR holds the state and how far into the input it reaches. After any end, kill -9 too,
  the same command goes on from there: every event enters the state once. --output FILE
  is cut back to what the snapshot knows, so that it ends up the same to the byte as if
  nothing had happened. On the standard output, the lines since the last snapshot come
  again. SIGTERM and SIGINT make a last snapshot.
  The input is known by its first line: if that is another one than the snapshot saw, it
  is new and taken from its beginning.

exit status
  0 at the end of the input or after SIGTERM or SIGINT, 1 after an error, 2 for a wrong
  call.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(prog="filterdyn", description=fd.__doc__)
    parser.add_argument("--version", action="version", version=f"filterdyn {version('filterdyn')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_stream(commands)
    chosen = parser.parse_args(arguments)
    try:
        return stream(chosen)
    except BrokenPipeError:
        # Whoever read the output has gone; Python must not try to write the rest to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError, AttributeError) as error:
        print(f"filterdyn {chosen.command}: {error}", file=sys.stderr)
        return 1


def _add_stream(commands: Any) -> None:
    parser = commands.add_parser(
        "stream",
        help="filter a stream of measurements, line by line",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="MODULE:OBJECT",
        help="an OnlineFilter, a pair (model, filter), a model (with --filter), or a function that "
        "returns one of them, MODULE also in the current folder; or a file of filterdyn.export",
    )
    add("--checkpoint", required=True, metavar="DIR", help="folder of the snapshots")
    add("--filter", metavar="NAME", help="for a model alone: KalmanFilter, ...")
    add("--input", default="-", metavar="FILE", help="instead of the standard input")
    add("--follow", action="store_true", help="wait for more at the end of --input, as tail -F")
    add("--output", metavar="FILE", help="instead of the standard output: no line twice")
    add("--names", type=_list, metavar="A,B", help="the entries of y, for events that name them")
    add("--input-names", type=_list, metavar="A,B", help="the entries of u, likewise")
    add(
        "--late",
        type=_late,
        default=fd.DropLate(),
        metavar="POLICY",
        help="drop (the default), reject, or replay:SECONDS, which puts events that are late by at "
        "most so much in their place",
    )
    add(
        "--skip-malformed",
        action="store_true",
        help="pass over lines that are no events, or that the filter refuses, and say so on the "
        "standard error; without it, the first one is an error",
    )
    add("--t0", type=_time, metavar="TIME", help="of the prior; default: the first event's")
    add("--u0", type=_floats, metavar="U,U", help="the input from --t0 to the first event")
    add("--seed", type=int, default=0, metavar="N", help="of filters that sample (0)")
    add(
        "--every",
        type=int,
        default=1000,
        metavar="N",
        help="events from snapshot to snapshot (1000)",
    )
    add("--seconds", type=float, default=10.0, metavar="S", help="the same in time (10)")
    add("--generations", type=int, default=3, metavar="N", help="snapshots to keep (3)")
    add("--float32", action="store_true", help="single precision (default: double)")
    add("--quiet", action="store_true", help="only errors on the standard error")


def _list(text: str) -> list[str]:
    return text.split(",")


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers with commas") from None


def _time(text: str) -> Any:
    for read in (float, datetime.datetime.fromisoformat):
        try:
            return read(text)
        except ValueError:
            continue
    raise argparse.ArgumentTypeError(f"{text!r}; expected a number or ISO 8601")


def _late(text: str) -> AbstractLatePolicy:
    policy, _, window = text.partition(":")
    try:
        if policy == "replay":
            return fd.ReplayLate(float(window))
        return {"drop": fd.DropLate, "reject": fd.RejectLate}[text]()
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected drop, reject or replay:SECONDS"
        ) from None
