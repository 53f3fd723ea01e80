"""What a filter carries from one instant to the next: a distribution of the state."""

from filterdyn.beliefs.ensemble import Ensemble
from filterdyn.beliefs.gaussian import Gaussian
from filterdyn.beliefs.particles import AbstractParticles, Particles

__all__ = ["AbstractParticles", "Ensemble", "Gaussian", "Particles"]
