"""Conditioning a Gaussian on noisy linear measurements."""

import jax
from jaxtyping import Array, Bool, Float

from filterdyn.linalg.block import condition_in_one
from filterdyn.linalg.conditioned import Conditioned
from filterdyn.linalg.diffuse import condition_diffusely
from filterdyn.linalg.products import FUSED
from filterdyn.linalg.psd import PSD
from filterdyn.linalg.sequential import condition_sequentially


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

    return jax.lax.cond((cov.diffuse.factor != 0).any(), diffuse, proper, cov)
