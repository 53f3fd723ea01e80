"""Prior and likelihood of a NumPyro model where its parameters have no limits, and data made by it."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro import handlers

from filterdyn.inference.unconstrained import Call, Point, Traced, is_latent, trace_at


class Densities(NamedTuple):
    """Log-densities at one point of the unconstrained space.

    - `prior`: of the parameters, with the Jacobian of the way into their limits;
    - `likelihood`: of everything observed; `penalty`: what `numpyro.factor` adds.
    """

    prior: Float[Array, ""]
    likelihood: Float[Array, ""]
    penalty: Float[Array, ""]

    @property
    def joint(self) -> Float[Array, ""]:
        return self.prior + self.likelihood + self.penalty


def densities_of(traced: Traced, data: dict[str, Array] | None = None) -> Densities:
    """The log-densities of a trace, with other data in the place of those it has."""
    prior = traced.log_det
    likelihood = penalty = jnp.zeros_like(prior)
    for name, site in traced.sites.items():
        if site["type"] != "sample":
            continue
        seen = site["value"] if data is None or name not in data else data[name]
        found = _scaled(site, seen)
        if is_latent(site):
            prior = prior + found
        elif is_factor(site):
            penalty = penalty + found
        else:
            likelihood = likelihood + found
    return Densities(prior, likelihood, penalty)


def is_factor(site: dict[str, Any]) -> bool:
    """Is this a `numpyro.factor`, a number that nothing random made?"""
    fn = site["fn"]
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Unit)


def simulated(call: Call, z: Point, key: Array) -> dict[str, Array]:
    """Data that the model makes at a point, with the same entries missing (NaN) as the data that it has."""
    sites = trace_at(call._replace(model=handlers.uncondition(call.model)), z, key).sites
    made = {}
    for name, site in sites.items():
        if site["type"] == "sample" and site["infer"].get("was_observed") and not is_factor(site):
            known = jnp.asarray(site["infer"]["obs"])
            value = site["value"]
            if jnp.issubdtype(known.dtype, jnp.floating):
                value = jnp.where(jnp.isnan(known), jnp.nan, value)
            made[name] = value
    return made


def _scaled(site: dict[str, Any], value: Any) -> Float[Array, ""]:
    scale = 1.0 if site["scale"] is None else site["scale"]
    return (scale * site["fn"].log_prob(value)).sum()
