"""Ranks of simulation-based calibration, against what chance allows."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from filterdyn.diagnostics import SimulationBasedCalibration, uniformity
from filterdyn.plots.drawing import COLOURS, GUIDE_COLOUR, given, legend


def calibration_ranks(result: SimulationBasedCalibration, *, axes: Any = None) -> np.ndarray:
    """Of every parameter, the share of ranks below each point less what is expected, and the band that
    all points of a right inference keep to, but for the false alarms that `result.rate` allows.

    A curve like a hill says that the truth lies too low among the draws, a valley too high; first up,
    then down: the posterior is too narrow; first down, then up: too wide.

    **Arguments:** `result` of `fd.diagnostics.simulation_based_calibration`; `axes`: one Matplotlib axes
    for each of `result.ranks`, by default those of a new figure.

    **Returns** the axes, an array.

    **Raises:** `TypeError` for another result, `ValueError` for another number of axes.

    Reference: Säilynoja, Bürkner, Vehtari 2022.
    """
    owner = "plots.calibration_ranks"
    if not isinstance(result, SimulationBasedCalibration):
        raise TypeError(
            f"{owner}: `result` is {type(result).__name__}; expected what "
            "fd.diagnostics.simulation_based_calibration returned"
        )
    names = list(result.ranks)
    if axes is None:
        columns = min(len(names), 3)
        rows = -(-len(names) // columns)
        size = (3.4 * columns + 0.6, 2.7 * rows + 0.6)
        flat = plt.subplots(
            rows,
            columns,
            sharex=True,
            sharey=True,
            squeeze=False,
            figsize=size,
            layout="constrained",
        )[1].ravel()
        for unused in flat[len(names) :]:
            unused.remove()
        flat = flat[: len(names)]
        for ax in flat[max(0, len(names) - columns) :]:
            ax.tick_params(labelbottom=True)
    else:
        flat = given(owner, axes, len(names), "each parameter")
    count = len(next(iter(result.ranks.values())))
    z, low, high = uniformity.band(count, result.num_draws, result.limit)
    ends = lambda x: np.concatenate([[0.0], x, [0.0]])
    at = np.concatenate([[0.0], z, [1.0]])
    for ax, name in zip(flat, names, strict=True):
        points = np.round(z * (result.num_draws + 1))
        below = np.searchsorted(np.sort(result.ranks[name]), points, side="left") / count
        ax.fill_between(
            at, ends(low - z), ends(high - z), color=GUIDE_COLOUR, alpha=0.25, linewidth=0,
            label=f"by chance, but for {result.rate:g}",
        )  # fmt: skip
        ax.plot(at, ends(below - z), color=COLOURS[0], linewidth=1.4, label="ranks")
        ax.axhline(0.0, color=GUIDE_COLOUR, linewidth=0.8, linestyle=":")
        ax.set_title(f"{name}, p = {result.p_values[name]:.2g}", fontsize="medium")
        ax.set_xlabel("rank / draws")
        ax.margins(x=0)
    flat[0].set_ylabel("share below - expected")
    legend(flat, axes is None)
    return flat
