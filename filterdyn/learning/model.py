"""A model whose parameters are not known."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import digamma, polygamma
from jaxtyping import Array, Float
from numpyro.distributions import biject_to

from filterdyn._callables import Held
from filterdyn.dynamics import Interval
from filterdyn.learning.evolution import AbstractEvolution, Evolved
from filterdyn.learning.parameters import ParameterEstimate, ParameterSpace
from filterdyn.model import StateSpaceModel
from filterdyn.moments import bare

_NAME = "ParametricModel"
#: Points at which a prior without known moments is looked at.
_POINTS = 4096


class ParametricModel(StateSpaceModel):
    """A state-space model whose parameters are not known, and may move: `make(parameters)` is the model
    at given ones.

    It is filtered by a filter that learns (`AugmentedFilter`, `RecursiveMaximumLikelihood`, ...), online,
    in a bank or over a recorded series. What was learnt is at `.parameters` of states and results. For
    everything else it is the model at the centre of the prior: `simulate` draws from that one, and a filter
    that does not learn follows that one.

    Filters that need a Gaussian take the prior by its mean and covariance in the space where the
    parameters have no limits (the logarithm of what is positive): exactly for Normal, LogNormal and
    MultivariateNormal.
    """

    make: Held
    prior: dict[str, dist.Distribution]
    evolution: AbstractEvolution | None
    prior_mean: Float[Array, " k"]
    prior_cov: Float[Array, "k k"]
    space: ParameterSpace

    def __init__(
        self,
        make: Callable[[dict[str, Array]], StateSpaceModel],
        prior: Mapping[str, dist.Distribution],
        *,
        evolution: AbstractEvolution | None = None,
    ):
        """**Arguments:**

        - `make(parameters)`: the `StateSpaceModel` at parameters by name, of the same structure whatever
          their values; it is called while the filter is compiled;
        - `prior`: NumPyro distributions by name, of any support without a batch shape;
        - `evolution`: how parameters move: `RandomWalk`, `Forgetting`, `Shrinkage`, or `None`: not.

        **Raises:** `TypeError` and `ValueError` for anything else.
        """
        if not callable(make):
            raise TypeError(
                f"{_NAME}: `make` is {type(make).__name__}; expected a function of parameters by name"
            )
        if evolution is not None and not isinstance(evolution, AbstractEvolution):
            raise TypeError(
                f"{_NAME}: `evolution` is {getattr(evolution, '__name__', type(evolution).__name__)}; "
                "expected fd.RandomWalk(...), fd.Forgetting(...), fd.Shrinkage(...) or None"
            )
        self.space = ParameterSpace.of(_NAME, prior)
        if evolution is not None:
            evolution.check(_NAME, self.space)
        self.make = Held(make)
        self.prior = dict(prior)
        self.evolution = evolution
        moments = [_unconstrained_moments(d) for d in prior.values()]
        mean = jnp.concatenate([mean for mean, _ in moments])
        cov = jax.scipy.linalg.block_diag(*(cov for _, cov in moments))
        for name, part in self.space.parts.items():
            if not np.isfinite(np.asarray(mean[part])).all():
                raise ValueError(
                    f"{_NAME}: `prior[{name!r}]` has no finite mean in the space without limits"
                )
        found = make(self.space.named(mean))
        if not isinstance(found, StateSpaceModel):
            raise TypeError(
                f"{_NAME}: `make(parameters)` returned {type(found).__name__}; expected a StateSpaceModel"
            )
        super().__init__(found.initial, found.dynamics, found.observation)
        self.prior_mean, self.prior_cov = mean, cov

    def at(self, theta: Float[Array, " k"]) -> StateSpaceModel:
        """The model at a point of the space without limits."""
        return self.make(self.space.named(theta))

    def within(self, interval: Interval) -> Interval:
        """The same interval for the model at any parameters: without what was computed for those at the
        centre of the prior."""
        return interval.for_others()

    def evolve(self, cov: Float[Array, "k k"], gap: Float[Array, ""]) -> Evolved:
        """How parameters known with covariance `cov` move over a gap (not at all over a gap of 0)."""
        if self.evolution is None:
            return Evolved(jnp.ones((), cov.dtype), jnp.zeros_like(cov))
        length = gap if self.dynamics.is_continuous else jnp.where(gap > 0, 1.0, 0.0)
        found = self.evolution.move(self.space, cov, length.astype(cov.dtype))
        moves = gap > 0
        return Evolved(
            jnp.where(moves, found.slope, 1.0).astype(cov.dtype),
            jnp.where(moves, found.noise, 0.0).astype(cov.dtype),
        )

    def evolved_cov(self, cov: Float[Array, "k k"], gap: Float[Array, ""]) -> Float[Array, "k k"]:
        """The covariance after a gap over which nothing was measured."""
        found = self.evolve(cov, gap)
        return found.slope**2 * cov + found.noise

    def sample_prior(self, key: Array, size: int) -> Float[Array, "size k"]:
        """Draws from the prior itself, as points of the space without limits."""
        keys = jax.random.split(key, len(self.prior))
        parts = []
        # (A dictionary that has been through JAX is in the order of its keys.)
        for one, name in zip(keys, self.space.names, strict=True):
            d = self.prior[name]
            free = biject_to(d.support).inv(d.sample(one, (size,)))
            parts.append(free.reshape(size, -1))
        return jnp.concatenate(parts, axis=1).astype(self.prior_mean.dtype)

    def prior_estimate(self) -> ParameterEstimate:
        """What is known before any measurement."""
        return ParameterEstimate(
            self.space, self.prior_mean, self.prior_cov, unmeasured_cov=self.prior_cov
        )


def _unconstrained_moments(d: dist.Distribution) -> tuple[Array, Array]:
    """Mean (n,) and covariance (n, n) of a distribution in the space without limits."""
    dtype = jnp.result_type(float)
    inner = bare(d)
    if isinstance(inner, (dist.Normal, dist.LogNormal)):
        loc, scale = (
            jnp.ravel(jnp.broadcast_to(x, d.event_shape)) for x in (inner.loc, inner.scale)
        )
        return loc.astype(dtype), jnp.diag(scale.astype(dtype) ** 2)
    if isinstance(inner, dist.MultivariateNormal):
        return jnp.asarray(inner.loc, dtype), jnp.asarray(inner.covariance_matrix, dtype)
    found = _logarithmic_moments(inner)
    if found is not None:
        loc, variance = (
            jnp.ravel(jnp.broadcast_to(jnp.asarray(x, dtype), d.event_shape)) for x in found
        )
        return loc, jnp.diag(variance)
    bijection = biject_to(d.support)
    if isinstance(inner, dist.Delta):
        loc = jnp.ravel(bijection.inv(jnp.asarray(inner.v, dtype)))
        return loc, jnp.zeros((len(loc), len(loc)), dtype)
    try:
        levels = (jnp.arange(_POINTS) + 0.5) / _POINTS
        values = jax.vmap(lambda q: jnp.broadcast_to(inner.icdf(q), d.event_shape))(levels)
        free = bijection.inv(values).reshape(_POINTS, -1)
        mean = free.mean(0).astype(dtype)
        return mean, jnp.diag(free.var(0).astype(dtype))
    except (NotImplementedError, AttributeError, ImportError):
        values = d.sample(jax.random.key(0), (_POINTS,))
        free = bijection.inv(values).reshape(_POINTS, -1).astype(dtype)
        return free.mean(0), jnp.atleast_2d(jnp.cov(free.T))


def _logarithmic_moments(d: dist.Distribution) -> tuple[Array, Array] | None:
    """Mean and variance of the logarithm of a Gamma or InverseGamma, and of the logit of a Beta."""
    if isinstance(d, (dist.Gamma, dist.InverseGamma)):
        sign = 1.0 if isinstance(d, dist.Gamma) else -1.0
        middle = sign * (digamma(d.concentration) - jnp.log(d.rate))
        return middle, polygamma(1, d.concentration) + 0.0 * middle
    if isinstance(d, dist.Beta):
        a, b = d.concentration1, d.concentration0
        return digamma(a) - digamma(b), polygamma(1, a) + polygamma(1, b)
    return None
