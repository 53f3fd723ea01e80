"""Intervals from the likelihood itself, which need no parabola: one parameter held, the rest fitted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from filterdyn.diagnostics import chi_square
from filterdyn.diagnostics.parameters import flatten
from filterdyn.diagnostics.residuals import check_level

_STEPS = 200
#: Secants that place an end of the interval between two points of the grid.
_ROUNDS = 6


@dataclass(frozen=True)
class Profile:
    """The profile log-likelihood of one parameter.

    - `grid`, `log_likelihoods` (G,): the largest log-likelihood with the parameter held there;
    - `parameters` (the same tree, each leaf with a leading axis G): where it is reached;
    - `estimate`, `log_likelihood`: the maximum over everything;
    - `lower`, `upper`: the interval in which twice the loss of log-likelihood stays below the chi-square
      quantile of `level`; infinite where the grid ends before that, or the likelihood is flat.
    """

    name: str
    grid: np.ndarray
    log_likelihoods: np.ndarray
    parameters: Any
    estimate: float
    log_likelihood: float
    lower: float
    upper: float
    level: float

    def __str__(self) -> str:
        text = (
            f"{self.name} = {self.estimate:.4g}, {self.level:.0%} likelihood interval {self.lower:.4g} to "
            f"{self.upper:.4g}"
        )
        if np.isinf([self.lower, self.upper]).any():
            text += " (open: the likelihood does not fall enough on the grid)"
        return text


def profile_likelihood(
    function: Callable[[Any], Any],
    parameters: Any,
    name: str,
    grid: Any,
    *,
    level: float = 0.95,
) -> Profile:
    """Hold one parameter at each point of a grid and maximise over the others (L-BFGS).

    Each point starts where the one before ended. Parameters should be of order one and unbounded (the
    logarithm of a variance rather than the variance).

    **Arguments:**

    - `function(parameters)`: a log-likelihood, such as one made of `fd.log_likelihood`;
    - `parameters`: a dict (or any tree) of numbers and arrays: where the search starts;
    - `name`: which one is held (an entry of an array is `rates[0]`); `grid` (G,): increasing values;
    - `level` of the interval.

    **Raises:** `ValueError` for a name that is not there and a grid that does not increase.

    Reference: Venzon, Moolgavkar 1988; Raue et al. 2009.
    """
    owner = "profile_likelihood"
    check_level(owner, "level", level)
    flat = flatten(owner, parameters)
    if name not in flat.names:
        raise ValueError(f"{owner}: `name` is {name!r}; expected one of {list(flat.names)}")
    points = np.asarray(grid, float)
    if points.ndim != 1 or len(points) < 2 or not (np.diff(points) > 0).all():
        raise ValueError(
            f"{owner}: `grid` has shape {points.shape}; expected increasing values (G,)"
        )
    held, dtype = flat.names.index(name), flat.vector.dtype
    # In units of their own size, so that the first step of the search has a sensible length.
    unit = np.maximum(np.abs(np.asarray(flat.vector, float)), 1.0)
    fit = _fitter(lambda scaled: function(flat.unravel(scaled * jnp.asarray(unit, dtype))))
    everything = np.ones(len(unit), bool)

    def at(point: float, start: np.ndarray) -> tuple[float, np.ndarray]:
        start = start.copy()
        start[held] = point / unit[held]
        free = everything.copy()
        free[held] = False
        value, place = fit(jnp.asarray(start, dtype), jnp.asarray(free))
        return float(value), np.asarray(place, float)

    first = np.asarray(flat.vector, float) / unit
    near = int(np.abs(points - first[held] * unit[held]).argmin())
    best, where = np.full(len(points), -np.inf), np.zeros((len(points), len(unit)))
    # From the point nearest to where the parameter stands, up and down.
    for order in (range(near, len(points)), range(near, -1, -1)):
        place = first if order[0] == near and not np.isfinite(best[near]) else where[near]
        for k in order:
            value, place = at(points[k], place)
            if value > best[k]:
                best[k], where[k] = value, place
    top = int(best.argmax())
    value, peak = fit(jnp.asarray(where[top], dtype), jnp.asarray(everything))
    highest, summit = float(value), np.asarray(peak, float)
    if highest < best[top]:
        highest, summit = float(best[top]), where[top]
    estimate = float(summit[held] * unit[held])
    bound = float(np.sqrt(chi_square.quantile(level, 1)))

    def end(side: int) -> float:
        """Where the root of twice the loss, a straight line for a Gaussian, crosses its bound."""
        inner, inner_root, place = estimate, -bound, summit
        for k in range(len(points))[::side]:
            if side * (points[k] - estimate) <= 0:
                continue
            root = float(np.sqrt(2 * max(highest - best[k], 0.0))) - bound
            if root > 0:
                return between(inner, inner_root, points[k], root, place)
            inner, inner_root, place = points[k], root, where[k]
        return side * np.inf

    def between(a: float, f: float, b: float, g: float, place: np.ndarray) -> float:
        """By secants, which stay between the two points of the grid."""
        low, high = min(a, b), max(a, b)
        for _ in range(_ROUNDS):
            if f == g or abs(g) < 1e-9:
                break
            x = min(max(b - g * (b - a) / (g - f), low), high)
            root = float(np.sqrt(2 * max(highest - at(x, place)[0], 0.0))) - bound
            a, f, b, g = b, g, x, root
        return b

    return Profile(
        name,
        points,
        best,
        jax.vmap(flat.unravel)(jnp.asarray(where * unit, dtype)),
        estimate,
        highest,
        end(-1),
        end(1),
        level,
    )


def _fitter(log_likelihood: Callable[[Array], Any]) -> Callable[[Array, Array], Any]:
    """Maximises over the `free` entries; compiled once for all points."""

    def fit(start: Float[Array, " P"], free: Bool[Array, " P"]) -> tuple[Array, Array]:
        def loss(x: Array) -> Array:
            value = -jnp.asarray(log_likelihood(jnp.where(free, x, start)), start.dtype)
            return jnp.where(jnp.isfinite(value), value, jnp.asarray(1e10, start.dtype))

        solver = optax.lbfgs()
        gradient = optax.value_and_grad_from_state(loss)
        flat = 100 * float(jnp.finfo(start.dtype).eps) ** 0.5

        def proceed(carry: Any) -> Array:
            *_, slope, moved, step = carry
            return (step < _STEPS) & (jnp.abs(slope).max() > flat) & moved

        def one(carry: Any) -> Any:
            x, state, _, _, step = carry
            value, slope = gradient(x, state=state)
            updates, state = solver.update(slope, state, x, value=value, grad=slope, value_fn=loss)
            new = optax.apply_updates(x, updates)
            return new, state, slope, (new != x).any(), step + 1

        begin = (start, solver.init(start), jnp.full_like(start, jnp.inf), jnp.array(True), 0)
        x, *_ = jax.lax.while_loop(proceed, one, begin)
        return -loss(x), jnp.where(free, x, start)

    return jax.jit(fit)
