"""A linear field."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import check_finite, check_shape, float_array
from filterdyn.linalg import mv


class Linear(eqx.Module):
    """A x + B u + b."""

    A: Float[Array, "dx dx"]
    B: Float[Array, "dx du"] | None
    b: Float[Array, " dx"] | None

    def __init__(self, A: Any, B: Any = None, b: Any = None):
        """**Arguments:** `A` (dx, dx), `B` (dx, du), `b` (dx,).

        **Raises:** `ValueError` for shapes that disagree and numbers that are not finite.
        """
        owner = "fields.Linear"
        self.A = float_array(owner, "A", A)
        if self.A.ndim != 2:
            raise ValueError(f"{owner}: `A` has shape {self.A.shape}; expected (dx, dx)")
        n = self.A.shape[0]
        check_shape(owner, "A", self.A, (n, n))
        self.B = None if B is None else float_array(owner, "B", B)
        if self.B is not None and (self.B.ndim != 2 or self.B.shape[0] != n):
            raise ValueError(f"{owner}: `B` has shape {self.B.shape}; expected ({n}, du)")
        self.b = None if b is None else float_array(owner, "b", b)
        if self.b is not None:
            check_shape(owner, "b", self.b, (n,))
        for name in ("A", "B", "b"):
            if getattr(self, name) is not None:
                check_finite(owner, name, getattr(self, name))

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " dx"]:
        velocity = mv(self.A.astype(x.dtype), x)
        if self.B is not None:
            velocity = velocity + mv(self.B.astype(x.dtype), jnp.asarray(u, x.dtype))
        return velocity if self.b is None else velocity + self.b.astype(x.dtype)
