"""Which of the numbers that drive a model a posterior over its paths makes use of."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

#: Variance of the posterior mean, relative to the prior's, below which a unit is inactive (Burda 2016).
THRESHOLD = 0.01


class Activity(NamedTuple):
    """What becomes of each unit: `variance` of its posterior mean over the data, and the `kl` that it
    costs a series."""

    variance: Float[Array, " units"]
    kl: Float[Array, " units"]

    @property
    def active(self) -> Bool[Array, " units"]:
        """Is the variance above 0.01 (Burda, Grosse, Salakhutdinov 2016, section 5)?"""
        return self.variance > THRESHOLD


def activity(
    shifts: Float[Array, "... rows units"],
    error: Float[Array, "... rows units"],
    kl: Float[Array, "... rows units"],
    used: Bool[Array, "... rows"],
) -> Activity:
    """Posterior means `shifts` of units, whose priors are N(0, 1), over all series and those of their rows
    that are `used`, and the variances `error` with which they were estimated, which are taken off."""
    units = shifts.shape[-1]
    used = jnp.broadcast_to(used, shifts.shape[:-1])[..., None]
    number = jnp.maximum(used.sum(), 1)
    over_data = lambda x: jnp.where(used, x, 0.0).reshape(-1, units).sum(0) / number
    mean = over_data(shifts)
    variance = over_data((shifts - mean) ** 2) - over_data(error)
    series = max(int(jnp.size(kl) // (kl.shape[-2] * units)), 1) if jnp.size(kl) else 1
    return Activity(jnp.maximum(variance, 0.0), kl.reshape(-1, units).sum(0) / series)


def warning_of(found: Activity) -> str | None:
    """What to say about inactive noises, or `None`; not inside a trace."""
    asleep = [i for i, active in enumerate(found.active.tolist()) if not active]
    if not asleep:
        return None
    which = ", ".join(f"{i} ({float(found.variance[i]):.2g})" for i in asleep)
    return (
        f"{len(asleep)} of {len(found.variance)} noises are not used by the posterior: the variance of their "
        f"posterior mean over the data is below {THRESHOLD} of the prior's: {which}. Either the data say "
        "nothing about them, or the posterior has collapsed to the prior: train longer, with a KL weight "
        "that grows from 0, or with less observation noise at first"
    )
