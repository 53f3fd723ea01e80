"""Parameters that climb a log-likelihood, or a bound on one, along its derivative row by row."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.learning.model import ParametricModel
from filterdyn.learning.parameters import ParameterEstimate, ParameterSpace
from filterdyn.linalg import PSD
from filterdyn.model import StateSpaceModel

Depends = Callable[[StateSpaceModel, Gaussian], tuple[Gaussian, Float[Array, ""]]]


class Ascent(eqx.Module):
    """Where the parameters stand, and the derivatives of the belief's mean and covariance by each.

    By default theta moves by P g with g the score of a row and P^-1 = prior precision + sum of g g^T:
    P = P0 - P0 g g^T P0 / (1 + g^T P0 g). In units of P0 no step is longer than 1/2.
    """

    theta: Float[Array, "*T k"]
    mean_slopes: Float[Array, "*T k dx"]
    cov_slopes: Float[Array, "*T k dx dx"]
    #: P, or what an Optax optimiser carries.
    steering: Any
    space: ParameterSpace
    optimizer: Any = eqx.field(static=True)

    @staticmethod
    def start(
        model: ParametricModel, dtype: jnp.dtype, optimizer: optax.GradientTransformation | None
    ) -> "Ascent":
        """At the centre of the prior."""
        theta = model.prior_mean.astype(dtype)

        def begin(theta: Array) -> tuple[Array, Array]:
            found = model.at(theta).start(dtype)
            return found.mean, found.spread.matrix

        slopes = jax.jacfwd(begin)(theta)
        mean_slopes, cov_slopes = (jnp.moveaxis(s, -1, 0).astype(dtype) for s in slopes)
        steering = model.prior_cov.astype(dtype) if optimizer is None else optimizer.init(theta)
        return Ascent(theta, mean_slopes, cov_slopes, steering, model.space, optimizer)

    @property
    def estimate(self) -> ParameterEstimate:
        return ParameterEstimate(self.space, self.theta)

    def climbed(
        self, model: ParametricModel, belief: Gaussian, depends: Depends, gap: Float[Array, ""]
    ) -> tuple[Gaussian, Float[Array, ""], "Ascent"]:
        """The next belief and the increment that `depends(model, belief)` gives, and the parameters after
        that row."""

        def moments(theta: Array, mean: Array, matrix: Array) -> tuple[Array, Array, Array, Array]:
            before = Gaussian(mean, spread=PSD(belief.spread.factor, matrix))
            after, value = depends(model.at(theta), before)
            return after.mean, after.spread.matrix, value, after.spread.root

        primals = (self.theta, belief.mean, belief.spread.matrix)
        (mean, matrix, value, root), derivative = jax.linearize(moments, *primals)
        directions = jnp.eye(len(self.theta), dtype=self.theta.dtype)
        along = jax.vmap(derivative)(directions, self.mean_slopes, self.cov_slopes)
        mean_slopes, cov_slopes, score, _ = along
        theta, steering = self._moved(model, score, gap)
        new = Ascent(theta, mean_slopes, cov_slopes, steering, self.space, self.optimizer)
        return Gaussian(mean, spread=PSD(root, matrix)), value, new

    def _moved(
        self, model: ParametricModel, score: Float[Array, " k"], gap: Float[Array, ""]
    ) -> tuple[Array, Any]:
        seen = (score != 0).any()
        if self.optimizer is not None:
            updates, state = self.optimizer.update(-score, self.steering, self.theta)
            theta = optax.apply_updates(self.theta, updates)
            kept = lambda new, old: jnp.where(seen, new, old)
            return kept(theta, self.theta), jax.tree.map(kept, state, self.steering)
        evolved = model.evolve(self.steering, gap)
        before = evolved.slope**2 * self.steering + evolved.noise
        along = before @ score
        size = 1.0 + score @ along
        after = before - along[:, None] * along[None, :] / size
        return self.theta + along / size, 0.5 * (after + after.T)
