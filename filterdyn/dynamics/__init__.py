"""How a state moves: discrete transitions, ordinary and stochastic differential equations."""

from typing import TYPE_CHECKING

from filterdyn._lazy import lazily

if TYPE_CHECKING:
    from filterdyn.dynamics.base import AbstractDynamics, Interval, Plan
    from filterdyn.dynamics.conditionally_linear import ConditionallyLinear
    from filterdyn.dynamics.discrete import Transition
    from filterdyn.dynamics.linear import LinearSDE, LinearTransition
    from filterdyn.dynamics.ode import ODE
    from filterdyn.dynamics.sde import SDE

__all__ = [
    "ODE",
    "SDE",
    "AbstractDynamics",
    "ConditionallyLinear",
    "Interval",
    "LinearSDE",
    "LinearTransition",
    "Plan",
    "Transition",
]

lazily(__name__)
