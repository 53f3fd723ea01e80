"""Mean and covariance over draws of the parameters: the mean of covariances, and the spread of means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.infer import MCMC

from filterdyn._checks import check_count
from filterdyn._groups import in_groups
from filterdyn.filters import filter as run_filter
from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.forecasting import forecast
from filterdyn.inference.draws import flattened, samples_of, series_at
from filterdyn.inference.observed_series import ObservedSeries
from filterdyn.smoothers import smooth
from filterdyn.status import Status

_OWNER = "inference.predictive_moments"


class TotalMoments(eqx.Module):
    """The law of total variance: `cov` = `within` + `between`.

    - `mean` (..., d), `cov` (..., d, d): over everything that is not known;
    - `within`: the mean of the covariances that each draw of the parameters has (noise of the process and of
      the sensor); `between`: the covariance of their means (what is not known of the parameters).
    """

    mean: Float[Array, "*B d"]
    cov: Float[Array, "*B d d"]
    within: Float[Array, "*B d d"]
    between: Float[Array, "*B d d"]


def total_moments(means: Float[Array, "S *B d"], covs: Float[Array, "S *B d d"]) -> TotalMoments:
    """The moments of an equal mixture of S distributions with these means and covariances.

    **Raises:** `ValueError` for shapes that do not fit.
    """
    means, covs = jnp.asarray(means), jnp.asarray(covs)
    if means.ndim < 2 or covs.shape != (*means.shape, means.shape[-1]):
        raise ValueError(
            f"inference.total_moments: `means` has shape {means.shape} and `covs` {covs.shape}; expected "
            "(draws, ..., d) and (draws, ..., d, d)"
        )
    mean, within = means.mean(0), covs.mean(0)
    off = means - mean
    between = (off[..., :, None] * off[..., None, :]).mean(0)
    return TotalMoments(mean, within + between, within, between)


@dataclass(frozen=True)
class PredictiveMoments:
    """Moments over a posterior: `times` (T,), `state`, and of a forecast `observation` too (`None` else),
    each a `TotalMoments` with leading axis T. `used` of `draws` draws count; in the others the filter
    failed."""

    times: np.ndarray
    state: TotalMoments
    observation: TotalMoments | None
    used: int
    draws: int


def predictive_moments(
    mcmc_or_samples: MCMC | Mapping[str, Any],
    model: Callable[..., Any],
    *args: Any,
    site: str = "y",
    kind: Literal["filtered", "smoothed", "forecast"] | None = None,
    times: Any = None,
    inputs: Any = None,
    batch_size: int = 32,
    **kwargs: Any,
) -> PredictiveMoments:
    """Mean and covariance of states or of measurements to come, over draws of the parameters (weights of a
    network included): total covariance = mean of the covariances + spread of the means.

    **Arguments:**

    - `mcmc_or_samples`, `model`, `*args`, `site`, `**kwargs`: as for `fd.to_datatree`: of NUTS, a guide, an
      ensemble or Laplace;
    - `kind`: `"smoothed"` (default) or `"filtered"` states at the rows of the data, or a `"forecast"`
      (default if `times` are given);
    - `times`, `inputs`: of the forecast, as for `fd.forecast`;
    - `batch_size`: so many draws at once.

    **Raises:** `ValueError` for a kind that there is not, a forecast without times, a batch of series, and
    if the filter fails in all draws; `TypeError` for `PathObservations` and filters that sample.
    """
    kind = ("smoothed" if times is None else "forecast") if kind is None else kind
    if kind not in ("filtered", "smoothed", "forecast"):
        raise ValueError(
            f'{_OWNER}: `kind` is {kind!r}; expected "filtered", "smoothed" or "forecast"'
        )
    if (kind == "forecast") != (times is not None):
        missing = "`times` is missing" if times is None else "`times` is given"
        raise ValueError(f"{_OWNER}: `kind` is {kind!r} but {missing}; both go together")
    batch_size = check_count(_OWNER, "batch_size", batch_size)
    flat = flattened(samples_of(_OWNER, mcmc_or_samples)[0])
    found = lambda sample: series_at(_OWNER, model, args, kwargs, site, sample)
    series, y = found({name: x[0] for name, x in flat.items()})
    if not isinstance(series, ObservedSeries) or isinstance(series.filter, AbstractSamplingFilter):
        what = type(getattr(series, "filter", series)).__name__
        raise TypeError(
            f"{_OWNER}: site {site!r} has {what}; expected an fd.ObservedSeries with a Gaussian filter"
        )
    if y.ndim != 2 or series.batch_shape:
        raise ValueError(
            f"{_OWNER}: site {site!r} has a value of shape {y.shape}; expected one series (T, dy)"
        )

    def one(sample: dict[str, Array]) -> tuple[Any, Array]:
        distribution, y = found(sample)
        assert isinstance(distribution, ObservedSeries)
        at = distribution.model
        known = eqx.tree_at(lambda s: s.observations, distribution.series, jnp.asarray(y))
        start = {"t0": distribution.t0, "u0": distribution.u0}
        if kind == "smoothed":
            smoothed = smooth(at, known, distribution.filter, **start)
            return [(smoothed.mean, smoothed.cov)], smoothed.status
        result = run_filter(at, known, distribution.filter, **start)
        if kind == "filtered":
            return [(result.mean, result.cov)], result.status
        ahead = forecast(at, result, times, inputs)
        seen = ahead.observation_mean, ahead.observation_cov
        return [(ahead.state_mean, ahead.state_cov), seen], ahead.status

    count = len(next(iter(flat.values())))
    run = jax.jit(lambda draws: in_groups(one, draws, min(batch_size, count)))
    moments, status = run(flat)
    fine = np.asarray(status) == Status.OK
    if not fine.any():
        raise ValueError(
            f"{_OWNER}: the filter fails in all {count} draws ({Status(int(np.asarray(status)[0])).name})"
        )
    totals = [total_moments(mean[fine], cov[fine]) for mean, cov in moments]
    return PredictiveMoments(
        np.asarray(series.series.times if times is None else times),
        totals[0],
        totals[1] if len(totals) > 1 else None,
        int(fine.sum()),
        count,
    )
