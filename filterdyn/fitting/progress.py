"""A line on the terminal that says how far a fit is."""

import sys
import time

import numpy as np

_WIDTH = 24


class Progress:
    """Writes to standard error, over its own line again where that is a terminal."""

    def __init__(self, steps: int, shown: bool):
        self.steps, self.shown = steps, shown
        self.began = time.monotonic()

    def tell(self, done: int, loss: float, look: float | None) -> None:
        """After a chunk: how many steps are done, the last loss, the last validation loss."""
        if not self.shown:
            return
        full = _WIDTH * done // self.steps
        said = f", validation {look:.4g}" if look is not None and np.isfinite(look) else ""
        took = time.monotonic() - self.began
        bar = "#" * full + "." * (_WIDTH - full)
        end = "\r" if sys.stderr.isatty() and done < self.steps else "\n"
        line = f"fit [{bar}] {done}/{self.steps} steps, {took:.0f} s, loss {loss:.4g}{said}"
        print(f"{line:<100}" if end == "\r" else line, end=end, file=sys.stderr, flush=True)
