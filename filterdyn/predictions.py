"""`predict` and `free_run`: what a model says of the measurements of a series that it has not seen."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from filterdyn._checks import check_count
from filterdyn._compile import compiled
from filterdyn.beliefs import Ensemble
from filterdyn.diagnostics.scores import Scores, scores
from filterdyn.dynamics import Interval, Plan
from filterdyn.filters import running, sampling_scan
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling import (
    AbstractSamplingFilter,
    finite_status,
    observation_moments,
)
from filterdyn.filters.sampling_verbs import require_key
from filterdyn.filters.scan import State, advance, first_failure
from filterdyn.filters.stepping import AnyFilter
from filterdyn.filters.verbs import check_model, prepare
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series
from filterdyn.status import Status


class Predictions(eqx.Module):
    """Measurements, and what was said of each before it was seen.

    - `times` (T,), `measured` (T, dy): those of the series;
    - `mean` (T, dy), `cov` (T, dy, dy): of the measurement, its noise included; NaN in rows of which
      nothing is predicted, and where a filter failed;
    - `status` (T,): integers of `Status`;
    - `kind`: `"3 rows ahead"`, or `"free run after 20 rows"`. Scores of two kinds do not compare.
    """

    times: Float[Any, " T"]
    measured: Float[Array, "T dy"]
    mean: Float[Array, "T dy"]
    cov: Float[Array, "T dy dy"]
    status: Int[Array, " T"]
    kind: str = eqx.field(static=True)

    @property
    def residuals(self) -> Float[Array, "T dy"]:
        """What was measured less what was predicted."""
        return self.measured - self.mean

    def scores(self, probability: float = 0.9) -> Scores:
        """`diagnostics.scores` of the rows of which something is predicted."""
        variance = np.diagonal(np.asarray(self.cov), axis1=1, axis2=2)
        said = ~np.isnan(np.asarray(self.mean)).all(axis=1)
        parts = (np.asarray(self.measured), np.asarray(self.mean), variance)
        return scores(*(part[said] for part in parts), probability=probability)


def _followed(
    filter: AnyFilter, model: StateSpaceModel, rows: Row, plan: Plan, key: Array | None
) -> State:
    """The belief after every row, and the statuses."""
    if isinstance(filter, AbstractSamplingFilter):
        assert key is not None
        keep = lambda r: State(r.filtered, r.status)
        return sampling_scan.run(filter, model, rows, plan, key, keep)[2]
    return running.run(filter, model, rows, plan, lambda r: State(r.filtered, r.status))[2]


def _moved(
    filter: AnyFilter, model: StateSpaceModel, table: Any, state: State, row: Row, key: Array | None
) -> State:
    """The belief at `row`, of whose measurement nothing is known."""
    if isinstance(filter, AbstractSamplingFilter):
        assert key is not None
        interval = Interval(row.time_from, row.gap, row.input_from, row.plan, table)
        belief, status = filter.advance(model, state.belief, interval, key)
        return State(belief, first_failure(state.status, row.status, status, finite_status(belief)))
    belief, _, status = advance(filter, model, table, state, row)
    return State(belief, status)


def _seen(
    filter: AnyFilter, model: StateSpaceModel, belief: Any, t: Array, u: Any
) -> tuple[Float[Array, " dy"], Float[Array, "dy dy"]]:
    """Mean and covariance of a measurement."""
    if isinstance(filter, AbstractSamplingFilter):
        x, weights = filter.moments(belief)
        spread = len(x) / (len(x) - 1) if isinstance(belief, Ensemble) else 1.0
        return observation_moments(model, x, weights, t, u, spread)
    return filter.predict_observation(model, belief, t, u).moments()


def _visible(fine: Array, mean: Array, cov: Array) -> tuple[Array, Array]:
    return jnp.where(fine[:, None], mean, jnp.nan), jnp.where(fine[:, None, None], cov, jnp.nan)


def predict_rows(
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: AnyFilter,
    key: Array | None,
    ahead: int,
) -> tuple[Float[Array, "T dy"], Float[Array, "T dy dy"], Int[Array, " T"]]:
    """Moments of the measurement in every row, given those up to `ahead` rows before."""
    followed = _followed(filter, model, rows, plan, key)
    table = model.dynamics.tabulate(plan)

    def one(start: Array) -> tuple[Array, Array, Array]:
        state = jax.tree.map(lambda x: x[start], followed)

        def move(state: State, i: Array) -> tuple[State, None]:
            row = jax.tree.map(lambda x: x[start + i], rows)
            draw = None if key is None else jax.random.fold_in(jax.random.fold_in(key, start), i)
            return _moved(filter, model, table, state, row, draw), None

        end, _ = jax.lax.scan(move, state, 1 + jnp.arange(ahead))
        u = None if rows.input is None else rows.input[start + ahead]
        return *_seen(filter, model, end.belief, rows.time[start + ahead], u), end.status

    mean, cov, status = jax.vmap(one)(jnp.arange(len(rows.time) - ahead))
    mean, cov = _visible(status == Status.OK, mean, cov)
    nothing = lambda x: jnp.full((ahead, *x.shape[1:]), jnp.nan, x.dtype)
    return (
        jnp.concatenate([nothing(mean), mean]),
        jnp.concatenate([nothing(cov), cov]),
        jnp.concatenate([followed.status[:ahead], status]),
    )


def run_freely(
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: AnyFilter,
    key: Array | None,
    burn_in: int,
) -> tuple[Float[Array, "T dy"], Float[Array, "T dy dy"], Int[Array, " T"]]:
    """Moments of the measurement in every row after the burn-in, given those of the burn-in."""
    rows = rows._replace(observation=rows.observation.at[burn_in:].set(jnp.nan))
    plan = Plan(plan.rows, plan.gaps, plan.most)
    followed = _followed(filter, model, rows, plan, key)
    see = lambda belief, t, u: _seen(filter, model, belief, t, u)
    in_axes = (0, 0, None if rows.input is None else 0)
    mean, cov = jax.vmap(see, in_axes)(followed.belief, rows.time, rows.input)
    later = jnp.arange(len(mean)) >= burn_in
    return *_visible(later & (followed.status == Status.OK), mean, cov), followed.status


def _predict(model: StateSpaceModel, rows: Row, plan: Plan, *settings: Any) -> tuple[Array, ...]:
    check_model("predict", model, rows)
    return predict_rows(model, rows, plan, *settings)


def _free_run(model: StateSpaceModel, rows: Row, plan: Plan, *settings: Any) -> tuple[Array, ...]:
    check_model("free_run", model, rows)
    return run_freely(model, rows, plan, *settings)


_compiled_predict = compiled("predict", _predict)
_compiled_free_run = compiled("free_run", _free_run)


def predict(
    model: StateSpaceModel,
    series: Series,
    filter: AnyFilter,
    *,
    ahead: int = 1,
    key: Array | None = None,
    t0: Any = None,
    u0: Any = None,
) -> Predictions:
    """Every measurement, predicted from those up to `ahead` rows before it.

    **Arguments:** as of `fd.filter`; `ahead`: how many rows. The inputs between are known.

    **Returns:** `Predictions`; nothing is said of the first `ahead` rows.

    **Raises:** as `fd.filter`, and `ValueError` unless `ahead` is at least 1 and less than the rows.
    """
    ahead = check_count("predict", "ahead", ahead)
    rows, plan = prepare("predict", model, series, filter, t0, u0)
    if ahead >= len(series):
        raise ValueError(
            f"predict: `ahead` is {ahead} but the series has {len(series)} rows; expected fewer"
        )
    key = require_key("predict", filter, key)
    mean, cov, status = _compiled_predict(model, rows, plan, filter, key, ahead)
    kind = f"{ahead} row{'s' if ahead > 1 else ''} ahead"
    return Predictions(series.times, series.observations, mean, cov, status, kind)


def free_run(
    model: StateSpaceModel,
    series: Series,
    filter: AnyFilter,
    *,
    burn_in: int = 0,
    key: Array | None = None,
    t0: Any = None,
    u0: Any = None,
) -> Predictions:
    """Every measurement after the burn-in, from the inputs and the measurements of the burn-in alone.

    What is called simulation in system identification. Draws of such runs are those of `fd.forecast`.

    **Arguments:** as of `fd.filter`; `burn_in`: rows at the start that say where the state is.

    **Returns:** `Predictions`; nothing is said of the rows of the burn-in.

    **Raises:** as `fd.filter`, and `ValueError` unless `burn_in` is at least 0 and less than the rows.
    """
    if isinstance(burn_in, bool) or not isinstance(burn_in, int) or burn_in < 0:
        raise ValueError(f"free_run: `burn_in` is {burn_in!r}; expected an integer >= 0")
    rows, plan = prepare("free_run", model, series, filter, t0, u0)
    if burn_in >= len(series):
        raise ValueError(
            f"free_run: `burn_in` is {burn_in} but the series has {len(series)} rows; expected fewer"
        )
    key = require_key("free_run", filter, key)
    mean, cov, status = _compiled_free_run(model, rows, plan, filter, key, burn_in)
    rest = f" after {burn_in} row{'s' if burn_in > 1 else ''}" if burn_in else ""
    return Predictions(series.times, series.observations, mean, cov, status, f"free run{rest}")
