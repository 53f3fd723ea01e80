"""Forecasts from draws of parameters and paths."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro import handlers

from filterdyn._checks import check_key, check_shape, float_array, is_traced
from filterdyn._groups import in_groups
from filterdyn.filters.rows import rows_of
from filterdyn.inference.observed_series import ObservedSeries
from filterdyn.inference.particle_likelihood import series_of
from filterdyn.series import blank
from filterdyn.simulation import Simulation, simulate_rows

_NAME = "forecast_paths"
#: So many draws are simulated at once.
_CHUNK = 64


def forecast_paths(
    model: Callable[..., Any],
    samples: Mapping[str, Any],
    paths: Float[Array, "S T dx"],
    times: Any,
    *args: Any,
    inputs: Any = None,
    site: str = "y",
    key: Array,
    **kwargs: Any,
) -> Simulation:
    """States and measurements after the last row, one future for every draw of the posterior: each path
    goes on from where it ended, with the parameters that it was drawn with.

        paths = mcmc.get_extra_fields()["paths"]["y"]
        ahead = fd.inference.forecast_paths(
            model, mcmc.get_samples(), paths, times[-1] + np.arange(1, 13), times, key=key)

    **Arguments:**

    - `model`, `*args`, `**kwargs`: the NumPyro model as it was run; it need not get the data;
    - `samples`: by name, (S, ...), of every parameter; `paths` (S, T, dx): those of the same draws;
    - `times` (H,), after the last row; `inputs` (H, du), by default the last one held;
    - `site`: the name of the `ObservedSeries`; `key`: a JAX random key.

    **Returns:** a `Simulation` with `states` (S, H, dx) and `observations` (S, H, dy).

    **Raises:** `KeyError` for an unknown site or a parameter without draws, `TypeError` for a site that is
    no `ObservedSeries`, `ValueError` for times before the last row and shapes that disagree.
    """
    check_key(_NAME, key)
    samples = {name: float_array(_NAME, name, x) for name, x in samples.items()}
    if not samples:
        raise ValueError(f"{_NAME}: `samples` is empty; expected draws by name")
    paths = float_array(_NAME, "paths", paths)

    def at(sample: Mapping[str, Array]) -> ObservedSeries:
        placed = handlers.substitute(handlers.seed(model, jax.random.key(0)), data=dict(sample))
        sites = handlers.trace(placed).get_trace(*args, **kwargs)
        if site not in sites:
            raise KeyError(
                f"{_NAME}: the model has no site {site!r}; its sites are {sorted(sites)}"
            )
        latent = [n for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]]
        absent = [n for n in latent if n not in sample and series_of(sites[n]) is None]
        if absent:
            raise KeyError(
                f"{_NAME}: `samples` has no draws of {absent[0]!r}; it has {sorted(sample)}"
            )
        found = series_of(sites[site])
        if found is None:
            raise TypeError(f"{_NAME}: the site {site!r} is no fd.ObservedSeries")
        return found

    first = at({name: x[0] for name, x in samples.items()})
    if first.series.times.ndim > 1 or first.batch_shape:
        raise ValueError(f"{_NAME}: the site {site!r} is a batch of series; expected one")
    number = len(next(iter(samples.values())))
    check_shape(_NAME, "paths", paths, (number, *first.event_shape[:1], first.model.dx))
    last = first.series.times[-1]
    ahead = blank(_NAME, times, _held(first, inputs, np.shape(times)), paths.dtype)
    if not is_traced((ahead.times, last)) and ahead.times[0] < last:
        raise ValueError(
            f"{_NAME}: `times` starts at {ahead.times[0]:g}; expected times from {last:g}, that of the "
            "last row, on"
        )

    def one(draw: tuple[Any, Array, Array]) -> tuple[Array, Array]:
        sample, x, key = draw
        found = at(sample)
        u = None if found.series.inputs is None else found.series.inputs[-1]
        rows, plan = rows_of(_NAME, found.model, ahead, last, u, paths.dtype)
        return simulate_rows(found.model, x, rows, plan, key)

    draws = (samples, paths[:, -1], jax.random.split(key, number))
    run = jax.jit(lambda draws: in_groups(one, draws, min(_CHUNK, number)))
    return Simulation(ahead.times, *run(draws))


def _held(series: ObservedSeries, inputs: Any, shape: tuple[int, ...]) -> Any:
    """The inputs, or the last one at all times."""
    known = series.series.inputs
    if known is None or inputs is not None:
        return inputs
    return jnp.broadcast_to(known[-1], (*shape, known.shape[-1]))
