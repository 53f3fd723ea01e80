"""Filtering a stream, one measurement at a time."""

from filterdyn.online.bank import FilterBank
from filterdyn.online.bank_state import BankResult, BankState
from filterdyn.online.event_stream import Arrival, EventStream
from filterdyn.online.exported import ExportedFilter, ExportedState, load_exported
from filterdyn.online.exporting import export
from filterdyn.online.late import DropLate, RejectLate, ReplayLate
from filterdyn.online.online_filter import OnlineFilter
from filterdyn.online.state import OnlineState, StepResult

__all__ = [
    "Arrival",
    "BankResult",
    "BankState",
    "DropLate",
    "EventStream",
    "ExportedFilter",
    "ExportedState",
    "FilterBank",
    "OnlineFilter",
    "OnlineState",
    "RejectLate",
    "ReplayLate",
    "StepResult",
    "export",
    "load_exported",
]
