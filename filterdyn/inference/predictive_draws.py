"""One draw of a series anew, of every row given those before it, and of rows to come."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from filterdyn._checks import is_traced
from filterdyn.dynamics import Plan
from filterdyn.filters import sampling_scan
from filterdyn.filters.rows import Row, rows_of
from filterdyn.filters.running import run
from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.filters.verbs import check_model
from filterdyn.inference.batch import over_batch
from filterdyn.inference.draws import AnySeries
from filterdyn.inference.observed_series import ObservedSeries
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series, blank
from filterdyn.simulation import simulate_model, simulate_rows
from filterdyn.status import Status

#: What a draw consists of: arrays (*value, T, ...) by the ending of their names.
Drawn = Mapping[str, Array]


def replicate(owner: str, distribution: AnySeries, value: Array, key: Array) -> Drawn:
    """Series with states and noise of their own from the start, as many as `value` has."""
    lead = value.shape[:-2]
    if isinstance(distribution, ObservedSeries):
        return {"": distribution.sample(key, lead[: len(lead) - len(distribution.batch_shape)])}
    rows, plan = distribution._rows()
    of_models = distribution._of_models

    def one(model: StateSpaceModel, rows: Row, key: Array) -> Array:
        check_model(owner, model, rows, any_dy=True)
        return simulate_model(model, rows, plan, key)[1]

    keys = _flat(jax.random.split(key, lead), lead, of_models)
    return {"": _shaped(over_batch(one, distribution.model, rows, of_models, keys), lead)}


def predict_rows(owner: str, distribution: AnySeries, value: Array, key: Array) -> Drawn:
    """Every row given the rows before it: a state from the belief of the filter, a measurement at it.

    Of a Gaussian filter, mean and standard deviation of the measurement come too, as the filter has
    them in its likelihood.
    """
    if not isinstance(distribution, ObservedSeries):
        raise TypeError(
            f"{owner}: a prediction one row ahead needs a filter; the site is a "
            "PathObservations, for which there are `replicated` and `forecast`"
        )
    rows, plan, flat, lead = distribution.flat(value)
    filter = distribution.filter

    def one(model: StateSpaceModel, rows: Row, given: tuple[Array, Array]) -> Drawn:
        y, key = given
        rows = rows._replace(observation=y.astype(rows.observation.dtype))
        check_model(owner, model, rows)
        key_filter, key_draw = jax.random.split(key)
        if isinstance(filter, AbstractSamplingFilter):
            keep = lambda r: (r.predicted, r.status == Status.OK)
            beliefs, fine = sampling_scan.run(filter, model, rows, plan, key_filter, keep)[2]
        else:
            keep = lambda r: (r.predicted, r.status == Status.OK)
            beliefs, fine = run(filter, model, rows, plan, keep)[2]

        def draw(belief: Any, fine: Array, row: Row, key: Array) -> Drawn:
            key_state, key_noise = jax.random.split(key)
            x = belief.sample(key_state)
            seen = model.observation.distribution(row.time, x, row.input)
            out = {"": seen.sample(key_noise).astype(y.dtype)}
            if not isinstance(filter, AbstractSamplingFilter):
                predicted = filter.predict_observation(model, belief, row.time, row.input)
                mean, cov = predicted.moments()
                out |= {"_mean": mean, "_sd": jnp.sqrt(jnp.diagonal(cov))}
            return {name: jnp.where(fine, x, jnp.nan) for name, x in out.items()}

        return jax.vmap(draw)(beliefs, fine, rows, jax.random.split(key_draw, len(fine)))

    of_models = distribution.batch_shape
    each = flat, _flat(jax.random.split(key, lead), lead, of_models)
    return _shaped(over_batch(one, distribution.model, rows, of_models, each), lead)


class Ahead:
    """A draw of the rows at later times, with inputs at them."""

    def __init__(self, times: Any, inputs: Any):
        self.times = times
        self.inputs = inputs

    def series(self, owner: str, known: Series, dtype: Any) -> Series:
        """**Raises:** `ValueError` for times before the last row, and shapes that disagree."""
        batch = known.times.shape[:-1]
        times = self.times if is_traced(self.times) else np.asarray(self.times)
        if np.ndim(times) == 1 and batch:
            xp = jnp if is_traced(times) else np
            times = xp.broadcast_to(times, (*batch, *np.shape(times)))
        inputs = self.inputs
        if known.inputs is not None:
            last = known.inputs[..., -1:, :]
            du = last.shape[-1]
            if inputs is None:
                inputs = jnp.broadcast_to(last, (*np.shape(times), du))
            elif np.ndim(inputs) == 1 and du == 1:
                inputs = jnp.broadcast_to(jnp.asarray(inputs)[:, None], (*np.shape(times), 1))
            elif np.ndim(inputs) < np.ndim(times) + 1 and batch:
                inputs = jnp.broadcast_to(jnp.asarray(inputs), (*np.shape(times), du))
        ahead = blank(owner, times, inputs, dtype, batch)
        late = known.times[..., -1]
        if not is_traced((ahead.times, late)) and np.any(ahead.times[..., 0] < late):
            raise ValueError(
                f"{owner}: `times` begins at {ahead.times[..., 0].tolist()!r}, before the last row at "
                f"{np.asarray(late).tolist()!r}; expected times of rows to come"
            )
        return ahead

    def __call__(self, owner: str, distribution: AnySeries, value: Array, key: Array) -> Drawn:
        """States from the last belief of the filter, or from the end of the path, moved on."""
        known, model = distribution.series, distribution.model
        dtype = model.dtype(value)
        ahead = self.series(owner, known, dtype)
        u = None if known.inputs is None else known.inputs[..., -1, :]
        rows, plan = rows_of(owner, model, ahead, known.times[..., -1], u, dtype)
        if isinstance(distribution, ObservedSeries):
            return _after_filter(owner, distribution, value, key, rows, plan)
        return _after_path(distribution, value, key, rows, plan)


def _after_filter(
    owner: str, distribution: ObservedSeries, value: Array, key: Array, ahead: Row, plan: Plan
) -> Drawn:
    rows, past, flat, lead = distribution.flat(value)
    filter, nothing = distribution.filter, lambda record: None

    def one(model: StateSpaceModel, rows: Row, given: tuple[Array, Array, Row]) -> Array:
        y, key, ahead = given
        rows = rows._replace(observation=y.astype(rows.observation.dtype))
        check_model(owner, model, rows)
        key_filter, key_start, key_path = jax.random.split(key, 3)
        state: Any
        if isinstance(filter, AbstractSamplingFilter):
            state = sampling_scan.run(filter, model, rows, past, key_filter, nothing)[0]
        else:
            state = run(filter, model, rows, past, nothing)[0]
        start = state.belief.sample(key_start)
        seen = simulate_rows(model, start, ahead, plan, key_path)[1]
        return jnp.where(state.status == Status.OK, seen, jnp.nan)

    of_models = distribution.batch_shape
    each = (
        flat,
        _flat(jax.random.split(key, lead), lead, of_models),
        _rows_of_each(ahead, len(flat), of_models),
    )
    return {"": _shaped(over_batch(one, distribution.model, rows, of_models, each), lead)}


def _after_path(distribution: Any, value: Array, key: Array, ahead: Row, plan: Plan) -> Drawn:
    lead, of_models = value.shape[:-2], distribution._of_models
    last = distribution.path[..., -1, :]
    last = jnp.broadcast_to(last, (*lead, last.shape[-1]))

    def one(model: StateSpaceModel, rows: Row, given: tuple[Array, Array]) -> Array:
        x, key = given
        return simulate_rows(model, x, rows, plan, key)[1]

    keys = jax.random.split(key, lead)
    each = _flat(last, lead, of_models), _flat(keys, lead, of_models)
    return {"": _shaped(over_batch(one, distribution.model, ahead, of_models, each), lead)}


def _flat(each: Array, lead: tuple[int, ...], of_models: tuple[int, ...]) -> Array:
    """The axes `lead` as one, followed by those of the models."""
    return each.reshape(-1, *of_models, *each.shape[len(lead) :])


def _shaped(drawn: Any, lead: tuple[int, ...]) -> Any:
    """Arrays (n, *of_models, ...) with the axes `lead`."""
    rest: Callable[[Array], tuple[int, ...]] = lambda x: x.shape[-2:]
    return jax.tree.map(lambda x: x.reshape(*lead, *rest(x)), drawn)


def _rows_of_each(rows: Row, n: int, of_models: tuple[int, ...]) -> Row:
    """The same rows for each of n series of every model."""
    many = rows.time.ndim > 1
    lead = (n, *(() if many else of_models))
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*lead, *x.shape)), rows)
