"""What smoothing a series gives."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Int

from filterdyn.status import failed_at


class SmootherResult(eqx.Module):
    """The beliefs given the whole series, row by row.

    - `times` (T,);
    - `smoothed`: beliefs with a leading axis T, of the filter's kind; `mean` (T, dx) and `cov`
      (T, dx, dx) are theirs;
    - `lag_one_covs` (T - 1, dx, dx): Cov(x_{k+1}, x_k) given the whole series; `None` where the
      beliefs are samples;
    - `log_likelihood`: that of the filter, or of the affine model of the last of several `iterations`;
    - `changes` (iterations - 1,): how far the means that each further iteration found are from those it was
      linearised at, at most, in standard deviations. They go to zero where the iterations converge;
    - `status`, `failed_at`: those of the filter. After a failure, in whatever iteration, every belief is
      NaN, because each depends on the failed row.
    """

    times: Float[Any, " T"]
    smoothed: Any
    lag_one_covs: Float[Array, "T_minus_1 dx dx"] | None
    log_likelihood: Float[Array, ""]
    changes: Float[Array, " iterations_minus_1"]
    statuses: Int[Array, " T"]
    moments_matched: bool = eqx.field(static=True)
    observation_names: tuple[str, ...] | None = eqx.field(static=True)

    @property
    def mean(self) -> Float[Array, "T dx"]:
        return self.smoothed.mean

    @property
    def cov(self) -> Float[Array, "T dx dx"]:
        return self.smoothed.cov

    @property
    def status(self) -> Int[Array, ""]:
        return self.statuses[..., -1]

    @property
    def failed_at(self) -> Int[Array, ""]:
        return failed_at(self.statuses)
