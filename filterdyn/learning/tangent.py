"""The tangent filter: how the belief of the state depends on the parameters, carried from row to row."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.scan import first_failure, is_finite
from filterdyn.learning.model import ParametricModel
from filterdyn.linalg import PSD
from filterdyn.linalg.decorrelate import decorrelate
from filterdyn.status import Status


class Slopes(eqx.Module):
    """Derivatives of a belief's mean and covariance by each of the parameters."""

    mean: Float[Array, "*T k dx"]
    cov: Float[Array, "*T k dx dx"]

    def along(self, function: Callable[..., Any], theta: Array, belief: Gaussian) -> Any:
        """Derivatives of `function(theta, mean, cov)` by the parameters, with a leading axis k: directly
        and through the belief."""
        at = (theta, belief.mean, belief.spread.matrix)

        def one(direction: Array, mean: Array, cov: Array) -> Any:
            return jax.jvp(function, at, (direction, mean, cov))[1]

        return jax.vmap(one)(jnp.eye(len(theta), dtype=theta.dtype), self.mean, self.cov)

    @property
    def are_finite(self) -> Bool[Array, ""]:
        return is_finite(self.mean, self.cov)


class Lesson(NamedTuple):
    """What a measurement says of the parameters."""

    #: Of the innovations made independent and of variance one, the derivatives by the parameters of what
    #: was predicted: `errors` = `slopes` (true - believed parameters) + N(0, 1). Rows that are missing are 0.
    errors: Float[Array, " dy"]
    slopes: Float[Array, "dy k"]
    #: The same of the squares and products of these innovations, of which the predicted covariance says
    #: what they should be.
    squares: Float[Array, " m"]
    square_slopes: Float[Array, "m k"]
    #: Derivatives of the log-likelihood.
    score: Float[Array, " k"]
    seen: Bool[Array, ""]


def start(
    filter: AbstractFilter, model: ParametricModel, theta: Float[Array, " k"], dtype: jnp.dtype
) -> tuple[Gaussian, Slopes]:
    """The belief before any measurement."""
    at = lambda theta: filter.init(model.at(theta), dtype)
    moments = lambda theta: (at(theta).mean, at(theta).spread.matrix)
    one = lambda direction: jax.jvp(moments, (theta,), (direction,))[1]
    return at(theta), Slopes(*jax.vmap(one)(jnp.eye(len(theta), dtype=dtype)))


def predict(
    filter: AbstractFilter,
    model: ParametricModel,
    theta: Float[Array, " k"],
    belief: Gaussian,
    slopes: Slopes,
    interval: Interval,
) -> tuple[Prediction, Slopes]:
    """Over an interval of positive length."""
    inside = model.within(interval)
    found = filter.predict(model.at(theta), belief, inside)

    def moments(theta: Array, mean: Array, cov: Array) -> tuple[Array, Array]:
        end = filter.predict(model.at(theta), _like(belief, mean, cov), inside).belief
        return end.mean, end.spread.matrix

    moved = Slopes(*slopes.along(moments, theta, belief))
    status = first_failure(found.status, _failure(moved.are_finite))
    return found._replace(status=status), moved


def update(
    filter: AbstractFilter,
    model: ParametricModel,
    theta: Float[Array, " k"],
    belief: Gaussian,
    slopes: Slopes,
    t: Any,
    u: Any,
    y: Float[Array, " dy"],
) -> tuple[Update, Slopes, Lesson]:
    """The state after a measurement, its derivatives, and what the measurement says of the parameters, all at
    the parameters as they were believed before."""
    found = filter.update(model.at(theta), belief, t, u, y)

    def moments(theta: Array, mean: Array, cov: Array) -> tuple[Array, ...]:
        varied = filter.update(model.at(theta), _like(belief, mean, cov), t, u, y)
        after = varied.belief
        seen = (varied.innovation, varied.innovation_cov, varied.log_likelihood)
        return after.mean, after.spread.matrix, *seen

    mean, cov, innovation, innovation_cov, score = slopes.along(moments, theta, belief)
    after = Slopes(mean, cov)
    lesson = _lesson(found, innovation, innovation_cov, score)
    finite = after.are_finite & is_finite(score)
    status = first_failure(found.status, _failure(finite))
    return found._replace(status=status), after, lesson


def _lesson(
    found: Update, innovation: Array, innovation_cov: Array, score: Float[Array, " k"]
) -> Lesson:
    """With L L^T the covariance of the innovation, w = L^-1 (innovation) and A_i = L^-1 (derivative of that
    covariance) L^-T: the log-likelihood has the derivatives

        - w . L^-1 (derivative of the innovation) + sum_ab A_ab (w_a w_b - [a = b]) / 2

    and the expected information is that of the same two parts, w_a w_b (a < b) and (w_a^2 - 1) / sqrt 2
    being uncorrelated and of variance one."""
    observed = ~jnp.isnan(found.innovation)
    k, dy = innovation.shape
    some = observed[:, None]

    def whitened(rows: Array) -> Array:
        rows, variances = decorrelate(found.innovation_cov, jnp.where(some, rows, 0.0), observed)
        fine = (variances > 0) & observed
        return jnp.where(fine, 1.0 / jnp.sqrt(jnp.where(fine, variances, 1.0)), 0.0)[:, None] * rows

    both = whitened(jnp.concatenate([found.innovation[:, None], -innovation.T], axis=1))
    errors, slopes = both[:, 0], both[:, 1:]
    half = whitened(innovation_cov.transpose(1, 2, 0).reshape(dy, dy * k)).reshape(dy, dy, k)
    full = whitened(half.transpose(1, 0, 2).reshape(dy, dy * k)).reshape(dy, dy, k)
    a, b = np.tril_indices(dy)
    scale = jnp.asarray(np.where(a == b, math.sqrt(0.5), 1.0), errors.dtype)
    products = scale * (errors[a] * errors[b] - (a == b))
    squares = jnp.where(observed[a] & observed[b], products, 0.0)
    square_slopes = scale[:, None] * full[a, b]
    return Lesson(errors, slopes, squares, square_slopes, score, observed.any())


def _like(belief: Gaussian, mean: Array, cov: Array) -> Gaussian:
    return Gaussian(mean, spread=PSD(belief.spread.factor, cov))


def _failure(finite: Bool[Array, ""]) -> Int[Array, ""]:
    return jnp.where(finite, Status.OK, Status.MODEL_NOT_FINITE).astype(jnp.int32)
