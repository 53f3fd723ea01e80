"""Conjugate posteriors of a variance, a rate and a probability."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import digamma, polygamma
from jaxtyping import Array, Float

from filterdyn._callables import Held
from filterdyn.learning.model import ParametricModel
from filterdyn.learning.statistics import (
    AbstractStatistics,
    Passage,
    held,
    named,
    present,
    prior_of,
    shaped,
    summed_to,
)


def positive(value: Array) -> Array:
    """No smaller than the smallest number whose logarithm is finite."""
    return jnp.maximum(value, jnp.finfo(value.dtype).tiny)


def _scalar_moments(mean: Array, variance: Array) -> tuple[Array, Array]:
    return jnp.ravel(mean), jnp.diag(jnp.ravel(variance))


class InverseGammaStatistics(AbstractStatistics):
    """The variance of Gaussian noise: residuals e ~ N(0, v) under v ~ InverseGamma(a, b) give
    InverseGamma(a + n / 2, b + sum e^2 / 2). Statistics: (a, b)."""

    name: str = eqx.field(static=True)
    residual: Held

    def __init__(self, name: str, residual: Callable[[Passage], Any]):
        """**Arguments:**

        - `name`: of the variance, whose prior in the model is an `InverseGamma`, of event shape () or (n,);
        - `residual(passage)`: () or (n,), in the units of the noise. A variance of shape () is that of all
          n residuals, one of shape (n,) has one for each; e.g. `lambda p: p.y - p.x_to[:1]`.

        **Raises:** `TypeError` for anything else.
        """
        self.name = named("InverseGammaStatistics", "name", name)
        self.residual = held("InverseGammaStatistics", "residual", residual)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def prior(self, model: ParametricModel) -> tuple[Array, Array]:
        found = prior_of("InverseGammaStatistics", model, self.name, dist.InverseGamma)
        return shaped(model, self.name, found.concentration), shaped(model, self.name, found.rate)

    def update(self, statistics: Any, passage: Passage) -> tuple[Array, Array]:
        a, b = statistics
        there, e = present(self.residual(passage))
        count = summed_to(there.astype(a.dtype), a.shape)
        return a + 0.5 * count, b + 0.5 * summed_to((e * e).astype(a.dtype), a.shape)

    def sample(self, key: Array, statistics: Any) -> dict[str, Array]:
        a, b = statistics
        return {self.name: positive(b / positive(jax.random.gamma(key, a, dtype=a.dtype)))}

    def moments(self, statistics: Any) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
        a, b = statistics
        return _scalar_moments(jnp.log(b) - digamma(a), polygamma(1, a))


class GammaStatistics(AbstractStatistics):
    """The rate of Poisson counts: n ~ Poisson(r w) with exposures w under r ~ Gamma(a, b) gives
    Gamma(a + sum n, b + sum w). Statistics: (a, b)."""

    name: str = eqx.field(static=True)
    count: Held
    exposure: Held

    def __init__(
        self,
        name: str,
        count: Callable[[Passage], Any],
        exposure: Callable[[Passage], Any] = lambda passage: 1.0,
    ):
        """**Arguments:**

        - `name`: of the rate, whose prior in the model is a `Gamma`, of event shape () or (n,);
        - `count(passage)`: () or (n,); `exposure(passage)`: what the rate is per, of that shape, by
          default 1; e.g. `lambda p: p.y, lambda p: p.x_to[:1]`.

        **Raises:** `TypeError` for anything else.
        """
        self.name = named("GammaStatistics", "name", name)
        self.count = held("GammaStatistics", "count", count)
        self.exposure = held("GammaStatistics", "exposure", exposure)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def prior(self, model: ParametricModel) -> tuple[Array, Array]:
        found = prior_of("GammaStatistics", model, self.name, dist.Gamma)
        return shaped(model, self.name, found.concentration), shaped(model, self.name, found.rate)

    def update(self, statistics: Any, passage: Passage) -> tuple[Array, Array]:
        a, b = statistics
        count, exposure = _both(self.count(passage), self.exposure(passage))
        return (
            a + summed_to(count.astype(a.dtype), a.shape),
            b + summed_to(exposure.astype(a.dtype), a.shape),
        )

    def sample(self, key: Array, statistics: Any) -> dict[str, Array]:
        a, b = statistics
        return {self.name: positive(jax.random.gamma(key, a, dtype=a.dtype) / b)}

    def moments(self, statistics: Any) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
        a, b = statistics
        return _scalar_moments(digamma(a) - jnp.log(b), polygamma(1, a))


class BetaStatistics(AbstractStatistics):
    """A probability: s of n trials succeed, under p ~ Beta(a, b), gives Beta(a + sum s, b + sum (n - s)).
    Statistics: (a, b)."""

    name: str = eqx.field(static=True)
    successes: Held
    trials: Held

    def __init__(
        self,
        name: str,
        successes: Callable[[Passage], Any],
        trials: Callable[[Passage], Any] = lambda passage: 1.0,
    ):
        """**Arguments:**

        - `name`: of the probability, whose prior in the model is a `Beta`, of event shape () or (n,);
        - `successes(passage)`: () or (n,); `trials(passage)`: of how many, of that shape, by default 1;
          e.g. `lambda p: p.y, lambda p: p.x_to[:1]`.

        **Raises:** `TypeError` for anything else.
        """
        self.name = named("BetaStatistics", "name", name)
        self.successes = held("BetaStatistics", "successes", successes)
        self.trials = held("BetaStatistics", "trials", trials)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def prior(self, model: ParametricModel) -> tuple[Array, Array]:
        found = prior_of("BetaStatistics", model, self.name, dist.Beta)
        return (
            shaped(model, self.name, found.concentration1),
            shaped(model, self.name, found.concentration0),
        )

    def update(self, statistics: Any, passage: Passage) -> tuple[Array, Array]:
        a, b = statistics
        successes, trials = _both(self.successes(passage), self.trials(passage))
        failures = (trials - successes).astype(a.dtype)
        return a + summed_to(successes.astype(a.dtype), a.shape), b + summed_to(failures, a.shape)

    def sample(self, key: Array, statistics: Any) -> dict[str, Array]:
        a, b = statistics
        eps = jnp.finfo(a.dtype).eps
        return {self.name: jnp.clip(jax.random.beta(key, a, b, dtype=a.dtype), eps, 1.0 - eps)}

    def moments(self, statistics: Any) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
        a, b = statistics
        return _scalar_moments(digamma(a) - digamma(b), polygamma(1, a) + polygamma(1, b))


def _both(first: Any, second: Any) -> tuple[Array, Array]:
    """Two numbers for each of n, with zeros where either is missing."""
    first, second = jnp.broadcast_arrays(jnp.asarray(first), jnp.asarray(second))
    there = ~jnp.isnan(first) & ~jnp.isnan(second)
    return jnp.where(there, first, 0.0), jnp.where(there, second, 0.0)
