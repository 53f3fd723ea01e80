"""What filtering a series gives."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.filters.base import AbstractFilter
from filterdyn.status import Status


class FilterResult(eqx.Module):
    """The beliefs of a filter over a series, row by row.

    - `times` (T,);
    - `predicted`, `filtered`: Gaussian beliefs with a leading axis T, before and after each
      measurement;
    - `mean` (T, dx), `cov` (T, dx, dx): those of `filtered`;
    - `innovations` (T, dy), NaN where the entry is missing, and `innovation_covs` (T, dy, dy). For a
      transformed Gaussian (`LogNormal`) both are in the space where the measurement is Gaussian;
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
    def status(self) -> Int[Array, ""]:
        return self.statuses[..., -1]

    @property
    def failed_at(self) -> Int[Array, ""]:
        failed = self.statuses != Status.OK
        return jnp.where(failed.any(-1), jnp.argmax(failed, axis=-1), -1)
