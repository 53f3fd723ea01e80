"""Resampling schemes, and the derivatives that resampled particles carry."""

from filterdyn.resampling.base import (
    AbstractCopying,
    AbstractResampling,
    AbstractTransport,
    check_copying,
)
from filterdyn.resampling.gradients import COPIERS, GRADIENTS, Gradient
from filterdyn.resampling.killing import Killing
from filterdyn.resampling.multinomial import Multinomial
from filterdyn.resampling.optimal_transport import OptimalTransport
from filterdyn.resampling.residual import Residual
from filterdyn.resampling.soft import softened
from filterdyn.resampling.sorted_transport import SortedTransport
from filterdyn.resampling.stratified import Stratified
from filterdyn.resampling.systematic import Systematic

__all__ = [
    "COPIERS",
    "GRADIENTS",
    "AbstractCopying",
    "AbstractResampling",
    "AbstractTransport",
    "Gradient",
    "Killing",
    "Multinomial",
    "OptimalTransport",
    "Residual",
    "SortedTransport",
    "Stratified",
    "Systematic",
    "check_copying",
    "softened",
]
