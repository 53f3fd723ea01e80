"""A record of measurements: times, observations with missing entries, inputs."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from filterdyn._checks import check_finite, float_array, is_traced, rectangular

_NAME = "Series"


class Series(eqx.Module):
    """Observations at given times, with inputs: what every verb takes beside a model.

    - `times` (T,): non-decreasing. Concrete times stay float64 NumPy, and `gaps` (T,), the time since
      the row before (0 for the first), are formed there: float32 seconds since 1970 would be 128 s apart.
    - `observations` (T, dy): NaN marks a missing entry.
    - `inputs` (T, du) or `None`: `inputs[k]` holds on `[times[k], times[k+1])` and is what the
      observation at `times[k]` sees.

    A series is a pytree; `stack` makes a batch of them with a leading axis.
    """

    times: Float[Any, "*B T"]
    observations: Float[Array, "*B T dy"]
    inputs: Float[Array, "*B T du"] | None
    gaps: Float[Any, "*B T"]
    #: Were the gaps formed from traced float32 times, which may not resolve them?
    coarse_clock: bool = eqx.field(static=True)
    observation_names: tuple[str, ...] | None = eqx.field(static=True)
    input_names: tuple[str, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        times: Any,
        observations: Any,
        inputs: Any = None,
        *,
        observation_names: Sequence[str] | None = None,
        input_names: Sequence[str] | None = None,
    ):
        """**Arguments:** arrays, lists or tuples; integers are promoted to floats.

        - `times` (T,), `observations` (T, dy) or (T,), `inputs` (T, du), (T,) or `None`;
        - `observation_names`, `input_names`: one name a column, used by plots and tables.

        **Raises:** `ValueError` for an empty series, shapes that disagree, times that decrease or are
        not finite, infinite observations, non-finite inputs; `TypeError` for arrays that hold objects
        or complex numbers.
        """
        self.times = _times(times)
        observations = _columns("observations", observations, self.times)
        if not is_traced(observations) and np.any(np.isinf(np.asarray(observations))):
            row = int(np.argwhere(np.isinf(np.asarray(observations)))[0, 0])
            raise ValueError(
                f"{_NAME}: `observations` has an infinite entry in row {row}; expected finite numbers, "
                "or NaN for a missing entry"
            )
        self.observations = observations
        self.inputs = None if inputs is None else _columns("inputs", inputs, self.times)
        if self.inputs is not None and not is_traced(self.inputs):
            if not np.all(np.isfinite(np.asarray(self.inputs))):
                raise ValueError(
                    f"{_NAME}: `inputs` has NaN or infinite entries; inputs must be known"
                )
        self.gaps = _gaps(self.times)
        self.coarse_clock = _is_coarse(self.times)
        self.observation_names = _names(
            "observation_names", observation_names, observations.shape[1]
        )
        self.input_names = _names("input_names", input_names, self.du)

    @classmethod
    def from_dataframe(
        cls,
        df: Any,
        *,
        observations: Sequence[str],
        time: str | None = None,
        inputs: Sequence[str] | None = None,
    ) -> "Series":
        """From a pandas data frame (or anything with `df[name]` and `df.index`).

        **Arguments:** `time`, the name of the column of times (`None`: the index); `observations` and
        `inputs`, lists of column names. Dates and time stamps become seconds since 1970 (UTC).

        **Raises:** `KeyError` that names a column which is not there.
        """
        inputs = list(inputs or [])
        wanted = [*([time] if time is not None else []), *observations, *inputs]
        absent = [name for name in wanted if name not in df.columns]
        if absent:
            raise KeyError(
                f"{_NAME}.from_dataframe: no column {absent[0]!r}; the columns are {list(df.columns)}"
            )
        clock = np.asarray(df.index if time is None else df[time])
        if clock.dtype == object and len(clock) and hasattr(clock[0], "timestamp"):
            clock = np.array([stamp.timestamp() for stamp in clock])
        if np.issubdtype(clock.dtype, np.datetime64):
            since = clock.astype("datetime64[ns]").astype(np.int64) / 1e9
            clock = np.where(np.isnat(clock), np.nan, since)
        return cls(
            clock,
            np.stack([_frame_column(df, name) for name in observations], axis=1),
            np.stack([_frame_column(df, name) for name in inputs], axis=1) if inputs else None,
            observation_names=tuple(observations),
            input_names=tuple(inputs) or None,
        )

    def __len__(self) -> int:
        return self.times.shape[0]

    def __getitem__(self, rows: slice) -> "Series":
        """A contiguous or strided part, `series[10:20]`; of a stacked batch, `batch[3]` is one series."""
        if self.times.ndim == 1 and not isinstance(rows, slice):
            raise TypeError(
                f"{_NAME}: index {rows!r} is not a slice; one row as a series is series[k:k+1]"
            )
        times = self.times[rows]
        if times.shape[0] == 0:
            raise ValueError(f"{_NAME}: the slice {rows} selects no rows")
        if self.times.ndim == 1 and rows.step is not None and rows.step < 0:
            raise ValueError(f"{_NAME}: the slice {rows} runs backwards; expected a positive step")
        return _build(
            self,
            times=times,
            observations=self.observations[rows],
            inputs=None if self.inputs is None else self.inputs[rows],
            gaps=_gaps(times) if self.times.ndim == 1 else self.gaps[rows],
        )

    @property
    def dy(self) -> int:
        """Number of observed quantities."""
        return self.observations.shape[-1]

    @property
    def du(self) -> int:
        """Number of inputs, 0 without inputs."""
        return 0 if self.inputs is None else self.inputs.shape[-1]


def stack(series: Sequence[Series]) -> Series:
    """Several series as one batch with a leading axis, for `jax.vmap` over them.

    Shorter ones are padded at the end with rows that repeat their last time and input and whose
    observations are missing: such rows change nothing and add exactly 0 to the log-likelihood.

    **Raises:** `ValueError` if the list is empty or the series differ in columns or names, `TypeError`
    for anything but single series.
    """
    if not series:
        raise ValueError("stack: `series` is empty; expected at least one Series")
    first = series[0]
    for i, one in enumerate(series):
        if not isinstance(one, Series) or one.times.ndim != 1:
            what = type(one).__name__
            what = "already a batch" if isinstance(one, Series) else what
            raise TypeError(f"stack: series {i} is {what}; expected one fd.Series")
        if one.dy != first.dy or (one.inputs is None) != (first.inputs is None):
            raise ValueError(
                f"stack: series {i} has {one.dy} observation columns and "
                f"{'no ' if one.inputs is None else ''}inputs, unlike series 0"
            )
        if one.du != first.du:
            raise ValueError(
                f"stack: series {i} has {one.du} input columns, series 0 has {first.du}"
            )
        if one.observation_names != first.observation_names or one.input_names != first.input_names:
            raise ValueError(f"stack: series {i} has other column names than series 0")
    longest = max(len(one) for one in series)
    xp = jnp if any(is_traced(one.times) for one in series) else np

    def padded(one: Series) -> tuple[Any, ...]:
        extra = longest - len(one)
        last = lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], extra, axis=0)])
        missing = jnp.full((extra, one.dy), jnp.nan, one.observations.dtype)
        return (
            xp.concatenate([one.times, xp.repeat(one.times[-1:], extra)]),
            jnp.concatenate([one.observations, missing]),
            None if one.inputs is None else last(one.inputs),
            xp.concatenate([one.gaps, xp.zeros(extra)]),
        )

    times, observations, inputs, gaps = zip(*(padded(one) for one in series), strict=True)
    return _build(
        first,
        times=xp.stack(times),
        observations=jnp.stack(observations),
        inputs=None if first.inputs is None else jnp.stack(inputs),
        gaps=xp.stack(gaps),
    )


def _build(like: Series, **parts: Any) -> Series:
    """`like` with other arrays, which were checked before."""
    names = ("coarse_clock", "observation_names", "input_names")
    series = object.__new__(Series)
    for name, value in {**parts, **{n: getattr(like, n) for n in names}}.items():
        object.__setattr__(series, name, value)
    return series


def _is_coarse(times: Any) -> bool:
    return is_traced(times) and times.dtype != jnp.float64


def blank(
    owner: str, times: Any, inputs: Any, dtype: Any, batch_shape: tuple[int, ...] = ()
) -> Series:
    """Rows at `times` (*batch, T) in which everything is missing: a timeline to simulate on."""
    series = object.__new__(Series)
    times = clock(owner, "times", times, 1 + len(batch_shape))
    if inputs is not None:
        inputs = float_array(owner, "inputs", inputs)
        if inputs.ndim == times.ndim:
            inputs = inputs[..., None]
        if inputs.shape[:-1] != times.shape:
            raise ValueError(
                f"{owner}: `inputs` has shape {inputs.shape} but `times` has shape {times.shape}; "
                "the first axes must agree"
            )
        check_finite(owner, "inputs", inputs)
    parts = dict(
        times=times,
        observations=jnp.full((*times.shape, 1), jnp.nan, dtype),
        inputs=inputs,
        gaps=_gaps(times),
        coarse_clock=_is_coarse(times),
        observation_names=None,
        input_names=None,
    )
    for name, value in parts.items():
        object.__setattr__(series, name, value)
    return series


def clock(owner: str, name: str, times: Any, ndim: int = 1) -> Any:
    """Times as float64 NumPy (concrete, checked) or as a traced array."""
    if is_traced(times):
        times = jnp.asarray(times)
        if not jnp.issubdtype(times.dtype, jnp.floating):
            times = times.astype(jnp.result_type(float))
    else:
        times = rectangular(owner, name, times)
        if times.dtype.kind not in "fiub":
            raise TypeError(
                f"{owner}: `{name}` has dtype {times.dtype}; expected real numbers "
                "(dates become seconds with Series.from_dataframe)"
            )
        times = times.astype(np.float64)
    if times.ndim != ndim:
        expected = f"({'S, ' * (ndim - 1)}T{',' * (ndim == 1)})"
        raise ValueError(f"{owner}: `{name}` has shape {times.shape}; expected {expected}")
    if times.shape[-1] == 0:
        raise ValueError(f"{owner}: `{name}` is empty; expected at least one row")
    if not is_traced(times):
        bad = np.argwhere(~np.isfinite(times))
        if bad.size:
            where = tuple(bad[0])
            raise ValueError(
                f"{owner}: `{name}` is {times[where]} in row {where[-1]}; expected finite numbers"
            )
        bad = np.argwhere(np.diff(times) < 0)
        if bad.size:
            *one, k = (int(i) for i in bad[0])
            before, after = (float(times[(*one, j)]) for j in (k, k + 1))
            raise ValueError(
                f"{owner}: `{name}` decreases from {before!r} (row {k}) to {after!r} "
                f"(row {k + 1}); expected non-decreasing times"
            )
    return times


def _times(times: Any) -> Any:
    return clock(_NAME, "times", times)


def _gaps(times: Any) -> Any:
    if is_traced(times):
        return jnp.concatenate([jnp.zeros_like(times[..., :1]), jnp.diff(times)], axis=-1)
    return np.concatenate([np.zeros_like(times[..., :1]), np.diff(times)], axis=-1)


def _columns(name: str, value: Any, times: Any) -> Array:
    array = float_array(_NAME, name, value)
    if array.ndim == 1 and is_traced(array):
        array = array[:, None]
    elif array.ndim == 1:
        with jax.ensure_compile_time_eval():
            array = array[:, None]
    if array.ndim != 2:
        raise ValueError(f"{_NAME}: `{name}` has shape {array.shape}; expected (T, columns)")
    if array.shape[0] != times.shape[0]:
        raise ValueError(
            f"{_NAME}: `{name}` has shape {array.shape} but `times` has shape {times.shape}; "
            "the first axes must agree"
        )
    if array.shape[1] == 0:
        raise ValueError(f"{_NAME}: `{name}` has shape {array.shape}; expected at least one column")
    return array


def _names(name: str, value: Sequence[str] | None, columns: int) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = (value,)
    if len(value) != columns:
        raise ValueError(f"{_NAME}: `{name}` has {len(value)} names for {columns} columns")
    return tuple(str(v) for v in value)


def _frame_column(df: Any, name: str) -> np.ndarray:
    column = df[name]
    try:
        return np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"{_NAME}.from_dataframe: column {name!r} has dtype {column.dtype}; expected numbers"
        ) from None
