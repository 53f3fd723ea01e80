"""The iterative ensemble Kalman smoother: Gauss-Newton steps in the span of an ensemble."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from filterdyn._checks import check_count, is_traced
from filterdyn.ensembles.innovation import noise_root, whitened
from filterdyn.ensembles.inverse_root import inverse_root, product
from filterdyn.inference.ensemble_inversion import Inversion, as_result, misfit
from filterdyn.inference.forward_ensemble import images, measured, seen, start

_NAME = "iterative_ensemble_smoother"


def iterative_ensemble_smoother(
    forward: Callable[[Array], Any],
    observation: Any,
    noise: Any,
    prior: Any,
    *,
    key: Array,
    size: int = 100,
    iterations: int = 5,
    damping: float = 0.0,
) -> Inversion:
    """Parameters, or the initial state, of y = forward(theta) + v by Gauss-Newton steps whose
    derivatives are regressions on an ensemble (Bocquet, Sakov 2014, the transform form of their
    iterative ensemble Kalman smoother).

    theta = m + A^T w with m and A the mean and anomalies of the prior's draws, w ~ N(0, I). In every
    iteration the members are spread about the present w with the covariance that the posterior has by
    then, their images give the slope Y in w, and w moves to the minimum of the quadratic
    |w|^2 + |y - forward|^2 that they show. The data and the prior count once, however many
    iterations there are: for a linear map one is enough, and gives the Kalman smoother of the
    ensemble's own moments. (The state at the start of a series is smoothed by a `forward` that
    simulates the series without noise.)

    **Arguments:** as for `ensemble_kalman_inversion`; `iterations` >= 1; `damping` in [0, 1): which
    share of each step is not made.

    **Returns:** an `Inversion`, whose members have the posterior's mean and covariance; as many
    `misfits` as iterations and one.

    **Raises:** `ValueError` for shapes that disagree and numbers out of range.
    """
    iterations = check_count(_NAME, "iterations", iterations)
    if not is_traced(damping) and not 0 <= damping < 1:
        raise ValueError(f"{_NAME}: `damping` is {damping!r}; expected a number 0 <= d < 1")
    members = start(_NAME, prior, size, key)
    y, r = measured(_NAME, observation, noise, members.dtype)
    n = len(members)
    scale = (n - 1) ** 0.5
    mean = members.mean(0)
    a = (members - mean) / scale
    eye = jnp.eye(n, dtype=a.dtype)

    def at(w: Array, root: Array) -> Array:
        """Members about the present weights."""
        return mean + product(w, a) + scale * product(root, a)

    def one(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        w, root = carry
        z = images(_NAME, forward, at(w, root), len(y))
        data = seen(y, z, r)
        d, spread, noise = data.masked
        white = noise_root(noise)
        # The slope in w: members are spread by `root`, whose inverse undoes that.
        slope = whitened(white, jnp.linalg.solve(root, spread))
        inner = inverse_root(slope)
        gradient = w - product(slope, whitened(white, d[None])[0])
        step = product(inner, product(inner, gradient))
        return (w - (1.0 - damping) * step, inner), misfit(y, z, r)

    (w, root), misfits = jax.lax.scan(one, (jnp.zeros(n, a.dtype), eye), None, length=iterations)
    members = at(w, root)
    last = misfit(y, images(_NAME, forward, members, len(y)), r)
    return as_result(members, jnp.append(misfits, last))
