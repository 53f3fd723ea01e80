"""A stream on one machine: where its events come from, and a runner that outlives its process."""

from filterdyn.streams.event import Event, Outcome
from filterdyn.streams.json_lines import JSONLines
from filterdyn.streams.line_reader import MalformedLine
from filterdyn.streams.runner import LocalRunner

__all__ = ["Event", "JSONLines", "LocalRunner", "MalformedLine", "Outcome"]
