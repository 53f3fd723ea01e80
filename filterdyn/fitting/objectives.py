"""What a fit makes small."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.filters import filter as follow
from filterdyn.filters import log_likelihood
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series

Objective = Callable[[StateSpaceModel, Series, Any, Array | None, int], Float[Array, ""]]


def _likelihood(
    model: StateSpaceModel, series: Series, filter: Any, key: Array | None, burn_in: int
) -> Float[Array, ""]:
    """-log p(y after the burn-in | the burn-in)."""
    total = log_likelihood(model, series, filter, key=key)
    if burn_in:
        # Records are known numbers and stay so inside the compiled steps.
        with jax.ensure_compile_time_eval():
            start = series[:burn_in]
        total = total - log_likelihood(model, start, filter, key=key)
    return -total


def _squares(errors: Float[Array, "T dy"], burn_in: int) -> Float[Array, ""]:
    errors = errors[burn_in:]
    missing = jnp.isnan(errors)
    return jnp.sum(jnp.where(missing, 0.0, jnp.where(missing, 0.0, errors) ** 2))


def _prediction(
    model: StateSpaceModel, series: Series, filter: Any, key: Array | None, burn_in: int
) -> Float[Array, ""]:
    """Squared errors of one-step predictions."""
    result = follow(model, series, filter, key=key)
    errors = jnp.where(jnp.isnan(series.observations), jnp.nan, result.innovations)
    return jnp.where(result.status == 0, _squares(errors, burn_in), jnp.inf)


def _simulation(
    model: StateSpaceModel, series: Series, filter: Any, key: Array | None, burn_in: int
) -> Float[Array, ""]:
    """Squared errors of a run that sees the measurements of the burn-in only."""
    with jax.ensure_compile_time_eval():
        hidden = series.observations.at[burn_in:].set(jnp.nan)
        free = eqx.tree_at(lambda s: s.observations, series, hidden)
    result = follow(model, free, filter, key=key)
    times = jnp.asarray(series.times, result.mean.dtype)
    in_axes = (0, 0, None if series.inputs is None else 0)
    seen = jax.vmap(lambda t, x, u: model.observation.distribution(t, x, u).mean, in_axes)
    errors = series.observations - seen(times, result.mean, series.inputs)
    return jnp.where(result.status == 0, _squares(errors, burn_in), jnp.inf)


OBJECTIVES: dict[str, Objective] = {
    "likelihood": _likelihood,
    "prediction": _prediction,
    "simulation": _simulation,
}
