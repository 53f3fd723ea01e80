"""`forecast`: the state and the measurements after the last row."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from filterdyn._checks import check_count, check_is_one, is_traced
from filterdyn._compile import compiled
from filterdyn.dynamics import Plan
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.predicted import PredictedObservation, SampledObservation
from filterdyn.filters.results import FilterResult, parameters_of
from filterdyn.filters.rows import Row, rows_of
from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.filters.sampling_forecast import forecast_moments
from filterdyn.filters.sampling_scan import SamplingState
from filterdyn.filters.sampling_verbs import require_key
from filterdyn.filters.scan import State, advance, first_failure, is_finite
from filterdyn.filters.stepping import AnyFilter
from filterdyn.filters.verbs import check_is_model, check_model
from filterdyn.linalg import factor_of
from filterdyn.model import StateSpaceModel
from filterdyn.series import blank
from filterdyn.simulation import simulate_rows
from filterdyn.status import Status


class Forecast(eqx.Module):
    """The state and the measurements at later times, given the data so far.

    - `times` (H,);
    - `state_mean` (H, dx), `state_cov` (H, dx, dx);
    - `observation_mean` (H, dy), `observation_cov` (H, dy, dy): of the measurement itself, its noise
      included, in its own units (for `LogNormal` too);
    - `samples` (num_samples, H, dy): simulated measurements, if a key was given, else `None`. They
      start from draws of the last belief and are not linearised. A filter that samples always draws
      them; its `observation_interval` is that of their quantiles;
    - `status`: an integer of `Status`; after a failure everything is NaN.
    """

    times: Float[Any, " H"]
    state_mean: Float[Array, "H dx"]
    state_cov: Float[Array, "H dx dx"] | None
    observation_mean: Float[Array, "H dy"]
    observation_cov: Float[Array, "H dy dy"] | None
    samples: Float[Array, "num_samples H dy"] | None
    status: Int[Array, ""]
    predicted: PredictedObservation | SampledObservation

    def observation_interval(
        self, probability: float
    ) -> tuple[Float[Array, "H dy"], Float[Array, "H dy"]]:
        """Lower and upper end of the central interval of each measurement."""
        return self.predicted.interval(probability)


def _forecast(
    model: StateSpaceModel,
    state: State,
    rows: Row,
    plan: Plan,
    filter: AbstractFilter,
    key: Array | None,
    num_samples: int,
) -> tuple[Any, ...]:
    check_model("forecast", model, rows, any_dy=True)
    table = model.dynamics.tabulate(plan)

    def one(state: State, row: Row) -> tuple[State, Any]:
        belief, _, status = advance(filter, model, table, state, row)
        finite = jnp.where(is_finite(belief.spread.carrier), Status.OK, Status.MODEL_NOT_FINITE)
        status = first_failure(status, finite)
        seen = filter.predict_observation(model, belief, row.time, row.input)
        return State(belief, status), (belief.mean, belief.cov, seen)

    end, (mean, cov, seen) = jax.lax.scan(one, state, rows)
    moments = (mean, cov, *seen.moments())
    samples = None
    if key is not None:
        samples = _samples(model, state.belief, rows, plan, filter, key, num_samples)
    fine = end.status == Status.OK
    visible = lambda tree: jax.tree.map(lambda x: jnp.where(fine, x, jnp.nan), tree)
    return *visible(moments), visible(samples), end.status, visible(seen)


def _samples(
    model: StateSpaceModel,
    belief: Any,
    rows: Row,
    plan: Plan,
    filter: AnyFilter,
    key: Array,
    num_samples: int,
) -> Float[Array, "S H dy"]:
    def one(key: Array) -> Array:
        key_start, key_path = jax.random.split(key)
        here, start = filter.draw(model, belief, key_start)
        if filter.learns and here is model:
            here = _at_what_was_learnt(model, belief, key_start)
        return simulate_rows(here, start, rows, plan, key_path)[1]

    return jax.vmap(one)(jax.random.split(key, num_samples))


def _at_what_was_learnt(model: Any, belief: Any, key: Array) -> Any:
    """The model at a draw of the parameters, or at their estimate where no posterior is claimed."""
    known = parameters_of(belief)
    if known is None or not hasattr(model, "at"):
        return model
    theta, cov = known.unconstrained_mean, known.unconstrained_cov
    if cov is not None:
        noise = jax.random.normal(jax.random.fold_in(key, 1), theta.shape, theta.dtype)
        theta = theta + factor_of(cov) @ noise
    return model.at(theta)


_compiled_forecast = compiled("forecast", _forecast)
_compiled_samples = compiled("forecast", _samples)


def _forecast_by_sampling(
    model: StateSpaceModel,
    times: Any,
    state: SamplingState,
    rows: Row,
    plan: Plan,
    filter: AbstractSamplingFilter,
    key: Array,
    num_samples: int,
) -> Forecast:
    """The moments are those of the filter's draws, moved on; the samples start from some of them."""
    key_moments, key_samples = jax.random.split(key)
    check_model("forecast", model, rows, any_dy=True)
    mean, cov, seen, status = forecast_moments(model, state, rows, plan, filter, key_moments)
    samples = _compiled_samples(model, state.belief, rows, plan, filter, key_samples, num_samples)
    samples = jnp.where(status == Status.OK, samples, jnp.nan)
    if seen is None:
        seen = (samples.mean(0), None)
    predicted = SampledObservation(samples)
    return Forecast(times, mean, cov, seen[0], seen[1], samples, status, predicted)


def forecast_from(
    model: StateSpaceModel,
    filter: AnyFilter,
    state: State | SamplingState,
    last_time: Any,
    last_input: Any,
    times: Any,
    inputs: Any,
    key: Array | None,
    num_samples: int,
) -> Forecast:
    """The forecast from a belief that holds at `last_time`."""
    num_samples = check_count("forecast", "num_samples", num_samples)
    require_key("forecast", filter, key)
    if inputs is None and last_input is not None:
        inputs = jnp.broadcast_to(last_input, (*np.shape(times), *last_input.shape))
    check_is_model("forecast", model)
    dtype = state.belief.mean.dtype
    series = blank("forecast", times, inputs, dtype)
    if not is_traced((series.times, last_time)) and series.times[0] < np.asarray(last_time):
        raise ValueError(
            f"forecast: `times` begins at {float(series.times[0])!r}, before the last filtered row at "
            f"{float(last_time)!r}"
        )
    rows, plan = rows_of("forecast", model, series, last_time, last_input, dtype)
    if isinstance(filter, AbstractSamplingFilter):
        assert key is not None and isinstance(state, SamplingState)
        return _forecast_by_sampling(
            model, series.times, state, rows, plan, filter, key, num_samples
        )
    return Forecast(
        series.times, *_compiled_forecast(model, state, rows, plan, filter, key, num_samples)
    )


def forecast(
    model: StateSpaceModel,
    result: FilterResult,
    times: Any,
    inputs: Any = None,
    *,
    key: Array | None = None,
    num_samples: int = 1000,
) -> Forecast:
    """The state and the measurements at `times`, given the series that was filtered.

    **Arguments:**

    - `model`, `result`: the model and what `filter` returned for it;
    - `times` (H,), non-decreasing, from the last row on; discrete dynamics make one transition to
      each;
    - `inputs` (H, du), as in a `Series`; `None` holds the last input;
    - `key`, `num_samples`: with a key, that many simulated futures come too; a filter that samples
      needs one.

    **Returns:** a `Forecast`.

    **Raises:** `ValueError` for times before the last row, shapes that disagree and a batch of results.
    """
    if not isinstance(result, FilterResult):
        raise TypeError(
            f"forecast: `result` is {type(result).__name__}; expected what fd.filter returned"
        )
    check_is_one("forecast", "result", result, result.times)
    rows = result._rows
    last = State(result.last, result.statuses[-1]) if rows is None else rows.last
    return forecast_from(
        model,
        result.filter,
        last,
        result.times[-1],
        result.last_input,
        times,
        inputs,
        key,
        num_samples,
    )
