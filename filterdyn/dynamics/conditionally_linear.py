"""Discrete time, with a part of the state that is linear and Gaussian given the other part."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from filterdyn._callables import Function, Held, hold_function
from filterdyn._checks import check_count
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics.base import AbstractDynamics, Interval
from filterdyn.dynamics.gaussian import log_density_of
from filterdyn.linalg import PSD, mv, sampling_factor
from filterdyn.linearization import AbstractLinearization, Affine


class ConditionallyLinear(AbstractDynamics):
    """x = (n, l): n' ~ driver(t, n, u), whatever distribution, and l' = F l + b + N(0, Q) with F, b and Q
    functions of n and n'. A regime that switches, a frequency that wanders.

    One transition is made per row, as by `Transition`. A `RaoBlackwellizedParticleFilter` draws n alone
    and follows l by a Kalman filter; a `ParticleFilter` draws both.
    """

    driver: Held
    linear: Held
    dn: int = eqx.field(static=True)

    is_continuous: ClassVar[bool] = False

    def __init__(self, driver: Function, linear: Function, dn: int):
        """**Arguments:**

        - `driver(t, n, u) -> Distribution` of n' (event shape (dn,)); a regime is a number, 0.0, 1.0, ...;
        - `linear(t, n, n_next, u) -> (F, b, Q)`: (dl, dl), (dl,) and (dl, dl);
        - `dn`: number of states in n, the first of x.
        """
        self.driver = hold_function("ConditionallyLinear", "driver", driver)
        self.linear = hold_function("ConditionallyLinear", "linear", linear)
        self.dn = check_count("ConditionallyLinear", "dn", dn)

    def driven(self, n: Float[Array, " dn"], interval: Interval) -> dist.Distribution:
        """The distribution of n'."""
        d = self.driver(interval.time, n, interval.input)
        if not isinstance(d, dist.Distribution) or (d.batch_shape, d.event_shape) != ((), n.shape):
            raise ValueError(
                f"ConditionallyLinear: `driver(t, n, u)` returned {d!r}; expected a NumPyro distribution of "
                f"batch shape () and event shape {n.shape}, as `.to_event(1)` gives"
            )
        return d

    def move(
        self, n: Float[Array, " dn"], to: Float[Array, " dn"], interval: Interval
    ) -> tuple[Array, Array, Array]:
        """F, b and Q from n to n'."""
        f, b, q = self.linear(interval.time, n, to, interval.input)
        return jnp.asarray(f), jnp.asarray(b), jnp.asarray(q)

    def sample(self, key: Array, x: Float[Array, " dx"], interval: Interval) -> Float[Array, " dx"]:
        key_n, key_l = jax.random.split(key)
        n, rest = x[: self.dn], x[self.dn :]
        to = jnp.asarray(self.driven(n, interval).sample(key_n), x.dtype)
        f, b, q = self.move(n, to, interval)
        noise = sampling_factor(PSD.from_matrix(q)) @ jax.random.normal(key_l, rest.shape, x.dtype)
        moved = jnp.concatenate([to, mv(f, rest) + b + noise])
        return jnp.where(interval.gap > 0, moved, x)

    def log_density(
        self, x_to: Float[Array, " dx"], x_from: Float[Array, " dx"], interval: Interval
    ) -> Float[Array, ""]:
        n, to = x_from[: self.dn], x_to[: self.dn]
        f, b, q = self.move(n, to, interval)
        residual = x_to[self.dn :] - mv(f, x_from[self.dn :]) - b
        driven = self.driven(n, interval).log_prob(to)
        return (driven + log_density_of(residual, PSD.from_matrix(q))).astype(x_to.dtype)

    def moments(
        self, rule: AbstractLinearization, belief: Gaussian, interval: Interval
    ) -> tuple[Affine, Int[Array, ""]]:
        raise TypeError(
            "ConditionallyLinear: a Gaussian filter has no use for a state of two parts; use "
            "fd.RaoBlackwellizedParticleFilter or fd.ParticleFilter"
        )

    def check(self, owner: str, t: Any, x: Any, u: Any) -> None:
        n = jax.ShapeDtypeStruct((self.dn,), x.dtype)
        dl = x.shape[0] - self.dn
        if dl < 1:
            raise ValueError(
                f"{owner}: `dn` is {self.dn}, but `initial` has {x.shape[0]} states; expected fewer"
            )
        gap = jax.ShapeDtypeStruct((), x.dtype)

        def shapes(t: Any, n: Any, u: Any, gap: Any) -> Any:
            interval = Interval(t, gap, u)
            self.driven(n, interval)
            return self.move(n, n, interval)

        found = tuple(a.shape for a in jax.eval_shape(shapes, t, n, u, gap))
        if found != ((dl, dl), (dl,), (dl, dl)):
            raise ValueError(
                f"{owner}: `linear(t, n, n_next, u)` returned shapes {found}; expected "
                f"{((dl, dl), (dl,), (dl, dl))} for {dl} linear states"
            )
