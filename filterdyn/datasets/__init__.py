"""Small real data sets, each with its source, units and licence in the docstring, and readers of
recordings that are too large for the package."""

from filterdyn.datasets.lynx_hare import lynx_hare
from filterdyn.datasets.nile import nile
from filterdyn.datasets.recordings import Recordings, cascaded_tanks, emps, silverbox

__all__ = ["lynx_hare", "nile", "cascaded_tanks", "emps", "silverbox", "Recordings"]
