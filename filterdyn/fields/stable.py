"""A field that is stable by construction, and the Lyapunov function that says so."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import check_count, check_key
from filterdyn.fields.base import Field, Invariant, check_callable, slope_of
from filterdyn.linalg import mv


def _soft(x: Array, width: float) -> Array:
    """The ramp max(x, 0) with a parabola in [0, width]: convex, with a continuous slope."""
    inside = jnp.clip(x, 0.0, width)
    return inside * inside / (2 * width) + jnp.maximum(x - width, 0.0)


class Lyapunov(eqx.Module):
    """V(x) = s(g(x) - g(0)) + floor |x|^2, positive but at 0, where g is convex in x (an input-convex
    network, Amos, Xu, Kolter 2017) and s the smoothed ramp of Kolter, Manek 2019."""

    from_state: tuple[Float[Array, "m dx"], ...]
    from_below: tuple[Float[Array, "m n"], ...]
    biases: tuple[Float[Array, " m"], ...]
    floor: float = eqx.field(static=True)
    width: float = eqx.field(static=True)

    def __init__(
        self,
        dx: int,
        *,
        key: Array,
        width: int = 32,
        depth: int = 2,
        floor: float = 1e-2,
        smoothing: float = 0.1,
    ):
        """**Arguments:** `dx`; `key`; `width`, `depth`: of the hidden layers; `floor` > 0: the least
        curvature of V; `smoothing` > 0: of the ramps.

        **Raises:** `ValueError` for values outside these ranges.
        """
        owner = "fields.Lyapunov"
        for name, count in (("dx", dx), ("width", width), ("depth", depth)):
            check_count(owner, name, count)
        check_key(owner, key)
        for name, value in (("floor", floor), ("smoothing", smoothing)):
            if not value > 0:
                raise ValueError(f"{owner}: `{name}` is {value!r}; expected a positive number")
        sizes, dtype = [*[width] * depth, 1], jnp.result_type(float)
        keys = jax.random.split(key, 2 * len(sizes))
        self.from_state = tuple(
            jax.random.normal(k, (m, dx), dtype) / dx**0.5
            for k, m in zip(keys[::2], sizes, strict=True)
        )
        self.from_below = tuple(
            jax.random.normal(k, (m, n), dtype)
            for k, m, n in zip(keys[3::2], sizes[1:], sizes[:-1], strict=True)
        )
        self.biases = tuple(jnp.zeros(m, dtype) for m in sizes)
        self.floor, self.width = float(floor), float(smoothing)

    def _convex(self, x: Float[Array, " dx"]) -> Float[Array, ""]:
        first, *rest = (w.astype(x.dtype) for w in self.from_state)
        z = _soft(mv(first, x) + self.biases[0].astype(x.dtype), self.width)
        for direct, below, bias in zip(rest, self.from_below, self.biases[1:], strict=True):
            positive = jax.nn.softplus(below.astype(x.dtype)) / below.shape[1]
            z = _soft(mv(positive, z) + mv(direct, x) + bias.astype(x.dtype), self.width)
        return z[0]

    def __call__(self, x: Float[Array, " dx"]) -> Float[Array, ""]:
        rise = self._convex(x) - self._convex(jnp.zeros_like(x))
        return _soft(rise, self.width) + self.floor * jnp.sum(x * x)


class Stable(eqx.Module):
    """A field projected so that a Lyapunov function decays: with f the nominal field,

    x' = f - dV/dx max(dV/dx . f + alpha V, 0) / |dV/dx|^2, so that dV/dt <= -alpha V everywhere

    (Kolter, Manek 2019). Every solution falls to 0 exponentially, whatever the weights, time and input
    are. An input reaches the state through the nominal field only, and the projection holds then too.
    """

    nominal: Field
    lyapunov: Lyapunov
    alpha: float = eqx.field(static=True)

    def __init__(self, nominal: Field, lyapunov: Lyapunov, alpha: float = 1e-2):
        """**Arguments:** `nominal(t, x, u) -> (dx,)`; `lyapunov`, a `Lyapunov` or any `V(x)` that is
        positive but at 0 and has no other stationary point; `alpha` >= 0, in 1 / time.

        **Raises:** `TypeError` for what cannot be called, `ValueError` for a negative `alpha`.
        """
        self.nominal = check_callable("fields.Stable", "nominal", nominal)
        self.lyapunov = check_callable("fields.Stable", "lyapunov", lyapunov, "x")
        if not alpha >= 0:
            raise ValueError(f"fields.Stable: `alpha` is {alpha!r}; expected a number >= 0")
        self.alpha = float(alpha)

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " dx"]:
        value, slope = slope_of(self.lyapunov, x)
        velocity = jnp.asarray(self.nominal(t, x, u), x.dtype)
        excess = jnp.maximum(jnp.sum(slope * velocity) + self.alpha * value, 0.0)
        square = jnp.sum(slope * slope)
        flat = square <= jnp.finfo(x.dtype).tiny
        return velocity - slope * jnp.where(flat, 0.0, excess / jnp.where(flat, 1.0, square))

    def invariant(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Invariant:
        """dV/dt + alpha V <= 0."""
        value, slope = slope_of(self.lyapunov, x)
        # The nominal field tells how large the numbers were before they cancelled.
        nominal = jnp.abs(slope * jnp.asarray(self.nominal(t, x, u), x.dtype)).sum()
        decay = jnp.sum(slope * self(t, x, u)) + self.alpha * value
        return Invariant(decay, nominal + self.alpha * value, "Lyapunov decrease", False)
