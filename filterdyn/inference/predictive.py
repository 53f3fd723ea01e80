"""Posterior and prior predictive: series made anew, rows one ahead, and rows to come."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import numpyro
from jaxtyping import Array
from numpyro import handlers
from numpyro.infer import MCMC

from filterdyn._checks import check_count, check_key
from filterdyn._groups import in_groups
from filterdyn.inference.draws import (
    AnySeries,
    dotted,
    flattened,
    samples_of,
    series_at,
    series_in,
)
from filterdyn.inference.predictive_draws import Ahead, Drawn, predict_rows, replicate

if TYPE_CHECKING:
    from xarray import DataTree

#: The kinds, and the group that each of them makes.
GROUPS = {
    "replicated": "posterior_predictive",
    "one_step": "one_step_predictive",
    "forecast": "predictions",
}
_DRAWS: dict[str, Callable[..., Drawn]] = {"replicated": replicate, "one_step": predict_rows}


def posterior_predictive(
    mcmc_or_samples: MCMC | Mapping[str, Any],
    model: Callable[..., Any],
    *args: Any,
    kind: str | Sequence[str] | None = None,
    times: Any = None,
    inputs: Any = None,
    site: str = "y",
    key: Array | None = None,
    batch_size: int = 64,
    observation_names: Any = None,
    **kwargs: Any,
) -> "DataTree":
    """What a NumPyro model with an `ObservedSeries` (or `PathObservations`) expects, for every draw of
    its parameters: three different questions, each with a group of its own.

    - `"replicated"`, group `posterior_predictive`: a series anew, with a start, states and noise of its
      own; the data enter through the parameters only;
    - `"one_step"`, group `one_step_predictive`: every row given the rows before it: a state from what the
      filter predicts, and a measurement at that state;
    - `"forecast"`, group `predictions`: the rows at `times`, simulated from the filter's last belief on (or
      from the last state of a path).

    Replicates say whether the model makes series like the data; predictions one row ahead, whether it
    follows them; a filter may do the second well for a model that does the first badly.

    **Arguments:**

    - `mcmc_or_samples`: an `MCMC` after its run, or a dictionary of samples with one leading axis from
      wherever (a guide, `Predictive`, an ensemble), which becomes a single chain;
    - `model`, `*args`, `**kwargs`: the NumPyro model as it was run, the data included. Arguments of it
      that have one of the names here (`times`, `inputs`, ...) are passed by position;
    - `kind`: which, one name or several; by default all for which there is what they need;
    - `times` (H,), from the last row on, and `inputs` (H, du), of the forecast; without inputs the last
      one is held. A batch may have (S, H) and (S, H, du);
    - `site`: the name of the series in the model; `key`: a random key (default `jax.random.key(0)`);
      a kind has the same draws whatever other kinds are asked for;
    - `batch_size`: so many draws are run side by side, which bounds the memory;
    - `observation_names`: names of the observed quantities, for the axis `observation`.

    **Returns** a `DataTree` with these groups, of which each has `site`, (chain, draw, [series,] time,
    observation), complete where the data have gaps; `one_step_predictive` has `site_mean` and
    `site_sd` of Gaussian filters too; and with `observed_data` where the site has data. What a solver or
    a filter failed at is NaN.

    **Raises:** `KeyError` if the model has no site of that name or a parameter without samples,
    `TypeError` for a site that is no series or has no data where they are needed, `ValueError` for a
    kind that there is not, a forecast without `times`, times before the last row and shapes that disagree.
    """
    owner = "posterior_predictive"
    key = jax.random.key(0) if key is None else key
    check_key(owner, key)
    batch_size = check_count(owner, "batch_size", batch_size)
    samples, _ = samples_of(owner, mcmc_or_samples)
    chains, draws = next(iter(samples.values())).shape[:2]
    flat = flattened(samples)
    one_draw = {name: x[0] for name, x in flat.items()}
    distribution, y = series_at(owner, model, args, kwargs, site, one_draw, observed=False)
    has_data = _is_observed(model, args, kwargs, site, one_draw)
    kinds = _kinds(owner, kind, distribution, times, has_data)
    if times is None and inputs is not None:
        raise ValueError(f"{owner}: `inputs` is given but `times` is not; expected both")
    ahead = Ahead(times, inputs)
    makers: dict[str, Callable[..., Drawn]] = {**_DRAWS, "forecast": ahead}
    drawers = {name: (makers[name], list(GROUPS).index(name)) for name in kinds}

    def one(given: tuple[Any, Array]) -> dict[str, Drawn]:
        sample, key = given
        needs_data = set(kinds) != {"replicated"}
        found, value = series_at(owner, model, args, kwargs, site, sample, observed=needs_data)
        return {
            name: make(owner, found, value, jax.random.fold_in(key, i))
            for name, (make, i) in drawers.items()
        }

    keys = jax.random.split(key, chains * draws)
    run = jax.jit(lambda given: in_groups(one, given, min(batch_size, len(keys))))
    found = run((flat, keys))
    layout = Layout(owner, distribution, y, site, observation_names)
    groups = {}
    for name in kinds:
        whole = {
            n: np.asarray(x).reshape(chains, draws, *x.shape[1:]) for n, x in found[name].items()
        }
        clock = distribution.series.times
        if name == "forecast":
            clock = ahead.series(owner, distribution.series, y.dtype).times
        groups[GROUPS[name]] = layout.group(whole, clock)
    if has_data:
        groups["observed_data"] = layout.group({"": np.asarray(y)}, distribution.series.times, ())
    return layout.tree(groups)


def prior_predictive(
    model: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    site: str = "y",
    key: Array | None = None,
    batch_size: int = 64,
    observation_names: Any = None,
    **kwargs: Any,
) -> "DataTree":
    """What a NumPyro model with an `ObservedSeries` (or `PathObservations`) expects before any data:
    parameters from their prior, and a series for each.

    **Arguments:** those of `posterior_predictive`; the data may be among the arguments of the model, and
    are not used. `num_samples`: how many draws.

    **Returns** a `DataTree` with the groups `prior` and `prior_predictive`, (chain, draw, ...), and
    `observed_data` where the site has data. A `/` in a name (NumPyro's scopes) becomes a dot.

    **Raises:** `KeyError` if the model has no site of that name, `TypeError` if it is no series.
    """
    from arviz_base import from_dict

    owner = "prior_predictive"
    key = jax.random.key(0) if key is None else key
    check_key(owner, key)
    batch_size = check_count(owner, "batch_size", batch_size)
    num_samples = check_count(owner, "num_samples", num_samples)

    def trace_of(key: Array) -> dict[str, Any]:
        return dict(handlers.trace(handlers.seed(model, key)).get_trace(*args, **kwargs))

    trace = trace_of(key)
    distribution, y = series_in(owner, trace, site, observed=False)

    def one(key: Array) -> tuple[dict[str, Array], Array]:
        key_prior, key_series = jax.random.split(key)
        trace = trace_of(key_prior)
        found, value = series_in(owner, trace, site, observed=False)
        drawn = {n: s["value"] for n, s in trace.items() if n != site and _is_drawn(s)}
        return drawn, replicate(owner, found, value, key_series)[""]

    keys = jax.random.split(key, num_samples)
    run = jax.jit(lambda keys: in_groups(one, keys, min(batch_size, num_samples)))
    prior, series = run(keys)
    layout = Layout(owner, distribution, y, site, observation_names)
    clock = distribution.series.times
    groups = {"prior_predictive": layout.group({"": np.asarray(series)[None]}, clock)}
    if trace[site]["is_observed"]:
        groups["observed_data"] = layout.group({"": np.asarray(y)}, clock, ())
    tree = layout.tree(groups)
    drawn = {dotted(name): np.asarray(x)[None] for name, x in prior.items()}
    tree["prior"] = from_dict({"prior": drawn})["prior"]
    return tree


def _is_drawn(site: Mapping[str, Any]) -> bool:
    """Is this a number that the prior draws, or one that follows from those?"""
    return (site["type"] == "sample" and not site["is_observed"]) or site["type"] == "deterministic"


def _is_observed(model: Any, args: Any, kwargs: Any, site: str, sample: Mapping[str, Any]) -> bool:
    seeded = handlers.seed(handlers.substitute(model, data=dict(sample)), jax.random.key(0))
    return bool(handlers.trace(seeded).get_trace(*args, **kwargs)[site]["is_observed"])


def _kinds(
    owner: str, kind: Any, distribution: AnySeries, times: Any, has_data: bool
) -> tuple[str, ...]:
    """**Raises:** `ValueError` for a kind that there is not, and a forecast without times."""
    if kind is None:
        kinds = ["replicated"]
        kinds += ["one_step"] if has_data and hasattr(distribution, "filter") else []
        return (*kinds, "forecast") if times is not None else tuple(kinds)
    kinds = [kind] if isinstance(kind, str) else list(kind)
    unknown = [name for name in kinds if name not in GROUPS]
    if unknown or not kinds:
        raise ValueError(f"{owner}: `kind` is {kind!r}; expected some of {sorted(GROUPS)}")
    if ("forecast" in kinds) != (times is not None):
        missing = "`times` is missing" if times is None else "`times` is given"
        raise ValueError(
            f"{owner}: `kind` is {kind!r} but {missing}; a forecast and its times go together"
        )
    return tuple(name for name in GROUPS if name in kinds)


class Layout:
    """Names and coordinates of the axes of a series in a data tree."""

    def __init__(
        self, owner: str, distribution: AnySeries, value: Array, site: str, observation_names: Any
    ):
        """**Raises:** `ValueError` if the names do not fit the columns."""
        columns = value.shape[-1]
        names = list(range(columns) if observation_names is None else observation_names)
        if len(names) != columns:
            raise ValueError(
                f"{owner}: `observation_names` has {len(names)} names for {columns} columns"
            )
        self.site = site
        self.names = names
        self.series_axes = [f"series_{i}" if i else "series" for i in range(value.ndim - 2)]

    def group(
        self, arrays: Mapping[str, np.ndarray], times: Any, lead: Sequence[str] = ("chain", "draw")
    ) -> Any:
        """A dataset of arrays (*lead, *series, T, dy), by the ending of their names."""
        from xarray import Dataset

        dims = [*lead, *self.series_axes, "time", "observation"]
        times = np.asarray(times)
        first = next(iter(arrays.values()))
        coords: dict[str, Any] = {"observation": self.names}
        coords |= {
            name: np.arange(n) for name, n in zip(dims, first.shape, strict=True) if name in lead
        }
        # Timelines of their own cannot index an axis.
        if times.ndim == 1:
            coords["time"] = times
        else:
            coords["clock"] = (dims[len(dims) - 1 - times.ndim : -1], times)
        variables = {self.site + ending: (dims, x) for ending, x in arrays.items()}
        return Dataset(variables, coords)

    def tree(self, groups: Mapping[str, Any]) -> "DataTree":
        """The groups as one tree."""
        from xarray import DataTree

        tree = DataTree.from_dict(dict(groups))
        tree.attrs |= {
            "inference_library": "numpyro",
            "inference_library_version": numpyro.__version__,
        }
        return tree
