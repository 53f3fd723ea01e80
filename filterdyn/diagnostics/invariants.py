"""Does a field keep what it states?"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from filterdyn._checks import float_array


@dataclass(frozen=True)
class InvariantCheck:
    """What a field states, looked at on samples.

    - `name`, `exact`: the invariant, and whether its residual is 0 or at most 0;
    - `worst`: the largest violation; `relative`: the largest violation over the size of its terms;
    - `index`: of the state with the largest relative violation; `tolerance`; `holds`.
    """

    name: str
    exact: bool
    worst: float
    relative: float
    index: int
    tolerance: float
    holds: bool

    def __str__(self) -> str:
        verdict = "holds" if self.holds else f"is violated at state {self.index}"
        return (
            f"{self.name} {verdict}: at most {self.worst:.2g}, {self.relative:.2g} of its terms "
            f"(tolerance {self.tolerance:.2g})"
        )


def check_invariant(
    field: Any, states: Any, times: Any = 0.0, inputs: Any = None, *, tolerance: float | None = None
) -> InvariantCheck:
    """Look at the invariant of a field at many states.

    **Arguments:**

    - `field`: one with a method `invariant(t, x, u)`, such as `fd.fields.Stable`;
    - `states` (N, dx); `times`: a number or (N,); `inputs` (N, du) or `None`;
    - `tolerance`: of the residual over the size of its terms, by default 1000 times the rounding of the
      states' dtype.

    **Raises:** `TypeError` for a field that states nothing, `ValueError` for shapes that disagree.
    """
    owner = "check_invariant"
    if not callable(getattr(field, "invariant", None)):
        raise TypeError(
            f"{owner}: `field` is {type(field).__name__}, which states no invariant; expected one with "
            "a method `invariant(t, x, u)`, such as fd.fields.Stable"
        )
    x = float_array(owner, "states", states)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"{owner}: `states` has shape {x.shape}; expected (N, dx)")
    t = jnp.broadcast_to(float_array(owner, "times", times).astype(x.dtype), (len(x),))
    u = None if inputs is None else float_array(owner, "inputs", inputs)
    if u is not None and (u.ndim != 2 or len(u) != len(x)):
        raise ValueError(f"{owner}: `inputs` has shape {u.shape}; expected ({len(x)}, du)")
    found = jax.jit(jax.vmap(field.invariant, in_axes=(0, 0, None if u is None else 0)))(t, x, u)
    residual, scale = (np.asarray(part, float) for part in (found.residual, found.scale))
    violation = np.abs(residual) if found.exact else np.maximum(residual, 0.0)
    # A number that is not finite keeps nothing.
    violation = np.where(np.isfinite(residual), violation, np.inf)
    relative = violation / np.maximum(np.nan_to_num(scale), np.finfo(float).tiny)
    relative = np.where(violation == 0, 0.0, relative)
    limit = 1e3 * float(jnp.finfo(x.dtype).eps) if tolerance is None else float(tolerance)
    index = int(np.argmax(relative))
    return InvariantCheck(
        found.name,
        found.exact,
        float(violation.max()),
        float(relative[index]),
        index,
        limit,
        bool(relative[index] <= limit),
    )
