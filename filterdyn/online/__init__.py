"""Filtering a stream, one measurement at a time."""

from filterdyn.online.online_filter import OnlineFilter, OnlineState, StepResult

__all__ = ["OnlineFilter", "OnlineState", "StepResult"]
