"""The terms that a sparse regression found."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float

from filterdyn.inference.terms import TermField, TermLibrary


class FoundTerms(eqx.Module):
    """Which terms make up each rate of change, with which coefficients. `print(found)` shows equations.

    - `coefficients` (dx, p): a row for every state, 0 for terms that were not found;
    - `low`, `high` (dx, p): the ends of their intervals of probability `level`;
    - `inclusion` (dx, p): how sure it is that a term occurs, from 0 to 1 (what exactly, says the function
      that found them);
    - `samples` (draws, dx, p): draws of the coefficients of all terms, or `None`;
    - `settings`: how they were found.
    """

    library: TermLibrary
    coefficients: Float[np.ndarray, "dx p"]
    low: Float[np.ndarray, "dx p"]
    high: Float[np.ndarray, "dx p"]
    inclusion: Float[np.ndarray, "dx p"]
    samples: Float[np.ndarray, "draws dx p"] | None = None
    level: float = eqx.field(static=True, default=0.9)
    settings: dict[str, Any] = eqx.field(static=True, default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all terms of the library."""
        return self.library.names

    @property
    def found(self) -> Bool[np.ndarray, "dx p"]:
        """Which terms occur."""
        return np.asarray(self.coefficients) != 0

    @property
    def terms(self) -> tuple[tuple[str, str], ...]:
        """(state, term) of every one that occurs, in the order of `field.coefficients`."""
        states = self.library.state_names
        return tuple((states[i], self.names[j]) for i, j in np.argwhere(self.found))

    @property
    def field(self) -> TermField:
        """The vector field f(t, x, u), for an `ODE` or an `SDE`, or as the residual of a
        `fields.UniversalField`."""
        return TermField(self.library, self.coefficients)

    def interval(self, state: str, term: str) -> tuple[float, float]:
        """The ends of the interval of one coefficient.

        **Raises:** `KeyError` for a name that the library does not have.
        """
        i = _index("state", self.library.state_names, state)
        j = _index("term", self.names, term)
        return float(self.low[i, j]), float(self.high[i, j])

    def equations(self, digits: int = 3, intervals: bool = False) -> str:
        """One line a state, such as `dx/dt = -0.901 x y`, with this many significant digits."""
        lines = []
        for i, state in enumerate(self.library.state_names):
            parts = [
                (
                    c,
                    f" [{_number(self.low[i, j], digits)}, {_number(self.high[i, j], digits)}]",
                    name,
                )
                for j, (c, name) in enumerate(zip(self.coefficients[i], self.names, strict=True))
                if c
            ]
            text = ""
            for c, interval, name in parts:
                sign = ("-" if c < 0 else "") if not text else (" - " if c < 0 else " + ")
                text += sign + _number(abs(c), digits) + (interval if intervals else "")
                text += "" if name == "1" else f" {name}"
            lines.append(f"d{state}/dt = {text or '0'}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.equations(intervals=True)


def _index(what: str, names: Sequence[str], name: str) -> int:
    if name not in names:
        raise KeyError(f"inference.FoundTerms: no {what} {name!r}; there are {list(names)}")
    return names.index(name)


def _number(value: float, digits: int) -> str:
    return f"{value:#.{digits}g}".rstrip(".")
