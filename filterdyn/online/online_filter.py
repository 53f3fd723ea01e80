"""A filter that takes one measurement at a time."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from filterdyn._checks import as_numbers, check_count, check_shape, is_traced
from filterdyn.filters.rows import Row, clock_status
from filterdyn.filters.sampling_verbs import require_key
from filterdyn.filters.stepping import AnyFilter, start
from filterdyn.filters.verbs import check_is_filter, check_is_model
from filterdyn.forecasting import Forecast, forecast_from
from filterdyn.model import StateSpaceModel
from filterdyn.online.checkpoint import Reader, fingerprint, write
from filterdyn.online.clock import seconds, seconds_of
from filterdyn.online.kernel import HEAD, Kernel
from filterdyn.online.packing import Layout
from filterdyn.online.saving import arrays_of, state_in
from filterdyn.online.state import OnlineState, StepResult

_NAME = "OnlineFilter"
_INFINITE = float("inf")
_Tracer = jax.core.Tracer


class OnlineFilter:
    """Follows a system measurement by measurement, with the step of the batch verb `filter`:

        online = fd.OnlineFilter(model, fd.ExtendedKalmanFilter())
        state = online.init(t0)
        for t, y in stream:
            state, result = online.step(state, t, y)

    The state is a value: keep it, copy it, go back to it. One compilation serves all steps, whatever
    kind of numbers come; `compile_count` says so.
    """

    def __init__(self, model: StateSpaceModel, filter: AnyFilter, *, num_inputs: int | None = None):
        """**Arguments:** `num_inputs`: how many inputs a row will have (0: none). With it the step is
        compiled now, without it when the first input or the first row comes.

        **Raises:** `TypeError` if the filter cannot treat the model; `ValueError` for dynamics with
        `dt` and without `max_substeps`: how long a gap will be is not known beforehand."""
        check_is_model(_NAME, model)
        check_is_filter(_NAME, filter)
        filter.check(model)
        self.model = model
        self.filter = filter
        # Dynamics that cannot plan for unknown gaps say so now and not at the first step.
        jax.eval_shape(lambda gaps: model.dynamics.plan(gaps), jnp.zeros(1))
        self._traced = is_traced((model, filter))
        self._kernels: dict[Any, Kernel] = {}
        self._begins: dict[Any, Any] = {}
        if num_inputs is not None:
            self._warm_up(num_inputs)

    @property
    def compile_count(self) -> int:
        """How often a step was compiled: once, and once for each size of chunk of `step_many`."""
        return sum(kernel.compilations for kernel in self._kernels.values())

    def init(self, t0: Any, u0: Any = None, *, key: Array | None = None) -> OnlineState:
        """The state before any measurement.

        **Arguments:** `t0`: when `initial` holds, a number or a datetime with a time zone; a first
        measurement at `t0` meets it without a prediction, a later one after it. `u0` (du,): the input
        from `t0` to the first measurement. `key`: a random key, needed by filters that sample only; it
        is carried in the state, so that a stream repeats the numbers of `fd.filter(..., key=key)`.
        """
        require_key(f"{_NAME}.init", self.filter, key)
        dtype = self.model.dtype()
        if not is_traced(t0):
            t0 = seconds(f"{_NAME}.init", "t0", t0)
            if not np.isfinite(t0):
                raise ValueError(f"{_NAME}.init: `t0` is {t0}; expected a finite time")
        if u0 is not None:
            u0 = self._input("u0", u0, dtype)
        begin = self._begins.get(dtype) if key is None else None
        if begin is None:
            begin = self._begin(dtype, key)
            if key is None and not is_traced(begin[0]):
                # Arrays of JAX do not change: every stream may begin with the same ones.
                self._begins[dtype] = begin
        return OnlineState(t0, u0, *begin)

    def _begin(self, dtype: Any, key: Array | None) -> tuple[Any, Layout]:
        """The vectors before any measurement, and how they lie."""
        zero = jnp.zeros((), dtype)
        begin = (start(self.filter, self.model, dtype, key), zero, zero)
        layout = Layout.of(begin)
        return layout.pack(begin), layout

    def step(
        self, state: OnlineState, t: Any, y: Any, u: Any = None
    ) -> tuple[OnlineState, StepResult]:
        """Predict to time `t` with the stored input, then observe `y` with the input `u`.

        **Arguments:**

        - `state`: what `init` or the step before returned;
        - `t`: not before the state's time; the same time is a second sensor at one instant; a number
          or a datetime with a time zone, which counts as seconds since 1970;
        - `y` (dy,) or a number: the measurement, NaN where an entry is missing;
        - `u` (du,) or a number: the input from `t` on, which the measurement sees; `None` holds the
          stored one.

        **Raises:** `ValueError` for a time before the state's, a measurement of another shape or with
        infinite entries.
        """
        plain = type(t) is float and type(y) is np.ndarray and u is None
        if not (plain and type(state.time) is np.float64 and not self._traced) or isinstance(
            state.vectors[0], _Tracer
        ):
            if self._is_traced(state, t, y, u):
                return self._step_traced(state, t, y, u)
            # (Floats of Python are faster than those of NumPy, one by one.)
            t = float(seconds(f"{_NAME}.step", "t", t))
        since = float(state.time)
        gap = t - since
        if not gap >= 0:
            raise ValueError(
                f"{_NAME}.step: `t` is {t!r}, before the last row at {since!r}; expected a time that is "
                "not earlier"
            )
        before = now = state.input
        if u is not None:
            before, now = self._inputs(state, u, gap > 0)
        kernel = self._kernel(state, now)
        dy = kernel.dy
        if not (type(y) is np.ndarray and y.dtype.kind == "f" and y.shape == (dy,)):
            y = self._vector("y", y)
            check_shape(f"{_NAME}.step", "y", y, (dy,), "the observation's entries")
        values = y.tolist()
        if _INFINITE in values or -_INFINITE in values:
            raise ValueError(f"{_NAME}: `y` has infinite entries; NaN marks a missing one")
        steps = kernel.number_of_steps(np.array([gap]))[0] if kernel.counts_steps else 0
        parts = [since, gap, t, steps, *values]
        if now is not None:
            parts += [*before.tolist(), *now.tolist()]
        row = np.array(parts, kernel.dtype)
        vectors, record = kernel.one(state.vectors, row)
        new = OnlineState(np.float64(t), now, vectors, state.layout)
        return new, StepResult(record, kernel.record)

    def step_many(
        self, state: OnlineState, times: Any, observations: Any, inputs: Any = None
    ) -> tuple[OnlineState, StepResult]:
        """Several steps in one call, for chunks of a stream or to catch up.

        **Arguments:** `times` (T,), `observations` (T, dy) or (T,), `inputs` (T, du) or (T,), row by
        row as for `step`.

        **Returns:** the state after the last row, and the `StepResult` whose parts have a leading axis
        T. Chunks are padded to a power of 2, so that few sizes are compiled.

        **Raises:** as `step`; nothing is filtered then.
        """
        owner = f"{_NAME}.step_many"
        if self._traced or is_traced((state, times, observations, inputs)):
            raise TypeError(f"{owner} does not run inside a trace; use jax.lax.scan over `step`")
        times = seconds_of(owner, "times", times)
        y = as_numbers(_NAME, "observations", observations)
        y = y.reshape(len(y), -1) if y.ndim < 2 else y
        count = len(times)
        if times.ndim != 1 or count == 0 or len(y) != count:
            raise ValueError(
                f"{owner}: `times` has shape {times.shape} and `observations` {y.shape}; expected one "
                "or more rows, as many of each"
            )
        before = np.concatenate([[state.time], times[:-1]])
        gaps = times - before
        if not (gaps >= 0).all():
            k = int(np.argmin(gaps >= 0))
            raise ValueError(
                f"{owner}: `times[{k}]` is {float(times[k])!r}, before the row at "
                f"{float(before[k])!r}; expected times that do not decrease"
            )
        held = now = state.input
        if inputs is not None:
            u = as_numbers(_NAME, "inputs", inputs)
            u = u.reshape(len(u), -1) if u.ndim < 2 else u
            if len(u) != count or not np.isfinite(u).all():
                raise ValueError(f"{owner}: `inputs` {u.shape}; expected {count} finite rows")
            held, _ = self._inputs(state, u[0], gaps[0] > 0)
            now = u.astype(held.dtype)
            held = np.concatenate([held[None], now[:-1]])
        kernel = self._kernel(state, now if inputs is None else now[0])
        check_shape(
            owner, "observations", jnp.asarray(y), (count, kernel.dy), "a row for each time"
        )
        if np.isinf(y).any():
            raise ValueError(
                f"{owner}: `observations` has infinite entries; NaN marks a missing one"
            )
        rows = np.zeros((1 << (count - 1).bit_length(), kernel.width), kernel.state.dtypes[0])
        head = [before, gaps, times, np.broadcast_to(kernel.number_of_steps(gaps), count)]
        rows[:count, :HEAD] = np.stack(head, axis=1)
        rows[:count, HEAD : HEAD + kernel.dy] = y
        if now is not None:
            rows[:count, HEAD + kernel.dy :] = np.concatenate(
                [np.broadcast_to(x, (count, kernel.du or 0)) for x in (held, now)], axis=1
            )
        vectors, record = kernel.many(state.vectors, rows, np.int32(count))
        result = StepResult(tuple(np.asarray(v)[:count] for v in record), kernel.record)
        end = now if inputs is None else now[-1]
        return OnlineState(times[-1], end, vectors, state.layout), result

    def predict_to(self, state: OnlineState, t: Any) -> OnlineState:
        """The state at `t`, if nothing is measured until then. It is a row of which everything is
        missing: discrete dynamics make one transition, a filter that samples draws."""
        return self.step(state, t, np.full(self._kernel(state, state.input).dy, np.nan))[0]

    def forecast(
        self,
        state: OnlineState,
        times: Any,
        inputs: Any = None,
        *,
        key: Array | None = None,
        num_samples: int = 1000,
    ) -> Forecast:
        """The state and the measurements at `times`; arguments and result as for `fd.forecast`."""
        return forecast_from(
            self.model,
            self.filter,
            state.filter_state,
            state.time,
            None if state.input is None else jnp.asarray(state.input),
            times,
            inputs,
            key,
            num_samples,
        )

    def save(
        self,
        path: str | os.PathLike[str],
        state: OnlineState,
        *,
        position: int | str | None = None,
        generations: int = 1,
    ) -> None:
        """Write `state` to a file: whenever the process dies, `path` holds the old file or the new one.

        **Arguments:** `position`: where the stream stands (an offset, a name), kept with the state;
        `generations`: how many files to keep, `path` and before it `path.1`, `path.2`, ...
        """
        generations = check_count(f"{_NAME}.save", "generations", generations)
        facts = dict(self._facts(state), position=position)
        write(path, "OnlineState", arrays_of(state), facts, generations)

    def load(
        self, path: str | os.PathLike[str], *, max_bytes: int = 2**30
    ) -> tuple[OnlineState, Any]:
        """The state and the position that `save` wrote; the stream goes on from them to the same bits.
        No code is loaded from a file.

        **Raises:** `ValueError` for a file that is truncated, changed, foreign, of a newer format, of
        another model or filter, or larger than `max_bytes`; it names the first difference.
        """
        reader = Reader(path, "OnlineState", max_bytes)
        return self._state_in(reader), reader.fact("position")

    def _facts(self, state: OnlineState) -> dict[str, Any]:
        """What a state belongs to."""
        return dict(model=self._fingerprint, generator=state.layout.generator)

    @functools.cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.model, self.filter)

    def _state_in(self, reader: Reader) -> OnlineState:
        return state_in(reader, self.model, self.filter, self.init)

    def _warm_up(self, num_inputs: int) -> None:
        u0 = np.zeros(num_inputs) if num_inputs else None
        state = self.init(0.0, u0, key=jax.random.key(0))
        self.predict_to(state, 0.0)

    def _kernel(self, state: OnlineState, input: Any) -> Kernel:
        du = None if input is None else input.shape[-1]
        layout = state.layout
        kernel = self._kernels.get((du, layout.dtypes))
        if kernel is None or (kernel.state is not layout and kernel.state != layout):
            dtype = state.layout.dtypes[0]
            shape = None if du is None else jax.ShapeDtypeStruct((du,), dtype)
            dy = self.model.dy(jax.ShapeDtypeStruct((), dtype), shape)
            kernel = Kernel(self.model, self.filter, du, dy, state.layout)
            self._kernels[du, state.layout.dtypes] = kernel
        return kernel

    def _is_traced(self, state: OnlineState, t: Any, y: Any, u: Any) -> bool:
        if self._traced or isinstance(t, _Tracer) or isinstance(state.vectors[0], _Tracer):
            return True
        if type(y) is np.ndarray and u is None:
            return isinstance(state.time, _Tracer)
        return is_traced((state, y, u))

    def _step_traced(
        self, state: OnlineState, t: Any, y: Any, u: Any
    ) -> tuple[OnlineState, StepResult]:
        dtype = jnp.dtype(state.layout.dtypes[0])
        y = self._vector("y", y, dtype)
        if not is_traced(y) and np.isinf(y).any():
            raise ValueError(f"{_NAME}: `y` has infinite entries; NaN marks a missing one")
        xp = jnp if is_traced((state.time, t)) else np
        times = xp.asarray(t if xp is jnp else np.float64(t))[None]
        gaps = times - state.time
        before = now = state.input
        if u is not None:
            before, now = self._inputs(state, u, xp is jnp or gaps[0] > 0)
        kernel = self._kernel(state, now)
        check_shape(f"{_NAME}.step", "y", y, (kernel.dy,), "the observation's entries")
        plan = self.model.dynamics.plan(gaps) if kernel.counts_steps else None
        row = Row(
            xp.asarray(state.time, dtype),
            gaps[0].astype(dtype),
            before,
            xp.asarray(t, dtype),
            now,
            y,
            clock_status(times, gaps, xp is jnp and times.dtype != jnp.float64)[0],
            None if plan is None or plan.rows is None else plan.rows[0],
        )
        if xp is np and not gaps[0] >= 0:
            raise ValueError(f"{_NAME}.step: `t` is {times[0]!r}, before the last row")
        vectors, record = kernel.traced(state.vectors, row, 0 if plan is None else plan.most)
        time = t if is_traced(t) else np.float64(t)
        return OnlineState(time, now, vectors, state.layout), StepResult(record, kernel.record)

    def _inputs(self, state: OnlineState, u: Any, moves: Any) -> tuple[Any, Any]:
        """The input over the gap and the one that the measurement sees."""
        held = state.input
        u = self._input("u", u, jnp.dtype(state.layout.dtypes[0]))
        if held is not None:
            if held.shape != u.shape:
                raise ValueError(
                    f"{_NAME}.step: `u` has shape {u.shape} but the input before has shape "
                    f"{held.shape}"
                )
            return held, u
        if moves and not self.model.dynamics.is_linear:
            raise ValueError(
                f"{_NAME}.step: the input since `t0` is missing, and "
                f"{type(self.model.dynamics).__name__} needs it; give it to init as `u0`"
            )
        return np.zeros_like(u) if isinstance(u, np.ndarray) else jnp.zeros_like(u), u

    def _input(self, name: str, value: Any, dtype: Any) -> Any:
        u = self._vector(name, value, dtype)
        if isinstance(u, np.ndarray) and not np.isfinite(u).all():
            raise ValueError(f"{_NAME}: `{name}` has NaN or infinite entries")
        return u

    def _vector(self, name: str, value: Any, dtype: Any = None) -> Any:
        """A number or a vector, on the host where it is concrete: no device call per argument."""
        if is_traced(value):
            value = jnp.asarray(value, dtype)
        else:
            value = as_numbers(_NAME, name, value)
            value = value if dtype is None else value.astype(dtype)
        if value.ndim > 1:
            raise ValueError(f"{_NAME}: `{name}` has shape {value.shape}; expected one axis")
        return value.reshape(-1)
