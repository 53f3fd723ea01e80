"""Measurements and what was expected of them: one step ahead, later, and under the posterior."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from filterdyn._checks import check_is_one
from filterdyn._compile import compiled
from filterdyn.beliefs import Gaussian
from filterdyn.filters import FilterResult, PredictedObservation
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.predicted import SampledObservation
from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.filters.verbs import check_is_model
from filterdyn.forecasting import Forecast
from filterdyn.model import StateSpaceModel
from filterdyn.plots.drawing import (
    COLOURS,
    GUIDE_COLOUR,
    band,
    check_is,
    check_is_series,
    check_same_rows,
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
from filterdyn.status import Status


def one_step(
    model: StateSpaceModel,
    result: FilterResult,
    series: Series,
    *,
    probability: float = 0.9,
    axes: Any = None,
) -> np.ndarray:
    """Each measurement, with what was expected of it from all the rows before: median and band.

    The band is that of the measurement, its noise included, in its own units (for `LogNormal` too).
    Of a right model it holds a share `probability` of the data. Missing entries are not drawn, but
    what was expected of them is (not by an ensemble or particle filter, which keeps innovations only).

    **Arguments:** `model`, `result` and `series`: the model, what `fd.filter` returned, and what it
    filtered; `probability` of the central band; `axes`: dy Matplotlib axes, by default those of a new
    figure.

    **Returns** the axes, an array (dy,).

    **Raises:** `TypeError` and `ValueError` for arguments of another kind, shape or value, and where
    nothing is finite: the message has the status and the row.
    """
    owner = "plots.one_step"
    check_is_model(owner, model)
    check_is(owner, "result", result, FilterResult)
    check_is_one(owner, "result", result, result.times)
    check_is_series(owner, series)
    check_same_rows(owner, result, series)
    reach(owner, probability)
    if isinstance(result.filter, AbstractSamplingFilter):
        predicted = _expected(result, series, _transforms(model, result, series))
    else:
        predicted = _predict_all(
            model, result.filter, result.predicted, jnp.asarray(series.times), series.inputs
        )
    if not np.isfinite(np.asarray(predicted.loc)).any():
        raise nothing_to_draw(owner, result)
    flat = panels(owner, axes, series.dy, "each observed quantity")
    label = _label(result, probability)
    _draw(flat, series.times, predicted, probability, COLOURS[0], label)
    _draw_data(flat, series)
    finish(flat, column_names(series.observation_names, series.dy, "y"), series.times, axes is None)
    return flat


def forecast(
    forecast: Forecast,
    *,
    series: Series | None = None,
    result: FilterResult | None = None,
    probability: float = 0.9,
    axes: Any = None,
) -> np.ndarray:
    """The measurements to come, median and band, after those that were made.

    **Arguments:**

    - `forecast`: what `fd.forecast` or `OnlineFilter.forecast` returned;
    - `series`: the data so far, or the part of them that is worth a look (`series[-30:]`);
    - `result`: what `fd.filter` returned for this series: then each measurement has its band one step
      ahead, as in `one_step` (a missing entry has none here: it has no innovation);
    - `probability` of the central bands;
    - `axes`: dy Matplotlib axes, by default those of a new figure.

    **Returns** the axes, an array (dy,).

    **Raises:** `TypeError` and `ValueError` for arguments of another kind, shape or value, for a
    `result` without its series, and for a forecast that failed: the message has the status.
    """
    owner = "plots.forecast"
    check_is(owner, "forecast", forecast, Forecast)
    check_is_one(owner, "forecast", forecast, forecast.times)
    reach(owner, probability)
    dy = forecast.predicted.loc.shape[-1]
    if series is not None:
        check_is_series(owner, series)
        if series.dy != dy:
            raise ValueError(
                f"{owner}: `series` has {series.dy} columns; expected {dy}, as `forecast` has"
            )
    if result is not None:
        check_is(owner, "result", result, FilterResult)
        check_is_one(owner, "result", result, result.times)
        if series is None:
            raise ValueError(f"{owner}: `result` is given but `series` is not; expected both")
        check_same_rows(owner, result, series)
    if not np.isfinite(np.asarray(forecast.predicted.loc)).any():
        status = Status(int(forecast.status)).name
        row = "" if result is None or failure(result) is None else f"; `result`: {failure(result)}"
        raise ValueError(
            f"{owner}: `forecast` has nothing finite to draw; it failed with status {status}{row}"
        )

    flat = panels(owner, axes, dy, "each observed quantity")
    times = np.asarray(forecast.times)
    if series is not None:
        if result is not None:
            past = _expected(result, series, forecast.predicted.transforms)
            label = _label(result, probability)
            _draw(flat, series.times, past, probability, COLOURS[0], label)
        _draw_data(flat, series)
        for ax in flat:
            ax.axvline(series.times[-1], color=GUIDE_COLOUR, linewidth=0.8, linestyle=":")
    _draw(
        flat,
        times,
        forecast.predicted,
        probability,
        COLOURS[1],
        f"forecast, {percent(probability)}",
    )
    names = None if series is None else series.observation_names
    whole = times if series is None else np.concatenate([series.times, times])
    finish(flat, column_names(names, dy, "y"), whole, ours=axes is None)
    return flat


def posterior_predictive(
    series: Series,
    replicated: Any,
    *,
    site: str = "y",
    probabilities: Sequence[float] = (0.5, 0.9),
    axes: Any = None,
) -> np.ndarray:
    """Bands of series that the model makes up under its posterior, with the data on top.

    **Arguments:**

    - `series`: the data;
    - `replicated` (S, T, dy): S replicated series, as NumPyro's `Predictive` draws them, or the ArviZ
      `DataTree` of `fd.to_datatree`, of which `site` in `posterior_predictive` is taken. Replicates
      with a NaN (failed simulations) are left out, entry by entry;
    - `probabilities` of the central bands, which are made of quantiles;
    - `axes`: dy Matplotlib axes, by default those of a new figure.

    **Returns** the axes, an array (dy,).

    **Raises:** `TypeError` and `ValueError` for arguments of another kind, shape or value, `KeyError`
    for a `DataTree` without replicated data of that name.
    """
    owner = "plots.posterior_predictive"
    check_is_series(owner, series)
    draws = _replicates(owner, series, replicated, site)
    if np.ndim(probabilities) != 1 or len(probabilities) == 0:
        raise ValueError(
            f"{owner}: `probabilities` is {probabilities!r}; expected a sequence such as (0.5, 0.9)"
        )
    for probability in probabilities:
        reach(owner, probability, "probabilities")
    flat = panels(owner, axes, series.dy, "each observed quantity")
    # The widest first, so that the narrower ones darken its middle.
    ordered = sorted(probabilities, reverse=True)
    levels = [0.5, *(0.5 + side * 0.5 * p for p in ordered for side in (-1, 1))]
    median, *ends = _quantiles(draws, levels)
    for j, ax in enumerate(flat):
        for p, low, high in zip(ordered, ends[::2], ends[1::2], strict=True):
            label = f"replicated, {percent(p)}"
            band(ax, series.times, low[:, j], high[:, j], COLOURS[0], label, alpha=0.22)
        line(ax, series.times, median[:, j], COLOURS[0], label)
    _draw_data(flat, series)
    finish(flat, column_names(series.observation_names, series.dy, "y"), series.times, axes is None)
    return flat


def _predict(
    model: StateSpaceModel, filter: AbstractFilter, predicted: Gaussian, times: Any, inputs: Any
) -> PredictedObservation:
    dtype = predicted.mean.dtype
    times = times.astype(dtype)
    inputs = None if inputs is None else inputs.astype(dtype)
    one = lambda belief, t, u: filter.predict_observation(model, belief, t, u)
    return jax.vmap(one)(predicted, times, inputs)


_predict_all = compiled("plots.one_step", _predict)


def _transforms(model: StateSpaceModel, result: FilterResult, series: Series) -> tuple[Any, ...]:
    """The transforms behind which the innovations of a sampling filter are Gaussian."""
    if not result.filter.matches_moments:
        return ()
    u = None if series.inputs is None else series.inputs[0]
    view = model.observation.view(jnp.asarray(series.times[0]), result.mean[0], u)
    return () if view is None else view.transforms


def _expected(
    result: FilterResult, series: Series, transforms: tuple[Any, ...]
) -> PredictedObservation:
    """What was expected of each measurement, got back from the measurement and its innovation."""
    z = series.observations.astype(result.innovations.dtype)
    for transform in reversed(transforms):
        z = transform.inv(z)
    return PredictedObservation(z - result.innovations, result.innovation_covs, transforms)


def _label(result: FilterResult, probability: float) -> str:
    failed = failure(result)
    return f"one step ahead, {percent(probability)}" + (f" ({failed})" if failed else "")


def _draw(
    axes: np.ndarray,
    times: Any,
    predicted: PredictedObservation | SampledObservation,
    probability: float,
    colour: str,
    label: str,
) -> None:
    median = predicted.loc
    for transform in predicted.transforms:
        median = transform(median)
    curves = (median, *predicted.interval(probability))
    middle, low, high = (np.asarray(x, dtype=np.float64) for x in curves)
    for j, ax in enumerate(axes):
        band(ax, times, low[:, j], high[:, j], colour, label)
        line(ax, times, middle[:, j], colour, label)


def _draw_data(axes: np.ndarray, series: Series) -> None:
    ax: Axes
    for ax, values in zip(axes, np.asarray(series.observations).T, strict=True):
        points(ax, series.times, values)


def _replicates(owner: str, series: Series, replicated: Any, site: str) -> np.ndarray:
    """The replicated series, (S, T, dy)."""
    if isinstance(replicated, Mapping):
        group = "posterior_predictive"
        if group not in replicated or site not in replicated[group]:
            has = list(replicated[group]) if group in replicated else f"groups {list(replicated)}"
            raise KeyError(f"{owner}: `replicated` has no {group}/{site}, only {has}")
        draws = np.asarray(replicated[group][site])
        draws = draws.reshape(-1, *draws.shape[2:])
    else:
        draws = np.asarray(replicated)
    if draws.ndim != 3 or draws.shape[1:] != series.observations.shape or len(draws) == 0:
        raise ValueError(
            f"{owner}: `replicated` has shape {draws.shape}; expected (S, {len(series)}, {series.dy}): "
            "replicates of the series"
        )
    if draws.dtype.kind not in "fiub":
        raise TypeError(f"{owner}: `replicated` has dtype {draws.dtype}; expected real numbers")
    if not np.isfinite(draws).any():
        raise ValueError(f"{owner}: `replicated` has no finite entry; expected at least one")
    return draws.astype(np.float64)


def _quantiles(draws: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Quantiles (levels, T, dy) over the replicates that are numbers."""
    found = np.full((len(levels), *draws.shape[1:]), np.nan)
    some = ~np.isnan(draws).all(0)
    found[:, some] = np.nanquantile(draws[:, some], levels, axis=0)
    return found
