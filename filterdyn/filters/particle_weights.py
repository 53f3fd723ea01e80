"""What a measurement says about each of many states, and what is made of the answers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jax.nn import logsumexp
from jaxtyping import Array, Bool, Float, Int

from filterdyn.dynamics import Interval
from filterdyn.filters.sampling import Measurement, observation_moments, standardize
from filterdyn.linalg.gate import gated
from filterdyn.model import StateSpaceModel
from filterdyn.moments import bare
from filterdyn.observations import masked_log_prob
from filterdyn.status import Status


def observed_log_prob(
    d: dist.Distribution, y: Float[Array, " dy"], observed: Bool[Array, " dy"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """log p of the observed entries, and a status. A Gaussian has all of its marginals; of any other
    family with dependent entries all must be observed."""
    inner = bare(d)
    if not isinstance(inner, dist.MultivariateNormal) or not inner.event_shape:
        return masked_log_prob(d, y, observed)
    both = observed[:, None] & observed[None, :]
    eye = jnp.eye(len(y), dtype=y.dtype)
    cov = jnp.where(both, inner.covariance_matrix, eye)
    residual = jnp.where(observed, y - inner.loc, 0.0)
    log_prob = dist.MultivariateNormal(jnp.zeros_like(y), cov, validate_args=False).log_prob(
        residual
    )
    constant = 0.5 * jnp.log(2 * jnp.pi) * (~observed).sum()
    return (log_prob + constant).astype(y.dtype), jnp.int32(Status.OK)


def measurement_log_weights(
    model: StateSpaceModel, x: Float[Array, "N dx"], measurement: Measurement
) -> tuple[Float[Array, " N"], Int[Array, ""]]:
    """log p(y | x_i), `-inf` where y is impossible or x_i is not finite, and a status."""
    t, u, y = measurement.time, measurement.input, measurement.value
    observed = ~jnp.isnan(y)

    def one(x: Array) -> tuple[Array, Array]:
        filled = jnp.where(observed, model.observation.nearest(t, x, u, y), 0.0)
        return observed_log_prob(model.observation.distribution(t, x, u), filled, observed)

    log_prob, statuses = jax.vmap(one)(x)
    impossible = statuses == Status.OBSERVATION_OUT_OF_SUPPORT
    # What else there may be depends on what is missing, and is the same for all particles.
    status = jnp.where(impossible[0], Status.OK, statuses[0])
    status = jnp.where(impossible.all(), Status.OBSERVATION_OUT_OF_SUPPORT, status)
    log_prob = jnp.where(impossible | jnp.isnan(log_prob), -jnp.inf, log_prob.astype(x.dtype))
    return jnp.where(observed.any(), log_prob, 0.0), status.astype(jnp.int32)


def transition_log_density(
    model: StateSpaceModel,
    x_to: Float[Array, "N dx"],
    x_from: Float[Array, "N dx"],
    interval: Interval,
) -> Float[Array, " N"]:
    """log p(x_to | x_from), pair by pair; 0 over a gap of 0."""

    def density(x_to: Array, x_from: Array, interval: Interval) -> tuple[Array, Array]:
        one = lambda a, b: model.dynamics.log_density(a, b, interval)
        return jax.vmap(one)(x_to, x_from).astype(x_to.dtype), interval.gap > 0

    table = interval.table
    guarded = gated(
        lambda a, b, i: density(a, b, i._replace(table=table)),
        lambda out: out[1],
        x_to,
        x_from,
        interval._replace(table=None),
    )
    value, used = guarded(x_to, x_from, interval._replace(table=None))
    return jnp.where(used, value, 0.0)


class Weighted(NamedTuple):
    """Normalised log-weights, the logarithm of what they summed to, and a status."""

    log_weights: Float[Array, " N"]
    log_sum: Float[Array, ""]
    status: Int[Array, ""]


def normalize(log_weights: Float[Array, " N"], before: Float[Array, " N"]) -> Weighted:
    """Log-weights of sum one; those from `before` where none is positive, which is `COLLAPSED`."""
    collapsed = ~(stop_gradient(log_weights).max() > -jnp.inf)
    safe = jnp.where(collapsed, 0.0, log_weights)
    total = logsumexp(safe)
    status = jnp.where(collapsed, Status.COLLAPSED, Status.OK).astype(jnp.int32)
    return Weighted(
        jnp.where(collapsed, before, safe - total),
        jnp.where(collapsed, -jnp.inf, total),
        status,
    )


def effective_sample_size(log_weights: Float[Array, " N"]) -> Float[Array, ""]:
    """1 / sum w_i^2 of log-weights that need not be normalised (Kong, Liu, Wong 1994)."""
    log_weights = stop_gradient(log_weights)
    top = log_weights.max()
    w = jnp.exp(log_weights - jnp.where(top > -jnp.inf, top, 0.0))
    total, squares = w.sum(), (w * w).sum()
    return jnp.where(squares > 0, total * total / jnp.where(squares > 0, squares, 1.0), 0.0)


def innovation_of(
    model: StateSpaceModel,
    x: Float[Array, "N dx"],
    log_weights: Float[Array, " N"],
    measurement: Measurement,
) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"], Float[Array, " dy"]]:
    """y less its predicted mean, the predicted covariance, and the innovation made independent; NaN
    where the moments of the observation are not known."""
    t, u, y = measurement.time, measurement.input, measurement.value
    weights = jax.nn.softmax(log_weights)
    moments = lambda x, t, u: observation_moments(model, x, weights, t, u)
    try:
        jax.eval_shape(moments, x, t, u)
    except (TypeError, ValueError):
        nothing = jnp.full_like(y, jnp.nan)
        return nothing, jnp.full((len(y), len(y)), jnp.nan, y.dtype), nothing
    mean, cov = stop_gradient(moments(x, t, u))
    y = model.observation.nearest(t, (weights[:, None] * x).sum(0), u, y)
    innovation = (y - mean).astype(y.dtype)
    return innovation, cov.astype(y.dtype), standardize(innovation, cov.astype(y.dtype))
