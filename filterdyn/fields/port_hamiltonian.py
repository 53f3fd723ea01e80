"""Energy that is stored, dissipated and exchanged through ports."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import check_shape, float_array
from filterdyn.fields.base import Invariant, check_callable, slope_of
from filterdyn.linalg import mv


class PortHamiltonian(eqx.Module):
    """x' = (J - R) dH/dx + G u with J skew and R = L L^T (van der Schaft, Jeltsema 2014).

    Whatever the numbers are: dH/dt = y^T u - |L^T dH/dx|^2, where y = G^T dH/dx is what leaves through
    the ports. Energy is only lost, or brought in by the input.
    """

    energy: Callable[[Array], Array]
    structure: Float[Array, "dx dx"]
    damping: Float[Array, "dx k"] | None
    port: Float[Array, "dx du"] | None

    def __init__(
        self,
        energy: Callable[[Array], Array],
        structure: Any,
        damping: Any = None,
        port: Any = None,
    ):
        """**Arguments:**

        - `energy(x)`, a scalar;
        - `structure` (dx, dx): its skew part (S - S^T) / 2 is J;
        - `damping` (dx, k): L, or `None`; `port` (dx, du): G, or `None`.

        **Raises:** `TypeError` for what cannot be called, `ValueError` for shapes that disagree.
        """
        owner = "fields.PortHamiltonian"
        self.energy = check_callable(owner, "energy", energy, "x")
        self.structure = float_array(owner, "structure", structure)
        n = len(self.structure) if self.structure.ndim else 0
        check_shape(owner, "structure", self.structure, (n, n), "one row and column a state")
        self.damping = self._columns(owner, "damping", damping, n)
        self.port = self._columns(owner, "port", port, n)

    @staticmethod
    def _columns(owner: str, name: str, value: Any, n: int) -> Array | None:
        if value is None:
            return None
        array = float_array(owner, name, value)
        if array.ndim != 2 or array.shape[0] != n:
            raise ValueError(f"{owner}: `{name}` has shape {array.shape}; expected ({n}, columns)")
        return array

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " dx"]:
        slope, dtype = slope_of(self.energy, x)[1], x.dtype
        skew = 0.5 * (self.structure - self.structure.T).astype(dtype)
        velocity = mv(skew, slope)
        if self.damping is not None:
            damping = self.damping.astype(dtype)
            velocity = velocity - mv(damping, mv(damping.T, slope))
        if self.port is not None and u is not None:
            velocity = velocity + mv(self.port.astype(dtype), jnp.asarray(u, dtype))
        return velocity

    def invariant(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Invariant:
        """The power balance dH/dt + |L^T dH/dx|^2 - y^T u = 0."""
        slope, dtype = slope_of(self.energy, x)[1], x.dtype
        terms = [slope * self(t, x, u)]
        if self.damping is not None:
            terms.append(mv(self.damping.T.astype(dtype), slope) ** 2)
        if self.port is not None and u is not None:
            terms.append(-mv(self.port.T.astype(dtype), slope) * jnp.asarray(u, dtype))
        flat = jnp.concatenate(terms)
        return Invariant(flat.sum(), jnp.abs(flat).sum(), "power balance", True)
