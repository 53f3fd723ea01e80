"""One row of the online variational filter: the Gaussian that is nearest, and how it depends on the model."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters import gaussian
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.particle_weights import measurement_log_weights
from filterdyn.filters.sampling import Measurement
from filterdyn.filters.scan import select
from filterdyn.learning.variational_fit import Fitted, derivatives, fit_gaussian
from filterdyn.learning.variational_points import shifted_points
from filterdyn.linalg import PSD, mm, mv, triangularize, with_derivative_of
from filterdyn.linalg.cholesky import only_derivative
from filterdyn.linalg.regression import generalised_inverse
from filterdyn.linearization import Affine, Taylor
from filterdyn.model import StateSpaceModel


class Settings(NamedTuple):
    """How a row is fitted."""

    prediction: AbstractFilter
    size: int
    steps: int
    optimizer: optax.GradientTransformation | None
    #: Is the pair of this state and the one before it fitted, with the transition density itself?
    pairwise: bool


class Kernel(NamedTuple):
    """q(x_{t-1} | x_t) = N(mean + gain (x_t - mean_t), factor factor^T), with mean_t that of q(x_t)."""

    mean: Float[Array, " n"]
    gain: Float[Array, "n n"]
    factor: Float[Array, "n n"]


class Row(NamedTuple):
    """What is known of a row once it is fitted: values without a derivative."""

    mean: Float[Array, " n"]
    factor: Float[Array, "n n"]
    #: The increment of the bound.
    bound: Float[Array, ""]
    #: Points of q(x_t) (N, n); `None` where it is known in closed form.
    states: Float[Array, "N n"] | None
    #: Was the pair fitted? Then points of a standard normal pair (N, 2 n), of which the first half makes
    #: x_t, and q(x_{t-1} | x_t) in units of the two beliefs: z = shift + slope z_t + rest e.
    paired: Bool[Array, ""]
    pairs: Float[Array, "N m"] | None
    shift: Float[Array, " n"] | None
    slope: Float[Array, "n n"] | None
    rest: Float[Array, "n n"] | None


class Predicted(NamedTuple):
    """A prediction over an interval that may be empty."""

    belief: Gaussian
    move: Affine
    status: Int[Array, ""]


def predict(
    filter: AbstractFilter, model: StateSpaceModel, belief: Gaussian, interval: Interval
) -> Predicted:
    """By the moments of the dynamics; over a gap of 0 nothing moves."""
    moves = interval.gap > 0
    # (An interval of some length, so that what is not used has a finite derivative.)
    somewhere = interval._replace(
        gap=jnp.where(moves, interval.gap, 1.0).astype(interval.gap.dtype)
    )
    found: Prediction = filter.predict(model, belief, somewhere)
    n, dtype = model.dx, belief.mean.dtype
    still = Affine(belief.mean, jnp.eye(n, dtype=dtype), PSD.zeros(n, dtype))
    spread = found.belief.spread
    new = Gaussian(
        jnp.where(moves, found.belief.mean, belief.mean),
        spread=PSD(
            jnp.where(moves, spread.root, belief.spread.root),
            jnp.where(moves, spread.matrix, belief.spread.matrix),
        ),
    )
    noise = PSD(found.move.noise.root, found.move.noise.matrix)
    move = select(moves, found.move._replace(noise=noise), still)
    return Predicted(new, move, jnp.where(moves, found.status, 0).astype(jnp.int32))


def log_measurement(
    model: StateSpaceModel, measurement: Measurement, x: Float[Array, " n"]
) -> Float[Array, ""]:
    """log g(y | x) of the entries that are there."""
    return measurement_log_weights(model, x[None], measurement)[0][0]


def log_transition(
    model: StateSpaceModel,
    interval: Interval,
    x_to: Float[Array, " n"],
    x_from: Float[Array, " n"],
) -> Float[Array, ""]:
    """log f(x' | x)."""
    gap = jnp.where(interval.gap > 0, interval.gap, 1.0).astype(interval.gap.dtype)
    found = model.dynamics.log_density(x_to, x_from, interval._replace(gap=gap))
    return found.astype(x_to.dtype)


def fit_row(
    settings: Settings,
    model: StateSpaceModel,
    belief: Gaussian,
    predicted: Predicted,
    interval: Interval,
    measurement: Measurement,
    key: Array,
) -> Row:
    """Maximise the bound over q(x_t), and over q(x_{t-1} | x_t) with it.

    Where the move is linear with Gaussian noise, or is taken for that, the best q(x_{t-1} | x_t) is
    known in closed form, and with it in place the bound is E_q log g - KL(q(x_t), prediction). Else both
    are fitted together: a Gaussian of x_t and x_{t-1}, whose factor with x_t first holds the two.
    """
    if not settings.pairwise and model.observation.is_linear:
        found = _conditioned(model, predicted.belief, measurement)
        factor, bound = found.belief.spread.root, found.log_likelihood
        return Row(found.belief.mean, factor, bound, None, jnp.bool_(False), None, None, None, None)
    n, dtype = model.dx, belief.mean.dtype
    size, steps, optimizer = settings.size, settings.steps, settings.optimizer
    key_single, key_pair = jax.random.split(key)
    points = shifted_points(key_single, n, size, dtype)
    mean, root = predicted.belief.mean, triangularize(predicted.belief.spread.root)
    eye, zero = jnp.eye(n, dtype=dtype), jnp.zeros(n, dtype)

    def single(v: Float[Array, " n"]) -> Array:
        return log_measurement(model, measurement, mean + mv(root, v)) - 0.5 * (v * v).sum()

    def row(v: Fitted, bound: Array, paired: bool, *pair: Any) -> Row:
        at, factor = mean + mv(root, v.mean), mm(root, v.factor)
        states = at + jax.vmap(lambda e: mv(factor, e))(v.points)
        return Row(at, factor, bound, states, jnp.bool_(paired), *pair)

    fit = fit_gaussian(single, zero, eye, points, steps, optimizer)
    alone = lambda *pair: row(fit, fit.value + 0.5 * n, False, *pair)
    if not settings.pairwise:
        return alone(None, None, None, None)

    both = shifted_points(key_pair, 2 * n, size, dtype)
    start, scale, move = belief.mean, triangularize(belief.spread.root), predicted.move

    def joint(pair: Float[Array, " m"]) -> Array:
        v, z = pair[:n], pair[n:]
        x_to, x_from = mean + mv(root, v), start + mv(scale, z)
        moved = log_transition(model, interval, x_to, x_from)
        seen = log_measurement(model, measurement, x_to)
        return moved + seen - 0.5 * (z * z).sum()

    def fitted() -> Row:
        # z = B v + C w with v and w standard and independent, from [F S, N; S, 0] = [S', 0; S B, S C] Q.
        wide = jnp.concatenate([mm(move.slope, scale), move.noise.root], axis=1)
        basis = jnp.linalg.qr(wide.T, mode="complete")[0]
        b = basis[:n, :n] * jnp.sign(jnp.diagonal(mm(basis[:, :n].T, wide.T)))
        c = triangularize(basis[:n, n:])
        factor = jnp.block([[fit.factor, jnp.zeros((n, n), dtype)], [mm(b, fit.factor), c]])
        begin = jnp.concatenate([fit.mean, mv(b, fit.mean)])
        found = fit_gaussian(joint, begin, factor, both, steps, optimizer)
        log_scale = jnp.log(jnp.diagonal(root)).sum()
        bound = found.value + log_scale + n + 0.5 * n * jnp.log(2 * jnp.pi).astype(dtype)
        f, points = found.factor, found.points
        new = Fitted(found.mean[:n], f[:n, :n], points[:, :n], found.value)
        return row(new, bound, True, points, found.mean[n:], f[n:, :n], f[n:, n:])

    nothing = alone(both, zero, jnp.zeros((n, n), dtype), eye)
    needed = (interval.gap > 0) & ~jnp.isnan(measurement.value).all()
    return jax.lax.cond(needed, fitted, lambda: nothing)


def _conditioned(model: StateSpaceModel, belief: Gaussian, measurement: Measurement) -> Update:
    """By a measurement that is linear and Gaussian."""
    t, u, y = measurement.time, measurement.input, measurement.value
    return gaussian.update(model, belief, t, u, y, Taylor())


def depends(
    settings: Settings,
    model: StateSpaceModel,
    belief: Gaussian,
    interval: Interval,
    measurement: Measurement,
    row: Row,
) -> tuple[Gaussian, Float[Array, ""]]:
    """The belief and the increment of the bound of a fitted row, as differentiable functions of the model
    and the belief before it.

    The function V_t(x_t) = E_q(x_1:t-1 | x_t) [log p(x_1:t, y_1:t) - log q(x_1:t-1 | x_t)] is carried
    by its projection on quadratic functions under q(x_t), with q held fixed: at a fit that is at rest
    its value is log q(x_t), and its derivative, by the model's parameters S_t, is carried as that of
    the belief's mean and covariance. The derivative of E_q V_t is that of the bound.
    """
    by_moments = lambda: _by_moments(settings, model, belief, interval, measurement, row)
    if row.pairs is None:
        return by_moments()
    by_density = lambda: _by_density(model, belief, interval, measurement, row)
    return jax.lax.cond(row.paired, by_density, by_moments)


def _by_moments(
    settings: Settings,
    model: StateSpaceModel,
    belief: Gaussian,
    interval: Interval,
    measurement: Measurement,
    row: Row,
) -> tuple[Gaussian, Float[Array, ""]]:
    """V is the logarithm of the predicted Gaussian plus the quadratic projection of log g, in a form
    without the inverse of a covariance."""
    before = predict(settings.prediction, model, belief, interval).belief
    if row.states is None:
        found = _conditioned(model, before, measurement)
        return found.belief, found.log_likelihood
    n = model.dx
    eye = jnp.eye(n, dtype=belief.mean.dtype)
    log_g = lambda x: log_measurement(model, measurement, x)
    value = jax.vmap(log_g)(row.states).mean()
    zero, one = jnp.zeros(n, eye.dtype), eye
    here = row.states - row.mean
    pull, hessian = derivatives(lambda e: log_g(row.mean + e), zero, one, here)
    precision = -0.5 * (hessian + hessian.T)
    # P = (P0^-1 + J)^-1, m - m0 = P (E grad log g + J (m_q - m0)).
    cov = jnp.linalg.solve(eye + mm(before.spread.matrix, precision), before.spread.matrix)
    cov = 0.5 * (cov + cov.T)
    mean = before.mean + mv(cov, pull + mv(precision, row.mean - before.mean))
    j, h = stop_gradient((precision, pull))
    # d bound / d P0 = (h h^T - J (1 + P0 J)^-1) / 2.
    j = jnp.linalg.solve(eye + mm(j, stop_gradient(before.spread.matrix)), j)
    slope = (
        only_derivative(value)
        + (h * only_derivative(before.mean)).sum()
        + 0.5 * ((h[:, None] * h - j) * only_derivative(before.spread.matrix)).sum()
    )
    return _with_derivatives(row, mean, cov, slope)


def _by_density(
    model: StateSpaceModel,
    belief: Gaussian,
    interval: Interval,
    measurement: Measurement,
    row: Row,
) -> tuple[Gaussian, Float[Array, ""]]:
    """V by its value, gradient and Hessian at q(x_t), over the points of the pair."""
    assert row.pairs is not None and row.shift is not None
    assert row.slope is not None and row.rest is not None
    n = model.dx
    start, scale = stop_gradient((belief.mean, triangularize(belief.spread.root)))
    inverse = generalised_inverse(scale)
    # The derivative of log N(x; mean, cov) in the coordinates x = start + scale z.
    shift = mv(inverse, only_derivative(belief.mean))
    bend = mm(mm(inverse, only_derivative(belief.spread.matrix)), inverse.T)
    slope, rest, offset = row.slope, row.rest, row.shift

    def carried(z_to: Array, e: Array) -> Array:
        z = offset + mv(slope, z_to) + mv(rest, e)
        x_to, x_from = row.mean + mv(row.factor, z_to), start + mv(scale, z)
        before = (shift * z).sum() + 0.5 * (z * mv(bend, z)).sum() - 0.5 * jnp.trace(bend)
        moved = log_transition(model, interval, x_to, x_from)
        return before + moved + log_measurement(model, measurement, x_to)

    z_to, e = row.pairs[:, :n], row.pairs[:, n:]
    value = jax.vmap(carried)(z_to, e).mean()
    pull = jax.vmap(jax.grad(carried))(z_to, e).mean(0)
    hessian = jax.vmap(jax.hessian(carried))(z_to, e).mean(0)
    mean = row.mean + mv(row.factor, only_derivative(pull))
    change = mm(mm(row.factor, only_derivative(0.5 * (hessian + hessian.T))), row.factor.T)
    return _with_derivatives(row, mean, change, only_derivative(value))


def _with_derivatives(
    row: Row, mean: Array, cov: Array, slope: Array
) -> tuple[Gaussian, Float[Array, ""]]:
    matrix = with_derivative_of(mm(row.factor, row.factor.T), cov)
    new = Gaussian(with_derivative_of(row.mean, mean), spread=PSD(row.factor, matrix))
    return new, with_derivative_of(row.bound, slope)


def kernel_of(model: StateSpaceModel, belief: Gaussian, predicted: Predicted, row: Row) -> Kernel:
    """q(x_{t-1} | x_t) of a fitted row."""
    move, scale = predicted.move, triangularize(belief.spread.root)
    wide = jnp.concatenate([mm(move.slope, scale), move.noise.root], axis=1)
    low = jnp.concatenate([scale, jnp.zeros_like(scale)], axis=1)
    n = model.dx
    joint = triangularize(jnp.concatenate([wide, low]), rank_revealing=n)
    gain = mm(joint[n:, :n], generalised_inverse(joint[:n, :n]))
    mean = belief.mean + mv(gain, row.mean - predicted.belief.mean)
    alone = Kernel(mean, gain, joint[n:, n:])
    if row.pairs is None:
        return alone
    assert row.shift is not None and row.slope is not None and row.rest is not None
    fitted = Kernel(
        belief.mean + mv(scale, row.shift),
        mm(mm(scale, row.slope), generalised_inverse(row.factor)),
        mm(scale, row.rest),
    )
    return select(row.paired, fitted, alone)
