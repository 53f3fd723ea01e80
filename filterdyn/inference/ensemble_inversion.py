"""Ensemble Kalman inversion: parameters from data without derivatives."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn._checks import check_count
from filterdyn.beliefs import Ensemble
from filterdyn.ensembles import analyses
from filterdyn.ensembles.innovation import noise_root, weigh, whitened
from filterdyn.inference.forward_ensemble import images, measured, seen, start
from filterdyn.status import Status

_NAME = "ensemble_kalman_inversion"


class Inversion(eqx.Module):
    """What inverting a forward map gives.

    - `ensemble`: the members; `mean` (p,) and `cov` (p, p) are theirs;
    - `misfits` (steps + 1,): half the squared distance of the data from what the members' mean image is,
      in units of the noise, before every step and after the last;
    - `status`: an integer of `Status`; after a failure members are NaN.
    """

    ensemble: Ensemble
    misfits: Float[Array, " steps_plus_1"]
    status: Int[Array, ""]

    @property
    def mean(self) -> Float[Array, " p"]:
        return self.ensemble.mean

    @property
    def cov(self) -> Float[Array, "p p"]:
        return self.ensemble.cov


def misfit(y: Float[Array, " dy"], z: Float[Array, "N dy"], noise: Array) -> Float[Array, ""]:
    """Half the squared distance of the data from the mean image, in units of the noise."""
    d, _, r = seen(y, z, noise).masked
    white = whitened(noise_root(r), d[None])
    return 0.5 * (white**2).sum()


def as_result(members: Array, misfits: Array) -> Inversion:
    """The result, NaN where anything is not finite."""
    fine = jnp.isfinite(members).all() & jnp.isfinite(misfits).all()
    status = jnp.where(fine, Status.OK, Status.MODEL_NOT_FINITE).astype(jnp.int32)
    return Inversion(Ensemble(jnp.where(fine, members, jnp.nan)), misfits, status)


def ensemble_kalman_inversion(
    forward: Callable[[Array], Any],
    observation: Any,
    noise: Any,
    prior: Any,
    *,
    key: Array,
    size: int = 100,
    steps: int = 10,
    kind: str = "stochastic",
) -> Inversion:
    """Parameters theta of y = forward(theta) + v, v ~ N(0, noise), from one y, without derivatives
    (Iglesias, Law, Stuart 2013).

    Members drawn from the prior meet the data `steps` times, with the noise `steps` times as large
    (tempering, that of "multiple data assimilation"; Emerick, Reynolds 2013), so that the data count
    once: for a linear map and a Gaussian prior the members are then of the posterior, for any `steps`;
    with one step this is the Kalman update. A map that bends is followed in smaller steps. Members
    stay in the span of the first ones: `size` should exceed the number of parameters.

    **Arguments:**

    - `forward(parameters) -> (dy,)`, any JAX function of a vector (p,), such as the means of a
      simulation;
    - `observation` (dy,), NaN where missing; `noise`: its variance (), variances (dy,) or covariance;
    - `prior`: a NumPyro distribution of event shape (p,), or an `fd.Ensemble`; parameters with limits
      enter by a transform inside `forward`;
    - `key`: a JAX random key; `size`: the number of members drawn from a distribution;
    - `steps` >= 1;
    - `kind`: `"stochastic"`, or `"transform"`, which adds no noise to the data.

    **Returns:** an `Inversion`.

    **Raises:** `ValueError` for shapes that disagree and an unknown `kind`.
    """
    steps = check_count(_NAME, "steps", steps)
    if kind not in ("stochastic", "transform"):
        raise ValueError(f"{_NAME}: `kind` is {kind!r}; expected 'stochastic' or 'transform'")
    key_start, key_steps = jax.random.split(key)
    members = start(_NAME, prior, size, key_start)
    y, r = measured(_NAME, observation, noise, members.dtype)

    def one(members: Array, key: Array) -> tuple[Array, Array]:
        z = images(_NAME, forward, members, len(y))
        data = seen(y, z, steps * r)
        mean = members.mean(0)
        a = members - mean
        weighing = weigh(data)
        if kind == "stochastic":
            new = analyses.stochastic(a, data, weighing, None, key)
        else:
            new = analyses.transform(a, data, weighing, symmetric=True)
        return mean + new.shift + new.anomalies, misfit(y, z, r)

    members, misfits = jax.lax.scan(one, members, jax.random.split(key_steps, steps))
    last = misfit(y, images(_NAME, forward, members, len(y)), r)
    return as_result(members, jnp.append(misfits, last))
