"""A Gaussian random walk that learns its covariance and its size while it warms up."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float, Int

#: The size, times sqrt(d), that is best for a Gaussian target of many dimensions.
BEST = 2.38
#: Two estimates of one log-likelihood that differ by more are useless, however much they differ.
_FAR = 20.0


class RandomWalk(NamedTuple):
    """Mean and covariance of where the chain has been, the size of a step, the standard deviation of the
    log-likelihood's estimate at one point, the last estimate that was made only for that (NaN after a
    move), and for how many steps the chain has not moved."""

    mean: Float[Array, " d"]
    cov: Float[Array, "d d"]
    log_size: Float[Array, ""]
    noise: Float[Array, ""]
    spare: Float[Array, ""]
    still: Int[Array, ""]


def start_walk(z: Float[Array, " d"], cov: Float[Array, "d d"]) -> RandomWalk:
    """A walk that has not learned anything: steps of the covariance `cov`, as for a posterior of it."""
    size = jnp.full((), math.log(BEST / math.sqrt(len(z))), z.dtype)
    zero = jnp.zeros((), z.dtype)
    return RandomWalk(z, cov.astype(z.dtype), size, zero, zero + jnp.nan, jnp.int32(0))


def factor(cov: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The Cholesky factor of a covariance that may be singular."""
    eps = jnp.finfo(cov.dtype).eps
    variances = jnp.maximum(jnp.diag(cov), jnp.finfo(cov.dtype).tiny ** 0.5)
    return jnp.linalg.cholesky(cov + jnp.diag(10 * len(cov) * eps * variances))


def step(walk: RandomWalk, z: Float[Array, " d"], key: Array) -> Float[Array, " d"]:
    """Where the walk would go from `z`."""
    return z + jnp.exp(walk.log_size) * factor(walk.cov) @ jax.random.normal(key, z.shape, z.dtype)


def expected_acceptance(noise: Float[Array, ""], anew: Any = False) -> Float[Array, ""]:
    """How often the best walk, with steps of l = 2.38 posterior standard deviations over sqrt(d), is
    accepted if estimates of the log-likelihood have Gaussian errors of standard deviation `noise`.

    The logarithm of the ratio is B ~ N(m, l^2 + 2 noise^2). The estimate that a chain keeps is high by
    noise^2, by its selection, and m = -l^2 / 2 - noise^2 (Sherlock et al. 2015): the rate is 0.234
    without noise, as for Metropolis, and 0.08 with 1.8, so that a walk that aimed at 0.234 all the same
    would become ever smaller. If that estimate is made `anew` in every step, m = -l^2 / 2.
    """
    sd = jnp.sqrt(BEST**2 + 2 * noise**2)
    mean = -(BEST**2) / 2 - jnp.where(anew, 0.0, noise**2)
    # E min(1, exp(B))
    return norm.cdf(mean / sd) + jnp.exp(mean + sd**2 / 2 + norm.logcdf(-sd - mean / sd))


def learn(
    walk: RandomWalk,
    i: Array,
    z: Float[Array, " d"],
    acceptance: Float[Array, ""],
    accepted: Bool[Array, ""],
    spare: Float[Array, ""],
    anew: Bool[Array, ""],
    stage: Int[Array, ""],
) -> RandomWalk:
    """The walk after step `i` of its warm-up and step `stage` of a part of it, which reached `z` (Haario,
    Saksman, Tamminen 2001; the size by Robbins and Monro, as in Andrieu, Thoms 2008, algorithm 4).

    `spare` is a second estimate of the log-likelihood where the step began, which is used in place of the
    first in steps that make it `anew`.
    """
    count = i.astype(z.dtype)
    share = 3 / (count + 4)  # old steps are forgotten: weights grow as the square of their number
    difference = spare - walk.spare
    known = jnp.isfinite(difference)
    # E |difference| = 2 noise / sqrt(pi); one estimate that fell short by far is not to rule.
    sd = 0.5 * math.sqrt(math.pi) * jnp.minimum(jnp.abs(jnp.where(known, difference, 0.0)), _FAR)
    noise = (walk.noise + jnp.where(known, share, 0.0) * (sd - walk.noise)).astype(z.dtype)
    off = z - walk.mean
    mean = walk.mean + share * off
    cov = walk.cov + share * ((1 - share) * jnp.outer(off, off) - walk.cov)
    target = expected_acceptance(jnp.minimum(noise, 2.0), anew)
    gain = 2 * (stage.astype(z.dtype) + 1) ** -0.6
    size = walk.log_size + gain * (acceptance - target)
    spare = jnp.where(accepted, jnp.nan, spare).astype(z.dtype)
    still = jnp.where(accepted, 0, walk.still + 1)
    return RandomWalk(mean, cov, size.astype(z.dtype), noise, spare, still)
