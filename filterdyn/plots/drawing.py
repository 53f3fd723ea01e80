"""What all pictures share: panels, lines, bands, points, legends, and the checks of arguments."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from filterdyn.series import Series
from filterdyn.status import Status

#: Okabe and Ito's colours, which do not rely on telling red from green.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DATA_COLOUR = "#222222"
GUIDE_COLOUR = "#777777"
MARKERS = "osD^vP*X"
STYLES = ("-", "--", "-.", ":")
_MANY_ROWS = 150
_LETTERS_PER_INCH = 13


def panels(owner: str, axes: Any, count: int, each: str) -> np.ndarray:
    """`count` axes in a flat array: those that were given, or new ones that share their times."""
    if axes is not None:
        return given(owner, axes, count, each)
    columns = 1 if count <= 4 else 2 if count <= 12 else 4
    rows = -(-count // columns)
    size = (14.0 if columns == 4 else 8.5, min(1.2 + rows * (2.4 if rows < 4 else 1.9), 24.0))
    flat = plt.subplots(
        rows, columns, sharex=True, squeeze=False, figsize=size, layout="constrained"
    )[1].ravel()
    for unused in flat[count:]:
        unused.remove()
    # The last panel of a column is not in the last row where the grid is not full.
    for ax in flat[max(0, count - columns) : count]:
        ax.tick_params(labelbottom=True)
    return flat[:count]


def given(owner: str, axes: Any, count: int, each: str) -> np.ndarray:
    """`axes` as a flat array of `count` axes.

    **Raises:** `ValueError` if they are not so many, `TypeError` if they are something else.
    """
    flat = np.ravel(np.asarray(axes, dtype=object))
    for ax in flat:
        if not isinstance(ax, Axes):
            raise TypeError(
                f"{owner}: `axes` holds {type(ax).__name__}; expected Matplotlib axes, one for {each}"
            )
    if len(flat) != count:
        raise ValueError(f"{owner}: `axes` are {len(flat)}; expected {count}, one for {each}")
    return flat


def finish(axes: np.ndarray, names: Sequence[str], times: np.ndarray, ours: bool) -> None:
    """Names on the vertical axes, time below the panels, and one legend for all of them."""
    for ax, name in zip(axes, names, strict=True):
        ax.set_ylabel(name)
        time_axis(ax, times)
        if ax.xaxis.get_tick_params().get("labelbottom", True):
            ax.set_xlabel("time")
    legend(axes, ours)


def time_axis(ax: Axes, times: np.ndarray) -> None:
    """Whole times get whole ticks, and a single time some room."""
    if np.all(times == np.round(times)):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if np.min(times) == np.max(times):
        ax.set_xlim(times[0] - 1, times[0] + 1)
    else:
        ax.margins(x=0.02)


def legend(axes: np.ndarray, ours: bool) -> None:
    """One legend: above the panels of a figure of ours, in the first panel of somebody else's. What
    has the same label in one panel (a line and its band) is one entry."""
    entries: dict[str, Any] = {}
    for ax in axes:
        here: dict[str, list[Any]] = {}
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            here.setdefault(label, []).append(handle)
        entries = {**here, **entries}
    handles, labels = [tuple(h) for h in entries.values()], list(entries)
    if not labels:
        return
    if not ours:
        axes[0].legend(handles, labels, loc="best", framealpha=0.8)
        return
    figure = axes[0].figure
    room = figure.get_size_inches()[0] * _LETTERS_PER_INCH
    columns = max(1, int(room / (max(map(len, labels)) + 8)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def line(ax: Axes, times: Any, values: Any, colour: str, label: str | None, **style: Any) -> None:
    """A line through what is finite; a number without finite neighbours is a short dash."""
    shown = np.where(np.isfinite(values), values, np.nan)
    ax.plot(times, shown, color=colour, label=label, **{"linewidth": 1.4, **style})
    alone = _alone(np.isfinite(values))
    if alone.any():
        ax.plot(times[alone], values[alone], "_", color=colour, markersize=14)


def band(
    ax: Axes, times: Any, low: Any, high: Any, colour: str, label: str | None, alpha: float = 0.25
) -> None:
    """A band between what is finite; a row without finite neighbours is a thick bar."""
    finite = np.isfinite(low) & np.isfinite(high)
    ax.fill_between(
        times, low, high, where=finite, color=colour, alpha=alpha, linewidth=0, label=label
    )
    alone = _alone(finite)
    if alone.any():
        ax.vlines(times[alone], low[alone], high[alone], color=colour, alpha=alpha, linewidth=8)


def points(ax: Axes, times: Any, values: Any, label: str = "data") -> None:
    """What was measured; a missing entry is not drawn."""
    seen = np.isfinite(values)
    size = marker_size(seen)
    ax.plot(
        times[seen], values[seen], "o", color=DATA_COLOUR, markersize=size, label=label, zorder=3
    )


def marker_size(seen: np.ndarray) -> float:
    """Smaller where there are many."""
    return 4.0 if seen.sum() < _MANY_ROWS else 2.0


def _alone(finite: np.ndarray) -> np.ndarray:
    beside = np.zeros_like(finite)
    beside[1:] |= finite[:-1]
    beside[:-1] |= finite[1:]
    return finite & ~beside


def reach(owner: str, probability: Any, name: str = "probability") -> float:
    """Half the width of the central interval of a standard normal number."""
    if not isinstance(probability, (int, float, np.number)) or not 0 < probability < 1:
        raise ValueError(f"{owner}: `{name}` is {probability!r}; expected a number between 0 and 1")
    return NormalDist().inv_cdf(0.5 + 0.5 * float(probability))


def percent(probability: float) -> str:
    """0.9 as `90 %`."""
    return f"{100 * probability:.4g} %"


def column_names(names: Sequence[str] | None, count: int, symbol: str) -> tuple[str, ...]:
    """The given names, or `y[0]`, `y[1]`, ... where there are none."""
    return tuple(names) if names is not None else tuple(f"{symbol}[{i}]" for i in range(count))


def check_is(owner: str, name: str, value: Any, *kinds: type) -> None:
    """**Raises:** `TypeError` for anything but one of `kinds`."""
    if not isinstance(value, kinds):
        expected = " or ".join(f"fd.{kind.__name__}" for kind in kinds)
        what = getattr(value, "__name__", type(value).__name__)
        raise TypeError(f"{owner}: `{name}` is {what}; expected {expected}")


def check_is_series(owner: str, series: Any) -> None:
    """**Raises:** `TypeError` for anything but a `Series`, `ValueError` for a batch of them."""
    check_is(owner, "series", series, Series)
    if series.times.ndim != 1:
        raise ValueError(
            f"{owner}: `series` is a batch of shape {series.times.shape[:-1]}; expected one series, "
            "such as series[0]"
        )


def check_same_rows(owner: str, result: Any, series: Series) -> None:
    """**Raises:** `ValueError` if `result` belongs to another series."""
    ours, theirs = np.asarray(result.times), np.asarray(series.times)
    if ours.shape != theirs.shape or not np.array_equal(ours, theirs):
        what = f"{len(theirs)} rows" if len(ours) != len(theirs) else "other times"
        raise ValueError(
            f"{owner}: `series` has {what} but `result` has {len(ours)} rows; expected the series "
            "that was filtered"
        )


def failure(result: Any) -> str | None:
    """`SINGULAR_INNOVATION at row 7` of a result that failed, else `None`."""
    status = Status(int(result.status))
    return None if status is Status.OK else f"{status.name} at row {int(result.failed_at)}"


def nothing_to_draw(owner: str, result: Any) -> ValueError:
    """The error for a result without a finite number."""
    return ValueError(
        f"{owner}: `result` has nothing finite to draw; the filter failed with status "
        f"{failure(result) or Status.OK.name}"
    )
