"""`learning_curves`: how a fit went."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from filterdyn.fitting import FitResult
from filterdyn.plots.drawing import (
    COLOURS,
    DATA_COLOUR,
    GUIDE_COLOUR,
    check_is,
    given,
    legend,
    line,
)

_OWNER = "plots.learning_curves"
#: Losses of the first steps may be so large that nothing else would be seen.
_CUT_OFF = 0.1


def learning_curves(result: FitResult, *, axes: Any = None) -> np.ndarray:
    """The loss of a measurement over the steps of a fit, and where the model that was returned comes from.

    A loss is that before a step, a validation loss that after so many steps. Of a batch of models the one
    that was best is drawn over the others. A circle is the lowest loss, whose model was returned; without
    `validation`, where losses do not compare because windows or the filter's noise were drawn anew, that is
    the last one, and there is no circle. Crosses at the lower edge are steps that were skipped.

    The vertical axis is that of the losses after a tenth of the steps: where they begin much higher, the
    beginning is cut off.

    **Arguments:** `result`: what `fd.fit` returned; `axes`: one Matplotlib axes, by default that of a new
    figure.

    **Returns** the axes, an array (1,).

    **Raises:** `TypeError` and `ValueError` for arguments of another kind or number.
    """
    check_is(_OWNER, "result", result, FitResult)
    if axes is None:
        flat = plt.subplots(squeeze=False, figsize=(8.5, 4.2), layout="constrained")[1].ravel()
    else:
        flat = given(_OWNER, axes, 1, "the losses")
    ax, losses = flat[0], np.atleast_2d(np.asarray(result.losses, np.float64))
    count = losses.shape[1]
    _curves(ax, np.arange(count), losses, result.best, COLOURS[0], "loss")
    seen, marked = [losses[:, int(_CUT_OFF * count) :]], losses[result.best]
    when = np.arange(count)
    if result.validation_losses is not None:
        looks = np.atleast_2d(np.asarray(result.validation_losses, np.float64))
        when, marked = np.asarray(result.validation_steps), looks[result.best]
        _curves(ax, when, looks, result.best, COLOURS[1], "validation loss", marker=".")
        seen.append(looks[:, when >= _CUT_OFF * count])
    if np.isfinite(np.ravel(result.state.best_loss)[result.best]):
        place = int(np.nanargmin(marked))
        taken = int(when[place])
        label = f"model returned, after {taken} steps"
        style: dict[str, Any] = {"markerfacecolor": "none", "markersize": 9, "zorder": 4}
        ax.plot(taken, marked[place], "o", color=DATA_COLOUR, label=label, **style)
        seen.append(marked[place, None])
    skipped = np.flatnonzero(np.isnan(losses).any(axis=0))
    if skipped.size:
        low = np.full(skipped.shape, 0.02)
        edge = ax.get_xaxis_transform()
        ax.plot(skipped, low, "x", color=COLOURS[3], transform=edge, label="steps skipped")
    _limit(ax, np.concatenate([np.ravel(x) for x in seen]))
    ax.set(xlabel="steps taken", ylabel="loss of a measurement")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(flat, ours=axes is None)
    return flat


def _curves(
    ax: Axes, steps: Any, values: Any, best: int, colour: str, label: str, **style: Any
) -> None:
    """The best row of `values` over the others."""
    others = [i for i in range(len(values)) if i != best]
    for i in others:
        name = f"{label}, {len(others)} others" if i == others[0] else None
        line(ax, steps, values[i], GUIDE_COLOUR, name, linewidth=0.8, alpha=0.6, **style)
    name = f"{label}, best of {len(values)}" if others else label
    line(ax, steps, values[best], colour, name, zorder=3, **style)


def _limit(ax: Axes, values: np.ndarray) -> None:
    """From the lowest to the highest of `values`, with some room, if there is any between them."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.max() > finite.min():
        room = 0.08 * (finite.max() - finite.min())
        ax.set_ylim(finite.min() - room, finite.max() + room)
