"""What ensemble methods for a forward map share: their arguments, and the map over members."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from filterdyn._checks import (
    check_count,
    check_covariance,
    check_key,
    check_shape,
    float_array,
    is_traced,
)
from filterdyn.beliefs import Ensemble
from filterdyn.ensembles.observed import ObservedEnsemble


def start(owner: str, prior: Any, size: Any, key: Array) -> Float[Array, "N p"]:
    """The members to begin with: draws of a distribution, or those of an ensemble.

    **Raises:** `TypeError` for another `prior`, `ValueError` for another event shape.
    """
    check_key(owner, key)
    if isinstance(prior, Ensemble):
        return prior.members
    if not isinstance(prior, dist.Distribution):
        raise TypeError(
            f"{owner}: `prior` is {type(prior).__name__}; expected a NumPyro distribution or an "
            "fd.Ensemble"
        )
    if prior.batch_shape != () or len(prior.event_shape) != 1:
        raise ValueError(
            f"{owner}: `prior` has batch shape {prior.batch_shape} and event shape {prior.event_shape}; "
            "expected batch shape () and event shape (p,), as `.to_event(1)` gives"
        )
    return prior.sample(key, (check_count(owner, "size", size),))


def measured(
    owner: str, observation: Any, noise: Any, dtype: jnp.dtype
) -> tuple[Float[Array, " dy"], Array]:
    """The data and their noise, as variances or a covariance.

    **Raises:** `ValueError` for shapes that disagree, and for a noise that is no covariance or zero.
    """
    y = float_array(owner, "observation", observation).astype(dtype)
    if y.ndim != 1:
        raise ValueError(
            f"{owner}: `observation` has shape {y.shape}; expected (dy,), all data in one vector"
        )
    r = float_array(owner, "noise", noise).astype(dtype)
    check_covariance(owner, "noise", r)
    if r.ndim < 2:
        r = jnp.broadcast_to(r, y.shape)
    else:
        check_shape(owner, "noise", r, (len(y), len(y)), "`observation` has that many entries")
    if not is_traced(r) and (np.asarray(r if r.ndim == 1 else jnp.diagonal(r)) <= 0).any():
        raise ValueError(f"{owner}: `noise` has a variance of 0; expected positive ones")
    return y, r


def images(
    owner: str, forward: Callable[[Array], Any], members: Float[Array, "N p"], dy: int
) -> Float[Array, "N dy"]:
    """What the forward map makes of every member.

    **Raises:** `ValueError` for a map to another number of data.
    """
    z = jax.vmap(lambda x: jnp.asarray(forward(x)))(members)
    check_shape(owner, "forward(parameters)", z[0], (dy,), "`observation` has that many entries")
    return z.astype(members.dtype)


def seen(y: Float[Array, " dy"], z: Float[Array, "N dy"], noise: Array) -> ObservedEnsemble:
    """The data as members see them. A datum that is NaN is missing."""
    mean = z.mean(0)
    observed = ~jnp.isnan(y)
    zero = jnp.zeros((), z.dtype)
    innovation = jnp.where(observed, y, 0.0) - mean
    anomalies = (z - mean) / (len(z) - 1) ** 0.5
    return ObservedEnsemble(innovation, observed, anomalies, noise, zero, None, jnp.int32(0))
