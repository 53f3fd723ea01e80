"""Times of a stream: numbers, or datetimes that know their zone."""

import datetime
from typing import Any

import numpy as np

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def seconds(owner: str, name: str, time: Any) -> np.float64:
    """A number as it is; a datetime with a zone as seconds since 1970 in UTC, a `numpy.datetime64`
    likewise (NumPy's are UTC by convention).

    **Raises:** `ValueError` for a datetime without a zone, `TypeError` for what is no time.
    """
    if isinstance(time, datetime.datetime):
        if time.tzinfo is None:
            raise ValueError(
                f"{owner}: `{name}` is {time.isoformat()} without a time zone; expected one that has it "
                "(datetime.timezone.utc) or a number"
            )
        return np.float64((time - _EPOCH) / datetime.timedelta(seconds=1))
    if isinstance(time, np.datetime64):
        since = time.astype("datetime64[ns]") - np.datetime64(0, "ns")
        return np.float64(since / np.timedelta64(1, "s"))
    try:
        return np.float64(time)
    except (TypeError, ValueError):
        raise TypeError(
            f"{owner}: `{name}` is {type(time).__name__}; expected a number or a datetime"
        ) from None


def seconds_of(owner: str, name: str, times: Any) -> np.ndarray:
    """`seconds` of each of them."""
    array = np.asarray(times)
    if array.dtype.kind in "fiu":
        return array.astype(np.float64)
    if array.dtype.kind == "M":
        array = array.astype("datetime64[ns]") - np.datetime64(0, "ns")
        return np.asarray(array / np.timedelta64(1, "s"), np.float64)
    return np.array([seconds(owner, name, t) for t in times], np.float64)
