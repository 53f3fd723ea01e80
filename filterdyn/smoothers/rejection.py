"""Backward draws by rejection: exact, and mostly without a look at every particle."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.random import categorical, fold_in
from jaxtyping import Array, Bool, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval, LinearSDE, LinearTransition, Transition
from filterdyn.filters.path_methods import BackwardRejection
from filterdyn.linalg import PSD
from filterdyn.linearization import Taylor
from filterdyn.model import StateSpaceModel
from filterdyn.moments import conditional_moments
from filterdyn.resampling.base import relative_weights
from filterdyn.resampling.multinomial import independent_draws
from filterdyn.smoothers.backward_weights import Density


def highest_log_density(
    method: BackwardRejection,
    model: StateSpaceModel,
    x: Float[Array, "N dx"],
    interval: Interval,
) -> Float[Array, ""]:
    """A number that log p(x' | x_i) exceeds for no x' and no particle: that at the means, of Gaussians."""
    if method.log_bound is not None:
        return jnp.asarray(method.log_bound, x.dtype)
    dynamics = model.dynamics

    def mean(x: Float[Array, " dx"]) -> Float[Array, " dx"]:
        if isinstance(dynamics, Transition):
            d = dynamics.distribution(interval.time, x, interval.input)
            found = conditional_moments(d)
            if found.exact:
                return found.mean
        elif isinstance(dynamics, (LinearTransition, LinearSDE)):
            still = Gaussian(x, spread=PSD.zeros(len(x), x.dtype))
            return dynamics.moments(Taylor(), still, interval)[0].value
        raise TypeError(
            "BackwardRejection: `log_bound` is missing, and the transition is not known to be Gaussian; "
            "give an upper bound of its log-density over all gaps of the series, or use fd.BackwardChain()"
        )

    at_means = jax.vmap(lambda a: dynamics.log_density(mean(a), a, interval))(x)
    return jnp.where(jnp.isfinite(at_means), at_means, -jnp.inf).max().astype(x.dtype)


def draw_by_rejection(
    density: Density,
    bound: Float[Array, ""],
    x: Float[Array, "N dx"],
    log_w: Float[Array, " N"],
    state: Float[Array, "S dx"],
    key: Array,
    trials: int,
) -> Int[Array, " S"]:
    """Indices distributed as w_i p(state | x_i).

    Proposals from w are accepted with probability p(state | x_i) / exp(bound). What is still open after
    `trials` of them is drawn one by one from all particles.
    """
    x, log_w, state, bound = stop_gradient((x, log_w, state, bound))
    weights = relative_weights(log_w)
    key_trials, key_rest = jax.random.split(key)
    pairs = jax.vmap(density)

    def is_open(carry: Any) -> Bool[Array, ""]:
        k, _, todo = carry
        return (k < trials) & todo.any()

    def attempt(carry: Any) -> Any:
        k, index, todo = carry
        key_draw, key_accept = jax.random.split(fold_in(key_trials, k))
        other = independent_draws(key_draw, weights, todo.shape)
        u = jax.random.uniform(key_accept, todo.shape, x.dtype)
        accepted = todo & (jnp.log(u) < pairs(state, x[other]) - bound)
        return k + 1, jnp.where(accepted, other, index), todo & ~accepted

    index = jnp.zeros(len(state), jnp.int32)
    todo = jnp.ones(len(state), bool)
    _, index, todo = jax.lax.while_loop(is_open, attempt, (jnp.int32(0), index, todo))

    def one_of_the_rest(carry: Any) -> Any:
        index, todo = carry
        s = jnp.argmax(todo)
        logits = jax.vmap(lambda a: density(state[s], a))(x) + log_w
        found = categorical(fold_in(key_rest, s), logits).astype(jnp.int32)
        return index.at[s].set(found), todo.at[s].set(False)

    return jax.lax.while_loop(lambda carry: carry[1].any(), one_of_the_rest, (index, todo))[0]
