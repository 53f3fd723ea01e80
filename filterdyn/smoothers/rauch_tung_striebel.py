"""The fixed-interval smoother of Rauch, Tung and Striebel (1965), in square-root form."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.filters.scan import Record
from filterdyn.linalg import Regression, congruence, mm, mv, regress, sampling_factor
from filterdyn.linalg.gate import gated
from filterdyn.linearization import Affine


class Pass(NamedTuple):
    """What the backward pass needs of every row, with a leading axis T."""

    filtered: Gaussian
    predicted: Gaussian
    #: The move that led to the row.
    move: Affine


def keep(record: Record) -> Pass:
    """What the forward pass keeps of a row (of a belief not what its filter learns on the way)."""
    alone = lambda b: Gaussian(b.mean, spread=b.spread)
    return Pass(alone(record.filtered), alone(record.predicted), record.move)


def reversed_steps(forward: Pass) -> tuple[Pass, Gaussian]:
    """Rows 0 .. T - 2, each beside the move out of it and the prediction it led to, and the belief
    in the last row."""
    filtered = jax.tree.map(lambda x: x[:-1], forward.filtered)
    predicted, move = jax.tree.map(lambda x: x[1:], (forward.predicted, forward.move))
    return Pass(filtered, predicted, move), jax.tree.map(lambda x: x[-1], forward.filtered)


def backward_regression(step: Pass) -> Regression:
    """The state in a row given the state in the next one (and the data up to the row)."""
    return regress(step.filtered.spread, step.move.slope, step.move.noise)


def smooth_backward(forward: Pass) -> tuple[Gaussian, Float[Array, "T_minus_1 dx dx"]]:
    """Beliefs given all rows, and Cov(x_{k+1}, x_k) given all rows.

    With G the gain and C C^T the remaining covariance of the backward regression,
    m_k <- m_k + G (m_{k+1} - predicted mean) and P_k <- G P_{k+1} G^T + C C^T: nothing is
    subtracted, and a singular predicted covariance needs no inverse. A failure anywhere makes
    every belief NaN, and lets no derivative through.
    """
    steps, last = reversed_steps(forward)

    def one(after: Gaussian, step: Pass) -> tuple[Gaussian, tuple[Gaussian, Array]]:
        r = backward_regression(step)
        mean = step.filtered.mean + mv(r.gain, after.mean - step.predicted.mean)
        belief = Gaussian(mean, spread=congruence(r.gain, after.spread, r.rest))
        return belief, (belief, mm(after.cov, r.gain.T))

    if forward.filtered.mean.shape[0] == 1:
        return forward.filtered, jnp.zeros((0, *last.cov.shape), last.cov.dtype)
    example = jax.tree.map(lambda x: x[0], steps)
    fine = lambda out: jnp.isfinite(out[0].mean).all() & jnp.isfinite(out[0].spread.carrier).all()
    guarded = gated(one, fine, last, example)
    body = jax.checkpoint(lambda after, step: guarded(after, step), prevent_cse=False)
    _, (beliefs, lag_one) = jax.lax.scan(body, last, steps, reverse=True)
    whole = jax.tree.map(lambda x, end: jnp.concatenate([x, end[None]]), beliefs, last)
    return whole, lag_one


def sample_backward(forward: Pass, key: Array, num_samples: int) -> Float[Array, "S T dx"]:
    """Paths of the posterior, drawn from the last row to the first (Frühwirth-Schnatter 1994)."""
    steps, last = reversed_steps(forward)
    count, dx = forward.filtered.mean.shape
    keys = jax.random.split(key, count)
    noise = lambda key: jax.random.normal(key, (num_samples, dx), last.mean.dtype)
    states = last.mean + noise(keys[-1]) @ sampling_factor(last.spread).T

    def one(after: Array, row: Any) -> tuple[Array, Array]:
        step, key = row
        r = backward_regression(step)
        mean = step.filtered.mean + (after - step.predicted.mean) @ r.gain.T
        states = mean + noise(key) @ sampling_factor(r.rest).T
        return states, states

    _, earlier = jax.lax.scan(one, states, (steps, keys[:-1]), reverse=True)
    return jnp.swapaxes(jnp.concatenate([earlier, states[None]]), 0, 1)
