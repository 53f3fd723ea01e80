"""How much the likelihood gains when one fault is allowed for: every candidate, in one compilation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from filterdyn._compile import compiled
from filterdyn.diagnostics.faults import Faults, plant
from filterdyn.dynamics import Plan
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.rows import Row
from filterdyn.filters.scan import run
from filterdyn.model import StateSpaceModel

#: Steps of the secant method per candidate. Faults that enter linearly need three, the logarithms of
#: variances some more.
_STEPS = 14


class Gains(NamedTuple):
    """What each candidate would add to the log-likelihood, in nats."""

    log_likelihood: Float[Array, ""]
    #: For each number in `Faults` (flattened): the best value, beside those that are set already.
    sizes: Float[Array, " P"]
    gains: Float[Array, " P"]
    #: For each set of late sensors and each delay of 1, 2, ... rows.
    lag_gains: Float[Array, "G L"]


class _Climb(NamedTuple):
    """A climb in the size of each fault: where the best value was, and where to look next."""

    size: Float[Array, " P"]
    f: Float[Array, " P"]
    g: Float[Array, " P"]
    h: Float[Array, " P"]
    move: Float[Array, " P"]
    radius: Float[Array, " P"]


def shift(
    observations: Float[Array, "T dy"], late: Bool[Array, " dy"], rows: Int[Array, ""], skip: int
) -> Float[Array, "T dy"]:
    """The readings of the `late` sensors moved `rows` rows back to when they were true.

    The first `skip` readings of those sensors become missing: with a delay they are about states
    before the series, and the same readings must be judged with and without one.
    """
    total = observations.shape[0]
    source = jnp.arange(total) + rows
    kept = (source < total) & (source >= skip)
    moved = observations[jnp.clip(source, 0, total - 1)]
    return jnp.where(late, jnp.where(kept[:, None], moved, jnp.nan), observations)


def _search(
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: AbstractFilter,
    set_already: Float[Array, " P"],
    radii: Float[Array, " P"],
    groups: Bool[Array, "G dy"],
    most: int,
) -> Gains:
    dtype = rows.observation.dtype
    _, unravel = ravel_pytree(Faults.none(model.dx, rows.observation.shape[1], dtype))

    def log_likelihood(sizes: Array, observations: Array) -> Array:
        faulty = plant(model, unravel(sizes), rows.time[0], rows.time[-1])
        seen = rows._replace(observation=observations)
        return run(filter, faulty, seen, plan, lambda record: None)[1]

    base = jnp.asarray(set_already, dtype)
    count = base.shape[0]

    @jax.vmap
    def climb(direction: Array, at: Array) -> tuple[Array, Array]:
        """The log-likelihood and its derivative in the size of one fault."""
        value = lambda size: log_likelihood(base + size * direction, rows.observation)
        return jax.jvp(value, (at,), (jnp.ones((), dtype),))

    def step(at: _Climb, _: None) -> tuple[_Climb, Array]:
        f, g = climb(jnp.eye(count, dtype=dtype), at.size + at.move)
        usable = jnp.isfinite(f) & jnp.isfinite(g)
        better = usable & (f >= at.f)
        moved = usable & (at.move != 0)
        # The curvature is that of the chord: exact at once where the log-likelihood is a parabola.
        h = jnp.where(moved, (g - at.g) / jnp.where(moved, at.move, 1.0), at.h)
        size, f_best, g_best = (
            jnp.where(better, new, old)
            for new, old in ((at.size + at.move, at.size), (f, at.f), (g, at.g))
        )
        reach = jnp.abs(at.move)
        radius = jnp.where(better, jnp.maximum(at.radius, 2 * reach), 0.25 * reach)
        newton = jnp.where(h < 0, -g_best / jnp.where(h < 0, h, -1.0), jnp.sign(g_best) * radius)
        move = jnp.clip(newton, -radius, radius)
        return _Climb(size, f_best, g_best, h, move, radius), f[0]

    zero = jnp.zeros(count, dtype)
    radii = jnp.asarray(radii, dtype)
    start = _Climb(zero, zero - jnp.inf, zero, zero, zero, 0.2 * radii)
    best, values = jax.lax.scan(step, start, None, length=_STEPS)
    base_value = values[0]
    gains = jnp.where(jnp.isfinite(best.f), best.f - base_value, 0.0)

    def delayed(late: Array, delay: Array) -> Array:
        return log_likelihood(base, shift(rows.observation, late, delay, most))

    delays = jnp.arange(most + 1)
    late = jax.vmap(lambda late: jax.vmap(lambda delay: delayed(late, delay))(delays))(groups)
    lag_gains = late[:, 1:] - late[:, :1]
    lag_gains = jnp.where(jnp.isfinite(lag_gains), lag_gains, -jnp.inf)
    return Gains(base_value, best.size, gains, lag_gains)


search = compiled("diagnostics.consistency_report", _search)
