"""What filtering a series gives."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.filters.adaptive import NoiseFactors
from filterdyn.filters.base import AbstractFilter
from filterdyn.status import failed_at


class FilterResult(eqx.Module):
    """The beliefs of a filter over a series, row by row.

    - `times` (T,);
    - `predicted`, `filtered`: Gaussian beliefs with a leading axis T, before and after each
      measurement;
    - `mean` (T, dx), `cov` (T, dx, dx): those of `filtered`;
    - `innovations` (T, dy), NaN where the entry is missing, and `innovation_covs` (T, dy, dy). For a
      transformed Gaussian (`LogNormal`) both are in the space where the measurement is Gaussian;
    - `standardized_innovations` (T, dy): L^-1 (innovation), with L L^T its covariance: independent
      standard normal numbers if the model is right; `nis` (T,): their sums of squares;
    - `outlier_weights` (T, dy), of a filter with an outlier rule: how much of each entry was believed,
      1 as if its noise were Gaussian, 0 not at all, NaN where it is missing; `None` otherwise;
    - `log_likelihoods` (T,): log p(y_t | y_1:t-1), exactly 0 for a missing row; `log_likelihood`: their
      sum;
    - `status`: an integer of `Status`, `OK` or the first failure, and `failed_at`: its row (-1). From
      that row on beliefs are NaN, and the log-likelihood is `-inf`;
    - `moments_matched`: did a non-Gaussian observation or transition enter by its first two moments?
    """

    times: Float[Any, " T"]
    predicted: Gaussian
    filtered: Gaussian
    innovations: Float[Array, "T dy"]
    innovation_covs: Float[Array, "T dy dy"]
    standardized_innovations: Float[Array, "T dy"]
    outlier_weights: Float[Array, "T dy"] | None
    log_likelihoods: Float[Array, " T"]
    log_likelihood: Float[Array, ""]
    statuses: Int[Array, " T"]
    last_input: Float[Array, " du"] | None
    filter: AbstractFilter
    moments_matched: bool = eqx.field(static=True)
    observation_names: tuple[str, ...] | None = eqx.field(static=True)

    @property
    def mean(self) -> Float[Array, "T dx"]:
        return self.filtered.mean

    @property
    def cov(self) -> Float[Array, "T dx dx"]:
        return self.filtered.cov

    @property
    def noise_factors(self) -> NoiseFactors | None:
        """Of a filter with `AdaptiveNoise`: the factors on the process noise `process` (T,) and on each
        sensor's variance `sensors` (T, dy) after every row."""
        return self.filtered.memory

    @property
    def status(self) -> Int[Array, ""]:
        return self.statuses[..., -1]

    @property
    def failed_at(self) -> Int[Array, ""]:
        return failed_at(self.statuses)

    @property
    def nis(self) -> Float[Array, " T"]:
        """Normalised innovation squared: chi-square with as many degrees of freedom as there are
        observed entries, if the model is right. NaN in a row that is all missing."""
        return squared_norm(self.standardized_innovations)


def squared_norm(standardized: Float[Array, "*T dy"]) -> Float[Array, "*T"]:
    """The sum of squares of what was observed, NaN where nothing was."""
    seen = ~jnp.isnan(standardized)
    values = jnp.where(seen, standardized, 0.0)
    return jnp.where(seen.any(-1), (values * values).sum(-1), jnp.nan)
