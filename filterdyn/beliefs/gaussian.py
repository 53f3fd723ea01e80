"""A Gaussian distribution of the state."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from filterdyn._checks import check_covariance, check_finite, check_shape, float_array
from filterdyn.linalg import PSD, sampling_factor


class Gaussian(eqx.Module):
    """A Gaussian distribution of the state, N(mean, cov).

    `mean` is (dx,) and `cov` (dx, dx), positive semi-definite: a state known exactly has `cov` 0.
    In results both have a leading axis T.

    The covariance is kept as a factor S (any square matrix with cov = S S^T), which holds its value
    to the precision of a square-root filter, beside the matrix itself, which holds its derivative.
    """

    mean: Float[Array, "*T dx"]
    spread: PSD
    #: What a filter carries beside the state (factors on noise that it learns).
    memory: Any

    def __init__(
        self,
        mean: Float[Array, "*T dx"],
        cov: Float[Array, "*T dx dx"] | None = None,
        *,
        spread: PSD | None = None,
        memory: Any = None,
    ):
        """**Arguments:** `mean` (dx,) and `cov` (dx, dx), or `spread` in place of `cov`.

        **Raises:** `ValueError` for shapes that disagree and for a `cov` that is not finite,
        symmetric and positive semi-definite.
        """
        if spread is None:
            mean = float_array("Gaussian", "mean", mean)
            cov = float_array("Gaussian", "cov", cov)
            if mean.ndim != 1:
                raise ValueError(f"Gaussian: `mean` has shape {mean.shape}; expected (dx,)")
            check_shape("Gaussian", "cov", cov, (*mean.shape, *mean.shape), "`mean` has dx entries")
            check_finite("Gaussian", "mean", mean)
            check_covariance("Gaussian", "cov", cov)
            dtype = jnp.result_type(mean, cov)
            mean, cov = mean.astype(dtype), cov.astype(dtype)
            spread = PSD.from_matrix(cov)
        self.mean = mean
        self.spread = spread
        self.memory = memory

    @property
    def cov(self) -> Float[Array, "*T dx dx"]:
        """The covariance, (dx, dx); infinite where the belief is diffuse."""
        return self.spread.full

    @property
    def variances(self) -> Float[Array, "*T dx"]:
        """The diagonal of `cov`."""
        return jnp.diagonal(self.cov, axis1=-2, axis2=-1)

    @property
    def factor(self) -> Float[Array, "*T dx dx"]:
        """A factor S with cov = S S^T. It carries no derivative: differentiate `cov`."""
        return self.spread.root

    def astype(self, dtype: jnp.dtype) -> "Gaussian":
        return Gaussian(
            self.mean.astype(dtype), spread=self.spread.astype(dtype), memory=self.memory
        )

    def sample(self, key: Array) -> Float[Array, " dx"]:
        """One draw (of a belief without a leading axis)."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + sampling_factor(self.spread) @ noise

    def to_distribution(self) -> dist.MultivariateNormal:
        """The belief as a NumPyro distribution (its factor must be regular for `log_prob`)."""
        return dist.MultivariateNormal(self.mean, scale_tril=self.spread.root)
