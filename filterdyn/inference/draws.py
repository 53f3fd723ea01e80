"""Draws of the parameters of a NumPyro model, and the series that the model has at each of them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.infer import MCMC

from filterdyn.inference.observed_series import ObservedSeries
from filterdyn.inference.path_observations import PathObservations

AnySeries = ObservedSeries | PathObservations

_STATISTICS = {
    "potential_energy": "lp",
    "adapt_state.step_size": "step_size",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
    "hmc_state.diverging": "diverging",
    "hmc_state.energy": "energy",
}


def samples_of(
    owner: str, mcmc_or_samples: MCMC | Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Samples (chain, draw, ...) and sample statistics.

    **Raises:** `TypeError` for anything but an `MCMC` or a dictionary, `ValueError` for samples whose
    number does not fit.
    """
    if isinstance(mcmc_or_samples, Mapping):
        samples = {name: np.asarray(x)[None] for name, x in mcmc_or_samples.items()}
        if not samples:
            raise ValueError(f"{owner}: `mcmc_or_samples` is empty; expected samples by name")
        counts = {name: x.shape[1:2] for name, x in samples.items()}
        if () in counts.values() or len(set(counts.values())) > 1:
            raise ValueError(
                f"{owner}: `mcmc_or_samples` has leading axes {counts}; expected one axis of "
                "draws, of the same length for every name"
            )
        return samples, {}
    if not hasattr(mcmc_or_samples, "get_samples"):
        raise TypeError(
            f"{owner}: `mcmc_or_samples` is {type(mcmc_or_samples).__name__}; expected "
            "numpyro.infer.MCMC or a dictionary of samples"
        )
    samples = mcmc_or_samples.get_samples(group_by_chain=True)
    samples = {name: np.asarray(x) for name, x in samples.items()}
    statistics = {}
    for name, value in mcmc_or_samples.get_extra_fields(group_by_chain=True).items():
        if isinstance(value, (dict, tuple)):
            continue
        value = np.asarray(value)
        # ArviZ's `lp` is a log-density; a potential energy is its negative.
        statistics[_STATISTICS.get(name, name)] = -value if name == "potential_energy" else value
        if name == "num_steps":
            statistics["tree_depth"] = np.log2(np.maximum(value, 1)).astype(int) + 1
    return samples, statistics


def flattened(samples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Samples (chain, draw, ...) along one axis."""
    return {name: x.reshape(-1, *x.shape[2:]) for name, x in samples.items()}


def dotted(name: str) -> str:
    """A name of NumPyro's scopes, such as `net/weights[0]`, as a `DataTree` can have it."""
    return name.replace("/", ".")


def plate_axes(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    sample: Mapping[str, Any],
) -> dict[str, list[str]]:
    """The names of the axes of every sample in plates, leading ones by their plates."""
    seeded = handlers.seed(handlers.substitute(model, data=dict(sample)), jax.random.key(0))
    trace = handlers.trace(seeded).get_trace(*args, **kwargs)
    found = {}
    for name, value in sample.items():
        node = trace.get(name, {})
        frames = node.get("cond_indep_stack", [])
        # What a deterministic site has besides its plates cannot be told from their number.
        event = (
            node["fn"].event_dim if node.get("type") == "sample" else np.ndim(value) - len(frames)
        )
        batch = np.ndim(value) - event
        if not frames or batch < max(-frame.dim for frame in frames):
            continue
        axes = [f"{name}_dim_{i}" for i in range(np.ndim(value))]
        for frame in frames:
            if np.shape(value)[batch + frame.dim] == frame.size:
                axes[batch + frame.dim] = frame.name
        found[name] = axes
    return found


def series_at(
    owner: str,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    site: str,
    sample: Mapping[str, Any],
    observed: bool = True,
) -> tuple[AnySeries, Any]:
    """The distribution of `site` with the parameters at `sample`, and its value.

    **Raises:** `KeyError` if the model has no site of that name or a latent site without samples,
    `TypeError` if the site is not a series, or not `observed`.
    """
    seeded = handlers.seed(handlers.substitute(model, data=dict(sample)), jax.random.key(0))
    trace = handlers.trace(seeded).get_trace(*args, **kwargs)
    found = series_in(owner, trace, site, observed)
    # A latent site without samples would be drawn from its prior, silently.
    latent = [n for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]]
    absent = [name for name in latent if name not in sample and name != site]
    if absent:
        raise KeyError(
            f"{owner}: `mcmc_or_samples` has no samples of the site {absent[0]!r} of the model; "
            f"it has {sorted(sample)}"
        )
    return found


def series_in(
    owner: str, trace: Mapping[str, Any], site: str, observed: bool = True
) -> tuple[AnySeries, Any]:
    """The distribution of `site` in a trace, and its value; see `series_at`."""
    if site not in trace:
        raise KeyError(f"{owner}: the model has no site {site!r}; its sites are {sorted(trace)}")
    node = trace[site]
    distribution = node.get("fn")
    while isinstance(distribution, numpyro.distributions.ExpandedDistribution):
        distribution = distribution.base_dist
    is_series = isinstance(distribution, ObservedSeries | PathObservations)
    if not is_series or (observed and not node["is_observed"]):
        raise TypeError(
            f"{owner}: site {site!r} is "
            f"{'an unobserved ' if not node.get('is_observed') else ''}{type(distribution).__name__};"
            " expected an observed fd.ObservedSeries or fd.PathObservations (pass the data as the model "
            "was run)"
        )
    return distribution, jnp.asarray(node["value"])
