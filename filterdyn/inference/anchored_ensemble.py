"""Ensembles of models that are trained so that their spread is that of the posterior."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import init_to_sample

from filterdyn._checks import check_count, check_key
from filterdyn._groups import in_groups
from filterdyn.inference.densities import densities_of, simulated
from filterdyn.inference.unconstrained import Call, constrained, is_latent, start_point, trace_at

_OWNER = "inference.ensemble"


@dataclass(frozen=True)
class Ensemble:
    """Trained members.

    - `samples`: the parameters (members, ...) by name, inside their limits (with what the model calls
      `deterministic`); of those members only that did not fail;
    - `anchors`: the draws of the prior they were anchored at and started from, likewise;
    - `residuals` (members,): by how much the two sides of its equation still differ, over the size of
      what perturbs it; a member above some hundredths has not been trained for long enough;
    - `failed` (members,): whose log-density is not finite.
    """

    samples: dict[str, np.ndarray]
    anchors: dict[str, np.ndarray]
    residuals: np.ndarray
    failed: np.ndarray


def ensemble(
    model: Callable[..., Any],
    *args: Any,
    key: Array,
    members: int = 20,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int | None = None,
    **kwargs: Any,
) -> Ensemble:
    """A deep ensemble whose members are anchored at draws of the prior and see data that are perturbed, all
    trained side by side.

    Anchors alone (Pearce et al. 2020) give a spread that is too small where the data count: in a
    linear-Gaussian model with prior precision A and information F of the data, members that minimise
    -log p(y | z) + (z - anchor)' A (z - anchor) / 2 have the covariance H^-1 A H^-1 with H = A + F, and
    the posterior has H^-1. What is missing is H^-1 F H^-1, the spread that measurements made anew would
    cause. Member i solves

        d/dz [log p(y | z) + log p(z)]  =  d/dz log p(y_i | z)  +  d/dz log p(z) at anchor_i,

    with y_i simulated by the model at z itself, from random numbers that the member keeps, and not
    differentiated. Both terms on the right have mean zero and the covariances F and A: where the
    log-density is quadratic, z is an exact draw of the posterior (randomise then optimise, Bardsley et al.
    2014), whatever the filter. Without data a member ends at its anchor, a draw of the prior, if that is
    log-concave. For a standard deviation the equation makes the sum of squares of the data that of
    simulated ones, the pivot of Fisher. Elsewhere it is an approximation, but one that members in
    different modes of a network share, for nothing in it is fixed at one mode.

    **Arguments:**

    - `model`, `*args`, `**kwargs`: the NumPyro model and what it is called with, the data included. What
      `numpyro.factor` adds is not perturbed: write it as a site with `obs=`;
    - `key`: a JAX random key; `members`: how many;
    - `optimizer`: of Optax, one that takes gradients only, such as `optax.adam`: there is no loss for a
      line search. A step size that falls to 0 (`optax.cosine_decay_schedule`) solves the equation best;
    - `steps`: how many; `batch_size`: so many members at once, by default all.

    **Returns** an `Ensemble`, whose `samples` are ready for `fd.to_datatree`.

    **Raises:** `TypeError` for another kind of optimiser, `ValueError` if all members fail, and for
    discrete parameters, or none.
    """
    check_key(_OWNER, key)
    members = check_count(_OWNER, "members", members)
    steps = check_count(_OWNER, "steps", steps)
    batch_size = members if batch_size is None else check_count(_OWNER, "batch_size", batch_size)
    if not isinstance(optimizer, optax.GradientTransformation) or _needs_loss(optimizer):
        raise TypeError(
            f"{_OWNER}: `optimizer` is {type(optimizer).__name__}; expected one of Optax that takes "
            "gradients only, such as optax.adam(1e-2)"
        )
    call = Call(model, args, kwargs)
    point = start_point(_OWNER, call, jax.random.fold_in(key, members), init_to_sample)
    unravel = ravel_pytree(point)[1]

    def member(key: Array) -> tuple[Array, Array, Array, Array]:
        key_anchor, key_data, key_model = jax.random.split(key, 3)
        anchor = ravel_pytree(_prior_draw(call, key_anchor))[0]

        def prior(z: Array) -> Array:
            return densities_of(trace_at(call, unravel(z), key_model)).prior

        of_anchor = jax.grad(prior)(anchor)

        def tilted(z: Array) -> tuple[Array, Array]:
            made = jax.lax.stop_gradient(simulated(call, unravel(z), key_data))
            traced = trace_at(call, unravel(z), key_model)
            own, other = densities_of(traced), densities_of(traced, made)
            return -(own.joint - other.likelihood - of_anchor @ z), own.joint

        slope = jax.grad(tilted, has_aux=True)

        def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
            z, state = carry
            updates, state = optimizer.update(slope(z)[0], state, z)
            return (optax.apply_updates(z, updates), state), None

        (z, _), _ = jax.lax.scan(step, (anchor, optimizer.init(anchor)), length=steps)
        found, joint = slope(z)
        made = jax.lax.stop_gradient(simulated(call, unravel(z), key_data))
        noise = of_anchor + jax.grad(
            lambda z: densities_of(trace_at(call, unravel(z), key_model), made).likelihood
        )(z)
        residual = jnp.linalg.norm(found) / jnp.linalg.norm(noise)
        return z, anchor, residual, ~jnp.isfinite(joint) | ~jnp.isfinite(found).all()

    def train(keys: Array) -> Any:
        z, anchors, residuals, failed = in_groups(member, keys, batch_size)
        place = lambda z: constrained(call, unravel(z))
        back = lambda z: in_groups(place, z, batch_size)
        return back(z), back(anchors), residuals, failed

    samples, anchors, residuals, failed = jax.jit(train)(jax.random.split(key, members))
    failed = np.asarray(failed)
    if failed.all():
        raise ValueError(
            f"{_OWNER}: the log-density of all {members} members is not finite; expected a `model` whose "
            "density is finite at draws of its prior, or a smaller step size"
        )
    if failed.any():
        warnings.warn(
            f"{_OWNER}: {failed.sum()} of {members} members failed and are left out; a smaller step size "
            "or a narrower prior may help",
            stacklevel=2,
        )
    kept = lambda tree: {name: np.asarray(x)[~failed] for name, x in tree.items()}
    return Ensemble(kept(samples), kept(anchors), np.asarray(residuals), failed)


def _needs_loss(optimizer: Any) -> bool:
    """Does an update fail, or look at a loss, if it is given gradients alone?"""
    z = jnp.zeros(2)
    try:
        optimizer.update(z, optimizer.init(z), z)
    except TypeError:
        return True
    return False


def _prior_draw(call: Call, key: Array) -> dict[str, Array]:
    """Unconstrained parameters from the prior."""
    drawn = handlers.seed(call.model, key)
    sites: dict[str, Any] = {n: s for n, s in call.trace(drawn).items() if is_latent(s)}
    float_type = jnp.result_type(float)
    return {
        name: jnp.asarray(biject_to(site["fn"].support).inv(site["value"]), float_type)
        for name, site in sites.items()
    }
