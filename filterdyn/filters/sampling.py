"""The protocol of a filter that follows draws of the state: ensemble and particle filters."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn.beliefs import Ensemble
from filterdyn.dynamics import Interval
from filterdyn.linalg.gate import gated
from filterdyn.model import StateSpaceModel
from filterdyn.moments import conditional_moments
from filterdyn.status import Status


class Measurement(NamedTuple):
    """What one row says: when, under which input, and what (NaN = missing)."""

    time: Float[Array, ""]
    input: Float[Array, " du"] | None
    value: Float[Array, " dy"]


class SamplingStep(NamedTuple):
    """What becomes of a belief over one interval and at the measurement at its end."""

    #: Before and after the measurement. For a filter whose proposal sees the measurement `predicted`
    #: is what the dynamics alone would give, as far as the filter knows it.
    predicted: Any
    belief: Any
    #: NaN where the entry is missing.
    innovation: Float[Array, " dy"]
    innovation_cov: Float[Array, "dy dy"]
    #: L^-1 (innovation), L L^T = `innovation_cov`; NaN where the entry is missing.
    standardized: Float[Array, " dy"]
    log_likelihood: Float[Array, ""]
    status: Int[Array, ""]
    #: Numbers or arrays by name, kept row by row; all filters give `effective_sample_size`.
    diagnostics: dict[str, Array]


class AbstractSamplingFilter(eqx.Module):
    """How draws of the state move with the dynamics and change with a measurement.

    A belief is an `Ensemble`, `Particles`, or any pytree with `mean`, `cov`, `variances`,
    `effective_sample_size`, `is_finite`, `size` and `sample(key)`. What is random comes from the key of
    a row alone, so that a stream repeats the numbers of a batch.
    """

    #: Do observations that are not Gaussian enter by their first two moments?
    matches_moments: ClassVar[bool] = False
    #: Does it learn parameters on the way, so that its belief is one row's alone?
    learns: ClassVar[bool] = False

    #: A gradient forgets what is more than this many rows ago; `None`: nothing.
    truncation: eqx.AbstractVar[int | None]

    @abc.abstractmethod
    def check(self, model: StateSpaceModel) -> None:
        """**Raises:** `TypeError` for a model that this filter cannot treat, naming one that can."""

    @abc.abstractmethod
    def init(self, model: StateSpaceModel, dtype: jnp.dtype, key: Array) -> Any:
        """The belief before any measurement."""

    @abc.abstractmethod
    def advance(
        self, model: StateSpaceModel, belief: Any, interval: Interval, key: Array
    ) -> tuple[Any, Int[Array, ""]]:
        """The belief at the end of an interval, and a status. Over a gap of 0 nothing moves."""

    @abc.abstractmethod
    def step(
        self,
        model: StateSpaceModel,
        belief: Any,
        interval: Interval,
        measurement: Measurement,
        key: Array,
    ) -> SamplingStep:
        """Move over the interval and take in the measurement. The two are one step because a proposal
        may look at the measurement. An interval of length 0 moves nothing; a measurement that is all
        missing changes nothing and adds 0."""

    def moments(self, belief: Any) -> tuple[Float[Array, "N dx"], Float[Array, " N"]]:
        """Draws of the state and their weights, which sum to 1: what a forecast averages over."""
        if hasattr(belief, "members"):
            return belief.members, jnp.full(belief.size, 1.0 / belief.size, belief.members.dtype)
        return belief.positions, belief.weights

    def observation_moments(
        self, model: StateSpaceModel, belief: Any, t: Any, u: Any, key: Array
    ) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"]]:
        """Mean and covariance of a measurement, its noise included, under this belief."""
        x, weights = self.moments(belief)
        n = belief.size
        spread = n / (n - 1) if isinstance(belief, Ensemble) else 1.0
        return observation_moments(model, x, weights, t, u, spread)

    def draw(
        self, model: StateSpaceModel, belief: Any, key: Array
    ) -> tuple[StateSpaceModel, Float[Array, " n"]]:
        """A draw of the state, and the model that it goes on with: where a simulated future starts."""
        return model, belief.sample(key)


def propagate(
    model: StateSpaceModel, x: Float[Array, "N dx"], interval: Interval, key: Array
) -> Float[Array, "N dx"]:
    """Every row of `x` moved by the dynamics, each with noise of its own; over a gap of 0 not at all,
    to the bit, with derivative 1."""

    def move(x: Array, interval: Interval) -> tuple[Array, Array]:
        moves = interval.gap > 0
        # (The conditional also keeps XLA from drawing anew wherever the draw is used.)
        drawn = lambda: model.dynamics.sample_many(key, x, interval).astype(x.dtype)
        return jax.lax.cond(moves, drawn, lambda: x), moves

    # Where nothing moves the draw is not used, and its derivative may be NaN all the same.
    table = interval.table
    interval = interval._replace(table=None)
    guarded = gated(lambda x, i: move(x, i._replace(table=table)), lambda out: out[1], x, interval)
    moved, used = guarded(x, interval)
    return jnp.where(used, moved, x)


def standardize(innovation: Float[Array, " dy"], cov: Float[Array, "dy dy"]) -> Float[Array, " dy"]:
    """L^-1 (innovation) with L L^T = cov, over the entries that are not NaN; NaN for the others."""
    observed = ~jnp.isnan(innovation)
    both = observed[:, None] & observed[None, :]
    eye = jnp.eye(len(innovation), dtype=cov.dtype)
    factor = jnp.linalg.cholesky(jnp.where(both, cov, eye))
    z = jax.scipy.linalg.solve_triangular(factor, jnp.where(observed, innovation, 0.0), lower=True)
    return jnp.where(observed, z, jnp.nan)


def finite_status(belief: Any) -> Int[Array, ""]:
    """`MODEL_NOT_FINITE` unless the belief is finite."""
    return jnp.where(belief.is_finite, Status.OK, Status.MODEL_NOT_FINITE).astype(jnp.int32)


def observation_moments(
    model: StateSpaceModel,
    x: Float[Array, "N dx"],
    weights: Float[Array, " N"],
    t: Any,
    u: Any,
    spread: float = 1.0,
) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"]]:
    """Mean and covariance of a measurement, its noise included, over weighted states. `spread` is a
    factor on the covariance of what they expect: N / (N - 1) makes that of an ensemble unbiased.

    **Raises:** `TypeError` for an observation whose moments are not known.
    """

    middle = (weights[:, None] * x).sum(0)

    def conditional(x: Array) -> tuple[Array, Array]:
        found = conditional_moments(model.observation.distribution(t, x, u))
        return model.observation.nearest(t, middle, u, found.mean), found.cov.matrix

    means, covs = jax.vmap(conditional)(x)
    mean = (weights[:, None] * means).sum(0)
    a = means - mean
    return mean, spread * (weights[:, None] * a).T @ a + (weights[:, None, None] * covs).sum(0)
