"""A compiled step as a file that runs without the model's code."""

import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from filterdyn.filters.results import PARAMETERS, parameters_of
from filterdyn.filters.sampling_scan import FULL
from filterdyn.filters.stepping import start
from filterdyn.learning import ParameterEstimate
from filterdyn.online.checkpoint import write
from filterdyn.online.kernel import Kernel
from filterdyn.online.online_filter import OnlineFilter
from filterdyn.online.packing import Layout

_NAME = "export"
KIND = "ExportedFilter"
#: Of what the facts and functions in the file mean.
EXPORT_FORMAT = 1


def export(
    online: OnlineFilter,
    path: str | os.PathLike[str],
    *,
    num_inputs: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda"),
) -> None:
    """Write the compiled step of an online filter to a file, which `load_exported` runs without the
    Python code of the model:

        fd.export(online, "plant.filterdyn")

    The file holds programs in StableHLO (`jax.export`), which JAX versions of the following months can
    read, and a manifest in JSON: versions, shapes, the fingerprint of the model, SHA-256. It is
    written whole or not at all.

    **Arguments:**

    - `num_inputs`: how many inputs a row has (0: none); `None` for as many as `online` has taken so far;
    - `platforms`: where it shall run: `"cpu"`, `"cuda"`, `"rocm"`, `"tpu"`.

    **Raises:** `TypeError` for what is no `OnlineFilter`; `ValueError` for a model that calls back into
    Python, or for which XLA uses a routine that a later version may not have; it names them.
    """
    if not isinstance(online, OnlineFilter):
        raise TypeError(f"{_NAME}: `online` is {type(online).__name__}; expected an OnlineFilter")
    dtype = online.model.dtype()
    du = _inputs_of(online) if num_inputs is None else num_inputs
    key = jax.random.key(0, impl="threefry2x32")
    kernel, layout = _kernel_of(online, du, dtype, key)
    programs = _programs(online, kernel, layout, dtype, key)
    exported = {name: _exported(f, shapes, platforms) for name, (f, shapes) in programs.items()}
    facts = dict(
        export=EXPORT_FORMAT,
        jax=jax.__version__,
        calling_convention=max(e.calling_convention_version for e in exported.values()),
        platforms=list(platforms),
        model=online._fingerprint,
        filter=type(online.filter).__name__,
        dtype=str(np.dtype(dtype)),
        dx=online.model.dx,
        dy=kernel.dy,
        du=du,
        is_linear=online.model.dynamics.is_linear,
        steps=_stepping(online, kernel),
        generator=layout.generator,
        state=dict(zip(layout.dtypes, layout.sizes, strict=True)),
        record=described(kernel.record),
        learns=online.filter.learns,
    )
    arrays = {name: np.frombuffer(e.serialize(), np.uint8) for name, e in exported.items()}
    write(path, KIND, arrays, facts, 1)


def custom_calls(exported: Any) -> list[str]:
    """The routines outside of StableHLO that a program calls."""
    return sorted(set(re.findall(r'custom_call @"?([\w.$]+)', exported.mlir_module())))


def described(layout: Layout) -> dict[str, Any]:
    """A layout of a tree of dictionaries, in JSON."""
    places = [
        dict(vector=p.group, start=p.start, shape=list(p.shape), dtype=p.dtype)
        for p in layout.leaves
    ]
    return dict(
        tree=jax.tree.unflatten(layout.structure, range(len(places))),
        places=places,
        dtypes=list(layout.dtypes),
        sizes=list(layout.sizes),
    )


def _inputs_of(online: OnlineFilter) -> int:
    found = {kernel.du or 0 for kernel in online._kernels.values()}
    if len(found) > 1:
        raise ValueError(
            f"{_NAME}: `online` has taken rows with {sorted(found)} inputs; say which by `num_inputs`"
        )
    return found.pop() if found else 0


def _kernel_of(online: OnlineFilter, du: int, dtype: Any, key: Any) -> tuple[Kernel, Layout]:
    state = online.init(0.0, np.zeros(du) if du else None, key=key)
    kernel = online._kernel(state, state.input)
    plain = _PlainKernel(online.model, online.filter, kernel.du, kernel.dy, state.layout)
    return plain, state.layout


class _PlainKernel(Kernel):
    """A step whose record is numbers by name, which a file can describe."""

    def _packed(self, record: dict[str, Any]) -> Any:
        diagnostics = record["diagnostics"]
        if diagnostics is not None:
            rest = {name: value for name, value in diagnostics.items() if name != PARAMETERS}
            record = record | {"diagnostics": rest, PARAMETERS: diagnostics.get(PARAMETERS)}
        alarm = record["alarm"]
        record = record | {"alarm": None if alarm is None else dict(vars(alarm))}
        return super()._packed(record | {PARAMETERS: in_units(record[PARAMETERS])})


def in_units(parameters: Any) -> dict[str, Any] | None:
    """Of what a filter has learnt, the means and, where it claims a posterior, the standard deviations;
    weights of a network as one vector, under the name `weights`."""
    if parameters is None:
        return None
    if not isinstance(parameters, ParameterEstimate):
        mean, sd = parameters.unconstrained_mean, jnp.sqrt(parameters.variances)
        return dict(mean=dict(weights=mean), sd=dict(weights=sd))
    found = dict(mean=parameters.mean)
    return found if parameters.unconstrained_cov is None else found | {"sd": parameters.sd}


def _programs(
    online: OnlineFilter, kernel: Kernel, layout: Layout, dtype: Any, key: Any
) -> dict[str, Any]:
    """What the file holds, each with the shapes of its arguments."""
    vectors = tuple(
        jax.ShapeDtypeStruct((size,), name)
        for name, size in zip(layout.dtypes, layout.sizes, strict=True)
    )

    def begin(data: Any) -> Any:
        zero = jnp.zeros((), dtype)
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        return layout.pack((start(online.filter, online.model, dtype, key), zero, zero))

    def read(vectors: Any) -> Any:
        state, total, lost = layout.unpack(vectors)
        wide = layout.generator is not None and online.model.dx > FULL
        return dict(
            mean=state.belief.mean,
            cov=None if wide else state.belief.cov,
            log_likelihood=jnp.where(state.status == 0, total + lost, -jnp.inf),
            status=state.status,
            parameters=in_units(parameters_of(state.belief)),
        )

    row = jax.ShapeDtypeStruct((kernel.width,), dtype)
    data = jax.eval_shape(jax.random.key_data, key)
    return dict(
        init=(begin, (data,)), step=(kernel.packed_step, (vectors, row)), read=(read, (vectors,))
    )


def _exported(program: Any, shapes: Any, platforms: Sequence[str]) -> Any:
    calls = set(re.findall(r"\b(\w*callback|debug_print)\[", str(jax.make_jaxpr(program)(*shapes))))
    if calls:
        raise ValueError(
            f"{_NAME}: the model calls back into Python ({', '.join(sorted(calls))}), which a file cannot "
            "hold; take jax.debug.print, jax.pure_callback, equinox.error_if and the like out of it"
        )
    try:
        return jax.export.export(jax.jit(program), platforms=tuple(platforms))(*shapes)
    except ValueError as error:
        if "custom call" not in str(error):
            raise
        raise ValueError(
            f"{_NAME}: the model needs a routine that a file cannot promise to find again ({error})"
        ) from None


def _stepping(online: OnlineFilter, kernel: Kernel) -> list[Any] | None:
    """The largest step and the most of them, where steps are counted on the host."""
    if not kernel.counts_steps:
        return None
    dynamics: Any = online.model.dynamics
    return [float(dynamics.dt), int(dynamics.max_substeps)]
