"""The Gaussian that is nearest to a density known up to a constant."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from filterdyn.linalg import mm, mv, triangularize

LogDensity = Callable[[Float[Array, " n"]], Float[Array, ""]]

#: Lengths of a natural-gradient step that are tried, the best of which is taken.
_LENGTHS = (1.0, 0.5, 0.25, 0.0625, 0.0078125)
#: In one step no variance grows by more than the inverse of this.
_LEAST = 0.1
#: A fit is at rest where the gradient by the mean and that by the covariance, in units of the Gaussian's
#: own standard deviations, are below this many square roots of the precision.
_AT_REST = 4.0


class Fit(NamedTuple):
    """N(mean, factor factor^T) with the logarithm of the factor's determinant, and the bound up to a
    constant, E log density + log det."""

    mean: Float[Array, " n"]
    factor: Float[Array, "n n"]
    log_det: Float[Array, ""]
    value: Float[Array, ""]


class Fitted(NamedTuple):
    """A fit with a lower triangular factor, and the points (N, n) of a standard normal that it places."""

    mean: Float[Array, " n"]
    factor: Float[Array, "n n"]
    points: Float[Array, "N n"]
    value: Float[Array, ""]


def expected(
    log_density: LogDensity, mean: Array, factor: Array, points: Float[Array, "N n"]
) -> Float[Array, ""]:
    """E log density, over the points."""
    return jax.vmap(log_density)(_placed(mean, factor, points)).mean()


def derivatives(
    log_density: LogDensity, mean: Array, factor: Array, points: Float[Array, "N n"]
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """E grad log density and E hess log density, over the points: the derivatives of E log density by
    the mean and, twice, by the covariance (Bonnet 1964, Price 1958)."""
    placed = _placed(mean, factor, points)
    gradient = jax.vmap(jax.grad(log_density))(placed).mean(0)
    return gradient, jax.vmap(jax.hessian(log_density))(placed).mean(0)


def fit_gaussian(
    log_density: LogDensity,
    mean: Float[Array, " n"],
    factor: Float[Array, "n n"],
    points: Float[Array, "N n"],
    steps: int,
    optimizer: optax.GradientTransformation | None,
) -> Fitted:
    """Maximise E log density + entropy over Gaussians, from the one given (with a lower triangular factor),
    in at most so many steps. It has no derivative."""
    if optimizer is None:
        fit = _by_natural_gradient(log_density, mean, factor, points, steps)
    else:
        fit = _by_optimizer(log_density, mean, factor, points, steps, optimizer)
    fit = stop_gradient(fit)
    # (The same points: any factor times a rotation of them.)
    lower = triangularize(fit.factor)
    turned = solve_triangular(lower, mm(fit.factor, points.T), lower=True).T
    return Fitted(fit.mean, lower, turned, fit.value)


def _placed(mean: Array, factor: Array, points: Float[Array, "N n"]) -> Float[Array, "N n"]:
    return mean + jax.vmap(lambda e: mv(factor, e))(points)


def _by_natural_gradient(
    log_density: LogDensity, mean: Array, factor: Array, points: Array, steps: int
) -> Fit:
    """The precision moves towards -E hess, the mean along E grad (Khan, Lin 2017; Barfoot, Forbes,
    Yoon 2020): one step is the answer for a Gaussian density. A step that would not raise the bound is
    made shorter."""
    eye = jnp.eye(len(mean), dtype=mean.dtype)
    tolerance = _AT_REST * jnp.sqrt(jnp.asarray(jnp.finfo(mean.dtype).eps, mean.dtype))
    expectation = lambda mean, factor: expected(log_density, mean, factor, points)

    def step(fit: Fit) -> tuple[Fit, Bool[Array, ""]]:
        gradient, hessian = derivatives(log_density, fit.mean, fit.factor, points)
        pull = mv(fit.factor.T, gradient)
        precision = -mm(mm(fit.factor.T, hessian), fit.factor)
        usable = jnp.isfinite(precision).all() & jnp.isfinite(pull).all()
        precision = jnp.where(usable, 0.5 * (precision + precision.T), eye)
        pull = jnp.where(usable, pull, 0.0)
        rest = jnp.maximum(jnp.abs(pull).max(), jnp.abs(precision - eye).max())
        values, vectors = jnp.linalg.eigh(precision)
        values = jnp.maximum(values, _LEAST)

        def candidate(length: Array) -> Fit:
            at = (1.0 - length) + length * values
            moved = fit.mean + length * mv(fit.factor, mv(vectors, mv(vectors.T, pull) / at))
            # (The symmetric root: eigenvectors alone may turn by rounding, and the points with them.)
            new = mm(fit.factor, mm(vectors / jnp.sqrt(at), vectors.T))
            log_det = fit.log_det - 0.5 * jnp.log(at).sum()
            return Fit(moved, new, log_det, expectation(moved, new) + log_det)

        tried = jax.vmap(candidate)(jnp.asarray(_LENGTHS, mean.dtype))
        values = jnp.where(jnp.isnan(tried.value), -jnp.inf, tried.value)
        best = values.argmax()
        better = values[best] > fit.value
        # (From where the bound is not finite anything finite is better.)
        new = jax.tree.map(lambda many, one: jnp.where(better, many[best], one), tried, fit)
        return new, (rest < tolerance) | ~better

    def body(carry: tuple[Fit, Array], _: None) -> tuple[Any, None]:
        fit, done = carry
        return jax.lax.cond(done, lambda: (fit, done), lambda: step(fit)), None

    log_det = jnp.log(jnp.abs(jnp.diagonal(factor))).sum()
    start = expectation(mean, factor) + log_det
    begin = Fit(mean, factor, log_det, jnp.where(jnp.isnan(start), -jnp.inf, start))
    (fit, _), _ = jax.lax.scan(body, (begin, jnp.bool_(False)), None, length=steps)
    return fit


def _by_optimizer(
    log_density: LogDensity,
    mean: Array,
    factor: Array,
    points: Array,
    steps: int,
    optimizer: optax.GradientTransformation,
) -> Fit:
    """Gradients by the mean and by the Cholesky factor (logarithms of its diagonal), through the points
    (the reparameterisation of Kingma, Welling 2014), in coordinates in which the start is standard.
    The best of all iterates is the answer."""
    n = len(mean)
    below = jnp.tril(jnp.ones((n, n), bool), -1)
    log_det = jnp.log(jnp.abs(jnp.diagonal(factor))).sum()

    def placed(variables: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        shift, logs, lower = variables
        inner = jnp.where(below, lower, 0.0) + jnp.diag(jnp.exp(logs))
        return mean + mv(factor, shift), mm(factor, inner), log_det + logs.sum()

    def loss(variables: tuple[Array, Array, Array]) -> Array:
        at, root, logs = placed(variables)
        return -expected(log_density, at, root, points) - logs

    chosen = optax.with_extra_args_support(optimizer)

    def body(carry: Any, _: None) -> tuple[Any, None]:
        variables, state, best = carry
        value, gradient = jax.value_and_grad(loss)(variables)
        better = value < best[1]
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), (variables, value), best)
        fine = jnp.isfinite(value)
        gradient = jax.tree.map(lambda g: jnp.where(fine & jnp.isfinite(g), g, 0.0), gradient)
        updates, state = chosen.update(
            gradient, state, variables, value=value, grad=gradient, value_fn=loss
        )
        return (optax.apply_updates(variables, updates), state, best), None

    zero = jnp.zeros(n, mean.dtype)
    start = (zero, zero, jnp.zeros((n, n), mean.dtype))
    first = (start, jnp.full((), jnp.inf, mean.dtype))
    carry, _ = jax.lax.scan(body, (start, chosen.init(start), first), None, length=steps)
    variables, _, (best, least) = carry
    last = loss(variables)
    variables = jax.tree.map(lambda a, b: jnp.where(last < least, a, b), variables, best)
    return Fit(*placed(variables), -jnp.minimum(last, least))
