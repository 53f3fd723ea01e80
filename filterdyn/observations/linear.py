"""A linear measurement with Gaussian noise."""

from typing import Any, ClassVar

import jax
import numpyro.distributions as dist
from jaxtyping import Array, Float

from filterdyn._callables import Held
from filterdyn._checks import check_shape
from filterdyn.beliefs import Gaussian
from filterdyn.linalg import by_columns, mv
from filterdyn.linearization import AbstractLinearization
from filterdyn.observations.additive import (
    additive,
    affine_offset,
    at_time,
    gaussian,
    matrix,
    noise_at,
    noise_parameter,
)
from filterdyn.observations.base import AbstractObservation, LinearizedObservation


class LinearObservation(AbstractObservation):
    """y = H x + D u + d + v, v ~ N(0, R)."""

    H: Held | Array
    R: Held | Array
    D: Held | Array | None
    d: Held | Array | None

    is_linear: ClassVar[bool] = True

    def __init__(self, H: Any, R: Any, D: Any = None, d: Any = None):
        """**Arguments:** `H` (dy, dx), `R` (dy, dy), (dy,) or (), `D` (dy, du), `d` (dy,); each an
        array or a function of `t` that returns one.

        **Raises:** `ValueError` for shapes that disagree and for an `R` that is not symmetric
        positive semi-definite.
        """
        owner = "LinearObservation"
        self.H = matrix(owner, "H", H, 2)
        self.R = noise_parameter(owner, "R", R)
        self.D = matrix(owner, "D", D, 2)
        self.d = matrix(owner, "d", d, 1)
        if not isinstance(self.H, Held):
            dy = self.H.shape[0]
            if not isinstance(self.R, Held):
                noise_at(owner, self.R, None, dy)
            for name in ("D", "d"):
                value = getattr(self, name)
                if value is not None and not isinstance(value, Held) and value.shape[0] != dy:
                    raise ValueError(
                        f"{owner}: `{name}` has shape {value.shape} but `H` has shape "
                        f"{self.H.shape}; the first axes must agree"
                    )

    @property
    def is_constant(self) -> bool:
        return not isinstance(self.H, Held) and not isinstance(self.R, Held)

    def _parts(self, t: Any, u: Any) -> tuple[Array, Array]:
        h = at_time(self.H, t)
        return h, affine_offset(
            "LinearObservation", h, at_time(self.D, t), at_time(self.d, t), u, "D"
        )

    def distribution(self, t: Any, x: Float[Array, " dx"], u: Any) -> dist.Distribution:
        h, offset = self._parts(t, u)
        mean = by_columns(h, x) + offset
        return gaussian(mean, noise_at("LinearObservation", self.R, t, h.shape[0]))

    def linearize(
        self, rule: AbstractLinearization, at: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> LinearizedObservation:
        h, offset = self._parts(t, u)
        r = noise_at("LinearObservation", self.R, t, h.shape[0])
        return additive(mv(h, at.mean) + offset, h, r, y)

    def check(self, owner: str, t: Any, x: Any, u: Any, dy: int | None) -> None:
        h, _ = jax.eval_shape(self._parts, t, u)
        want = (h.shape[0] if dy is None else dy, x.shape[0])
        check_shape(owner, "H", h, want, "rows: columns of the series, columns: states")
        jax.eval_shape(lambda t: noise_at(owner, self.R, t, h.shape[0]), t)
