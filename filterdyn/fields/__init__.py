"""Vector fields f(t, x, u) that a network or a person writes, as Equinox modules."""

from filterdyn.fields.augmented import Augmented
from filterdyn.fields.base import Invariant, Normalization
from filterdyn.fields.diffusions import CholeskyDiffusion, DiagonalDiffusion
from filterdyn.fields.energy import Energy
from filterdyn.fields.gradient_flow import GradientFlow
from filterdyn.fields.hamiltonian import Hamiltonian
from filterdyn.fields.linear import Linear
from filterdyn.fields.liquid import LiquidTimeConstant
from filterdyn.fields.mlp import MLP
from filterdyn.fields.port_hamiltonian import PortHamiltonian
from filterdyn.fields.second_order import SecondOrder
from filterdyn.fields.stable import Lyapunov, Stable
from filterdyn.fields.universal import UniversalField

__all__ = [
    # networks, and physics with networks
    "MLP",
    "UniversalField",
    "SecondOrder",
    "Augmented",
    "Linear",
    "LiquidTimeConstant",
    # fields that keep something
    "Hamiltonian",
    "PortHamiltonian",
    "GradientFlow",
    "Stable",
    "Energy",
    "Lyapunov",
    "Invariant",
    # diffusions
    "DiagonalDiffusion",
    "CholeskyDiffusion",
    # what a network is normalised by
    "Normalization",
]
