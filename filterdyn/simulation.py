"""`simulate`: draws of states and observations from a model."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import check_count, check_key
from filterdyn._compile import compiled
from filterdyn.dynamics import Interval, Plan
from filterdyn.filters.rows import Row, rows_of
from filterdyn.filters.verbs import check_is_model, check_model
from filterdyn.model import StateSpaceModel
from filterdyn.series import blank


class Simulation(eqx.Module):
    """Simulated states and observations.

    - `times` (T,);
    - `states` ([num_samples,] T, dx) and `observations` ([num_samples,] T, dy). A solver that runs
      out of steps gives NaN from there on.
    """

    times: Float[Any, " T"]
    states: Float[Array, "*S T dx"]
    observations: Float[Array, "*S T dy"]


def simulate_rows(
    model: StateSpaceModel, start: Float[Array, " dx"], rows: Row, plan: Plan, key: Array
) -> tuple[Float[Array, "T dx"], Float[Array, "T dy"]]:
    """One path that leaves from `start` before the first row, and measurements along it."""
    dtype = rows.observation.dtype
    table = model.dynamics.tabulate(plan)
    keys = jax.random.split(key, rows.time.shape[0])

    def one(x: Array, at: tuple[Row, Array]) -> tuple[Array, tuple[Array, Array]]:
        row, key = at
        key_state, key_observation = jax.random.split(key)
        interval = Interval(row.time_from, row.gap, row.input_from, row.plan, table)
        moved = model.dynamics.sample(key_state, x, interval).astype(dtype)
        x = jnp.where(row.gap > 0, moved, x)
        seen = model.observation.distribution(row.time, x, row.input)
        return x, (x, seen.sample(key_observation).astype(dtype))

    _, (states, observations) = jax.lax.scan(one, start.astype(dtype), (rows, keys))
    return states, observations


def simulate_model(
    model: StateSpaceModel, rows: Row, plan: Plan, key: Array
) -> tuple[Float[Array, "T dx"], Float[Array, "T dy"]]:
    """One path from the initial distribution, and measurements along it."""
    key_start, key_path = jax.random.split(key)
    return simulate_rows(model, model.initial.sample(key_start), rows, plan, key_path)


def _simulate(
    model: StateSpaceModel, rows: Row, plan: Plan, key: Array, num_samples: int | None
) -> tuple[Array, Array]:
    check_model("simulate", model, rows, any_dy=True)
    if num_samples is None:
        return simulate_model(model, rows, plan, key)
    keys = jax.random.split(key, num_samples)
    return jax.vmap(lambda key: simulate_model(model, rows, plan, key))(keys)


_compiled_simulate = compiled("simulate", _simulate)


def simulate(
    model: StateSpaceModel,
    times: Any,
    inputs: Any = None,
    *,
    key: Array,
    num_samples: int | None = None,
    t0: Any = None,
    u0: Any = None,
) -> Simulation:
    """Draw states and observations from the model.

    **Arguments:**

    - `times` (T,), non-decreasing; `inputs` (T, du), `inputs[k]` held on `[times[k], times[k+1])`;
    - `key`: a JAX random key;
    - `num_samples`: how many draws, each a series of its own; `None` is one, without that axis;
    - `t0`: when `initial` holds, by default `times[0]`; `u0` (du,): the input between the two.

    **Returns:** a `Simulation`. Continuous dynamics are simulated with their path solver, discrete
    ones by their own distribution; nothing is linearised.

    **Raises:** `ValueError` for times that decrease and shapes that disagree.
    """
    if num_samples is not None:
        num_samples = check_count("simulate", "num_samples", num_samples)
    check_key("simulate", key)
    check_is_model("simulate", model)
    series = blank("simulate", times, inputs, model.dtype())
    rows, plan = rows_of("simulate", model, series, t0, u0, model.dtype(series.observations))
    states, observations = _compiled_simulate(model, rows, plan, key, num_samples)
    return Simulation(series.times, states, observations)
