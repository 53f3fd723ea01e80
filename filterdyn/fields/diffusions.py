"""Diffusions that a network sets: bounded and positive."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.fields.base import Field, check_callable


def _check_bounds(owner: str, low: float, high: float) -> tuple[float, float]:
    if not 0 < low < high < float("inf"):
        raise ValueError(f"{owner}: `low`, `high` are {low!r}, {high!r}; expected 0 < low < high")
    return float(low), float(high)


def _between(z: Array, low: float, high: float) -> Array:
    """From low to high on a logarithmic scale; sqrt(low high) at 0."""
    ratio = jnp.log(jnp.asarray(high / low, z.dtype))
    return jnp.clip(low * jnp.exp(ratio * jax.nn.sigmoid(z)), low, high)


class DiagonalDiffusion(eqx.Module):
    """Independent noise on every state, between `low` and `high` in state units / sqrt(time)."""

    network: Field
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, network: Field, low: float, high: float):
        """**Arguments:** `network(t, x, u) -> (dx,)`; where it is 0 the diffusion is sqrt(low high).

        **Raises:** `TypeError` for what cannot be called, `ValueError` unless 0 < `low` < `high`.
        """
        self.network = check_callable("fields.DiagonalDiffusion", "network", network)
        self.low, self.high = _check_bounds("fields.DiagonalDiffusion", low, high)

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " dx"]:
        z = jnp.asarray(self.network(t, x, u), x.dtype)
        return _between(z, self.low, self.high)


class CholeskyDiffusion(eqx.Module):
    """A lower triangular diffusion: its diagonal between `low` and `high`, below it +- `high`."""

    network: Field
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, network: Field, low: float, high: float):
        """**Arguments:** `network(t, x, u) -> (dx (dx + 1) / 2,)`: the diagonal, then what is below it row
        by row; where it is 0 the diffusion is sqrt(low high) times the identity.

        **Raises:** `TypeError` for what cannot be called, `ValueError` unless 0 < `low` < `high`.
        """
        self.network = check_callable("fields.CholeskyDiffusion", "network", network)
        self.low, self.high = _check_bounds("fields.CholeskyDiffusion", low, high)

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, "dx dx"]:
        z, n = jnp.asarray(self.network(t, x, u), x.dtype), len(x)
        if z.shape != (n * (n + 1) // 2,):
            raise ValueError(
                f"fields.CholeskyDiffusion: `network` returned shape {z.shape}; expected "
                f"({n * (n + 1) // 2},) for {n} states"
            )
        diagonal = _between(z[:n], self.low, self.high)
        below = iter(self.high * jnp.tanh(z[n:]))
        zero = jnp.zeros((), x.dtype)
        rows = [
            jnp.stack([next(below) if j < i else diagonal[i] if j == i else zero for j in range(n)])
            for i in range(n)
        ]
        return jnp.stack(rows)
