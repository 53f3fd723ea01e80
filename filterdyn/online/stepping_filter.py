"""What a stream asks of its filter."""

from typing import Any, Protocol

from jaxtyping import Array

from filterdyn.online.checkpoint import Reader
from filterdyn.online.state import StepResult


class SteppingFilter(Protocol):
    """An `OnlineFilter`, or one from a file, an `ExportedFilter`; each with states of its own."""

    def init(self, t0: Any, u0: Any = None, *, key: Array | None = None) -> Any: ...

    def step(self, state: Any, t: Any, y: Any, u: Any = None) -> tuple[Any, StepResult]: ...

    def _facts(self, state: Any) -> dict[str, Any]: ...

    def _state_in(self, reader: Reader) -> Any: ...
