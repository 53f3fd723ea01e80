"""From where a particle filter draws new states: the dynamics, or a guess that has seen the measurement."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from filterdyn._callables import Held, hold_function
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import ConditionallyLinear, Interval, Transition
from filterdyn.dynamics.gaussian import log_density_of
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.learned import changes_its_noise
from filterdyn.filters.particle_weights import transition_log_density
from filterdyn.filters.sampling import Measurement, propagate
from filterdyn.filters.scan import is_finite, select
from filterdyn.linalg import PSD, sampling_factor
from filterdyn.linalg.gate import gated
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status


class Drawn(NamedTuple):
    """New states, and by how much their weights must make up for where they came from."""

    positions: Float[Array, "N dx"]
    #: log p(x' | x) - log q(x' | x, y), or 0 where q is p.
    log_ratio: Float[Array, " N"]


class AbstractProposal(eqx.Module):
    """A distribution q(x' | x, y) of the next state."""

    @abc.abstractmethod
    def draw(
        self,
        model: StateSpaceModel,
        x: Float[Array, "N dx"],
        interval: Interval,
        measurement: Measurement,
        key: Array,
        score: bool,
    ) -> Drawn:
        """A draw for each state. With `score` new states carry no derivative, and the ratio carries that
        of log p alone. Over a gap of 0 nothing moves and the ratio is 0."""

    @abc.abstractmethod
    def check(self, model: StateSpaceModel) -> None:
        """**Raises:** `TypeError` for a model that this proposal cannot treat."""

    @abc.abstractmethod
    def is_reparameterized(
        self,
        model: StateSpaceModel,
        x: Float[Array, " dx"],
        interval: Interval,
        measurement: Measurement,
    ) -> bool:
        """Are draws differentiable in the parameters? (A count is not.)"""


class FromDynamics(AbstractProposal):
    """q = p: the bootstrap filter."""

    def draw(
        self,
        model: StateSpaceModel,
        x: Float[Array, "N dx"],
        interval: Interval,
        measurement: Measurement,
        key: Array,
        score: bool,
    ) -> Drawn:
        moved = propagate(model, x, interval, key)
        if not score:
            return Drawn(moved, jnp.zeros(len(x), x.dtype))
        moved = jnp.where(interval.gap > 0, stop_gradient(moved), x)
        density = transition_log_density(model, moved, x, interval)
        return Drawn(moved, finite_derivative(density))

    def check(self, model: StateSpaceModel) -> None:
        """Every model can be sampled."""

    def is_reparameterized(
        self,
        model: StateSpaceModel,
        x: Float[Array, " dx"],
        interval: Interval,
        measurement: Measurement,
    ) -> bool:
        dynamics = model.dynamics
        if isinstance(dynamics, Transition):
            return _has_derivative(
                lambda x, i: dynamics.distribution(i.time, x, i.input), x, interval
            )
        if isinstance(dynamics, ConditionallyLinear):
            return _has_derivative(lambda x, i: dynamics.driven(x[: dynamics.dn], i), x, interval)
        return True


class FromFunction(AbstractProposal):
    """A user's distribution of the next state given the state and the measurement."""

    fn: Held

    def draw(
        self,
        model: StateSpaceModel,
        x: Float[Array, "N dx"],
        interval: Interval,
        measurement: Measurement,
        key: Array,
        score: bool,
    ) -> Drawn:
        y = measurement.value

        def pair(
            x: Float[Array, "N dx"], y: Float[Array, " dy"], interval: Interval
        ) -> tuple[Array, Array, Array]:
            guess = Transition(lambda t, x, u: self.fn(t, x, u, y))
            moved = guess.sample_many(key, x, interval).astype(x.dtype)
            moved = stop_gradient(moved) if score else moved
            density = jax.vmap(lambda a, b: guess.log_density(a, b, interval))(moved, x)
            return moved, density.astype(x.dtype), interval.gap > 0

        table = interval.table
        guarded = gated(
            lambda x, y, i: pair(x, y, i._replace(table=table)),
            lambda out: out[2],
            x,
            y,
            interval._replace(table=None),
        )
        moved, guessed, used = guarded(x, y, interval._replace(table=None))
        moved = jnp.where(used, moved, x)
        guessed = stop_gradient(guessed) if score else guessed
        density = transition_log_density(model, moved, x, interval)
        return Drawn(moved, jnp.where(used, density - guessed, 0.0))

    def check(self, model: StateSpaceModel) -> None:
        """What the function returns is looked at when it is called."""

    def is_reparameterized(
        self,
        model: StateSpaceModel,
        x: Float[Array, " dx"],
        interval: Interval,
        measurement: Measurement,
    ) -> bool:
        y = measurement.value
        return _has_derivative(lambda x, i: self.fn(i.time, x, i.input, y), x, interval)


class FromGaussianFilter(AbstractProposal):
    """The Gaussian that a Gaussian filter gives for the next state, started at each particle: close to
    the distribution of the next state given this one and the measurement, of all proposals the one
    whose weights vary least (Doucet, Godsill, Andrieu 2000; van der Merwe et al. 2000)."""

    filter: AbstractFilter

    def draw(
        self,
        model: StateSpaceModel,
        x: Float[Array, "N dx"],
        interval: Interval,
        measurement: Measurement,
        key: Array,
        score: bool,
    ) -> Drawn:
        noise = jax.random.normal(key, x.shape, x.dtype)

        def one(x: Array, noise: Array, interval: Interval) -> tuple[Array, Array, Array]:
            belief, _, _ = look_ahead(self.filter, model, x, interval, measurement)
            step = sampling_factor(belief.spread) @ noise
            moved = belief.mean + step
            if score:
                moved = stop_gradient(moved)
            density = log_density_of(moved - belief.mean, belief.spread)
            return moved, density, interval.gap > 0

        moved, guessed, used = each(one, x, noise, interval)
        used = used[0]
        moved = jnp.where(used, moved, x)
        guessed = stop_gradient(guessed) if score else guessed
        density = transition_log_density(model, moved, x, interval)
        seen = ~jnp.isnan(measurement.value).all()
        ratio = jnp.where(seen, density - guessed, finite_derivative(density - guessed))
        return Drawn(moved, jnp.where(used, ratio, 0.0))

    def check(self, model: StateSpaceModel) -> None:
        self.filter.check(model)

    def is_reparameterized(
        self,
        model: StateSpaceModel,
        x: Float[Array, " dx"],
        interval: Interval,
        measurement: Measurement,
    ) -> bool:
        return True


def _has_derivative(distribution: Any, x: Float[Array, " dx"], interval: Interval) -> bool:
    """Does a draw of the distribution at (x, interval) have the derivative of its parameters?"""
    found = []

    def look(x: Array, interval: Interval) -> Array:
        found.append(bool(getattr(distribution(x, interval), "has_rsample", True)))
        return x

    jax.eval_shape(look, x, interval._replace(table=None))
    return found[0]


def look_ahead(
    filter: AbstractFilter,
    model: StateSpaceModel,
    x: Float[Array, " dx"],
    interval: Interval,
    measurement: Measurement,
) -> tuple[Gaussian, Float[Array, ""], Int[Array, ""]]:
    """The next state given that this one is `x` and given the measurement, as a Gaussian filter sees it,
    and log p(y | x). Where its update fails it is the prediction."""
    spread = PSD.zeros(len(x), x.dtype)
    if not getattr(filter, "square_root", True):
        spread = spread.without_factor()
    predicted = filter.predict(model, Gaussian(x, spread=spread), interval)
    new = filter.update(
        model, predicted.belief, measurement.time, measurement.input, measurement.value
    )
    finite = is_finite(new.belief.mean, new.belief.spread.carrier, new.log_likelihood)
    fine = (new.status == Status.OK) & finite
    belief = select(fine, new.belief, predicted.belief)
    return belief, jnp.where(fine, new.log_likelihood, 0.0), predicted.status


def each(one: Any, x: Float[Array, "N dx"], noise: Any, interval: Interval) -> Any:
    """`one(x, noise, interval)` for each state, whose last answer says whether anything moved: if not, no
    derivative passes."""
    table, bare = interval.table, interval._replace(table=None)

    def all_of_them(x: Array, noise: Any, interval: Interval) -> Any:
        return jax.vmap(lambda x, e: one(x, e, interval._replace(table=table)))(x, noise)

    return gated(all_of_them, lambda out: out[-1][0], x, noise, bare)(x, noise, bare)


def finite_derivative(value: Float[Array, "..."]) -> Array:
    """Zero, with the derivative of `value` where that is finite."""
    return jnp.where(jnp.isfinite(value), value - stop_gradient(value), 0.0)


def as_proposal(owner: str, proposal: Any) -> AbstractProposal:
    """What a user gave as `proposal`."""
    if proposal is None:
        return FromDynamics()
    if isinstance(proposal, AbstractProposal):
        return proposal
    if isinstance(proposal, AbstractFilter):
        check_gaussian(owner, "proposal", proposal)
        return FromGaussianFilter(proposal)
    if isinstance(proposal, type) or not callable(proposal):
        raise TypeError(
            f"{owner}: `proposal` is {proposal!r}; expected a Gaussian filter such as "
            "fd.ExtendedKalmanFilter(), or a function (t, x, u, y) that returns a distribution of the "
            "next state"
        )
    return FromFunction(hold_function(owner, "proposal", proposal))


def check_gaussian(owner: str, name: str, filter: AbstractFilter) -> None:
    """**Raises:** `ValueError` for a filter that cannot be started anew at each particle."""
    if changes_its_noise(filter):
        raise ValueError(
            f"{owner}: `{name}` is a filter with AdaptiveNoise or a network, which learns over many rows; "
            "it starts anew at each particle and row here"
        )
