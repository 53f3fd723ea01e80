"""What conditioning a Gaussian on measurements gives."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float

from filterdyn.linalg.psd import PSD


class Conditioned(NamedTuple):
    """The posterior of m + delta: `shift` is the mean of delta, `cov` its covariance."""

    shift: Float[Array, " dx"]
    cov: PSD
    log_likelihood: Float[Array, ""]
    #: Innovations made independent and of variance one, 0 where there is none.
    standardized: Float[Array, " dy"]
    singular: Bool[Array, ""]
