"""One step of a fit, guarded against losses that are not finite, and many of them in one scan."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from filterdyn.fitting.results import FitState

#: The loss of a list of parameters, given all that is known and a key that is the step's own.
Loss = Callable[[list[Array], Any, Array], Array]


def begin(
    start: list[Array], rule: optax.GradientTransformation, key: Array, dtype: Any
) -> FitState:
    """The state before the first step."""
    infinite, zero = jnp.asarray(jnp.inf, dtype), jnp.int32(0)
    return FitState(start, start, start, infinite, rule.init(start), key, zero, zero)


def take(
    loss: Loss,
    rule: optax.GradientTransformationExtraArgs,
    state: FitState,
    known: Any,
    keeps_best: bool,
) -> tuple[FitState, Array]:
    """The state after a step, and the loss before it (NaN if nothing was learnt)."""
    draw = jax.random.fold_in(state.key, state.step)
    loss_of = lambda p: loss(p, known, draw)
    value, slope = jax.value_and_grad(loss_of)(state.parameters)
    fine = jnp.isfinite(value)
    for leaf in slope:
        fine &= jnp.isfinite(leaf).all()
    update, optimizer_state = rule.update(
        slope, state.optimizer, state.parameters, value=value, grad=slope, value_fn=loss_of
    )
    moved: Any = optax.apply_updates(state.parameters, update)
    choose = lambda new, old: jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
    back = [a + 0.5 * (b - a) for a, b in zip(state.fine, state.parameters, strict=True)]
    # What is halfway between a fine number and NaN is fine again.
    back = [jnp.where(jnp.isfinite(b), b, a) for a, b in zip(state.fine, back, strict=True)]
    better = fine & (value < state.best_loss) if keeps_best else jnp.array(False)
    best = [jnp.where(better, a, b) for a, b in zip(state.parameters, state.best, strict=True)]
    new = FitState(
        choose(moved, back),
        choose(state.parameters, state.fine),
        best,
        jnp.where(better, value, state.best_loss),
        choose(optimizer_state, state.optimizer),
        state.key,
        state.step + 1,
        state.skipped + ~fine,
    )
    return new, jnp.where(fine, value, jnp.nan)


def stepper(
    loss: Loss,
    rule: optax.GradientTransformationExtraArgs,
    keeps_best: bool,
    many: bool,
    most: int,
) -> Callable[[FitState, Any, Any, int], tuple[FitState, Array]]:
    """`length` <= `most` steps from a state as one compiled loop; of `many` states side by side, each with
    leaves of its own. Losses are (most,), or (S, most), of which the first `length` are set."""

    def loop(state: FitState, own: Any, shared: Any, length: Array) -> tuple[FitState, Array]:
        def body(i: Array, carry: tuple[FitState, Array]) -> tuple[FitState, Array]:
            state, losses = carry
            state, value = take(loss, rule, state, (own, shared), keeps_best)
            return state, losses.at[i].set(value)

        blank = jnp.full(most, jnp.nan, state.best_loss.dtype)
        return jax.lax.fori_loop(0, length, body, (state, blank))

    @eqx.filter_jit
    def advance(state: FitState, own: Any, shared: Any, length: Array) -> tuple[FitState, Array]:
        if not many:
            return loop(state, own, shared, length)
        return jax.vmap(lambda state, own: loop(state, own, shared, length))(state, own)

    def run(state: FitState, own: Any, shared: Any, length: int) -> tuple[FitState, Array]:
        # (As a number that is not static, so that a shorter last chunk is not compiled again.)
        state, losses = advance(state, own, shared, jnp.int32(length))
        return state, losses[..., :length]

    return run
