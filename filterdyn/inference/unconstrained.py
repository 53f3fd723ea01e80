"""A NumPyro model at a point of the space in which its parameters have no limits."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import biject_to

from filterdyn._checks import is_traced

Model = Callable[..., Any]
#: Unconstrained parameters by name.
Point = Mapping[str, Array]


class Call(NamedTuple):
    """A NumPyro model and what it is called with."""

    model: Model
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    def trace(self, model: Model) -> dict[str, Any]:
        """What `model`, a version of this one, leaves when it is called."""
        return dict(handlers.trace(model).get_trace(*self.args, **(self.kwargs or {})))


class Traced(NamedTuple):
    """Sites by name, and the log-determinant of the way from the unconstrained parameters."""

    sites: dict[str, Any]
    log_det: Float[Array, ""]


def is_latent(site: Mapping[str, Any]) -> bool:
    """Is this a parameter?"""
    return site["type"] == "sample" and not site["is_observed"]


def trace_at(call: Call, z: Point, key: Array) -> Traced:
    """The model with its parameters at `z`, and with random keys of its own from `key`."""
    log_dets = [jnp.zeros(())]

    def place(site: dict[str, Any]) -> Array | None:
        if site["type"] != "sample" or site["name"] not in z:
            return None
        transform, at = biject_to(site["fn"].support), z[site["name"]]
        value = transform(at)
        log_dets.append(transform.log_abs_det_jacobian(at, value).sum())
        return value

    placed = handlers.substitute(handlers.seed(call.model, key), substitute_fn=place)
    return Traced(call.trace(placed), sum(log_dets, jnp.zeros(())))


def start_point(
    owner: str, call: Call, key: Array, strategy: Callable[..., Any]
) -> dict[str, Array]:
    """Unconstrained parameters that a NumPyro initialisation strategy chooses.

    **Raises:** `ValueError` for a parameter that is discrete, and for a model without parameters.
    """
    started = handlers.substitute(handlers.seed(call.model, key), substitute_fn=strategy)
    latent = {name: site for name, site in call.trace(started).items() if is_latent(site)}
    if not latent:
        raise ValueError(f"{owner}: `model` has no parameters; every site of it is observed")
    for name, site in latent.items():
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"{owner}: the parameter {name!r} is discrete ({type(site['fn']).__name__}); expected "
                "parameters that are real numbers"
            )
    invert = lambda site: biject_to(site["fn"].support).inv(site["value"])
    float_type = jnp.result_type(float)
    return {name: jnp.asarray(invert(site), float_type) for name, site in latent.items()}


def unconstrained(owner: str, call: Call, parameters: Mapping[str, Any]) -> dict[str, Array]:
    """The point of parameters inside their limits.

    **Raises:** `KeyError` if one is missing, `ValueError` for one outside or on its limits.
    """
    placed = handlers.substitute(
        handlers.seed(call.model, jax.random.key(0)), data=dict(parameters)
    )
    latent = {name: site for name, site in call.trace(placed).items() if is_latent(site)}
    for name in latent:
        if name not in parameters:
            raise KeyError(
                f"{owner}: `parameters` has no {name!r}, which the model needs; it has "
                f"{sorted(parameters)}"
            )
    float_type = jnp.result_type(float)
    invert = lambda site: biject_to(site["fn"].support).inv(jnp.asarray(site["value"], float_type))
    found = {name: invert(site) for name, site in latent.items()}
    for name, value in found.items():
        if not is_traced(value) and not jnp.isfinite(value).all():
            raise ValueError(
                f"{owner}: {name!r} is {parameters[name]!r}; expected a value inside the limits of its prior"
            )
    return found


def constrained(call: Call, z: Point, deterministic: bool = True) -> dict[str, Array]:
    """Parameters inside their limits, and what the model calls `deterministic`."""
    sites = trace_at(call, z, jax.random.key(0)).sites
    wanted = lambda site: deterministic and site["type"] == "deterministic"
    return {n: site["value"] for n, site in sites.items() if n in z or wanted(site)}
