"""`innovations`: do the residuals of a filter look like the independent normal numbers they are
under a right model?"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from filterdyn._checks import check_count, check_is_one
from filterdyn.filters import FilterResult
from filterdyn.plots.drawing import (
    COLOURS,
    GUIDE_COLOUR,
    MARKERS,
    STYLES,
    check_is,
    column_names,
    given,
    legend,
    marker_size,
    nothing_to_draw,
    time_axis,
)

_OWNER = "plots.innovations"
#: The histogram counts what lies further out in its last bin.
_EDGE = 6.0
_SIGNIFICANT = NormalDist().inv_cdf(0.975)


def innovations(result: FilterResult, *, lags: int | None = None, axes: Any = None) -> np.ndarray:
    """Four pictures of the standardised innovations, which are independent standard normal numbers
    if the model is right.

    Over time, with lines at -2 and 2; their histogram against the normal density (what lies beyond
    6 is counted in the last bin); their quantiles against normal quantiles; and their correlogram,
    with the bounds that 95 % of correlations of independent numbers keep. Correlations are over pairs
    of rows that are both observed, so bounds widen where there are few. Observed quantities have
    their own colours and markers; one that is never observed is left out.

    **Arguments:** `result`: what `fd.filter` returned; `lags`: the length of the correlogram in
    rows, by default 10 log10(T); `axes`: four Matplotlib axes, by default those of a new figure.

    **Returns** the axes, an array (2, 2).

    **Raises:** `TypeError` and `ValueError` for arguments of another kind or value, and where nothing
    is finite: the message has the status and the row.
    """
    check_is(_OWNER, "result", result, FilterResult)
    check_is_one(_OWNER, "result", result, result.times)
    z = np.array(result.standardized_innovations, dtype=np.float64)
    z[~np.isfinite(z)] = np.nan
    rows, dy = z.shape
    if lags is None:
        lags = max(1, min(rows - 1, int(10 * math.log10(rows))))
    elif check_count(_OWNER, "lags", lags) >= rows:
        raise ValueError(f"{_OWNER}: `lags` is {lags}; expected fewer than the {rows} rows")
    if np.isnan(z).all():
        if int(result.status) == 0:
            raise ValueError(f"{_OWNER}: `result` has no innovations; every observation is missing")
        raise nothing_to_draw(_OWNER, result)

    if axes is None:
        grid = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")[1]
    else:
        grid = given(_OWNER, axes, 4, "each picture").reshape(2, 2)
    names = column_names(result.observation_names, dy, "y")
    seen = [j for j in range(dy) if not np.isnan(z[:, j]).all()]
    styles = {j: (COLOURS[j % len(COLOURS)], MARKERS[j % len(MARKERS)]) for j in seen}
    _over_time(grid[0, 0], np.asarray(result.times), z, names, styles)
    _histogram(grid[0, 1], z, names, styles)
    _quantiles(grid[1, 0], z, names, styles)
    _correlogram(grid[1, 1], z, names, styles, lags)
    legend(grid[0], ours=axes is None)
    return grid


def _over_time(ax: Axes, times: Any, z: Any, names: Sequence[str], styles: dict[int, Any]) -> None:
    for level in (-2, 0, 2):
        style = "-" if level == 0 else "--"
        ax.axhline(level, color=GUIDE_COLOUR, linewidth=1, linestyle=style, zorder=1)
    for j, (colour, marker) in styles.items():
        keep = ~np.isnan(z[:, j])
        size = marker_size(keep)
        ax.plot(
            times[keep],
            z[keep, j],
            marker,
            color=colour,
            markersize=size,
            alpha=0.8,
            label=names[j],
        )
    largest = max(3.0, 1.1 * float(np.nanmax(np.abs(z))))
    ax.set(xlabel="time", ylabel="standardised innovation", ylim=(-largest, largest))
    time_axis(ax, times)


def _histogram(ax: Axes, z: Any, names: Sequence[str], styles: dict[int, Any]) -> None:
    most = int((~np.isnan(z)).sum(0).max())
    limit = min(_EDGE, max(3.5, float(np.nanmax(np.abs(z)))))
    # Scott's rule for normal numbers.
    count = min(60, max(10, math.ceil(2 * limit / (3.49 * most ** (-1 / 3)))))
    edges = np.linspace(-limit, limit, count + 1).tolist()
    for j, (colour, _) in styles.items():
        values = np.clip(z[~np.isnan(z[:, j]), j], -limit, limit)
        look: dict[str, Any] = (
            {"histtype": "stepfilled", "alpha": 0.35}
            if len(styles) == 1
            else {"histtype": "step", "linewidth": 1.5, "linestyle": STYLES[j // len(COLOURS) % 4]}
        )
        ax.hist(values, edges, density=True, color=colour, label=names[j], **look)
    grid = np.linspace(-limit, limit, 201)
    density = np.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi)
    ax.plot(grid, density, color="black", linewidth=1.2, label="standard normal")
    ax.set(xlabel="standardised innovation", ylabel="density")


def _quantiles(ax: Axes, z: Any, names: Sequence[str], styles: dict[int, Any]) -> None:
    normal, largest = NormalDist(), 2.5
    for j, (colour, marker) in styles.items():
        values = np.sort(z[~np.isnan(z[:, j]), j])
        n = len(values)
        expected = [normal.inv_cdf((i + 0.5) / n) for i in range(n)]
        largest = max(largest, expected[-1])
        ax.plot(expected, values, marker, color=colour, markersize=3.5, alpha=0.8, label=names[j])
    ends = np.array([-largest, largest])
    ax.plot(ends, ends, color=GUIDE_COLOUR, linewidth=1, zorder=1)
    ax.set(xlabel="normal quantile", ylabel="quantile of innovations")


def _correlogram(ax: Axes, z: Any, names: Sequence[str], styles: dict[int, Any], lags: int) -> None:
    lag = np.arange(1, lags + 1)
    found = {j: autocorrelation(z[:, j], lags) for j in styles}
    bounds = {
        j: _SIGNIFICANT / np.sqrt(np.where(pairs > 0, pairs, np.nan))
        for j, (_, pairs) in found.items()
    }
    same = all(np.array_equal(b, bounds[min(bounds)], equal_nan=True) for b in bounds.values())
    largest = 0.3
    for place, (j, (colour, marker)) in enumerate(styles.items()):
        r, _ = found[j]
        x = lag + 0.6 * ((place + 0.5) / len(styles) - 0.5)
        keep = np.isfinite(r)
        ax.vlines(x[keep], 0, r[keep], color=colour, linewidth=1.5)
        ax.plot(x[keep], r[keep], marker, color=colour, markersize=3.5, label=names[j])
        if place == 0 or not same:
            for side in (-1, 1):
                edge = GUIDE_COLOUR if same else colour
                ax.plot(lag, side * bounds[j], "--", color=edge, linewidth=1)
        for values in (np.abs(r[keep]), bounds[j][np.isfinite(bounds[j])]):
            largest = max(largest, float(values.max(initial=0.0)))
    if not any(np.isfinite(r).any() for r, _ in found.values()):
        ax.text(0.5, 0.75, "too few rows", ha="center", transform=ax.transAxes)
    ax.set_xlim(0, lags + 1)
    ax.axhline(0, color=GUIDE_COLOUR, linewidth=1)
    ax.set(xlabel="lag (rows)", ylabel="autocorrelation", ylim=(-1.1 * largest, 1.1 * largest))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def autocorrelation(z: np.ndarray, lags: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlations at lags 1, ..., `lags` over the pairs of rows that are both observed, and how many
    pairs there are."""
    centred = z - np.nanmean(z)
    variance = np.nanmean(centred**2)
    r, pairs = np.full(lags, np.nan), np.zeros(lags, int)
    for k in range(1, min(lags, len(z) - 1) + 1):
        products = centred[k:] * centred[:-k]
        pairs[k - 1] = np.sum(~np.isnan(products))
        if pairs[k - 1] and variance > 0:
            r[k - 1] = np.nansum(products) / pairs[k - 1] / variance
    return r, pairs
