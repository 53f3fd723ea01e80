"""What of a program is known before it runs: computed once, where it is compiled."""

from typing import Any

import jax
import numpy as np


def is_known(value: Any) -> bool:
    """Is it an array of NumPy?"""
    return isinstance(value, np.ndarray | np.generic)


def known(value: Any) -> Any:
    """A constant of a program as an array of NumPy, where it can be one."""
    if isinstance(value, jax.core.Tracer) or jax.dtypes.issubdtype(
        getattr(value, "dtype", np.float32), jax.dtypes.extended
    ):
        return value
    return np.asarray(value)


def literal(variable: Any) -> np.ndarray:
    """A number that stands in the program."""
    return np.asarray(variable.val, variable.aval.dtype)


def bind(equation: Any, *values: Any) -> list[Any]:
    """An operation of a program on other values."""
    params = equation.primitive.get_bind_params(equation.params)
    with equation.ctx.manager:
        found = equation.primitive.bind(*values, **params)
    return list(found) if equation.primitive.multiple_results else [found]


def now(equation: Any, values: list[Any]) -> list[Any]:
    """An operation on values that are known."""
    with jax.ensure_compile_time_eval():
        return [known(x) for x in bind(equation, *values)]


def platform(equation: Any) -> np.int32:
    """Which branch a `platform_index` means on a CPU."""
    fits = [k for k, p in enumerate(equation.params["platforms"]) if p is None or "cpu" in p]
    return np.int32(fits[0])
