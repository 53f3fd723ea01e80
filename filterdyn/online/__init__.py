"""Filtering a stream, one measurement at a time."""

from filterdyn.online.event_stream import Arrival, EventStream
from filterdyn.online.late import DropLate, RejectLate, ReplayLate
from filterdyn.online.online_filter import OnlineFilter
from filterdyn.online.state import OnlineState, StepResult

__all__ = [
    "Arrival",
    "DropLate",
    "EventStream",
    "OnlineFilter",
    "OnlineState",
    "RejectLate",
    "ReplayLate",
    "StepResult",
]
