"""A filter from a file, without the model's code."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from filterdyn._checks import as_numbers, check_count, check_shape
from filterdyn.dynamics.stepping import plan_steps
from filterdyn.filters.results import PARAMETERS
from filterdyn.online.checkpoint import Reader, write
from filterdyn.online.clock import seconds
from filterdyn.online.exporting import EXPORT_FORMAT, KIND, custom_calls
from filterdyn.online.packing import Layout, _Leaf
from filterdyn.online.saving import arrays_of, parts_in
from filterdyn.online.state import StepResult, by_name

_NAME = "ExportedFilter"


class ExportedState:
    """Where an `ExportedFilter` stands: a value, with the parts of an `OnlineState`."""

    __slots__ = ("_owner", "_read", "input", "time", "vectors")

    def __init__(self, owner: "ExportedFilter", time: Any, input: Any, vectors: tuple[Any, ...]):
        self._owner = owner
        self._read: dict[str, Any] | None = None
        self.time = time
        self.input = input
        self.vectors = vectors

    @property
    def layout(self) -> Layout:
        return self._owner._layout

    def _part(self, name: str) -> Any:
        if self._read is None:
            self._read = self._owner._call("read", self.vectors)
        found = self._read.get(name)
        return None if found is None else jax.tree.map(np.asarray, found)

    @property
    def mean(self) -> Float[Any, " dx"]:
        return self._part("mean")

    @property
    def cov(self) -> Float[Any, "dx dx"] | None:
        """`None` for a filter that samples, of more than 64 states."""
        return self._part("cov")

    @property
    def log_likelihood(self) -> Float[Any, ""]:
        return self._part("log_likelihood")

    @property
    def status(self) -> Int[Any, ""]:
        return self._part("status")

    @property
    def parameters(self) -> Any:
        """Of a filter that learns, with `mean` and (of one that claims a posterior) `sd` by name; else
        `None`."""
        return by_name(self._part(PARAMETERS))

    def __repr__(self) -> str:
        return f"ExportedState(time={self.time}, status={self.status})"


class ExportedFilter:
    """What `load_exported` found: the step of an `OnlineFilter`, without its model.

    `manifest` is what the file says of itself: versions, platforms, sizes, the filter's name.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int):
        reader = Reader(path, KIND, max_bytes)
        self.manifest: dict[str, Any] = reader.facts
        _check_versions(reader)
        try:
            self._programs = {
                name: _program(reader.array(name, None, np.uint8), name, reader)
                for name in ("init", "step", "read")
            }
            self._dtype = np.dtype(reader.fact("dtype"))
            self._dy = int(reader.fact("dy"))
            self._du = int(reader.fact("du"))
            self._steps = reader.fact("steps")
            self._record = _layout(reader.fact("record"))
            state = reader.fact("state")
            self._layout = Layout(
                structure=None,
                leaves=(),
                dtypes=tuple(map(str, state)),
                sizes=tuple(map(int, state.values())),
            )
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            reader.refuse(f"its manifest is malformed ({type(error).__name__}: {error})")

    def init(self, t0: Any, u0: Any = None, *, key: Array | None = None) -> ExportedState:
        """The state before any measurement; arguments as for `OnlineFilter.init`, the key of the kind
        that `jax.random.key` makes."""
        time = seconds(f"{_NAME}.init", "t0", t0)
        if not np.isfinite(time):
            raise ValueError(f"{_NAME}.init: `t0` is {time}; expected a finite time")
        if key is None and self.manifest["generator"] is not None:
            raise ValueError(f"{_NAME}.init: this filter samples; give it a random `key`")
        key = jax.random.key(0, impl="threefry2x32") if key is None else key
        data = jax.random.key_data(key)
        if data.shape != (2,):
            raise ValueError(
                f"{_NAME}.init: `key` is {key!r}; expected one of jax.random.key(seed)"
            )
        input = None if u0 is None else self._vector("u0", u0, self._du, True)
        return ExportedState(self, time, input, self._call("init", data))

    def step(
        self, state: ExportedState, t: Any, y: Any, u: Any = None
    ) -> tuple[ExportedState, StepResult]:
        """Predict to `t` with the stored input, then observe `y` with the input `u`, as
        `OnlineFilter.step`.

        **Raises:** `ValueError` for a time before the state's, a measurement of another shape or with
        infinite entries, an input that is missing.
        """
        time = seconds(f"{_NAME}.step", "t", t)
        gap = time - state.time
        if not gap >= 0:
            raise ValueError(
                f"{_NAME}.step: `t` is {float(time)!r}, before the last row at {float(state.time)!r}; "
                "expected a time that is not earlier"
            )
        row: list[Any] = [[state.time, gap, time, self._number_of_steps(gap)]]
        row.append(self._vector("y", y, self._dy, False))
        now = state.input
        if self._du:
            before, now = self._inputs(state, gap, u)
            row += [before, now]
        elif u is not None:
            raise ValueError(f"{_NAME}.step: `u` is given; this filter was exported without inputs")
        vectors, record = self._call("step", state.vectors, np.concatenate(row).astype(self._dtype))
        return ExportedState(self, time, now, vectors), StepResult(record, self._record)

    def predict_to(self, state: ExportedState, t: Any) -> ExportedState:
        """The state at `t`, if nothing is measured until then; as `OnlineFilter.predict_to`."""
        return self.step(state, t, np.full(self._dy, np.nan))[0]

    def save(
        self,
        path: str | os.PathLike[str],
        state: ExportedState,
        *,
        position: int | str | None = None,
        generations: int = 1,
    ) -> None:
        """As `OnlineFilter.save`; the `OnlineFilter` that was exported can load the file."""
        generations = check_count(f"{_NAME}.save", "generations", generations)
        facts = dict(self._facts(state), position=position)
        write(path, "OnlineState", arrays_of(state), facts, generations)

    def load(
        self, path: str | os.PathLike[str], *, max_bytes: int = 2**30
    ) -> tuple[ExportedState, Any]:
        """As `OnlineFilter.load`; what the `OnlineFilter` that was exported saved is read too."""
        reader = Reader(path, "OnlineState", max_bytes)
        return self._state_in(reader), reader.fact("position")

    def _facts(self, state: ExportedState) -> dict[str, Any]:
        """What a state belongs to."""
        return {name: self.manifest[name] for name in ("model", "generator")}

    def _state_in(self, reader: Reader) -> ExportedState:
        for name in ("model", "generator"):
            reader.expect(name, self.manifest[name])
        return ExportedState(self, *parts_in(reader, self._layout))

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._programs[name](*arguments)

    def _number_of_steps(self, gap: np.float64) -> Any:
        if self._steps is None:
            return 0
        dt, most = self._steps
        return np.asarray(plan_steps(_NAME, np.array([gap]), dt, most).rows)[0]

    def _inputs(self, state: ExportedState, gap: np.float64, u: Any) -> tuple[Any, Any]:
        """The input over the gap and the one that the measurement sees."""
        held = state.input
        if u is None:
            if held is None:
                raise ValueError(
                    f"{_NAME}.step: `u` is missing; this filter was exported with {self._du} inputs"
                )
            return held, held
        u = self._vector("u", u, self._du, True)
        if held is None and gap > 0 and not self.manifest["is_linear"]:
            raise ValueError(
                f"{_NAME}.step: the input since `t0` is missing; give it to init as `u0`"
            )
        return np.zeros_like(u) if held is None else held, u

    def _vector(self, name: str, value: Any, size: int, finite: bool) -> np.ndarray:
        vector = as_numbers(_NAME, name, value).astype(self._dtype).reshape(-1)
        check_shape(_NAME, name, jnp.asarray(vector), (size,))
        bad = ~np.isfinite(vector) if finite else np.isinf(vector)
        if bad.any():
            raise ValueError(
                f"{_NAME}: `{name}` has entries that are infinite or missing: {vector}"
            )
        return vector


def load_exported(path: str | os.PathLike[str], *, max_bytes: int = 2**30) -> ExportedFilter:
    """The filter that `export` wrote. No Python code is loaded; what runs are the programs in the file,
    compiled for this machine at their first use.

    **Raises:** `ValueError` for a file that is truncated, changed, foreign, larger than `max_bytes`, or
    that these versions of filterdyn and JAX or this platform cannot run; it says what to do.
    """
    return ExportedFilter(path, max_bytes)


def _check_versions(reader: Reader) -> None:
    written = f"(written with jax {reader.fact('jax')})"
    if reader.fact("export") != EXPORT_FORMAT:
        reader.refuse(
            f"its export format is {reader.fact('export')!r} and this filterdyn reads {EXPORT_FORMAT}; "
            "export it again with this version, or install the one that wrote it"
        )
    convention = reader.fact("calling_convention")
    oldest = jax.export.minimum_supported_calling_convention_version
    newest = jax.export.maximum_supported_calling_convention_version
    if not (isinstance(convention, int) and oldest <= convention <= newest):
        advice = (
            "upgrade jax"
            if isinstance(convention, int) and convention > newest
            else "export it again"
        )
        reader.refuse(
            f"its calling convention is {convention!r} {written}, and jax {jax.__version__} reads {oldest} "
            f"to {newest}; {advice}"
        )
    here = jax.export.default_export_platform()
    if here not in reader.fact("platforms"):
        reader.refuse(
            f"it was exported for {', '.join(reader.fact('platforms'))} and this machine runs on {here}; "
            f"export it with platforms=({here!r},), or set JAX_PLATFORMS"
        )
    if reader.fact("dtype") == "float64" and jnp.result_type(float) != np.float64:
        reader.refuse("it is in double precision; call numpyro.enable_x64() first")


def _program(content: np.ndarray, name: str, reader: Reader) -> Any:
    try:
        exported = jax.export.deserialize(bytearray(content.tobytes()))
        calls = custom_calls(exported)
    except Exception as error:  # flatbuffers and MLIR raise what they like
        reader.refuse(f"its program `{name}` cannot be read ({type(error).__name__}: {error})")
    if any("callback" in call for call in calls):
        reader.refuse(f"its program `{name}` calls {', '.join(calls)}")
    return jax.jit(exported.call)


def _layout(found: dict[str, Any]) -> Layout:
    places = [
        _Leaf(p["vector"], p["start"], tuple(p["shape"]), p["dtype"], None) for p in found["places"]
    ]
    return Layout(
        structure=jax.tree.structure(found["tree"]),
        leaves=tuple(places),
        dtypes=tuple(found["dtypes"]),
        sizes=tuple(found["sizes"]),
    )
