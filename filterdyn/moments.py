"""Mean and covariance of a NumPyro distribution, right for every family that is accepted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.transforms import ExpTransform

from filterdyn._checks import is_traced
from filterdyn.linalg import PSD


class Moments(NamedTuple):
    """Mean and covariance of a vector."""

    mean: Float[Array, " d"]
    cov: PSD
    #: True where the distribution is Gaussian (or a point), so that nothing was approximated.
    exact: bool


def bare(distribution: dist.Distribution) -> dist.Distribution:
    """The distribution inside `to_event` and `expand`, batch and event axes merged."""
    while isinstance(distribution, (dist.Independent, dist.ExpandedDistribution)):
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

    **Raises:** `TypeError` for any other multivariate family, by name, `ValueError` for infinite or
    undefined moments (Cauchy, Student-t with df <= 2). Where those depend on traced parameters they
    come back as they are, and a filter makes them a status.
    """
    # What does not depend on traced numbers is computed now, so that it can be refused now.
    with jax.ensure_compile_time_eval():
        found = _moments(distribution)
        known = [x for x in (found.mean, found.cov.matrix) if not is_traced(x)]
        if not found.exact and not all(np.isfinite(np.asarray(x)).all() for x in known):
            raise ValueError(
                f"conditional_moments: {type(bare(distribution)).__name__} has an infinite or undefined "
                "mean or variance; expected finite ones (a Student-t has them for df > 2)"
            )
    return found


def _moments(d: dist.Distribution) -> Moments:
    if not isinstance(d, dist.Distribution):
        raise TypeError(
            f"conditional_moments: `distribution` is {type(d).__name__}; expected a NumPyro distribution"
        )
    shape = (*d.batch_shape, *d.event_shape)
    if len(shape) != 1:
        raise ValueError(
            f"conditional_moments: {type(d).__name__} has batch shape {d.batch_shape} and event shape "
            f"{d.event_shape}; expected one vector (a vector of scalars becomes one with `.to_event(1)`)"
        )
    inner = bare(d)
    if isinstance(inner, dist.MaskedDistribution):
        raise TypeError(
            "conditional_moments: a masked distribution is not taken; a missing entry is NaN in the "
            "observations"
        )
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
        normal = bare(d.base_dist)
        if isinstance(normal, dist.Normal) and [type(t) for t in d.transforms] == [ExpTransform]:
            d = dist.LogNormal(normal.loc, normal.scale)
    if d.support is constraints.circular:
        raise TypeError(
            f"conditional_moments: {type(d).__name__} lives on a circle, where NumPyro's mean and variance "
            "are not those of a number (observe a sine and a cosine)"
        )
    try:
        mean, variance = jnp.asarray(d.mean), jnp.asarray(d.variance)
    except NotImplementedError:
        raise TypeError(
            f"conditional_moments: NumPyro knows no mean and variance of {type(d).__name__}"
        ) from None
    if jnp.issubdtype(mean.dtype, jnp.integer):
        mean = mean.astype(jnp.result_type(float))
    return mean, variance
