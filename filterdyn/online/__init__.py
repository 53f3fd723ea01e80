"""Filtering a stream, one measurement at a time."""

from filterdyn.online.online_filter import OnlineFilter
from filterdyn.online.state import OnlineState, StepResult

__all__ = ["OnlineFilter", "OnlineState", "StepResult"]
