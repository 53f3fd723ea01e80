"""The part of a network that the known physics could say as well, and a prior against it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

#: A field without time and input, (dx,) -> (k,).
Field = Callable[[Array], Array]


def projection(
    known: Callable[[Any, Array], Array],
    parameters: Any,
    residual: Field,
    states: Float[Array, "K dx"],
) -> tuple[Float[Array, " P"], Float[Array, ""]]:
    """What change of the parameters a residual looks like at some states.

    With the sensitivities S_k = d known(parameters, x_k) / d parameters (k outputs, P), it is the c that
    minimises sum_k |residual(x_k) - S_k c|^2.

    **Returns** c (P,), in the order of `ravel_pytree(parameters)` (dictionaries by sorted names), and the
    share of the residual's square that S c accounts for.
    """
    flat, unravel = ravel_pytree(
        jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x, float)), parameters)
    )

    def at(x: Array) -> tuple[Array, Array]:
        slope = jax.jacfwd(lambda flat: jnp.ravel(known(unravel(flat), x)))(flat)
        return slope, jnp.ravel(residual(x))

    slopes, values = jax.vmap(at)(states)
    if slopes.shape[1] != values.shape[1]:
        raise ValueError(
            f"`residual` returns {values.shape[1]} numbers and `known` {slopes.shape[1]}; expected as many"
        )
    slopes, values = slopes.reshape(-1, len(flat)), values.reshape(-1)
    # Columns of equal length, so that units do not matter.
    size = jnp.sqrt((slopes**2).sum(0))
    size = jnp.where(size > 0, size, 1.0)
    tiny = 1e2 * jnp.finfo(slopes.dtype).eps
    gram = (slopes / size).T @ (slopes / size) + tiny * jnp.eye(len(flat), dtype=slopes.dtype)
    scaled = jnp.linalg.solve(gram, (slopes / size).T @ values)
    total = (values**2).sum()
    share = (((slopes / size) @ scaled) ** 2).sum() / jnp.where(total > 0, total, 1.0)
    return scaled / size, share


def orthogonality(
    name: str,
    known: Callable[[Any, Array], Array],
    parameters: Any,
    residual: Field,
    states: Any,
    scale: Any,
) -> Float[Array, " P"]:
    """A prior under which a network does not say what the known physics can say: a site of a NumPyro
    model, in which the projection of the network is 0 up to `scale`.

    A parameter and a network that can imitate its term are known by their sum only, and the posterior of
    each is as wide as its prior. With this prior the physics has what it can explain and the network has the
    rest: the parameter becomes that of the best physics without a network. That is a choice and
    no finding, and it is right where the true remainder is orthogonal to the term on the states that were
    visited (friction, a function of the velocity, to gravity, one of the angle, in an oscillation).

    **Arguments:**

    - `name`: of the site;
    - `known(parameters, x) -> (k,)`: the physics whose parameters are inferred, one state (dx,) at a time;
    - `parameters`: where its sensitivities are taken: a number or a tree of them. Known values, such
      as a first fit, keep the prior from depending on the parameters themselves;
    - `residual(x) -> (k,)`: the network;
    - `states` (K, dx): where, such as the smoothed states of a first fit;
    - `scale`: standard deviation of the projection, in the units of each parameter: a number, (P,), or a
      tree as `parameters`.

    **Returns** the projection c (P,): by how much the parameters would change if the network's part went to
    them. The site is a measurement of 0, `Normal(c, scale)`, so that `fd.inference.ensemble` treats it
    as the rest of the prior.

    **Raises:** `ValueError` for states without two axes, and a scale that is not positive or does not fit.
    """
    owner = "inference.orthogonality"
    states = jnp.asarray(states)
    if states.ndim != 2:
        raise ValueError(f"{owner}: `states` has shape {states.shape}; expected (K, dx)")
    found, _ = projection(known, parameters, residual, states)
    width = ravel_pytree(scale)[0]
    if width.shape not in ((1,), found.shape):
        raise ValueError(
            f"{owner}: `scale` has {len(width)} entries; expected one, or {len(found)} as `parameters`"
        )
    if not isinstance(width, jax.core.Tracer) and not (width > 0).all():
        raise ValueError(f"{owner}: `scale` is {scale!r}; expected positive numbers")
    numpyro.sample(name, dist.Normal(found, width).to_event(1), obs=jnp.zeros_like(found))
    return found
