"""Conditioning a Gaussian on noisy linear measurements."""

from jaxtyping import Array, Bool, Float

from filterdyn.linalg.block import condition_in_one
from filterdyn.linalg.conditioned import Conditioned
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
    if h.shape[1] <= FUSED:
        return condition_sequentially(cov, h, residual, noise, observed)
    return condition_in_one(cov, h, residual, noise, observed)
