"""Gaussians in disguise: distributions that are a bijective transform of a Gaussian."""

from typing import NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float
from numpyro.distributions.transforms import AbsTransform, StickBreakingTransform, Transform

from filterdyn.moments import conditional_moments, unwrap
from filterdyn.status import Status

#: |z| has two roots; stick breaking changes the number of entries.
_NOT_BIJECTIVE = (AbsTransform, StickBreakingTransform)


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


def gaussian_view(d: dist.Distribution) -> GaussianView | None:
    """`d` as a bijective transform of a Gaussian with independent or joint noise, or `None`."""
    shape = (*d.batch_shape, *d.event_shape)
    transforms: tuple[Transform, ...] = ()
    inner = _bare(d)
    while isinstance(inner, dist.TransformedDistribution):
        if any(isinstance(t, _NOT_BIJECTIVE) for t in inner.transforms):
            return None
        transforms = (*inner.transforms, *transforms)
        inner = _bare(inner.base_dist)
    if isinstance(inner, dist.Normal):
        loc = jnp.broadcast_to(inner.loc, shape)
        return GaussianView(loc, jnp.broadcast_to(inner.scale, shape) ** 2, transforms)
    if isinstance(inner, (dist.MultivariateNormal, dist.LowRankMultivariateNormal)):
        moments = conditional_moments(inner)
        return GaussianView(moments.mean, moments.cov.matrix, transforms)
    return None


def _bare(d: dist.Distribution) -> dist.Distribution:
    d = unwrap(d)
    while isinstance(d, dist.ExpandedDistribution):
        d = unwrap(d.base_dist)
    return d
