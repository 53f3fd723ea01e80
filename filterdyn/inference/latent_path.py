"""The path of the state as a random variable of a NumPyro model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from filterdyn._checks import float_array
from filterdyn._compile import compiled
from filterdyn.dynamics import Interval, Plan
from filterdyn.dynamics.discrete import reparameterized
from filterdyn.filters.rows import Row, rows_of
from filterdyn.filters.verbs import check_is_model, check_model
from filterdyn.inference.batch import check_batch, over_batch
from filterdyn.inference.support import path_support
from filterdyn.initial import Diffuse
from filterdyn.linalg.gate import gated
from filterdyn.model import StateSpaceModel
from filterdyn.moments import bare
from filterdyn.series import blank
from filterdyn.simulation import simulate_model
from filterdyn.status import Status

_NAME = "LatentPath"


class LatentPath(dist.Distribution):
    """The distribution of the state's path through `times`, event shape (T, dx), before any measurement.

    With it the path becomes a variable of a NumPyro model, sampled together with the parameters, and
    nothing is linearised or integrated out:

        x = numpyro.sample("x", fd.LatentPath(model, times))
        numpyro.sample("y", fd.PathObservations(model, times, x), obs=y)

    The first state follows `initial`. `log_prob` is the sum of the transitions' log-densities, which
    `Transition`, `LinearTransition`, `LinearSDE`, `ConditionallyLinear` and an `SDE` with `substeps=1`
    and `path_solver=diffrax.Euler()` have. A path that is impossible (two states at one time, a
    transition without noise) has log-density `-inf`.

    Paths that follow the parameters closely are hard to sample as they are. `fd.inference.PathReparam`
    makes the same path a function of standard normal numbers (non-centred), which goes for an `ODE`,
    an `SDE` with any solver and number of steps and noise that does not reach every state too.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (NumPyro's own class attribute)
    reparametrized_params: list[str] = []  # noqa: RUF012  (the same)
    pytree_data_fields = ("model", "series")

    def __init__(
        self,
        model: StateSpaceModel,
        times: Any,
        inputs: Any = None,
        *,
        batch_shape: tuple[int, ...] = (),
        validate_args: bool | None = None,
    ):
        """**Arguments:**

        - `model`: one model, or a batch of shape (S,), whose observation takes no part;
        - `times` (T,), or (S, T); `inputs` (T, du) or (S, T, du), as in a `Series`;
        - `batch_shape`: `()` for one model on one timeline, `(S,)` for a batch; never inferred.

        **Raises:** `ValueError` for shapes that disagree, and for a `Diffuse` start, which is no
        distribution to sample from.
        """
        check_is_model(_NAME, model)
        if isinstance(model.initial, Diffuse):
            raise ValueError(
                f"{_NAME}: `initial` is Diffuse, which has no density; give the model a proper one"
            )
        batch_shape = tuple(int(n) for n in batch_shape)
        check_batch(_NAME, model, times, batch_shape)
        self.model = model
        many = np.ndim(times) > 1
        self.series = blank(_NAME, times, inputs, model.dtype(), batch_shape if many else ())
        event_shape = (self.series.times.shape[-1], model.dx)
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """That of every state, where the start and a `Transition` have the same one."""
        if self.model.batch_shape != ():
            return dist.constraints.independent(dist.constraints.real, 2)
        inputs = self.series.inputs
        u = None if inputs is None else inputs.reshape(-1, inputs.shape[-1])[0]
        return path_support(self.model, u)

    def rows(self, *others: Any) -> tuple[Row, Plan]:
        """The rows of a scan."""
        dtype = self.model.dtype(*others)
        return rows_of(_NAME, self.model, self.series, None, None, dtype)

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        """The log-density of one or more paths (..., T, dx).

        **Raises:** `TypeError` where the transitions have no density that is known."""
        value = float_array(_NAME, "value", value)
        shape = (*self.batch_shape, *self.event_shape)
        if value.shape[-len(shape) :] != shape:
            raise ValueError(
                f"{_NAME}: the value has shape {value.shape}; expected (..., "
                f"{', '.join(str(n) for n in shape)})"
            )
        rows, plan = self.rows(value)
        flat = value.reshape(-1, *shape).astype(rows.time.dtype)
        out = _compiled_log_density(self.model, rows, plan, self.batch_shape, flat)
        return out.reshape(value.shape[:-2])

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Simulated paths, `sample_shape` of them."""
        rows, plan = self.rows()
        keys = jax.random.split(key, (int(np.prod(sample_shape)), *self.batch_shape))
        out = _compiled_sample(self.model, rows, plan, self.batch_shape, keys)
        return out.reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    def normals(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the standard normal numbers that `driven_by` makes one path of: for the start, and
        for the moves, (T - 1, ...).

        **Raises:** `TypeError` if the path is no known function of such numbers."""
        rows, plan = self.rows()
        found: list[Any] = []

        def look(model: StateSpaceModel, rows: Row) -> Array:
            start = bare(model.initial)
            if reparameterized(model.initial, jnp.zeros(model.dx)) is None:
                raise TypeError(
                    f"{_NAME}: `initial` is {type(start).__name__}, which is not known as a function of "
                    "standard normal numbers (Gaussians, transforms of them and Delta are)"
                )
            first = jax.tree.map(lambda x: x[0], rows)
            interval = _interval(first, model.dynamics.tabulate(plan))
            x = jnp.zeros(model.dx, rows.time.dtype)
            found.append(model.dynamics.normals(x, interval))
            return x

        dummy = jnp.zeros((1, *self.batch_shape))
        jax.eval_shape(
            lambda rows, dummy: over_batch(
                lambda m, r, _: look(m, r), self.model, rows, self.batch_shape, dummy
            ),
            rows,
            dummy,
        )
        return (self.model.dx,), (self.event_shape[0] - 1, *found[0])

    def driven_by(self, start: Float[Array, "..."], moves: Float[Array, "..."]) -> Array:
        """The paths (..., T, dx) that standard normal numbers of the shapes of `normals()` make, with the
        same leading axes in both, of which the last ones are `batch_shape`."""
        lead = start.shape[:-1]
        rows, plan = self.rows(start)
        split = len(lead) - len(self.batch_shape)
        flat = lambda x, n: x.reshape(-1, *lead[split:], *x.shape[len(lead) :]) if n else x[None]
        each = flat(start, split), flat(moves, split)
        out = _compiled_path(self.model, rows, plan, self.batch_shape, each)
        return out.reshape(*lead, *self.event_shape)


def _interval(row: Row, table: Any) -> Interval:
    return Interval(row.time_from, row.gap, row.input_from, row.plan, table)


def _log_density(
    model: StateSpaceModel, rows: Row, plan: Plan, batch_shape: tuple[int, ...], paths: Array
) -> Array:
    def one(model: StateSpaceModel, rows: Row, path: Array) -> Array:
        check_model(_NAME, model, rows, any_dy=True)
        table = model.dynamics.tabulate(plan)

        def move(x_to: Array, x_from: Array, row: Row) -> tuple[Array, Array]:
            moves = row.gap > 0
            value = model.dynamics.log_density(x_to, x_from, _interval(row, table))
            return value.astype(path.dtype), moves & jnp.isfinite(value)

        after = jax.tree.map(lambda x: x[1:], rows)
        start = model.initial.log_prob(path[0]).astype(path.dtype)
        if not len(path) > 1:
            return start
        example = (path[1], path[0], jax.tree.map(lambda x: x[0], after))
        values, used = jax.vmap(gated(move, lambda out: out[1], *example))(
            path[1:], path[:-1], after
        )
        still = (path[1:] == path[:-1]).all(1) & (after.gap == 0)
        values = jnp.where(used, values, jnp.where(still, 0.0, -jnp.inf))
        fine = (rows.status == Status.OK).all()
        total = start + values.sum()
        return jnp.where(fine & ~jnp.isnan(total), total, -jnp.inf)

    return over_batch(one, model, rows, batch_shape, paths)


def _sample(
    model: StateSpaceModel, rows: Row, plan: Plan, batch_shape: tuple[int, ...], keys: Array
) -> Array:
    def one(model: StateSpaceModel, rows: Row, key: Array) -> Array:
        check_model(_NAME, model, rows, any_dy=True)
        return simulate_model(model, rows, plan, key)[0]

    return over_batch(one, model, rows, batch_shape, keys)


def _path(
    model: StateSpaceModel, rows: Row, plan: Plan, batch_shape: tuple[int, ...], each: Any
) -> Array:
    def one(model: StateSpaceModel, rows: Row, normals: Any) -> Array:
        check_model(_NAME, model, rows, any_dy=True)
        start, moves = normals
        table = model.dynamics.tabulate(plan)
        x = reparameterized(model.initial, start)
        assert x is not None
        x = x.astype(start.dtype)

        def move(x: Array, at: tuple[Row, Array]) -> tuple[Array, Array]:
            row, normals = at
            moved = model.dynamics.driven_by(x, normals, _interval(row, table)).astype(x.dtype)
            return moved, moved

        after = jax.tree.map(lambda x: x[1:], rows)
        _, path = jax.lax.scan(move, x, (after, moves))
        return jnp.concatenate([x[None], path])

    return over_batch(one, model, rows, batch_shape, each)


_compiled_log_density = compiled("LatentPath.log_prob", _log_density)
_compiled_sample = compiled("LatentPath.sample", _sample)
_compiled_path = compiled("LatentPath.driven_by", _path)
