"""What a measurement is expected to be, of particles with parameters of their own."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.filters.sampling import Measurement, observation_moments
from filterdyn.learning.model import ParametricModel


def innovation_of_each(
    model: ParametricModel,
    thetas: Float[Array, "N k"],
    x: Float[Array, "N dx"],
    weights: Float[Array, " N"],
    measurement: Measurement,
) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"]]:
    """y less its predicted mean, and the predicted covariance, over weighted states with parameters of
    their own; NaN where the moments of the observation are not known."""
    t, u, y = measurement.time, measurement.input, measurement.value
    try:
        jax.eval_shape(lambda theta, x: _moments_of_each(model, theta, x, t, u), thetas, x)
    except (TypeError, ValueError):
        return jnp.full_like(y, jnp.nan), jnp.full((len(y), len(y)), jnp.nan, y.dtype)
    means, covs = _moments_of_each(model, thetas, x, t, u)
    middle, observation = weights @ x, model.at(weights @ thetas).observation
    near = lambda z: observation.nearest(t, middle, u, z)
    return mixture_innovation(weights, near(y) - jax.vmap(near)(means), covs)


def observation_moments_of_all(
    model: ParametricModel,
    thetas: Float[Array, "N k"],
    x: Float[Array, "N dx"],
    weights: Float[Array, " N"],
    t: Any,
    u: Any,
) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"]]:
    """Mean and covariance of a measurement over weighted states with parameters of their own."""
    return mixture_innovation(weights, *_moments_of_each(model, thetas, x, t, u))


def _moments_of_each(
    model: ParametricModel, thetas: Float[Array, "N k"], x: Float[Array, "N dx"], t: Any, u: Any
) -> tuple[Float[Array, "N dy"], Float[Array, "N dy dy"]]:
    alone = jnp.ones(1, x.dtype)
    one = lambda theta, x: observation_moments(model.at(theta), x[None], alone, t, u)
    return jax.vmap(one)(thetas, x)


def mixture_innovation(
    weights: Float[Array, " N"],
    innovations: Float[Array, "N dy"],
    covs: Float[Array, "N dy dy"],
) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"]]:
    """The innovation of a mixture (NaN where it is missing), and its covariance."""
    innovation = weights @ innovations
    a = jnp.where(jnp.isnan(innovation), 0.0, innovations - innovation)
    cov = jnp.tensordot(weights, covs, 1) + (weights[:, None] * a).T @ a
    return innovation.astype(covs.dtype), cov


def innovation_of_filters(
    weights: Float[Array, " M"], innovations: Any, covs: Any
) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"]]:
    """The same, of filters of which some may have failed."""
    fine = jnp.isfinite(covs).all((1, 2)) & (weights > 0)
    w = jnp.where(fine, weights, 0.0)
    w = w / jnp.where(w.sum() > 0, w.sum(), 1.0)
    missing = jnp.isnan(jnp.where(fine[:, None], innovations, 0.0)).any(0)
    innovations = jnp.where(fine[:, None] & ~missing, innovations, 0.0)
    covs = jnp.where(fine[:, None, None], covs, 0.0)
    innovation, cov = mixture_innovation(w, innovations, covs)
    nothing = missing | ~fine.any()
    return jnp.where(nothing, jnp.nan, innovation), cov
