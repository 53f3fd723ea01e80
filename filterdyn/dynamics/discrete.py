"""Discrete time: one transition per row, given as a function that returns a distribution."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from filterdyn._callables import Function, Held, hold_function
from filterdyn._checks import batch_hint
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics.base import AbstractDynamics, Interval
from filterdyn.dynamics.noise import standard_normals
from filterdyn.linalg import by_columns
from filterdyn.linearization import AbstractLinearization, Affine
from filterdyn.moments import bare, conditional_moments
from filterdyn.status import Status


class Transition(AbstractDynamics):
    """x' ~ fn(t, x, u), any NumPyro distribution of event shape (dx,).

    One transition is made per row, whatever the gap; a repeated time makes none. `t` and `u` are those
    of the row that is left. A Gaussian filter uses the conditional mean and covariance: exactly what
    it needs if `fn` returns a Gaussian.
    """

    fn: Held

    is_continuous: ClassVar[bool] = False

    def __init__(self, fn: Function):
        """**Arguments:** `fn(t, x, u) -> Distribution` of the state at the next row."""
        self.fn = hold_function("Transition", "fn", fn)

    def distribution(self, t: Any, x: Float[Array, " dx"], u: Any) -> dist.Distribution:
        """The distribution of the next state."""
        d = self.fn(t, x, u)
        if not isinstance(d, dist.Distribution):
            raise TypeError(
                f"Transition: `fn(t, x, u)` returned {type(d).__name__}; expected a NumPyro "
                "distribution of the next state"
            )
        if d.batch_shape != () or d.event_shape != x.shape:
            raise ValueError(
                f"Transition: `fn(t, x, u)` returned {type(d).__name__} with batch shape "
                f"{d.batch_shape} and event shape {d.event_shape}; expected batch shape () and event "
                f"shape {x.shape}, as `.to_event(1)` gives"
                f"{batch_hint(bool(d.batch_shape and d.event_shape))}"
            )
        return d

    def moments(
        self, rule: AbstractLinearization, belief: Gaussian, interval: Interval
    ) -> tuple[Affine, Int[Array, ""]]:
        t, u = interval.time, interval.input
        found = lambda x: conditional_moments(self.distribution(t, x, u))
        noise = rule.average(lambda x: found(x).cov, belief)
        return rule(lambda x: found(x).mean, belief).to_affine(noise), jnp.int32(Status.OK)

    def sample(self, key: Array, x: Float[Array, " dx"], interval: Interval) -> Float[Array, " dx"]:
        drawn = self.distribution(interval.time, x, interval.input).sample(key)
        return jnp.where(interval.gap > 0, drawn, x)

    def sample_many(
        self, key: Array, x: Float[Array, "N dx"], interval: Interval
    ) -> Float[Array, "N dx"]:
        t, u = interval.time, interval.input
        # Gaussians and their transforms share one array of noise; other families draw one by one.
        known = []

        def look(x: Array, e: Array) -> Array:
            moved = reparameterized(self.distribution(t, x, u), e)
            known.append(moved is not None)
            return x if moved is None else moved

        jax.eval_shape(look, x[0], x[0])
        if known[0]:
            drawn = jax.vmap(look)(x, standard_normals(key, x.shape, x.dtype))
        else:
            keys = jax.random.split(key, len(x))
            drawn = jax.vmap(lambda key, x: self.distribution(t, x, u).sample(key))(keys, x)
        return jnp.where(interval.gap > 0, drawn.astype(x.dtype), x)

    def log_density(
        self, x_to: Float[Array, " dx"], x_from: Float[Array, " dx"], interval: Interval
    ) -> Float[Array, ""]:
        d = self.distribution(interval.time, x_from, interval.input)
        return jnp.asarray(d.log_prob(x_to), x_to.dtype)

    def normals(self, x: Float[Array, " dx"], interval: Interval) -> tuple[int, ...]:
        found = []

        def look(x: Array) -> Array:
            found.append(self.distribution(interval.time, x, interval.input))
            return x

        jax.eval_shape(look, x)
        try:
            jax.eval_shape(lambda x: self.driven_by(x, x, interval), x)
        except TypeError:
            raise TypeError(
                f"Transition: `fn(t, x, u)` returned {type(bare(found[0])).__name__}, which is not known "
                "as a function of standard normal numbers (Gaussians and transforms of them are)"
            ) from None
        return x.shape

    def driven_by(
        self, x: Float[Array, " dx"], normals: Float[Array, " dx"], interval: Interval
    ) -> Float[Array, " dx"]:
        d = self.distribution(interval.time, x, interval.input)
        moved = reparameterized(d, normals)
        if moved is None:
            raise TypeError(f"{type(bare(d)).__name__} is not a transform of a Gaussian")
        return jnp.where(interval.gap > 0, moved.astype(x.dtype), x)

    def check(self, owner: str, t: Any, x: Any, u: Any) -> None:
        jax.eval_shape(self.distribution, t, x, u)


def reparameterized(d: dist.Distribution, noise: Float[Array, " dx"]) -> Array | None:
    """The draw that a standard normal `noise` makes of a Gaussian, a transform of one, or a `Delta`;
    `None` for any other family."""
    inner = bare(d)
    if isinstance(inner, dist.Delta):
        return jnp.broadcast_to(jnp.asarray(inner.v, noise.dtype), noise.shape)
    if isinstance(inner, dist.TransformedDistribution):
        z = reparameterized(inner.base_dist, noise)
        if z is not None:
            for transform in inner.transforms:
                z = transform(z)
        return z
    if isinstance(inner, dist.Normal):
        return inner.loc + inner.scale * noise
    if isinstance(inner, dist.MultivariateNormal):
        return inner.loc + by_columns(inner.scale_tril, noise)
    return None
