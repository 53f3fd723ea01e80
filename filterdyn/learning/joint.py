"""State and parameters as one state."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval, Plan
from filterdyn.dynamics.base import AbstractDynamics
from filterdyn.dynamics.gaussian import log_density_of
from filterdyn.filters.gaussian import cast
from filterdyn.learning.evolution import RandomWalk
from filterdyn.learning.model import ParametricModel
from filterdyn.linalg import PSD, factor_of, mm
from filterdyn.linearization import AbstractLinearization, Affine, Taylor
from filterdyn.model import StateSpaceModel
from filterdyn.observations import Observation
from filterdyn.observations.base import LinearizedObservation


def augmented(model: ParametricModel) -> StateSpaceModel:
    """The model whose state (dx + k) is the state with the parameters, in the space where they have no
    limits, behind it. Every filter, smoother and sampler treats it as any other model."""
    mean, spread = joint_start(model, model.prior_mean.dtype)
    # (A state that is known has a factor of zeros, which NumPyro would refuse.)
    initial = dist.MultivariateNormal(mean, scale_tril=spread.root, validate_args=False)
    return StateSpaceModel(initial, JointDynamics(model), JointObservation(model))


def joint_start(model: ParametricModel, dtype: jnp.dtype) -> tuple[Float[Array, " n"], PSD]:
    """Mean and covariance of state and parameters at the start. Where the initial state depends on the
    parameters it does so to first order."""
    theta = model.prior_mean.astype(dtype)
    prior = PSD.from_matrix(model.prior_cov.astype(dtype))
    start = lambda theta: model.at(theta).start(dtype)
    belief, slope = start(theta), jax.jacfwd(lambda theta: start(theta).mean)(theta)
    n, k = len(belief.mean), len(theta)
    eye = jnp.eye(k, dtype=dtype)
    of_theta = mm(jnp.concatenate([slope.reshape(n, k), eye]), prior.root)
    of_state = jnp.concatenate([belief.spread.root, jnp.zeros((k, n), dtype)])
    # (Lower triangular, as distributions take it.)
    wide = jnp.concatenate([of_state, of_theta], axis=1)
    factor = factor_of(mm(wide, wide.T))
    return jnp.concatenate([belief.mean, theta]), PSD(factor, mm(factor, factor.T))


class JointDynamics(AbstractDynamics):
    """The state moves with the dynamics at the parameters, which move by their own evolution."""

    model: ParametricModel

    @property
    def is_continuous(self) -> bool:  # type: ignore[override]
        return self.model.dynamics.is_continuous

    def plan(self, gaps: Any) -> Plan:
        return self.model.dynamics.plan(gaps)

    def tabulate(self, plan: Plan) -> Any:
        found = self.model.dynamics.tabulate(plan)
        return found if isinstance(found, int) else None

    def _split(self, z: Float[Array, " n"]) -> tuple[Array, Array]:
        dx = self.model.dx
        return z[:dx], z[dx:]

    def _conditional(
        self, z: Float[Array, " n"], interval: Interval
    ) -> tuple[Array, PSD, Int[Array, ""]]:
        """Mean and covariance of the next state, of a state and parameters that are known."""
        x, theta = self._split(z)
        here = Gaussian(x, spread=PSD.zeros(len(x), x.dtype))
        dynamics = self.model.at(theta).dynamics
        move, status = dynamics.moments(Taylor(), here, self.model.within(interval))
        move = cast(move, x.dtype)
        return move.value, move.noise, status

    def moments(
        self, rule: AbstractLinearization, belief: Gaussian, interval: Interval
    ) -> tuple[Affine, Int[Array, ""]]:
        dx = self.model.dx
        theta = belief.mean[dx:]
        evolved = self.model.evolve(belief.cov[dx:, dx:], interval.gap)

        def expected(z: Array) -> Array:
            moved = theta + evolved.slope * (z[dx:] - theta)
            return jnp.concatenate([self._conditional(z, interval)[0], moved])

        noise = rule.average(lambda z: self._conditional(z, interval)[1], belief)
        status = self._conditional(belief.mean, interval)[2]
        return rule(expected, belief).to_affine(_beside(noise, evolved.noise)), status

    def sample(self, key: Array, x: Float[Array, " n"], interval: Interval) -> Float[Array, " n"]:
        return self.sample_many(key, x[None], interval)[0]

    def sample_many(
        self, key: Array, x: Float[Array, "N n"], interval: Interval
    ) -> Float[Array, "N n"]:
        """Of an evolution that depends on what is known of the parameters, with the mean and covariance of
        these draws."""
        dx, (of_state, of_theta) = self.model.dx, jax.random.split(key)
        thetas = x[:, dx:]
        inside = self.model.within(interval)

        def move(key: Array, z: Array) -> Array:
            state, theta = self._split(z)
            return self.model.at(theta).dynamics.sample(key, state, inside).astype(z.dtype)

        states = jax.vmap(move)(jax.random.split(of_state, len(x)), x)
        mean = thetas.mean(0)
        a = thetas - mean
        evolved = self.model.evolve(mm(a.T, a) / max(len(x) - 1, 1), interval.gap)
        noise = jax.random.normal(of_theta, thetas.shape, thetas.dtype)
        moved = mean + evolved.slope * a + noise @ factor_of(evolved.noise).T
        return jnp.concatenate([states, moved], axis=1)

    def log_density(
        self, x_to: Float[Array, " n"], x_from: Float[Array, " n"], interval: Interval
    ) -> Float[Array, ""]:
        """Of parameters that stand still or walk; how others move depends on what is known of them."""
        if not isinstance(self.model.evolution, (RandomWalk, type(None))):
            raise TypeError(
                f"{type(self).__name__}: under {type(self.model.evolution).__name__} parameters have no "
                "transition density of their own; with RandomWalk they have"
            )
        (x, theta), (after, theta_after) = self._split(x_from), self._split(x_to)
        inside, k = self.model.within(interval), len(theta)
        evolved = self.model.evolve(jnp.zeros((k, k), theta.dtype), interval.gap)
        moved = log_density_of(theta_after - theta, PSD.from_matrix(evolved.noise))
        return self.model.at(theta).dynamics.log_density(after, x, inside) + moved

    def check(self, owner: str, t: Any, x: Any, u: Any) -> None:
        dx = self.model.dx
        self.model.dynamics.check(owner, t, jax.ShapeDtypeStruct((dx,), x.dtype), u)


def _beside(noise: PSD, more: Float[Array, "k k"]) -> PSD:
    """Both on the diagonal."""
    matrix = jax.scipy.linalg.block_diag(noise.matrix, more)
    if noise.factor is None:
        return PSD(None, matrix)
    factor = factor_of(jax.lax.stop_gradient(more))
    return PSD(jax.scipy.linalg.block_diag(noise.factor, factor), matrix)


class _Seen(eqx.Module):
    """The distribution of a measurement, given state and parameters."""

    model: ParametricModel

    def __call__(self, t: Any, z: Float[Array, " n"], u: Any) -> dist.Distribution:
        dx = self.model.dx
        return self.model.at(z[dx:]).observation.distribution(t, z[:dx], u)


class JointObservation(Observation):
    """The state is seen through the observation at the parameters."""

    model: ParametricModel

    def __init__(self, model: ParametricModel):
        super().__init__(_Seen(model))
        self.model = model

    def nearest(
        self, t: Any, x: Float[Array, " n"], u: Any, y: Float[Array, " dy"]
    ) -> Float[Array, " dy"]:
        dx = self.model.dx
        return self.model.at(x[dx:]).observation.nearest(t, x[:dx], u, y)

    def linearize(
        self, rule: AbstractLinearization, at: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> LinearizedObservation:
        return super().linearize(rule, at, t, u, self.nearest(t, at.mean, u, y))
