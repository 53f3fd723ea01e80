"""Compiling the verbs: once per structure and shape, inline where something that is compiled calls them."""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

from filterdyn._callables import Held

_CLEAN = get_opaque_trace_state()
_RECOMPILATIONS_TO_WARN = 4
_compilations: Counter[Any] = Counter()
_warned: set[Any] = set()


def inside_a_trace() -> bool:
    """Is JAX tracing (jit, grad, vmap, ...) right now?"""
    return get_opaque_trace_state() != _CLEAN


def inside_a_program() -> bool:
    """Is what is computed now staged out into a program (under jit, scan, ...)? Under grad and vmap
    alone it is not, but done at once, operation by operation."""
    return inside_a_trace() and isinstance(jnp.zeros(1), jax.core.Tracer)


def _named(x: Any) -> Any:
    """A static leaf by its name instead of its identity: two fresh lambdas of one line are alike."""
    if callable(x):
        return (getattr(x, "__module__", ""), getattr(x, "__qualname__", type(x).__name__))
    return type(x).__name__


def _signature(verb: str, args: Any) -> Any:
    """What a compilation is for, but for the identity of user code: shapes, types, static settings."""
    leaves, structure = jax.tree.flatten(args, is_leaf=lambda x: isinstance(x, Held))
    parts: list[Any] = [verb, structure]
    for leaf in leaves:
        if isinstance(leaf, Held):
            parts.extend(_named(s) for s in leaf.static)
            parts.extend((a.shape, str(a.dtype)) for a in leaf.arrays if a is not None)
        elif eqx.is_array(leaf):
            parts.append((leaf.shape, str(leaf.dtype)))
        else:
            parts.append(_named(leaf))
    return tuple(parts)


def _note_compilation(verb: str, args: Any) -> str | None:
    """Count a compilation; what there is to say about it, once."""
    signature = _signature(verb, args)
    _compilations[signature] += 1
    if _compilations[signature] <= _RECOMPILATIONS_TO_WARN or signature in _warned:
        return None
    _warned.add(signature)
    return (
        f"filterdyn.{verb} was compiled {_compilations[signature]} times for the same shapes, "
        "because the model holds a function that is a new object at every call (a lambda or a "
        "closure made inside a loop). Define the function once, or make it an equinox.Module "
        "with its parameters as array fields, or call the verb inside your own jax.jit."
    )


def compiled(verb: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` behind a cache of compilations; static arguments may be any hashable object."""

    notes: list[str | None] = []

    def traced(*args: Any) -> Any:
        notes.append(_note_compilation(verb, args))
        return function(*args)

    jitted = eqx.filter_jit(traced)

    def call(*args: Any) -> Any:
        if inside_a_program():
            return function(*args)
        notes.clear()
        result = jitted(*args)
        # Said here and not under the trace, so that it points at the line that called the verb.
        for note in filter(None, notes):
            warnings.warn(note, stacklevel=3)
        return result

    return call
