"""The lines of a file, of a file that grows, or of a pipe, and how far they reach."""

import hashlib
import os
import select
import stat
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

_CHUNK = 2**16
#: How long, in seconds, to wait for more before saying again that nothing is at hand.
_PATIENCE = 0.1


class MalformedLine(ValueError):
    """A line that is no event; `line` is its number, from 1."""

    def __init__(self, line: int, why: str):
        super().__init__(f"line {line}: {why}")
        self.line = line


class LineReader:
    """Lines one by one, and `None` where nothing more is at hand just now.

    `number` of them were read, of `offset` bytes in all; `place` says so in JSON, and `resumed` what
    became of an old place: `"same"`, `"other"` (another input), or `"start"`.
    """

    def __init__(self, path: str | os.PathLike[str], follow: bool, max_line: int):
        self.resumed = "start"
        self._path = path
        self._follow = follow
        self._max_line = max_line
        self._is_ours = path != "-"
        self._file = os.open(path, os.O_RDONLY) if self._is_ours else sys.stdin.fileno()
        self._begin()

    def _begin(self) -> None:
        self.number = self.offset = 0
        self._first = self._last = b""
        self._rest = b""
        self._waiting: deque[bytes] = deque()

    def close(self) -> None:
        if self._is_ours:
            os.close(self._file)

    @property
    def place(self) -> dict[str, Any]:
        return dict(
            first=_digest(self._first),
            last=_digest(self._last),
            last_bytes=len(self._last),
            line=self.number,
            offset=self.offset,
        )

    def lines(self, place: Any = None) -> Iterator[bytes | None]:
        """The lines after `place`, if the input begins with the same line as it did then; else all.

        **Raises:** `ValueError` if it begins with that line and then is another one.
        """
        lines = self._read()
        if place is None:
            yield from lines
            return
        for line in lines:
            if line is None:
                yield None
                continue
            if _digest(line) != place["first"]:
                self.resumed = "other"
                yield line
                break
            self.resumed = "same"
            self._seek(place)
            while self.offset < place["offset"]:
                passed = next(lines, b"")
                if passed is None:
                    yield None
                elif not passed:
                    break
            if _digest(self._last) != place["last"] or self.offset != place["offset"]:
                raise ValueError(
                    "the input begins with the line that the snapshot saw first, but its line "
                    f"{place['line']} is another one or missing; expected the same input, or one that "
                    "begins with another line"
                )
            break
        yield from lines

    def _read(self) -> Iterator[bytes | None]:
        while True:
            while self._waiting:
                yield self._taken(self._waiting.popleft())
            if not select.select([self._file], [], [], 0)[0]:
                yield None
                select.select([self._file], [], [], _PATIENCE)
                continue
            chunk = os.read(self._file, _CHUNK)
            if chunk:
                self._split(chunk)
            elif self._follow:
                yield None
                time.sleep(_PATIENCE)
                self._look_for_another_file()
            elif self._rest:
                yield self._taken(self._rest)
                return
            else:
                return

    def _split(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for k, line in enumerate((*lines, self._rest)):
            if len(line) > self._max_line:
                raise MalformedLine(
                    self.number + k + 1, f"it has more than `max_line` {self._max_line} bytes"
                )
        self._waiting.extend(line + b"\n" for line in lines)

    def _taken(self, line: bytes) -> bytes:
        self.offset += len(line)
        self.number += 1
        self._last = line
        if self.number == 1:
            self._first = line
        return line

    def _seek(self, place: Any) -> None:
        """Pass over what lies before `place`, where a file lets us, and read its last line again."""
        if place["offset"] <= self.offset or not stat.S_ISREG(os.fstat(self._file).st_mode):
            return
        os.lseek(self._file, place["offset"] - place["last_bytes"], os.SEEK_SET)
        last, missing = b"", place["last_bytes"]
        while missing and (chunk := os.read(self._file, missing)):
            last, missing = last + chunk, missing - len(chunk)
        self.offset, self.number = place["offset"] - missing, place["line"]
        self._last, self._rest = last, b""
        self._waiting.clear()

    def _look_for_another_file(self) -> None:
        """After a file has been replaced or cut, its beginning."""
        try:
            now = os.stat(self._path)
        except FileNotFoundError:  # between a removal and the new one
            return
        here = os.fstat(self._file)
        if (now.st_ino, now.st_dev) != (here.st_ino, here.st_dev):
            os.close(self._file)
            self._file = os.open(self._path, os.O_RDONLY)
            self._begin()
        elif now.st_size < self.offset:
            os.lseek(self._file, 0, os.SEEK_SET)
            self._begin()


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
