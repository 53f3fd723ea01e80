"""Conditioning a Gaussian on noisy linear measurements."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from filterdyn.linalg.block import Whitening, condition_in_one, condition_whitened, whiten
from filterdyn.linalg.conditioned import Conditioned
from filterdyn.linalg.decorrelate import independent
from filterdyn.linalg.diffuse import condition_diffusely
from filterdyn.linalg.gate import either
from filterdyn.linalg.products import FUSED
from filterdyn.linalg.psd import PSD
from filterdyn.linalg.sequential import Sweeps, condition_by, condition_sequentially, sweeps


def condition(
    cov: PSD,
    h: Float[Array, "dy dx"],
    residual: Float[Array, " dy"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
) -> Conditioned:
    """The posterior of x = m + delta, delta ~ N(0, P), given residual = H delta + v, v ~ N(0, R).

    `noise` is the diagonal of R or R itself (it may be singular). Entries with `observed` False change
    nothing and add exactly 0. `shift` is the posterior mean of delta: working with differences keeps
    the digits when m is large. `singular` says that an observed entry has predictive variance zero.
    `standardized` are the errors of each entry given the ones before it (and missing ones left out),
    over their standard deviations: L^-1 (innovation) with L the Cholesky factor of its covariance.

    Small states go through fused scalar updates, large ones through LAPACK.
    """
    usual = condition_sequentially if h.shape[1] <= FUSED else condition_in_one
    if cov.diffuse is None:
        return usual(cov, h, residual, noise, observed)

    def proper(cov: PSD) -> Conditioned:
        found = usual(PSD(cov.factor, cov.matrix), h, residual, noise, observed)
        after = PSD(found.cov.factor, found.cov.matrix, cov.diffuse)
        return found._replace(cov=after)

    def diffuse(cov: PSD) -> Conditioned:
        return condition_diffusely(cov, h, residual, noise, observed)

    return either((cov.diffuse.factor != 0).any(), diffuse, proper, cov)


#: The part of conditioning in which there are no data.
Known = Sweeps | Whitening


def without_correlation(
    h: Float[Array, "dy dx"],
    noise: Float[Array, " dy"] | Float[Array, "dy dy"],
    observed: Bool[Array, " dy"],
) -> tuple[Array, Array | None, Array]:
    """H, a matrix T and the noise of T (measurements) in the form that `known_part` wants: for small
    states independent. T is `None` where nothing is to be done."""
    if h.shape[1] > FUSED or noise.ndim == 1:
        return h, None, noise
    return independent(h, jnp.eye(len(h), dtype=h.dtype), noise, observed)


def known_part(cov: PSD, h: Array, noise: Array, observed: Array) -> Known:
    """What conditioning a proper `cov` on such measurements comes to, but for the data."""
    return (sweeps if h.shape[1] <= FUSED else whiten)(cov, h, noise, observed)


def condition_given(
    known: Known, cov: PSD, h: Array, residual: Float[Array, "dy *S"], noise: Array, observed: Array
) -> Conditioned:
    """`condition` with its `known_part`; of several series at once, if the residual has a column for
    each of them."""
    if isinstance(known, Sweeps):
        return condition_by(known, cov, h, residual, noise)
    return condition_whitened(known, cov, h, residual, noise, observed)
