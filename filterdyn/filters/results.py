"""What filtering a series gives."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.filters.adaptive import NoiseFactors
from filterdyn.filters.learned import NoiseModulation
from filterdyn.status import failed_at

#: Among the diagnostics of a row: what a sampling filter has learnt.
PARAMETERS = "parameters"


def parameters_of(belief: Any) -> Any:
    """What a belief says of parameters, or `None`: a `ParameterEstimate` of the belief or of its memory."""
    found = getattr(belief, PARAMETERS, None)
    return getattr(getattr(belief, "memory", None), PARAMETERS, None) if found is None else found


def alarm_of(belief: Any) -> Any:
    """What the memory of a belief says of changes, or `None`."""
    return getattr(getattr(belief, "memory", None), "alarm", None)


class SampledMoments(NamedTuple):
    """Moments of a belief that is not kept itself; no covariance where there are many states."""

    mean: Float[Array, "T dx"]
    variances: Float[Array, "T dx"]
    cov: Float[Array, "T dx dx"] | None


class SampledRows(eqx.Module):
    """What the result of a sampling filter holds row by row, and its end."""

    predicted: SampledMoments
    filtered: SampledMoments
    diagnostics: dict[str, Array]
    #: Where the filter stands after the last row.
    last: Any


class FilterResult(eqx.Module):
    """The beliefs of a filter over a series, row by row.

    - `times` (T,);
    - `predicted`, `filtered`: beliefs with a leading axis T, before and after each measurement;
      Gaussian, or of an ensemble or particle filter those of its kind, kept only with
      `history="beliefs"`;
    - `mean` (T, dx), `cov` (T, dx, dx), `variances` (T, dx), the diagonal of `cov`: those of
      `filtered`; `predicted_mean`, `predicted_cov`, `predicted_variances`: those of `predicted`. An
      ensemble or particle filter of more than 64 states keeps no covariances, only variances;
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
    - `parameters`, of a filter that learns: a `ParameterEstimate` with a leading axis T;
    - `alarms`, of a `WatchedFilter`: an `Alarm` with a leading axis T;
    - `effective_sample_sizes` (T,) and `diagnostics`, arrays with a leading axis T by name: of an
      ensemble or particle filter.

    Of a batch everything has one more axis in front, and `result[i]` is that of one series.
    """

    times: Float[Any, " T"]
    _predicted: Any
    _filtered: Any
    innovations: Float[Array, "T dy"]
    _innovation_covs: Float[Array, "T dy dy"] | None
    standardized_innovations: Float[Array, "T dy"]
    outlier_weights: Float[Array, "T dy"] | None
    log_likelihoods: Float[Array, " T"]
    log_likelihood: Float[Array, ""]
    statuses: Int[Array, " T"]
    last_input: Float[Array, " du"] | None
    filter: Any
    moments_matched: bool = eqx.field(static=True)
    observation_names: tuple[str, ...] | None = eqx.field(static=True)
    _rows: SampledRows | None = None

    def __getitem__(self, index: int) -> "FilterResult":
        """Of the results of a batch, that of one series.

        **Raises:** `TypeError` for the result of one series, `IndexError` beyond the last one."""
        if not jnp.ndim(self.status):
            raise TypeError("FilterResult: this is the result of one series, not of a batch")
        if not -len(self.status) <= index < len(self.status):
            raise IndexError(f"FilterResult: {index} of a batch of {len(self.status)}")
        kept = eqx.tree_at(lambda result: result.filter, self, None)
        one = jax.tree.map(lambda x: x[index], kept)
        return eqx.tree_at(lambda r: r.filter, one, self.filter, is_leaf=lambda x: x is None)

    @property
    def predicted(self) -> Any:
        return self._belief("predicted", self._predicted)

    @property
    def filtered(self) -> Any:
        return self._belief("filtered", self._filtered)

    def _belief(self, name: str, kept: Any) -> Any:
        if kept is None:
            raise ValueError(
                f"FilterResult: `{name}` was not kept; ask for it with "
                'fd.filter(..., history="beliefs"), which stores every member or particle of every row '
                "(`mean`, `variances` and `cov` are there without it)"
            )
        return kept

    def _moment(self, kind: str, name: str) -> Any:
        belief = getattr(self, f"_{kind}")
        if belief is not None:
            return getattr(belief, name)
        found = getattr(getattr(self._rows, kind), name)
        if found is None:
            raise ValueError(
                f"FilterResult: covariances of {self.mean.shape[-1]} states were not kept; use "
                '`variances`, or fd.filter(..., history="beliefs"), from whose beliefs they are formed'
            )
        return found

    @property
    def mean(self) -> Float[Array, "T dx"]:
        return self._moment("filtered", "mean")

    @property
    def cov(self) -> Float[Array, "T dx dx"]:
        return self._moment("filtered", "cov")

    @property
    def variances(self) -> Float[Array, "T dx"]:
        return self._moment("filtered", "variances")

    @property
    def predicted_mean(self) -> Float[Array, "T dx"]:
        return self._moment("predicted", "mean")

    @property
    def predicted_cov(self) -> Float[Array, "T dx dx"]:
        return self._moment("predicted", "cov")

    @property
    def predicted_variances(self) -> Float[Array, "T dx"]:
        return self._moment("predicted", "variances")

    @property
    def innovation_covs(self) -> Float[Array, "T dy dy"]:
        if self._innovation_covs is None:
            raise ValueError(
                f"FilterResult: innovation covariances of {self.innovations.shape[-1]} measurements were "
                "not kept; `standardized_innovations` and `nis` are there"
            )
        return self._innovation_covs

    @property
    def last(self) -> Any:
        """The belief after the last row."""
        if self._rows is None:
            return jax.tree.map(lambda x: x[-1], self.filtered)
        return self._rows.last.belief

    @property
    def diagnostics(self) -> dict[str, Array]:
        recorded = {} if self._rows is None else self._rows.diagnostics
        return {name: value for name, value in recorded.items() if name != PARAMETERS}

    @property
    def effective_sample_sizes(self) -> Float[Array, " T"]:
        if "effective_sample_size" not in self.diagnostics:
            raise ValueError(
                f"FilterResult: {type(self.filter).__name__} has no samples, so no "
                "`effective_sample_sizes`"
            )
        return self.diagnostics["effective_sample_size"]

    @property
    def noise_factors(self) -> NoiseFactors | NoiseModulation | None:
        """What a filter has learnt of the noise after every row. With `AdaptiveNoise` the factors on the
        process noise `process` (T,) and on each sensor's variance `sensors` (T, dy). Of a learned filter
        the triangular matrices `process` (T, dx, dx) and `sensors` (T, dy, dy) for the next row, `None`
        where it does not modulate."""
        return self.filtered.memory

    @property
    def parameters(self) -> Any:
        """What a filter has learnt of the parameters, row by row.

        **Raises:** `ValueError` for a filter that learns none."""
        rows = self._rows
        found = parameters_of(self._filtered) if rows is None else rows.diagnostics.get(PARAMETERS)
        if found is None:
            raise ValueError(
                f"FilterResult: {type(self.filter).__name__} learns no parameters (fd.AugmentedFilter and "
                "others do, of a fd.ParametricModel)"
            )
        return found

    @property
    def alarms(self) -> Any:
        """What a filter that is watched has said of changes, row by row.

        **Raises:** `ValueError` for any other filter."""
        found = alarm_of(self._filtered)
        if found is None:
            raise ValueError(
                f"FilterResult: {type(self.filter).__name__} does not look for changes; "
                "fd.WatchedFilter(filter) does"
            )
        return found

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
