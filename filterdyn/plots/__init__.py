"""Pictures, with Matplotlib (the `plots` extra): `fd.plots`, loaded when it is first used.

Every function draws into `axes` that are given, or into a new figure, and returns the axes: titles,
scales and sizes are then set with Matplotlib as usual, and `axes[0].figure.savefig(...)` saves.
Colours are told apart by people who see few of them. No global setting of Matplotlib is touched.
"""

from filterdyn.plots.learning import learning_curves
from filterdyn.plots.live_view import LiveView, live
from filterdyn.plots.predictions import forecast, one_step, posterior_predictive
from filterdyn.plots.ranks import calibration_ranks
from filterdyn.plots.residuals import innovations
from filterdyn.plots.trajectories import states

__all__ = [
    "states",
    "one_step",
    "innovations",
    "posterior_predictive",
    "forecast",
    "calibration_ranks",
    "learning_curves",
    "live",
    "LiveView",
]
