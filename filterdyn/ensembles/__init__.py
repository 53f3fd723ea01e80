"""What ensemble Kalman filters are made of: localisation, inflation and the analyses."""

from filterdyn.ensembles.inflation import AdaptiveInflation
from filterdyn.ensembles.localization import GaspariCohn

__all__ = ["AdaptiveInflation", "GaspariCohn"]
