"""Posterior samples as an ArviZ data tree, with what a series needs: a time axis, and a
log-likelihood of every row."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import numpyro
from jaxtyping import Array
from numpyro.infer import MCMC

from filterdyn._checks import check_key
from filterdyn._groups import in_groups
from filterdyn.inference.draws import dotted, flattened, plate_axes, samples_of, series_at

if TYPE_CHECKING:
    from xarray import DataTree

_NAME = "to_datatree"
#: So many posterior draws are run through the model at once.
_CHUNK = 64


def to_datatree(
    mcmc_or_samples: MCMC | Mapping[str, Any],
    model: Callable[..., Any],
    *args: Any,
    site: str = "y",
    key: Array | None = None,
    observation_names: Any = None,
    **kwargs: Any,
) -> "DataTree":
    """Posterior samples of a NumPyro model with an `ObservedSeries`, or with `PathObservations`, as an
    ArviZ `DataTree`.

    **Arguments:**

    - `mcmc_or_samples`: an `MCMC` after its run, or a dictionary of samples with one leading axis
      (what a guide or `Predictive` gives), which becomes a single chain;
    - `model`, `*args`, `**kwargs`: the NumPyro model as it was run, the data included;
    - `site`: the name of the `ObservedSeries` in it;
    - `key`: random key of the replicated data (default `jax.random.key(0)`);
    - `observation_names`: names of the observed quantities, for the axis `observation`.

    **Returns** a `DataTree` with the groups

    - `posterior`: the samples, (chain, draw, ...); a `/` in a name (NumPyro's scopes) becomes a dot;
    - `posterior_predictive`: a replicated series for every draw, (chain, draw, time, observation);
    - `log_likelihood`: log p(y_t | y_1:t-1), or of `PathObservations` log p(y_t | x_t), of every row
      with an observed entry, (chain, draw, time): the pointwise log-likelihood that `arviz_stats.loo`
      needs (a whole series is one number, from which no cross-validation can be made);
    - `observed_data`: (time, observation), NaN where missing;
    - `sample_stats`, for an `MCMC`: divergences and what else it recorded.

    A batch of series has a leading axis `series`; its log-likelihood has one axis `row` over all
    observed rows, with coordinates `series` and `time`. Parameters in a plate have an axis of its name: a
    plate over the series that is called "series" gives both the same.

    **Raises:** `KeyError` if the model has no site of that name or a latent site without samples,
    `TypeError` if the site is not an observed `ObservedSeries`, `ValueError` for samples or names
    whose number does not fit.
    """
    from arviz_base import from_dict  # ArviZ takes as long to import as all the rest

    samples, statistics = samples_of(_NAME, mcmc_or_samples)
    chains, draws = next(iter(samples.values())).shape[:2]
    key = jax.random.key(0) if key is None else key
    check_key(_NAME, key)

    at_site = lambda sample: series_at(_NAME, model, args, kwargs, site, sample)

    def one(inputs: tuple[Any, Array]) -> tuple[Array, Array]:
        sample, key = inputs
        distribution, y = at_site(sample)
        shape = y.shape[: y.ndim - 2 - len(distribution.batch_shape)]
        return distribution.sample(key, shape), distribution.log_likelihoods(y)

    flat = flattened(samples)
    first = {name: x[0] for name, x in flat.items()}
    distribution, y = at_site(first)
    axes = plate_axes(model, args, kwargs, first)
    names = list(range(y.shape[-1]) if observation_names is None else observation_names)
    if len(names) != y.shape[-1]:
        raise ValueError(
            f"to_datatree: `observation_names` has {len(names)} names for {y.shape[-1]} columns"
        )
    keys = jax.random.split(key, chains * draws)
    run = jax.jit(lambda inputs: in_groups(one, inputs, min(_CHUNK, len(keys))))
    replicated, pointwise = (np.asarray(x) for x in run((flat, keys)))

    y = np.asarray(y)
    series_axes = [f"series_{i}" if i else "series" for i in range(y.ndim - 2)]
    dims = [*series_axes, "time", "observation"]
    coords: dict[str, Any] = {"observation": names}
    times = np.asarray(distribution.series.times)
    if times.ndim == 1:
        coords["time"] = times
    seen = ~np.isnan(y).all(-1)
    grouped = lambda x: x.reshape(chains, draws, *x.shape[1:])
    log_likelihood = _spread(grouped(pointwise)[:, :, seen])
    data = {
        "posterior": {dotted(name): x for name, x in samples.items()},
        "posterior_predictive": {site: grouped(replicated)},
        "observed_data": {site: y},
    }
    if statistics:
        data["sample_stats"] = statistics
    dims_of = {dotted(name): axis for name, axis in axes.items()} | {site: dims}
    tree = from_dict(data, coords=coords, dims=dims_of, attrs=_attributes())
    rows = "time" if y.ndim == 2 else "row"
    row_times = np.broadcast_to(times, seen.shape)[seen]
    row_coords = {"time": row_times} if y.ndim == 2 else {"row": np.arange(seen.sum())}
    pointwise_tree = from_dict(
        {"log_likelihood": {site: log_likelihood}}, coords=row_coords, dims={site: [rows]}
    )
    group = pointwise_tree["log_likelihood"].to_dataset()
    if y.ndim > 2:
        where = np.argwhere(seen)
        extra = {axis: (rows, where[:, i]) for i, axis in enumerate(series_axes)}
        group = group.assign_coords({"time": (rows, row_times), **extra})
    tree["log_likelihood"] = type(tree)(group)
    return tree


def _spread(pointwise: np.ndarray) -> np.ndarray:
    """Pointwise log-likelihoods, of which no row is the same number in every draw.

    A row that does not depend on the parameters (the first one, if the start and the noise of the
    observation are known) has equal importance weights, to whose tail `arviz_stats.loo` cannot fit a
    Pareto distribution: it raises. A spread of 1e-9 makes the fit, and changes no result.
    """
    rounding = 64 * np.finfo(pointwise.dtype).eps * (1 + np.abs(pointwise).max((0, 1)))
    equal = np.ptp(pointwise, axis=(0, 1)) <= rounding
    ramp = np.linspace(-1e-9, 1e-9, pointwise[..., 0].size).reshape(pointwise.shape[:2])
    return pointwise.astype(np.float64) + equal * ramp[..., None]


def _attributes() -> dict[str, Any]:
    return {"/": {"inference_library": "numpyro", "inference_library_version": numpyro.__version__}}
