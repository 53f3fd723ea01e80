"""Mean and covariance of a NumPyro distribution, right for every family that is accepted."""

from typing import NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions.transforms import ExpTransform

from filterdyn.linalg import PSD


class Moments(NamedTuple):
    """Mean and covariance of a vector."""

    mean: Float[Array, " d"]
    cov: PSD
    #: True where the distribution is Gaussian (or a point), so that nothing was approximated.
    exact: bool


def unwrap(distribution: dist.Distribution) -> dist.Distribution:
    """The distribution inside `to_event` and `expand`, batch and event axes merged."""
    while isinstance(distribution, dist.Independent):
        distribution = distribution.base_dist
    return distribution


def diagonal(variances: Float[Array, " d"], scales: Float[Array, " d"] | None = None) -> PSD:
    """A diagonal covariance; `scales` are its square roots where they are known better."""
    eye = jnp.eye(variances.shape[0], dtype=variances.dtype)
    if scales is None:
        scales = jnp.sqrt(jnp.where(variances > 0, variances, 0.0))
        scales = jnp.where(variances < 0, jnp.nan, scales)
    return PSD(eye * scales, eye * variances)


def conditional_moments(distribution: dist.Distribution) -> Moments:
    """Mean (d,) and covariance (d, d) of a distribution over vectors of d entries.

    Exact for Gaussians (`Normal`, `MultivariateNormal`, `LowRankMultivariateNormal`) and `Delta`. Any
    univariate family with a mean and a variance is accepted entry by entry (`.to_event(1)`), as are
    `MultivariateStudentT`, `Multinomial` and `Dirichlet`, whose covariances are computed here because
    NumPyro's lack a factor df / (df - 2) or the off-diagonal entries.

    **Raises:** `TypeError` for any other multivariate family, by name. Infinite or undefined moments
    come back as they are: the caller makes them an error or a status.
    """
    d = distribution
    shape = (*d.batch_shape, *d.event_shape)
    if len(shape) != 1:
        raise ValueError(
            f"conditional_moments: {type(d).__name__} has batch shape {d.batch_shape} and event shape "
            f"{d.event_shape}; expected one vector (a vector of scalars becomes one with `.to_event(1)`)"
        )
    inner = unwrap(d)
    while isinstance(inner, dist.ExpandedDistribution):
        inner = unwrap(inner.base_dist)
    full = lambda x: jnp.broadcast_to(x, shape)
    if isinstance(inner, dist.Normal):
        scale = full(inner.scale)
        return Moments(full(inner.loc), diagonal(scale * scale, jnp.abs(scale)), True)
    if isinstance(inner, dist.MultivariateNormal):
        return Moments(full(inner.loc), PSD.from_factor(inner.scale_tril), True)
    if isinstance(inner, dist.LowRankMultivariateNormal):
        wide = jnp.concatenate([inner.cov_factor, jnp.diag(jnp.sqrt(inner.cov_diag))], axis=1)
        return Moments(full(inner.loc), PSD.from_factor(wide), True)
    if isinstance(inner, dist.Delta):
        value = full(inner.v).astype(jnp.result_type(float, inner.v))
        return Moments(value, PSD.zeros(shape[0], value.dtype), True)
    if isinstance(inner, dist.MultivariateStudentT):
        df = inner.df
        factor = jnp.where(df > 2, df / jnp.where(df > 2, df - 2, 1.0), jnp.inf)
        mean = jnp.where(df > 1, full(inner.loc), jnp.nan)
        return Moments(mean, PSD.from_factor(inner.scale_tril * jnp.sqrt(factor)), False)
    if isinstance(inner, dist.Dirichlet):
        total = inner.concentration.sum()
        p = inner.concentration / total
        return Moments(p, PSD.from_matrix((jnp.diag(p) - jnp.outer(p, p)) / (total + 1)), False)
    if isinstance(inner, (dist.MultinomialProbs, dist.MultinomialLogits)):
        p = inner.probs
        n = inner.total_count
        return Moments(n * p, PSD.from_matrix(n * (jnp.diag(p) - jnp.outer(p, p))), False)
    if inner.event_shape:
        raise TypeError(
            f"conditional_moments: the covariance of {type(inner).__name__} is not known here; a "
            "Gaussian filter takes Gaussians, univariate families with `.to_event(1)`, "
            "MultivariateStudentT, Multinomial and Dirichlet (a particle filter takes anything)"
        )
    mean, variance = _univariate(inner)
    return Moments(full(mean), diagonal(full(variance)), False)


def _univariate(d: dist.Distribution) -> tuple[Array, Array]:
    if isinstance(d, (dist.CategoricalProbs, dist.CategoricalLogits)):
        levels = jnp.arange(d.probs.shape[-1])
        mean = (d.probs * levels).sum(-1)
        return mean, (d.probs * levels**2).sum(-1) - mean**2
    if isinstance(d, dist.TransformedDistribution) and not isinstance(d, dist.LogNormal):
        normal = unwrap(d.base_dist)
        if isinstance(normal, dist.Normal) and [type(t) for t in d.transforms] == [ExpTransform]:
            d = dist.LogNormal(normal.loc, normal.scale)
    try:
        mean, variance = jnp.asarray(d.mean), jnp.asarray(d.variance)
    except NotImplementedError:
        raise TypeError(
            f"conditional_moments: NumPyro knows no mean and variance of {type(d).__name__}"
        ) from None
    if jnp.issubdtype(mean.dtype, jnp.integer):
        mean = mean.astype(jnp.result_type(float))
    return mean, variance
