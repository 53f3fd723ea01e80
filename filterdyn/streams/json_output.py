"""What became of events, as lines of JSON, in a file that can be cut back or on the standard output."""

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import jax
import numpy as np

from filterdyn.learning import ParameterEstimate
from filterdyn.online import StepResult
from filterdyn.online.exporting import in_units
from filterdyn.status import Status
from filterdyn.streams.event import Outcome

_in_units = jax.jit(in_units)


class JSONOutput:
    """Writes lines; `sync` makes sure that they are written, and says how far they reach.

    A file that the lines before a crash went to is cut back to what the last snapshot knew of it. That
    it belongs to this stream is said by the snapshot, or before the first one by the file `claim`.
    """

    def __init__(self, path: str | None, known: Any, claim: Path):
        """**Arguments:** `path`: of the file, `None` for the standard output; `known`: what `sync` said
        at the last snapshot, or `None`.

        **Raises:** `ValueError` for a file of something else, or that is shorter than it was.
        """
        self._path = None if path is None else os.path.abspath(path)
        if self._path is None:
            self._file: BinaryIO = sys.stdout.buffer
            return
        size = _size(self._path)
        known = known if known is not None and known["path"] == self._path else None
        if known is None:
            ours = claim.exists() and claim.read_text() == self._path
            if size > 0 and not ours:
                raise ValueError(
                    f"the output {path!r} is there already, with {size} bytes, and does not belong to "
                    "these snapshots; expected a new file"
                )
            claim.write_text(self._path)
        elif size < known["size"]:
            raise ValueError(
                f"the output {path!r} has {size} bytes; it had {known['size']} at the snapshot"
            )
        self._file = open(self._path, "ab")
        self._file.truncate(0 if known is None else known["size"])
        self._file.seek(0, os.SEEK_END)

    def write(self, found: dict[str, Any]) -> None:
        self._file.write(json.dumps(found, allow_nan=False).encode() + b"\n")

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> dict[str, Any] | None:
        self._file.flush()
        if self._path is None:
            return None
        os.fsync(self._file.fileno())
        return dict(path=self._path, size=self._file.tell())

    def close(self) -> None:
        if self._path is not None:
            self._file.close()


def _size(path: str) -> int:
    return os.stat(path).st_size if os.path.exists(path) else 0


def as_json(outcome: Outcome) -> dict[str, Any]:
    """One line of output, for one event: `null` is what does not exist (the innovation of a missing
    entry, everything after a failure)."""
    event, arrival = outcome.event, outcome.arrival
    found: dict[str, Any] = {}
    if isinstance(event.position, dict) and "line" in event.position:
        found["line"] = event.position["line"]
    if event.sequence is not None:
        found["seq"] = event.sequence
    time = event.time
    found["time"] = time.isoformat() if hasattr(time, "isoformat") else float(time)
    found["fate"] = arrival.fate
    if not arrival.results:
        return found
    found.update(_result(arrival.results[0]))
    if arrival.fate == "replayed":
        found["latest"] = dict(time=float(outcome.state.time), **_belief(arrival.results[-1]))
    return found


def _result(result: StepResult) -> dict[str, Any]:
    return dict(
        **_belief(result),
        innovation=_listed(result.innovation),
        nis=_number(result.nis),
        log_likelihood=_number(result.log_likelihood),
        status=Status(int(result.status)).name,
    )


def _belief(result: StepResult) -> dict[str, Any]:
    cov = result.cov
    sd = None if cov is None else np.sqrt(np.maximum(np.diagonal(cov), 0.0))
    found = dict(mean=_listed(result.mean), sd=None if sd is None else _listed(sd))
    learned = result.parameters
    named = isinstance(learned, (ParameterEstimate, SimpleNamespace))
    return found | {"parameters": _parameters(learned)} if named else found


def _parameters(learned: Any) -> dict[str, Any]:
    """Of each parameter the mean and, if the filter claims a posterior, the standard deviation."""
    found = vars(learned) if isinstance(learned, SimpleNamespace) else _in_units(learned)
    return {
        name: {kind: _nested(values[name]) for kind, values in found.items()}
        for name in found["mean"]
    }


def _nested(values: Any) -> Any:
    """Numbers, and lists of lists of them where a parameter is an array."""
    values = np.asarray(values, np.float64)
    return _number(values) if values.ndim == 0 else [_nested(value) for value in values]


def _listed(values: Any) -> list[float | None]:
    return [_number(v) for v in np.asarray(values, np.float64).tolist()]


def _number(value: Any) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None
