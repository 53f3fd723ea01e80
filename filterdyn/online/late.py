"""What to do about a measurement that is older than the last one."""

import abc
from dataclasses import dataclass

from filterdyn._checks import check_count


class AbstractLatePolicy(abc.ABC):
    """How far back a stream goes for a late measurement, and what becomes of later ones still."""

    @property
    @abc.abstractmethod
    def reach(self) -> tuple[float, int]:
        """How long before the newest measurement one may lie, and how many are kept for that."""

    @property
    @abc.abstractmethod
    def is_error(self) -> bool:
        """Is one that lies beyond an error?"""


@dataclass(frozen=True)
class DropLate(AbstractLatePolicy):
    """A late measurement is counted and not used."""

    @property
    def reach(self) -> tuple[float, int]:
        return 0.0, 0

    @property
    def is_error(self) -> bool:
        return False


@dataclass(frozen=True)
class RejectLate(AbstractLatePolicy):
    """A late measurement is a `ValueError`."""

    @property
    def reach(self) -> tuple[float, int]:
        return 0.0, 0

    @property
    def is_error(self) -> bool:
        return True


@dataclass(frozen=True)
class ReplayLate(AbstractLatePolicy):
    """A measurement at most `window` older than the newest one takes its place among the others: the
    stream goes back to the state before it and filters again what came after, so that the answer is
    that of the sorted stream, to the bit. Of a later one the fate is that of `DropLate`.

    At most `capacity` measurements are kept for it, each with the state before it.
    """

    window: float
    capacity: int = 1024

    def __post_init__(self) -> None:
        if not 0 < self.window:
            raise ValueError(f"ReplayLate: `window` is {self.window!r}; expected a time > 0")
        check_count("ReplayLate", "capacity", self.capacity)

    @property
    def reach(self) -> tuple[float, int]:
        return self.window, self.capacity

    @property
    def is_error(self) -> bool:
        return False
