"""Everything that is measured against each other: one file per library, one function per problem.

A function takes a problem and returns `Runs`. What a library does not offer it does not define.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Runs(NamedTuple):
    """Calls without arguments that wait for their result.

    - `value`: the log-likelihood (of many series, one each);
    - `gradient`: the log-likelihood and its derivatives by name;
    - `moments`: the log-likelihood with the filtered means and covariances.
    """

    value: Callable[[], np.ndarray]
    gradient: Callable[[], tuple[float, dict[str, np.ndarray]]] | None = None
    moments: Callable[[], tuple[float, np.ndarray, np.ndarray]] | None = None


def jitted(value, parameters, data, moments=None):
    """`Runs` of JAX functions of (parameters, data)."""
    import jax
    import jax.numpy as jnp

    parameters = {name: jnp.asarray(p) for name, p in parameters.items()}
    data = jnp.asarray(data)

    def call(function):
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(parameters, data))

    return Runs(
        call(value),
        call(jax.value_and_grad(value)) if data.ndim == 2 else None,
        None if moments is None else call(moments),
    )
