"""Filtering a stream, one measurement at a time."""

from filterdyn.online.event_stream import Arrival, EventStream
from filterdyn.online.exported import ExportedFilter, ExportedState, load_exported
from filterdyn.online.exporting import export
from filterdyn.online.late import DropLate, RejectLate, ReplayLate
from filterdyn.online.online_filter import OnlineFilter
from filterdyn.online.state import OnlineState, StepResult

__all__ = [
    "Arrival",
    "DropLate",
    "EventStream",
    "ExportedFilter",
    "ExportedState",
    "OnlineFilter",
    "OnlineState",
    "RejectLate",
    "ReplayLate",
    "StepResult",
    "export",
    "load_exported",
]
