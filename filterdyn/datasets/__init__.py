"""Small real data sets, each with its source, units and licence in the docstring."""

from filterdyn.datasets.lynx_hare import lynx_hare
from filterdyn.datasets.nile import nile

__all__ = ["lynx_hare", "nile"]
