"""Particle Gibbs with ancestor sampling: paths given parameters, as a block of NumPyro's Gibbs samplers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro import handlers

from filterdyn.filters.particle import ParticleFilter
from filterdyn.inference.latent_path import LatentPath
from filterdyn.inference.path_observations import PathObservations
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series
from filterdyn.smoothers.conditional import conditional_path

_NAME = "path_update"


def path_update(
    model: Callable[..., Any],
    *args: Any,
    filter: ParticleFilter,
    path: str = "x",
    site: str = "y",
    **kwargs: Any,
) -> Callable[..., dict[str, Array]]:
    """A `gibbs_fn` for `numpyro.infer.HMCGibbs` and `CustomGibbs` that draws a whole path given the
    parameters and the path before, by the conditional particle filter with ancestor sampling. With draws
    of the parameters given the path this is particle Gibbs (Lindsten, Jordan, Schön 2014):

        def model(times, y=None):
            noise = numpyro.sample("noise", dist.HalfNormal(1.0))
            x = numpyro.sample("x", fd.LatentPath(make(noise), times))
            numpyro.sample("y", fd.PathObservations(make(noise), times, x), obs=y)

        update = fd.inference.path_update(model, times, y, filter=fd.ParticleFilter(30))
        mcmc = MCMC(HMCGibbs(NUTS(model), update, ["x"]), num_warmup=500, num_samples=2000)
        mcmc.run(jax.random.key(0), times, y)

    NUTS then moves the parameters only, with derivatives of the density of a path and none of a filter.
    Parameters that have a conjugate draw given the path may be a block of their own beside those of
    NUTS, `Gibbs([(CustomGibbs(update), ["x"]), (CustomGibbs(yours), ["a"]), (NUTS(model), ["b"])])`.

    The posterior is exact for any number of particles >= 2, and 10 to 50 are mostly enough. Parameters
    of a transition with little noise hardly move given a path; `ParticleMetropolis` integrates it out.

    **Arguments:**

    - `model`, `*args`, `**kwargs`: the NumPyro model as it is run, the data included;
    - `filter`: as for `fd.conditional_path`, of which only the number of particles counts;
    - `path`, `site`: names of the `LatentPath`, of one series, and of its `PathObservations`.

    Nothing else in the model may depend on the path: it is drawn given the parameters and `site` only.

    **Returns:** a function `(rng_key, gibbs_sites, hmc_sites) -> {path: (T, dx)}`.

    **Raises:** when it is run: `KeyError` for an unknown name, `TypeError` for a site of another kind, and
    what `fd.conditional_path` raises.
    """

    def update(
        rng_key: Array, gibbs_sites: Mapping[str, Array], hmc_sites: Mapping[str, Array]
    ) -> dict[str, Array]:
        placed = handlers.substitute(
            handlers.seed(model, jax.random.key(0)), data={**hmc_sites, **gibbs_sites}
        )
        sites = handlers.trace(placed).get_trace(*args, **kwargs)
        _check(sites, path, LatentPath, observed=False)
        _check(sites, site, PathObservations, observed=True)
        hidden, seen = sites[path]["fn"], sites[site]["fn"]
        old = gibbs_sites[path]
        series = Series(hidden.series.times, sites[site]["value"], hidden.series.inputs)
        moves = hidden.model
        joint = StateSpaceModel(moves.initial, moves.dynamics, seen.model.observation)
        new = conditional_path(joint, series, filter, old, key=rng_key)
        return {path: jnp.where(jnp.isfinite(new).all(), new, old).astype(old.dtype)}

    return update


def _check(sites: Mapping[str, Any], name: str, kind: type, observed: bool) -> None:
    if name not in sites:
        raise KeyError(f"{_NAME}: the model has no site {name!r}; its sites are {sorted(sites)}")
    found = sites[name]
    is_kind = isinstance(found["fn"], kind)
    if not is_kind or found["is_observed"] != observed:
        raise TypeError(
            f"{_NAME}: the site {name!r} is {type(found['fn']).__name__}, "
            f"{'' if found['is_observed'] else 'not '}observed; expected fd.{kind.__name__}, "
            f"{'' if observed else 'not '}observed"
        )
    if found["scale"] is not None:
        raise ValueError(f"{_NAME}: the site {name!r} is scaled; expected its density as it is")
    if found["fn"].batch_shape:
        raise ValueError(f"{_NAME}: the site {name!r} is a batch; expected one series")
