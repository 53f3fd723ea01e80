"""`states`: how the state moved, as a filter or a smoother sees it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from filterdyn._checks import check_is_one
from filterdyn.filters import FilterResult
from filterdyn.plots.drawing import (
    COLOURS,
    STYLES,
    band,
    check_is,
    check_is_series,
    column_names,
    failure,
    finish,
    line,
    nothing_to_draw,
    panels,
    percent,
    points,
    reach,
)
from filterdyn.series import Series
from filterdyn.smoothers import SmootherResult

_OWNER = "plots.states"


def states(
    result: Any,
    *,
    series: Series | None = None,
    names: Sequence[str] | None = None,
    probability: float = 0.9,
    transform: Callable[[Any], Any] | None = None,
    axes: Any = None,
) -> np.ndarray:
    """State means with bands, one panel for each state.

    **Arguments:**

    - `result`: a `FilterResult` or `SmootherResult`; or several that are drawn over each other, as a
      list or as a dictionary `{"filtered": result, "smoothed": smoothed}` whose keys label them;
    - `series`: data to draw as points, where measurements are of the states themselves: a column in
      the panel of the state that has its name. Without `names`, and if there are as many columns as
      states, column i is in panel i;
    - `names`: one name a state, `x[0]`, `x[1]`, ... by default;
    - `probability` of the central band;
    - `transform`: an increasing function of arrays, such as `np.exp` for states that are logarithms.
      It is applied to the mean (which becomes a median) and to the ends of the band;
    - `axes`: dx Matplotlib axes; by default those of a new figure.

    A result that failed is drawn up to the row where it did, and its label says so.

    **Returns** the axes, an array (dx,).

    **Raises:** `TypeError` and `ValueError` for arguments of another kind, shape or value, for a
    series none of whose columns is named like a state, and where nothing is finite: the message has
    the status and the row.
    """
    results = _labelled(result)
    sizes = {one.mean.shape[-1] for one in results.values()}
    if len(sizes) > 1:
        raise ValueError(
            f"{_OWNER}: `result` holds results of {sorted(sizes)} states; expected equal"
        )
    dx = sizes.pop()
    if names is not None and (isinstance(names, str) or len(names) != dx):
        raise ValueError(f"{_OWNER}: `names` is {names!r}; expected {dx} names, one for each state")
    width = reach(_OWNER, probability)
    shown = {} if series is None else _columns(series, names, dx)
    if names is None and len(shown) == dx and series is not None:
        names = series.observation_names
    drawn = [(_bands(one, width, transform), one) for one in results.values()]
    if not any(np.isfinite(mean).any() for (mean, _, _), _ in drawn):
        raise nothing_to_draw(_OWNER, drawn[0][1])

    flat = panels(_OWNER, axes, dx, "each state")
    for k, (label, ((mean, low, high), one)) in enumerate(zip(results, drawn, strict=True)):
        times, colour = np.asarray(one.times), COLOURS[k % len(COLOURS)]
        failed = failure(one)
        label = f"{label}, {percent(probability)}" + (f" ({failed})" if failed else "")
        for i, ax in enumerate(flat):
            band(ax, times, low[:, i], high[:, i], colour, label)
            line(ax, times, mean[:, i], colour, label, linestyle=STYLES[k % len(STYLES)])
    if series is not None:
        for i, column in shown.items():
            points(flat[i], series.times, np.asarray(series.observations[:, column]))
    times = np.concatenate([np.asarray(one.times) for one in results.values()])
    finish(flat, column_names(names, dx, "x"), times, ours=axes is None)
    return flat


def _labelled(result: Any) -> dict[str, Any]:
    """Results by their label."""
    if isinstance(result, Mapping):
        results = {str(label): one for label, one in result.items()}
    elif isinstance(result, (list, tuple)):
        kinds = [_kind(one) for one in result]
        number = lambda k: f" {kinds[: k + 1].count(kinds[k])}" if kinds.count(kinds[k]) > 1 else ""
        results = {f"{kind}{number(k)}": result[k] for k, kind in enumerate(kinds)}
    else:
        results = {_kind(result): result}
    if not results:
        raise ValueError(f"{_OWNER}: `result` is empty; expected at least one result")
    for one in results.values():
        check_is(_OWNER, "result", one, FilterResult, SmootherResult)
        check_is_one(_OWNER, "result", one, one.times)
    return results


def _kind(result: Any) -> str:
    return "smoothed" if isinstance(result, SmootherResult) else "filtered"


def _columns(series: Series, names: Sequence[str] | None, dx: int) -> dict[int, int]:
    """The column of `series` to draw in each panel."""
    check_is_series(_OWNER, series)
    if names is None and series.dy == dx:
        return {i: i for i in range(dx)}
    observed = series.observation_names or ()
    found = {i: observed.index(n) for i, n in enumerate(names or ()) if n in observed}
    if not found:
        raise ValueError(
            f"{_OWNER}: `series` has columns {observed or series.dy} and `names` is {names!r}; expected "
            f"a column named like one of the {dx} states (measurements of the states themselves)"
        )
    return found


def _bands(result: Any, width: float, transform: Callable[[Any], Any] | None) -> tuple[Any, ...]:
    mean = np.asarray(result.mean, dtype=np.float64)
    variance = np.diagonal(np.asarray(result.cov, dtype=np.float64), axis1=1, axis2=2)
    sd = np.sqrt(np.maximum(variance, 0.0))
    ends = (mean, mean - width * sd, mean + width * sd)
    if transform is None:
        return ends
    if not callable(transform):
        raise TypeError(
            f"{_OWNER}: `transform` is {type(transform).__name__}; expected a function such as np.exp"
        )
    images = tuple(np.asarray(transform(x), dtype=np.float64) for x in ends)
    if images[0].shape != mean.shape:
        raise ValueError(
            f"{_OWNER}: `transform` gave shape {images[0].shape} for {mean.shape}; expected the same"
        )
    return images
