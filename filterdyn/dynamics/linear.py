"""Linear dynamics: discrete transitions, and stochastic differential equations solved exactly."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from filterdyn._callables import Held
from filterdyn._checks import check_covariance, check_shape, is_traced
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics.base import AbstractDynamics, Interval, Plan
from filterdyn.dynamics.diffusion import as_matrix
from filterdyn.dynamics.gaussian import draws, log_density_of, rows_through
from filterdyn.linalg import PSD, discretize, mv, sampling_factor
from filterdyn.linearization import AbstractLinearization, Affine
from filterdyn.observations import affine_offset, matrix
from filterdyn.status import Status

#: Up to this many distinct gaps are discretised once per call, more inside the loop over rows.
_DISTINCT_GAPS = 32
#: Relative difference of gaps that are taken for one.
_ROUNDING = 4e-13


def _at(value: Any, t: Any) -> Any:
    return jnp.asarray(value(t)) if isinstance(value, Held) else value


class LinearTransition(AbstractDynamics):
    """x' = F x + B u + b + N(0, Q), one transition per row.

    `t` and `u` are those of the row that is left; a repeated time makes no transition.
    """

    F: Held | Array
    Q: Held | Array
    B: Held | Array | None
    b: Held | Array | None

    is_linear: ClassVar[bool] = True
    is_continuous: ClassVar[bool] = False

    def __init__(self, F: Any, Q: Any, B: Any = None, b: Any = None):
        """**Arguments:** `F` (dx, dx), `Q` (dx, dx) positive semi-definite, `B` (dx, du), `b` (dx,);
        each an array or a function of `t` that returns one.

        **Raises:** `ValueError` for shapes that disagree and for a `Q` that is not a covariance.
        """
        owner = "LinearTransition"
        self.F = matrix(owner, "F", F, 2)
        self.Q = matrix(owner, "Q", Q, 2)
        self.B = matrix(owner, "B", B, 2)
        self.b = matrix(owner, "b", b, 1)
        if not isinstance(self.Q, Held):
            check_shape(owner, "Q", self.Q, (self.Q.shape[0],) * 2, "a covariance is square")
            check_covariance(owner, "Q", self.Q)
        if not isinstance(self.F, Held):
            dx = self.F.shape[0]
            check_shape(owner, "F", self.F, (dx, dx), "a transition is square")
            if not isinstance(self.Q, Held):
                check_shape(owner, "Q", self.Q, (dx, dx), "as `F`")
            _check_rows(owner, dx, B=self.B, b=self.b)

    def _parts(self, t: Any, u: Any) -> tuple[Array, Array, Array]:
        f = _at(self.F, t)
        q = _at(self.Q, t)
        return f, q, affine_offset("LinearTransition", f, _at(self.B, t), _at(self.b, t), u, "B")

    def repeats(self, plan: Plan) -> bool:
        return not isinstance(self.F, Held) and not isinstance(self.Q, Held)

    def tabulate(self, plan: Plan) -> PSD | None:
        return None if isinstance(self.Q, Held) else PSD.from_matrix(self.Q)

    def moments(
        self, rule: AbstractLinearization, belief: Gaussian, interval: Interval
    ) -> tuple[Affine, Int[Array, ""]]:
        f, q, offset = self._parts(interval.time, interval.input)
        value = mv(f, belief.mean) + offset
        noise = PSD.from_matrix(q) if interval.table is None else interval.table
        return Affine(value, f, noise), jnp.int32(Status.OK)

    def sample(self, key: Array, x: Float[Array, " dx"], interval: Interval) -> Float[Array, " dx"]:
        return self.driven_by(x, jr.normal(key, x.shape, x.dtype), interval)

    def sample_many(
        self, key: Array, x: Float[Array, "N dx"], interval: Interval
    ) -> Float[Array, "N dx"]:
        f, _, offset = self._parts(interval.time, interval.input)
        factor = sampling_factor(self._noise(interval))
        moved = rows_through(f, x) + offset + draws(key, factor, x)
        return jnp.where(interval.gap > 0, moved, x)

    def normals(self, x: Float[Array, " dx"], interval: Interval) -> tuple[int, ...]:
        return x.shape

    def driven_by(
        self, x: Float[Array, " dx"], normals: Float[Array, " dx"], interval: Interval
    ) -> Float[Array, " dx"]:
        f, _, offset = self._parts(interval.time, interval.input)
        noise = mv(sampling_factor(self._noise(interval)), normals)
        return jnp.where(interval.gap > 0, mv(f, x) + offset + noise, x)

    def log_density(
        self, x_to: Float[Array, " dx"], x_from: Float[Array, " dx"], interval: Interval
    ) -> Float[Array, ""]:
        f, _, offset = self._parts(interval.time, interval.input)
        return log_density_of(x_to - mv(f, x_from) - offset, self._noise(interval))

    def _noise(self, interval: Interval) -> PSD:
        if interval.table is not None:
            return interval.table
        return PSD.from_matrix(_at(self.Q, interval.time))

    def check(self, owner: str, t: Any, x: Any, u: Any) -> None:
        f, q, offset = jax.eval_shape(self._parts, t, u)
        dx = x.shape[0]
        check_shape(owner, "F", f, (dx, dx), "`initial` has that many states")
        check_shape(owner, "Q", q, (dx, dx), "`initial` has that many states")
        check_shape(owner, "b", offset, (dx,), "`initial` has that many states")


class LinearSDE(AbstractDynamics):
    """dx = (A x + B u + b) dt + L dW, discretised exactly over any gap.

    The input is held over the gap. No solver and no step size: stiff, unstable and singular A and L,
    and gaps of any length (0 among them), are exact to rounding.
    """

    A: Array
    L: Array
    B: Array | None
    b: Array | None

    is_linear: ClassVar[bool] = True

    def __init__(self, A: Any, L: Any, B: Any = None, b: Any = None):
        """**Arguments:**

        - `A` (dx, dx), in 1 / time;
        - `L`, the diffusion: (dx, dw), (dx,) for a diagonal or () for a multiple of the identity, in
          state units / sqrt(time);
        - `B` (dx, du) and `b` (dx,), in state units / time.

        **Raises:** `ValueError` for shapes that disagree, `TypeError` for functions (a field that
        depends on time or state belongs in `SDE`).
        """
        owner = "LinearSDE"
        for name, value in dict(A=A, L=L, B=B, b=b).items():
            if callable(value):
                raise TypeError(f"{owner}: `{name}` is a function; expected an array (use fd.SDE)")
        self.A = matrix(owner, "A", A, 2)
        dx = self.A.shape[0]
        check_shape(owner, "A", self.A, (dx, dx), "a rate matrix is square")
        self.L = as_matrix(owner, "L", L, dx)
        self.B = matrix(owner, "B", B, 2)
        self.b = matrix(owner, "b", b, 1)
        _check_rows(owner, dx, B=self.B, b=self.b)

    def plan(self, gaps: Any) -> Plan:
        if is_traced(gaps):
            return Plan()
        distinct, rows = _distinct(np.asarray(gaps))
        if len(distinct) > _DISTINCT_GAPS:
            return Plan()
        # (At least two, so that XLA keeps the loop over them, and with it one kernel.)
        size = max(2, 1 << (len(distinct) - 1).bit_length())
        padded = jnp.asarray(np.concatenate([distinct, np.zeros(size - len(distinct))]))
        return Plan(None if len(distinct) == 1 else jnp.asarray(rows, jnp.int32), padded)

    def repeats(self, plan: Plan) -> bool:
        return plan.gaps is not None

    def tabulate(self, plan: Plan) -> Any:
        if plan.gaps is None:
            return None
        dtype = jnp.result_type(self.A, self.L)
        return jax.lax.map(lambda gap: self._discretized(gap), plan.gaps.astype(dtype))

    def _discretized(self, gap: Any) -> Any:
        dtype = jnp.result_type(self.A, self.L, gap)
        return discretize(self.A.astype(dtype), self.L.astype(dtype), gap.astype(dtype))

    def _move(self, x: Array, interval: Interval) -> tuple[Affine, Any]:
        if interval.table is None:
            exact = self._discretized(interval.gap)
        else:
            # (A gather's derivative is a scatter, which would break up the loop around it.)
            row = 0 if interval.row is None else interval.row
            exact = jax.tree.map(lambda leaf: leaf[row], interval.table)
        offset = affine_offset("LinearSDE", self.A, self.B, self.b, interval.input, "B")
        value = mv(exact.transition, x) + mv(exact.held, offset)
        return Affine(value, exact.transition, exact.noise), exact

    def moments(
        self, rule: AbstractLinearization, belief: Gaussian, interval: Interval
    ) -> tuple[Affine, Int[Array, ""]]:
        return self._move(belief.mean, interval)[0], jnp.int32(Status.OK)

    def sample(self, key: Array, x: Float[Array, " dx"], interval: Interval) -> Float[Array, " dx"]:
        return self.driven_by(x, jr.normal(key, x.shape, x.dtype), interval)

    def sample_many(
        self, key: Array, x: Float[Array, "N dx"], interval: Interval
    ) -> Float[Array, "N dx"]:
        move, _ = self._move(jnp.zeros_like(x[0]), interval)
        factor = sampling_factor(move.noise)
        return rows_through(move.slope, x) + move.value + draws(key, factor, x)

    def normals(self, x: Float[Array, " dx"], interval: Interval) -> tuple[int, ...]:
        return x.shape

    def driven_by(
        self, x: Float[Array, " dx"], normals: Float[Array, " dx"], interval: Interval
    ) -> Float[Array, " dx"]:
        move, _ = self._move(x, interval)
        noise = mv(sampling_factor(move.noise), normals)
        return jnp.where(interval.gap > 0, move.value + noise, x)

    def log_density(
        self, x_to: Float[Array, " dx"], x_from: Float[Array, " dx"], interval: Interval
    ) -> Float[Array, ""]:
        move, _ = self._move(x_from, interval)
        return log_density_of(x_to - move.value, move.noise)

    def check(self, owner: str, t: Any, x: Any, u: Any) -> None:
        dx = x.shape[0]
        check_shape(owner, "A", self.A, (dx, dx), "`initial` has that many states")
        jax.eval_shape(lambda u: affine_offset(owner, self.A, self.B, self.b, u, "B"), u)


def _distinct(gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different gaps, and which of them each gap is. Gaps that differ by what rounding makes of
    evenly spaced times are one gap; 0, over which nothing moves, is any."""
    values, back = np.unique(gaps, return_inverse=True)
    positive = values > 0
    if not positive.any():
        return np.zeros(1), np.zeros(gaps.shape, np.int32)
    groups = np.zeros(len(values), np.int32)
    starts = [first := values[positive][0]]
    for i in np.flatnonzero(positive):
        if values[i] > first * (1 + _ROUNDING):
            first = values[i]
            starts.append(first)
        groups[i] = len(starts) - 1
        if len(starts) > _DISTINCT_GAPS:
            break
    means = [values[positive & (groups == g)].mean() for g in range(len(starts))]
    return np.asarray(means), groups[back].reshape(gaps.shape)


def _check_rows(owner: str, dx: int, **arrays: Any) -> None:
    for name, value in arrays.items():
        if value is not None and not isinstance(value, Held) and value.shape[0] != dx:
            raise ValueError(
                f"{owner}: `{name}` has shape {value.shape}; its first axis must be dx = {dx}"
            )
