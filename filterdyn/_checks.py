"""Eager checks of arguments, with messages that name the argument, what came and what was expected."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BATCH_RECIPE = (
    "make a batch of models with equinox.filter_vmap(make)(parameters), where make(one) builds one "
    "model and holds its parameters as array fields of equinox modules"
)


def batch_hint(batched: bool) -> str:
    """What to say, after a wrong shape, to somebody whose function closes over a batch of parameters."""
    return f". If the model holds a batch of parameters, {BATCH_RECIPE}" if batched else ""


def is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def float_array(owner: str, name: str, value: Any) -> jax.Array:
    """`value` as a floating JAX array; integers and booleans are promoted, objects are refused."""
    if not isinstance(value, jax.Array):
        value = as_numbers(owner, name, value)
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(f"{owner}: `{name}` is complex; expected real numbers")
    dtype = None if jnp.issubdtype(value.dtype, jnp.floating) else jnp.result_type(float)
    if is_traced(value):
        return jnp.asarray(value, dtype)
    # Numbers that are known stay known inside a trace, and can be looked at.
    with jax.ensure_compile_time_eval():
        return jnp.asarray(value, dtype)


def returned(owner: str, call: str, value: Any) -> jax.Array:
    """What a user's function returned, as an array."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{owner}: `{call}` returned {type(value).__name__}; expected an array of numbers"
        ) from None


def as_numbers(owner: str, name: str, value: Any) -> np.ndarray:
    """`value` as a NumPy array of numbers."""
    array = rectangular(owner, name, value)
    if array.dtype.kind not in "fiubc" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{owner}: `{name}` has dtype {array.dtype}; expected real numbers "
            "(NaN, not None, marks a missing value)"
        )
    return array


def rectangular(owner: str, name: str, value: Any) -> np.ndarray:
    """`value` as a NumPy array of whatever it holds."""
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(
            f"{owner}: `{name}` is a nested sequence whose parts differ in length; expected a "
            "rectangular array"
        ) from None


def check_finite(owner: str, name: str, value: jax.Array) -> None:
    if not is_traced(value) and not np.all(np.isfinite(np.asarray(value))):
        raise ValueError(f"{owner}: `{name}` has NaN or infinite entries; expected finite numbers")


def check_shape(
    owner: str, name: str, value: jax.Array | np.ndarray, shape: tuple[int, ...], why: str = ""
) -> None:
    if tuple(value.shape) != tuple(shape):
        because = f" ({why})" if why else ""
        raise ValueError(
            f"{owner}: `{name}` has shape {tuple(value.shape)}; expected {tuple(shape)}{because}"
        )


def check_covariance(owner: str, name: str, value: jax.Array) -> None:
    """A concrete covariance must be finite, symmetric and positive semi-definite."""
    if is_traced(value):
        return
    check_finite(owner, name, value)
    matrix = np.asarray(value, dtype=np.float64)
    eps = float(jnp.finfo(value.dtype).eps)
    if matrix.ndim < 2:
        if np.any(matrix < 0):
            raise ValueError(
                f"{owner}: `{name}` holds variances and has a negative entry ({matrix.min():.6g}); "
                "expected numbers >= 0"
            )
        return
    diagonal = np.diag(matrix)
    if np.any(diagonal < 0):
        raise ValueError(
            f"{owner}: `{name}` has a negative variance on its diagonal ({diagonal.min():.6g})"
        )
    scale = np.sqrt(diagonal)
    bound = np.outer(scale, scale)
    gap = np.abs(matrix - matrix.T)
    if np.any(gap > 100 * eps * np.maximum(bound, np.abs(matrix))):
        i, j = np.unravel_index(int(np.argmax(gap)), gap.shape)
        raise ValueError(
            f"{owner}: `{name}` is not symmetric: entry [{i}, {j}] is {matrix[i, j]:.6g} but "
            f"[{j}, {i}] is {matrix[j, i]:.6g}"
        )
    safe = np.where(scale > 0, scale, 1.0)
    correlation = matrix / np.outer(safe, safe)
    smallest = float(np.linalg.eigvalsh(0.5 * (correlation + correlation.T)).min())
    if smallest < -100 * len(matrix) * eps:
        raise ValueError(
            f"{owner}: `{name}` is not positive semi-definite: its correlation matrix has "
            f"eigenvalue {smallest:.3g}"
        )


def check_count(owner: str, name: str, value: Any) -> int:
    """`value` as an int, which must be a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{owner}: `{name}` is {value!r}; expected an integer >= 1")
    return int(value)


def check_between(owner: str, name: str, value: Any, low: float, high: float) -> float:
    """`value` as a float in the open interval from `low` to `high`."""
    return _in_interval(owner, name, value, f"({low:g}, {high:g})", lambda x: low < x < high)


def check_fraction(owner: str, name: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    return _in_interval(owner, name, value, "[0, 1]", lambda x: 0 <= x <= 1)


def _in_interval(
    owner: str, name: str, value: Any, interval: str, holds: Callable[[float], bool]
) -> float:
    try:
        fine = not isinstance(value, bool) and holds(float(value))
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise ValueError(f"{owner}: `{name}` is {value!r}; expected a number in {interval}")
    return float(value)


def check_key(owner: str, key: Any) -> None:
    """`key` must be one JAX random key, new style or old."""
    new = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    old = getattr(key, "dtype", None) == jnp.uint32 and getattr(key, "shape", None) == (2,)
    if not (new or old):
        raise TypeError(
            f"{owner}: `key` is {type(key).__name__}; expected a random key such as jax.random.key(0)"
        )
    if new and key.ndim:
        raise ValueError(f"{owner}: `key` is a batch of shape {key.shape}; expected one random key")


def check_is_one(owner: str, name: str, value: Any, times: Any) -> None:
    """**Raises:** `ValueError` for a batch of results."""
    if np.ndim(times) != 1 or np.ndim(value.status) != 0:
        batch = np.shape(value.status)
        can = hasattr(value, "__getitem__")
        one = f"{name}[0]" if can else f"jax.tree.map(lambda x: x[0], {name})"
        raise ValueError(
            f"{owner}: `{name}` is a batch of shape {batch}; expected one, such as {one}"
        )
