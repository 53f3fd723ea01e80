"""Gaussian noise that is added to a mean: its parameters, and the linearised form."""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from filterdyn._callables import Held, hold_function
from filterdyn._checks import batch_hint, check_covariance, check_finite, float_array
from filterdyn.linalg import factor_of, mv
from filterdyn.linearization import Linearized
from filterdyn.observations.base import LinearizedObservation
from filterdyn.status import Status


def noise_parameter(owner: str, name: str, value: Any) -> Held | Array:
    """A user's R: a function of `t`, a variance (), variances (n,) or a covariance (n, n)."""
    if callable(value):
        return hold_function(owner, name, value)
    array = float_array(owner, name, value)
    if array.ndim > 2 or (array.ndim == 2 and array.shape[0] != array.shape[1]):
        raise ValueError(
            f"{owner}: `{name}` has shape {array.shape}; expected a variance (), variances (n,) or a "
            "covariance (n, n)"
        )
    check_covariance(owner, name, array)
    return array


def at_time(value: Any, t: Any) -> Any:
    """A matrix given as an array, or as a function of time."""
    if value is None or not isinstance(value, Held):
        return value
    return jnp.asarray(value(t))


def noise_at(owner: str, value: Any, t: Any, dy: int) -> Array:
    """R as variances (dy,) or a covariance (dy, dy)."""
    r = at_time(value, t)
    if r.ndim == 0:
        return jnp.broadcast_to(r, (dy,))
    if r.shape not in ((dy,), (dy, dy)):
        raise ValueError(
            f"{owner}: `R` has shape {r.shape}; expected (), ({dy},) or ({dy}, {dy}) "
            f"for {dy} observed quantities"
        )
    return r


def gaussian(mean: Float[Array, " dy"], r: Array) -> dist.Distribution:
    """N(mean, R), R as `noise_at` gives it."""
    if r.ndim == 1:
        # A scale of 0 is meant: R = 0 is a measurement without noise.
        return dist.Normal(mean, jnp.sqrt(r), validate_args=False).to_event(1)
    return dist.MultivariateNormal(mean, scale_tril=factor_of(0.5 * (r + r.T)), validate_args=False)


def with_error(noise: Array, mean: Linearized) -> Float[Array, " dy"] | Float[Array, "dy dy"]:
    """Variances (dy,) or a covariance (dy, dy), plus that of the error of the linearisation."""
    if mean.error is None:
        return noise
    dy = len(mean.value)
    if dy == 1:
        return noise + mean.error.matrix.reshape(noise.shape)
    full = noise * jnp.eye(dy, dtype=noise.dtype) if noise.ndim == 1 else noise
    return full + mean.error.matrix


def additive(value: Array, slope: Array, r: Array, y: Float[Array, " dy"]) -> LinearizedObservation:
    """The linearised form of y = value + slope (x - m) + N(0, R)."""
    observed = ~jnp.isnan(y)
    zero = jnp.zeros((), value.dtype)
    z = jnp.where(observed, y, 0.0)
    ok = jnp.int32(Status.OK)
    return LinearizedObservation(z, observed, value, slope, r, zero, None, ok)


def matrix(owner: str, name: str, value: Any, ndim: int) -> Any:
    """A user's matrix: `None`, an array of `ndim` axes, or a function of `t`."""
    if value is None:
        return None
    if callable(value):
        return hold_function(owner, name, value)
    array = float_array(owner, name, value)
    if array.ndim != ndim:
        raise ValueError(
            f"{owner}: `{name}` has shape {array.shape}; expected {ndim} "
            f"{'axes' if ndim > 1 else 'axis'}{batch_hint(array.ndim > ndim)}"
        )
    check_finite(owner, name, array)
    return array


def affine_offset(owner: str, slope: Array, b: Any, offset: Any, u: Any, name: str) -> Array:
    """B u + b, with no input counting as zero."""
    total = jnp.zeros(slope.shape[0], slope.dtype)
    if offset is not None:
        total = total + offset
    if b is not None and u is not None:
        if b.shape != (slope.shape[0], u.shape[0]):
            raise ValueError(
                f"{owner}: `{name}` has shape {b.shape}; expected ({slope.shape[0]}, {u.shape[0]}) "
                f"for {u.shape[0]} inputs"
            )
        total = total + mv(b, u)
    return total
