"""A Gaussian Markov posterior over paths, found by natural gradients without solving an SDE."""

import math
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from filterdyn._checks import check_count
from filterdyn.dynamics import SDE, Interval, Plan
from filterdyn.filters.rows import Row
from filterdyn.inference.gaussian_moves import check_gaussian_moves, gaussian_move, solve_lower
from filterdyn.inference.path_observations import measured
from filterdyn.inference.path_posterior import (
    AbstractPathPosterior,
    PathTerms,
    after_first,
)
from filterdyn.linalg.gate import gated
from filterdyn.linalg.tridiagonal import Chain, Tridiagonal, chain_of
from filterdyn.linearization import Cubature
from filterdyn.model import StateSpaceModel
from filterdyn.moments import bare, conditional_moments

_NAME = "GaussianPath"


class GaussianPath(AbstractPathPosterior):
    """The Gaussian Markov process on a grid of times that is nearest to the posterior (Archambeau et al.
    2007), by natural gradients: with the precision and the linear term J, h of q,

        (J, h) <- (1 - rate) (J, h) + rate * gradient of E_q[log p(y, path)] in q's moments

    (conjugate-computation variational inference, Khan, Lin 2017; Verma, Adam, Solin 2024 for diffusions). The
    gradient is a sum over neighbours on the grid, so J stays block-tridiagonal and nothing is simulated.
    The rate starts at 1, is halved where the bound would fall and doubled where it rises. With linear
    dynamics and Gaussian measurements one step is exact.

    An `SDE` moves by Euler steps, `substeps` of them a gap; `LinearSDE`, `LinearTransition` and a
    `Transition` to Gaussians move exactly, once a gap. The bound is one on the likelihood of the model with
    these moves; expectations are exact for drifts up to degree 2 (1 with `degree=3`) and
    log-densities of the measurements up to `degree` in the state. The noise must reach every state: where it
    does not, the bound is `-inf`. It has no parameters of its own, needs no key, and its derivative in those
    of the model is that of the bound at its maximum, so that NUTS can use it as well as SVI. (Second
    derivatives leave out how the posterior answers.)
    """

    substeps: int | None = eqx.field(static=True)
    degree: Literal[3, 5] = eqx.field(static=True)
    iterations: int = eqx.field(static=True)
    tolerance: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        substeps: int | None = None,
        degree: Literal[3, 5] = 5,
        iterations: int = 100,
        tolerance: float = 1e-10,
    ):
        """**Arguments:**

        - `substeps`: steps a gap of an `SDE`; by default the `substeps` it has;
        - `degree`: of the polynomials that `Cubature` averages exactly;
        - `iterations`: at most; `tolerance`: it has converged when a step raises the bound by less, relative
          to 1 + |bound|. The error of a derivative is about its square root.

        **Raises:** `ValueError` for counts that are not whole numbers.
        """
        self.substeps = None if substeps is None else check_count(_NAME, "substeps", substeps)
        Cubature(degree)  # raises for another one
        self.degree = degree
        self.iterations = check_count(_NAME, "iterations", iterations)
        if not tolerance > 0:
            raise ValueError(f"{_NAME}: `tolerance` is {tolerance!r}; expected a positive number")
        self.tolerance = float(tolerance)

    @property
    def is_random(self) -> bool:
        """False: nothing is drawn."""
        return False

    def check_prior(self, model: StateSpaceModel) -> None:
        check_gaussian_moves(_NAME, model.dynamics)
        if isinstance(model.dynamics, SDE) and model.dynamics.dt is not None:
            if self.substeps is None:
                raise ValueError(
                    f"{_NAME}: the SDE has steps by `dt`, a number that differs from gap to gap; give "
                    f"{_NAME} its `substeps`"
                )
        name = type(bare(model.initial)).__name__
        if name in ("Delta", "Diffuse") or not conditional_moments(model.initial).exact:
            raise TypeError(
                f"{_NAME}: `initial` is {name}; expected a Gaussian with a density (a state that is known "
                "well is one with a small variance)"
            )

    def terms(
        self,
        model: StateSpaceModel,
        rows: Row,
        plan: Plan,
        key: Array | None,
        index: Int[Array, ""],
    ) -> tuple[PathTerms, Bool[Array, ""]]:
        self.check_prior(model)
        steps = 1
        if isinstance(model.dynamics, SDE):
            steps = self.substeps or model.dynamics.substeps
        problem = _Problem(model, rows, plan, steps, Cubature(self.degree))
        natural, converged = _without_derivative(
            lambda start: self._maximised(problem, start), problem.start()
        )
        report = lambda natural: problem.report(natural, converged)
        found: tuple[PathTerms, Array] = gated(report, lambda out: out[1], natural)(natural)
        return found

    def _maximised(
        self, problem: "_Problem", start: Tridiagonal
    ) -> tuple[Tridiagonal, Bool[Array, ""]]:
        """Natural parameters at the maximum of the bound, and whether it was reached."""
        dtype = start.linear.dtype
        tolerance = max(self.tolerance, 10 * float(jnp.finfo(dtype).eps))

        def going(state: Any) -> Array:
            _, _, _, rate, count, done = state
            return ~done & (count < self.iterations) & (rate > 1e-6)

        def step(state: Any) -> Any:
            natural, value, aim, rate, count, _ = state
            tried = jax.tree.map(lambda a, b: (1 - rate) * a + rate * b, natural, aim)
            reached, next_aim = problem.value(tried)
            rise = reached - value
            small = tolerance * (1 + jnp.abs(value))
            better = jnp.isfinite(reached) & ~(rise < -small)
            # Near the maximum a whole step gains nothing more.
            done = better & (rise < small * rate)
            keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)
            natural, value, aim = keep((tried, reached, next_aim), (natural, value, aim))
            rate = jnp.where(better, jnp.minimum(1.0, 2 * rate), 0.5 * rate)
            return natural, value, aim, rate.astype(dtype), count + 1, done

        first, aim = problem.value(start)
        state = (start, first, aim, jnp.ones((), dtype), jnp.int32(0), jnp.array(False))
        natural, _, _, _, _, done = jax.lax.while_loop(going, step, state)
        return natural, done


def _without_derivative(function: Any, *args: Any) -> Any:
    """`function(*args)` through which no derivative passes, into what it closes over neither."""
    closed = eqx.filter_closure_convert(function, *args)
    captured, static = eqx.partition(closed, eqx.is_array)
    captured, args = jax.lax.stop_gradient((captured, args))
    return jax.lax.stop_gradient(eqx.combine(captured, static)(*args))


class _Pair(NamedTuple):
    """A move of the chain: E log p(x' | x), and the divergence and the shift of each of its units."""

    log_density: Float[Array, ""]
    kl: Float[Array, " dx"]
    shift: Float[Array, " dx"]


class _Problem:
    """The bound as a function of the chain. Its nodes are the grid of the moves with a gap, one after the
    other; those that are left over (rows at one time share a node) are standard normal in model and
    posterior, and add nothing."""

    def __init__(
        self, model: StateSpaceModel, rows: Row, plan: Plan, steps: int, rule: Cubature
    ) -> None:
        self.model, self.rows, self.steps, self.d = model, rows, steps, model.dx
        self.table = model.dynamics.tabulate(plan)
        self.moves = after_first(rows)
        moved = self.moves.gap > 0
        self.order = jnp.argsort(~moved, stable=True)
        self.used = moved[self.order]
        self.node = steps * jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(moved)])
        points = rule.points(self.d)
        directions, weights = points.directions, points.weights / 2
        both = [directions, -directions]
        each = [weights, weights]
        if points.centre:
            both.append(np.zeros((1, self.d)))
            each.append(np.array([1 - points.weights.sum()]))
        dtype = rows.time.dtype
        self.points = jnp.asarray(np.concatenate(both), dtype)
        self.weights = jnp.asarray(np.concatenate(each), dtype)
        moments = conditional_moments(model.initial)
        self.first_mean = moments.mean.astype(dtype)
        self.first_factor = jnp.linalg.cholesky(moments.cov.matrix.astype(dtype))

    def start(self) -> Tridiagonal:
        """Every state as the first one, independently."""
        number = len(self.order) * self.steps
        half = solve_lower(self.first_factor, jnp.eye(self.d, dtype=self.first_mean.dtype))
        precision = half.T @ half
        real = (jnp.arange(number + 1) <= self.node[-1])[:, None, None]
        diagonal = jnp.where(real, precision, jnp.eye(self.d, dtype=precision.dtype))
        linear = jnp.where(real[:, 0], precision @ self.first_mean, 0.0)
        below = jnp.zeros((number, self.d, self.d), precision.dtype)
        return Tridiagonal(diagonal, below, linear)

    def _spread(self, mean: Array, cov: Array) -> Float[Array, "points dx"]:
        return mean + self.points @ jnp.linalg.cholesky(cov).T

    def _first(self, mean: Array, cov: Array) -> _Pair:
        """The start: the number it is made of is factor^-1 (x - mean)."""
        r = solve_lower(self.first_factor, mean - self.first_mean)
        inner = solve_lower(self.first_factor, cov)
        return self._against(r, solve_lower(self.first_factor, inner.T), self.first_factor)

    def _against(self, r: Array, c: Array, factor: Array) -> _Pair:
        """A Gaussian N(r, C), whitened by `factor`, against the standard normal; by the chain rule."""
        conditional = jnp.log(jnp.diagonal(jnp.linalg.cholesky(0.5 * (c + c.T))))
        squares = 0.5 * (r * r + jnp.diagonal(c))
        scale = jnp.log(jnp.diagonal(factor)).sum() + 0.5 * self.d * math.log(2 * math.pi)
        return _Pair(-squares.sum() - scale, squares - 0.5 - conditional, r)

    def _pair(self, slot: Any, i: Any, used: Any, mean: Array, cov: Array) -> _Pair:
        d = self.d
        cov = 0.5 * (cov + cov.T)
        early, late = mean[:d], mean[d:]
        root = jnp.linalg.cholesky(cov[:d, :d])
        gain = jax.scipy.linalg.cho_solve((root, True), cov[:d, d:]).T
        noise = cov[d:, d:] - gain @ cov[:d, d:]
        length = jnp.where(used, slot.gap, 1.0) / self.steps
        time = slot.time_from + i * length
        interval = Interval(time, length, slot.input_from, slot.plan, self.table)

        def at(point: Array) -> _Pair:
            x = early + root @ point
            x_to = late + gain @ (root @ point)
            where = jnp.where(used, x, self.first_mean)
            moved, factor = gaussian_move(_NAME, self.model.dynamics, where, interval)
            inner = solve_lower(factor, solve_lower(factor, noise).T)
            return self._against(solve_lower(factor, x_to - moved), inner, factor)

        each = jax.vmap(at)(self.points)
        found = jax.tree.map(lambda x: jnp.tensordot(self.weights, x, 1), each)
        idle = -0.5 * (late @ late + jnp.trace(cov[d:, d:])) - 0.5 * d * math.log(2 * math.pi)
        still = _Pair(idle, jnp.zeros_like(late), jnp.zeros_like(late))
        return jax.tree.map(lambda a, b: jnp.where(used, a, b), found, still)

    def _pairs(self, function: Any, chain: Chain) -> Any:
        """`function(slot, i, used, mean, cov)` for all moves of the chain, (slots * steps, ...)."""
        slots = jax.tree.map(lambda x: jnp.repeat(x[self.order], self.steps, axis=0), self.moves)
        i = jnp.tile(jnp.arange(self.steps), len(self.order))
        used = jnp.repeat(self.used, self.steps)
        return jax.vmap(function)(slots, i, used, *chain.pairs())

    def _observed(self, row: Row, mean: Array, cov: Array) -> Array:
        points = self._spread(mean, 0.5 * (cov + cov.T))
        return self.weights @ jax.vmap(lambda x: measured(self.model, row, x))(points)

    def value(self, natural: Tridiagonal) -> tuple[Float[Array, ""], Tridiagonal]:
        """The bound, and where a whole natural-gradient step leads."""
        chain = chain_of(natural)
        mean, cov = chain.mean, chain.cov
        by_moments = lambda f, first: jax.value_and_grad(f, argnums=(first, first + 1))
        start, (g_mean, g_cov) = by_moments(lambda m, p: self._first(m, p).log_density, 0)(
            mean[0], cov[0]
        )
        pair = lambda *args: self._pair(*args).log_density
        moves, (p_mean, p_cov) = self._pairs(by_moments(pair, 3), chain)
        at = mean[self.node], cov[self.node]
        seen, (o_mean, o_cov) = jax.vmap(by_moments(self._observed, 1))(self.rows, *at)
        d = self.d
        of_pairs = -2 * p_cov
        precision = (
            jnp.zeros_like(natural.diagonal)
            .at[0]
            .add(-2 * g_cov)
            .at[:-1]
            .add(of_pairs[:, :d, :d])
            .at[1:]
            .add(of_pairs[:, d:, d:])
            .at[self.node]
            .add(-2 * o_cov)
        )
        pair_linear = p_mean + jnp.einsum("kij,kj->ki", of_pairs, chain.pairs()[0])
        linear = (
            jnp.zeros_like(natural.linear)
            .at[0]
            .add(g_mean - 2 * g_cov @ mean[0])
            .at[:-1]
            .add(pair_linear[:, :d])
            .at[1:]
            .add(pair_linear[:, d:])
            .at[self.node]
            .add(o_mean - 2 * jnp.einsum("kij,kj->ki", o_cov, at[0]))
        )
        symmetric = 0.5 * (precision + precision.mT)
        aim = Tridiagonal(symmetric, of_pairs[:, d:, :d], linear)
        return start + moves.sum() + seen.sum() + _entropy(chain), aim

    def report(self, natural: Tridiagonal, converged: Array) -> tuple[PathTerms, Array]:
        """The bound in its parts, and whether it is finite."""
        chain = chain_of(natural)
        first = self._first(chain.mean[0], chain.cov[0])
        pairs = self._pairs(self._pair, chain)
        at = chain.mean[self.node], chain.cov[self.node]
        seen = jax.vmap(self._observed)(self.rows, *at)
        by_slot = lambda x: x.reshape(len(self.order), self.steps, self.d).sum(1)
        by_row = lambda x: jnp.zeros_like(x).at[self.order].set(x)
        kl = by_row(by_slot(pairs.kl))
        shift = by_row(by_slot(pairs.shift)) / math.sqrt(self.steps)
        variance = jnp.diagonal(at[1], axis1=1, axis2=2)
        total = seen.sum() - first.kl.sum() - kl.sum()
        found = PathTerms(seen, first.kl, kl, first.shift, shift, at[0], variance, total, converged)
        return found, jnp.isfinite(total)


def _entropy(chain: Chain) -> Float[Array, ""]:
    covs = jnp.concatenate([chain.cov[:1], chain.noise])
    factors = jnp.linalg.cholesky(covs)
    logs = jnp.log(jnp.diagonal(factors, axis1=1, axis2=2)).sum()
    n, d = covs.shape[:2]
    return logs + 0.5 * n * d * (1 + math.log(2 * math.pi))
