"""How copies of a parameter are told apart again."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.linalg import factor_of

_KINDS = ("shrinkage", "small", "rare")


class Jitter(eqx.Module):
    """The kernel that moves the parameters of a `NestedParticleFilter` after they were resampled, of M
    parameters with mean m and covariance V:

    - `"shrinkage"`: theta' = m + a (theta - m) + N(0, (1 - a^2) V), which leaves mean and covariance as
      they are (Liu, West 2001), with sqrt(1 - a^2) = `scale` times the bandwidth (4 / (k + 2))^(1 / (k + 4))
      M^(-1 / (k + 4)) of a Gaussian density of k parameters (Silverman 1986);
    - `"small"`: theta' = theta + N(0, scale^2 V / M), and
    - `"rare"`: theta' = theta + N(0, scale^2 V) with probability M^(-1/2), else theta: the two kernels of
      Crisan and Miguez (2018), under which the error stays of order M^(-1/2).

    Each resampling makes the covariance larger by a factor 1 + scale^2 / M with `"small"`, 1 + scale^2 /
    sqrt(M) with `"rare"`, and as it is with `"shrinkage"`. What a jitter always costs is that a filter of the
    state goes on with a parameter that is not the one it came with.
    """

    kind: Literal["shrinkage", "small", "rare"] = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(
        self, kind: Literal["shrinkage", "small", "rare"] = "shrinkage", scale: float = 1.0
    ):
        """**Arguments:** `kind` and `scale` > 0, as above.

        **Raises:** `ValueError` for anything else."""
        if kind not in _KINDS:
            raise ValueError(f"Jitter: `kind` is {kind!r}; expected one of {', '.join(_KINDS)}")
        if isinstance(scale, bool) or not 0 < float(scale) < math.inf:
            raise ValueError(f"Jitter: `scale` is {scale!r}; expected a positive number")
        self.kind = kind
        self.scale = float(scale)

    def __call__(
        self,
        key: Array,
        thetas: Float[Array, "M k"],
        mean: Float[Array, " k"],
        cov: Float[Array, "k k"],
    ) -> Float[Array, "M k"]:
        """Parameters of equal weight, moved."""
        m, k = thetas.shape
        of_size, of_who = jax.random.split(key)
        noise = jax.random.normal(of_size, thetas.shape, thetas.dtype) @ factor_of(cov).T
        if self.kind == "small":
            return thetas + (self.scale / math.sqrt(m)) * noise
        if self.kind == "rare":
            chosen = jax.random.uniform(of_who, (m, 1), thetas.dtype) < 1 / math.sqrt(m)
            return jnp.where(chosen, thetas + self.scale * noise, thetas)
        width = min(self.scale * (4 / ((k + 2) * m)) ** (1 / (k + 4)), 1.0)
        return mean + math.sqrt(1 - width**2) * (thetas - mean) + width * noise
