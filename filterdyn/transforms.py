"""Gaussians in disguise: distributions that are a bijective transform of a Gaussian."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float
from numpyro.distributions.transforms import (
    AbsTransform,
    ExpTransform,
    StickBreakingTransform,
    Transform,
)

from filterdyn.linalg import factor_of
from filterdyn.moments import bare, conditional_moments
from filterdyn.status import Status

#: |z| has two roots; stick breaking changes the number of entries.
_NOT_BIJECTIVE = (AbsTransform, StickBreakingTransform)
#: Gauss-Hermite nodes for a standard normal.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class GaussianView(NamedTuple):
    """y = T(z), z ~ N(loc, noise), T the composition of `transforms` (first applied first)."""

    loc: Float[Array, " dy"]
    noise: Float[Array, " dy"] | Float[Array, "dy dy"]
    transforms: tuple[Transform, ...]

    def pull_back(
        self, y: Float[Array, " dy"]
    ) -> tuple[Array, Float[Array, ""], Bool[Array, " dy"], Array]:
        """z = T^-1(y), log |dz/dy| summed over the observed entries, which they are, and a status.

        A missing entry stays missing under an entrywise T. A T that mixes entries needs a whole row.
        """
        observed = ~jnp.isnan(y)
        entrywise = all(t.domain.event_dim == 0 for t in self.transforms)
        available = jnp.array(True) if entrywise else observed.all() | ~observed.any()
        use = observed if entrywise else jnp.broadcast_to(observed.all(), y.shape)
        # Under an entry that is not used stands the image of 0, so that nothing below is NaN.
        images = [jnp.zeros_like(y)]
        for t in self.transforms:
            images.append(t(images[-1]))
        inside = jnp.array(True)
        z, log_jacobian = jnp.where(use, y, images[-1]), jnp.zeros((), y.dtype)
        for t, image in zip(reversed(self.transforms), reversed(images[1:]), strict=True):
            valid = jnp.where(use, jnp.broadcast_to(t.codomain(z), y.shape), True)
            inside = inside & valid.all()
            z_above = jnp.where(use & valid, z, image)
            z = t.inv(z_above)
            terms = t.log_abs_det_jacobian(z, z_above)
            log_jacobian = log_jacobian - jnp.where(use if entrywise else use[0], terms, 0.0).sum()
        status = jnp.where(inside, Status.OK, Status.OBSERVATION_OUT_OF_SUPPORT)
        status = jnp.where(available, status, Status.MARGINAL_NOT_AVAILABLE)
        return jnp.where(use, z, 0.0), log_jacobian, use, status.astype(jnp.int32)

    def push_forward(self, z: Float[Array, "*n dy"]) -> Float[Array, "*n dy"]:
        for t in self.transforms:
            z = t(z)
        return z

    def moments(
        self, loc: Float[Array, " dy"], cov: Float[Array, "dy dy"]
    ) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"]]:
        """Mean and covariance of T(z), z ~ N(loc, cov).

        Log-normal in closed form; any other entrywise T by Gauss-Hermite quadrature of each pair of
        entries; one that mixes entries by the third-degree cubature rule.
        """
        if not self.transforms:
            return loc, cov
        if [type(t) for t in self.transforms] == [ExpTransform]:
            mean = jnp.exp(loc + 0.5 * jnp.diagonal(cov))
            return mean, mean[:, None] * mean[None, :] * jnp.expm1(cov)
        if all(t.domain.event_dim == 0 for t in self.transforms):
            return self._entrywise_moments(loc, cov)
        n = loc.shape[0]
        arms = math.sqrt(n) * factor_of(cov).T
        y = self.push_forward(loc + jnp.concatenate([arms, -arms]))
        mean = y.mean(0)
        return mean, (y - mean).T @ (y - mean) / (2 * n)

    def _entrywise_moments(self, loc: Array, cov: Array) -> tuple[Array, Array]:
        n = loc.shape[0]
        sd = jnp.sqrt(jnp.diagonal(cov))
        scale = jnp.where(sd > 0, sd, 1.0)
        correlation = jnp.clip(cov / (scale[:, None] * scale[None, :]), -1.0, 1.0)
        nodes = jnp.asarray(_NODES, loc.dtype)
        weights = jnp.asarray(_WEIGHTS, loc.dtype)
        # Entry j of the pair (i, j) at nodes (a, b): z_j = sd_j (rho a + sqrt(1 - rho^2) b).
        rest = 1.0 - correlation**2
        across = jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1.0)), 0.0)
        across = across[..., None, None] * nodes
        z_j = sd[:, None, None] * (correlation[..., None, None] * nodes[:, None] + across)
        y_i = self.push_forward(loc + nodes[:, None] * sd)
        mean = weights @ y_i
        y_j = self.push_forward(jnp.moveaxis(loc[:, None, None] + z_j, 1, -1))
        centred = y_j - mean
        cov_y = jnp.einsum(
            "a,b,ai,iabj->ij", weights, weights, y_i - mean, centred, precision="highest"
        )
        cov_y = 0.5 * (cov_y + cov_y.T)
        return mean, jnp.where(jnp.eye(n, dtype=bool), weights @ (y_i - mean) ** 2, cov_y)


def gaussian_view(d: dist.Distribution) -> GaussianView | None:
    """`d` as a bijective transform of a Gaussian with independent or joint noise, or `None`."""
    shape = (*d.batch_shape, *d.event_shape)
    transforms: tuple[Transform, ...] = ()
    inner = bare(d)
    while isinstance(inner, dist.TransformedDistribution):
        if any(isinstance(t, _NOT_BIJECTIVE) for t in inner.transforms):
            return None
        transforms = (*inner.transforms, *transforms)
        inner = bare(inner.base_dist)
    if isinstance(inner, dist.Normal):
        loc = jnp.broadcast_to(inner.loc, shape)
        return GaussianView(loc, jnp.broadcast_to(inner.scale, shape) ** 2, transforms)
    if isinstance(inner, (dist.MultivariateNormal, dist.LowRankMultivariateNormal)):
        moments = conditional_moments(inner)
        return GaussianView(moments.mean, moments.cov.matrix, transforms)
    return None
