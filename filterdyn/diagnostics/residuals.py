"""Innovations on the host, in double precision, and how they are named."""

from typing import Any

import numpy as np

from filterdyn._checks import is_traced
from filterdyn.filters import FilterResult


def check_result(owner: str, result: Any) -> None:
    """**Raises:** `TypeError` for anything but a `FilterResult`, `ValueError` for a traced one."""
    if not isinstance(result, FilterResult):
        raise TypeError(f"{owner}: `result` is {type(result).__name__}; expected fd.filter(...)")
    if is_traced(result):
        raise ValueError(
            f"{owner}: `result` is traced; expected concrete arrays (diagnostics run on the host, "
            "outside of jax.jit)"
        )


def check_level(owner: str, name: str, level: float) -> None:
    """**Raises:** `ValueError` unless 0 < `level` < 1."""
    if not 0 < level < 1:
        raise ValueError(f"{owner}: `{name}` is {level!r}; expected a number between 0 and 1")


def standardized(result: FilterResult) -> np.ndarray:
    """(..., T, dy): independent standard normal numbers if the model is right, NaN = missing.

    Entry j is what sensor j said beyond what sensors 0 .. j - 1 of the same row had said.
    """
    return np.asarray(result.standardized_innovations, float)


def scaled(result: FilterResult) -> np.ndarray:
    """(..., T, dy): each innovation over its own standard deviation. Those of one row depend on each
    other, those of different rows do not."""
    variance = np.diagonal(np.asarray(result.innovation_covs, float), axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(result.innovations, float) / np.sqrt(variance)


def sensor_names(result: FilterResult) -> tuple[str, ...]:
    """The columns' names, or their numbers."""
    if result.observation_names is None:
        return tuple(f"sensor {j}" for j in range(result.innovations.shape[-1]))
    return tuple(f"sensor {name!r}" for name in result.observation_names)


def check_one_series(owner: str, result: FilterResult) -> None:
    """**Raises:** `ValueError` for a batch of results."""
    if result.innovations.ndim != 2:
        raise ValueError(
            f"{owner}: `result` is a batch of shape {result.innovations.shape[:-2]}; expected one series"
        )


def check_lags(owner: str, lags: Any, rows: int) -> int:
    """**Raises:** `ValueError` unless `lags` is a whole number from 1 to `rows` - 1."""
    if isinstance(lags, bool) or not isinstance(lags, (int, np.integer)) or not 1 <= lags < rows:
        raise ValueError(f"{owner}: `lags` is {lags!r}; expected a whole number in 1 .. {rows - 1}")
    return int(lags)


def size_in_words(what: str, mean: float, p_value: float, alarm: float) -> str:
    """What a mean of normalised squares says of the sizes of `what`."""
    if p_value >= alarm:
        return f"{what} are as large as the filter says"
    sure = "clearly " if p_value < 1e-4 else "somewhat "
    if mean > 1:
        return f"{what} are {sure}larger than the filter says (overconfident)"
    return f"{what} are {sure}smaller than the filter says (too cautious)"
