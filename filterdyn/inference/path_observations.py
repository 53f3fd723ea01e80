"""Measurements of a path that is known, or sampled, as a NumPyro distribution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from filterdyn._checks import float_array
from filterdyn._compile import compiled
from filterdyn.filters.particle_weights import observed_log_prob
from filterdyn.filters.rows import Row, rows_of
from filterdyn.filters.verbs import check_is_model, check_model
from filterdyn.inference.batch import check_batch, over_batch, series_value
from filterdyn.inference.support import SeriesSupport, series_support
from filterdyn.model import StateSpaceModel
from filterdyn.series import blank
from filterdyn.status import Status

_NAME = "PathObservations"


class PathObservations(dist.Distribution):
    """The distribution of the measurements along a path, event shape (T, dy); see `LatentPath`.

    Given the path, rows are independent. NaN marks a missing entry, which adds nothing. The batch
    shape is that of the paths.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (NumPyro's own class attribute)
    reparametrized_params: list[str] = []  # noqa: RUF012  (the same)
    pytree_data_fields = ("model", "series", "path")

    def __init__(
        self,
        model: StateSpaceModel,
        times: Any,
        path: Float[Array, "*S T dx"],
        inputs: Any = None,
        *,
        validate_args: bool | None = None,
    ):
        """**Arguments:**

        - `model`: one model, or a batch of shape (S,), of which the observation takes part;
        - `times` (T,), or (S, T); `inputs` (T, du) or (S, T, du), as in a `Series`;
        - `path` (..., T, dx): the states.

        **Raises:** `ValueError` for shapes that disagree.
        """
        check_is_model(_NAME, model)
        self.path = float_array(_NAME, "path", path)
        many = np.ndim(times) > 1
        if self.path.ndim < 2 or self.path.shape[-2:] != (np.shape(times)[-1], model.dx):
            raise ValueError(
                f"{_NAME}: `path` has shape {self.path.shape}; expected (..., "
                f"{np.shape(times)[-1]}, {model.dx}), a state for every time"
            )
        batch_shape = self.path.shape[:-2]
        of_models = model.batch_shape or (np.shape(times)[:-1] if many else ())
        check_batch(_NAME, model, times, batch_shape[len(batch_shape) - len(of_models) :])
        self.model = model
        self.series = blank(_NAME, times, inputs, model.dtype(), of_models if many else ())

        def look(model: StateSpaceModel, rows: Row, x: Array) -> Array:
            u = None if rows.input is None else rows.input[0]
            return model.observation.distribution(rows.time[0], x[0], u).sample(jax.random.key(0))

        one = jnp.zeros((1, *of_models, *self.path.shape[-2:]), model.dtype())
        rows, _ = self._rows()
        shape = jax.eval_shape(lambda x: over_batch(look, model, rows, of_models, x), one).shape
        event_shape = (self.path.shape[-2], shape[-1])
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def support(self) -> SeriesSupport:
        """What the observation distribution supports, entry by entry; NaN is missing."""
        if self.model.batch_shape != ():
            return SeriesSupport(dist.constraints.real)
        inputs = self.series.inputs
        u = None if inputs is None else inputs.reshape(-1, inputs.shape[-1])[0]
        return series_support(self.model, u)

    def _rows(self, *others: Any) -> tuple[Row, Any]:
        dtype = self.model.dtype(self.path, *others)
        return rows_of(_NAME, self.model, self.series, None, None, dtype)

    @property
    def _of_models(self) -> tuple[int, ...]:
        """The batch shape of the models and timelines."""
        return self.model.batch_shape or self.series.times.shape[:-1]

    def log_likelihoods(self, value: Any) -> Float[Array, "*S T"]:
        """log p(y_t | x_t) in every row; their sum is `log_prob`."""
        value = series_value(_NAME, value, self.batch_shape, self.event_shape)
        path = jnp.broadcast_to(self.path, (*value.shape[:-2], *self.path.shape[-2:]))
        rows, _ = self._rows(value)
        return _compiled_log_density(self.model, rows, self._of_models, (path, value))

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        """The log-density of one or more series, from which missing (NaN) entries are left out."""
        return self.log_likelihoods(value).sum(-1)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Measurements along the paths, `sample_shape` of them, nothing missing."""
        shape = (*sample_shape, *self.batch_shape)
        path = jnp.broadcast_to(self.path, (*shape, *self.path.shape[-2:]))
        rows, _ = self._rows()
        each = path, jax.random.split(key, shape)
        return _compiled_sample(self.model, rows, self._of_models, each)


def measured(model: StateSpaceModel, row: Row, x: Float[Array, " dx"]) -> Float[Array, ""]:
    """log p(y | x) of one row: 0 where nothing is observed, `-inf` where it is impossible."""
    y = row.observation.astype(row.time.dtype)
    observed = ~jnp.isnan(y)
    nearest = model.observation.nearest(row.time, x, row.input, y)
    filled = jnp.where(observed, nearest, 0.0)
    d = model.observation.distribution(row.time, x, row.input)
    value, status = observed_log_prob(d, filled, observed)
    value = jnp.where((status == Status.OK) & ~jnp.isnan(value), value, -jnp.inf)
    return jnp.where(observed.any(), value, 0.0).astype(row.time.dtype)


def _flattened(
    function: Any, model: StateSpaceModel, rows: Row, of_models: tuple[int, ...], each: Any
) -> Array:
    path = each[0]
    lead = path.shape[: path.ndim - 2]
    own = len(lead) - len(of_models)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[own:]), each)
    out = over_batch(function, model, rows, of_models, flat)
    return out.reshape(*lead, *out.shape[1 + len(of_models) :])


def _log_density(
    model: StateSpaceModel, rows: Row, of_models: tuple[int, ...], each: Any
) -> Float[Array, "*S T"]:
    def one(model: StateSpaceModel, rows: Row, each: Any) -> Array:
        path, y = each
        rows = rows._replace(observation=y)
        check_model(_NAME, model, rows)
        one_row = lambda row, x: measured(model, row, x)
        return jax.vmap(one_row)(rows, path.astype(rows.time.dtype))

    return _flattened(one, model, rows, of_models, each)


def _sample(
    model: StateSpaceModel, rows: Row, of_models: tuple[int, ...], each: Any
) -> Float[Array, "*S T dy"]:
    def one(model: StateSpaceModel, rows: Row, each: Any) -> Array:
        def row(row: Row, x: Array, key: Array) -> Array:
            drawn = model.observation.distribution(row.time, x, row.input).sample(key)
            return drawn.astype(row.time.dtype)

        path, key = each
        check_model(_NAME, model, rows, any_dy=True)
        keys = jax.random.split(key, len(path))
        return jax.vmap(row)(rows, path.astype(rows.time.dtype), keys)

    return _flattened(one, model, rows, of_models, each)


_compiled_log_density = compiled("PathObservations.log_prob", _log_density)
_compiled_sample = compiled("PathObservations.sample", _sample)
