"""A filter that takes one measurement at a time."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from filterdyn._checks import as_numbers, check_shape, is_traced
from filterdyn._compile import inside_a_trace
from filterdyn.dynamics import Plan
from filterdyn.filters.results import squared_norm
from filterdyn.filters.rows import Row, clock_status
from filterdyn.filters.sampling_scan import FULL, SamplingState
from filterdyn.filters.sampling_verbs import require_key
from filterdyn.filters.scan import State, add, finite_term
from filterdyn.filters.stepping import AnyFilter, start, step
from filterdyn.filters.verbs import check_is_filter, check_is_model, check_model
from filterdyn.forecasting import Forecast, forecast_from
from filterdyn.model import StateSpaceModel
from filterdyn.status import Status

_NAME = "OnlineFilter"


class OnlineState(NamedTuple):
    """Where an online filter stands: a pytree.

    - `time`: of the last row, float64 on the host (or traced);
    - `input` (du,): the last input, held until the next row;
    - `belief`: the state given everything so far; `mean` (dx,) and `cov` (dx, dx) are its own;
    - `log_likelihood`: log p of everything so far, `-inf` after a failure;
    - `status`: an integer of `Status`, `OK` or the first failure.
    """

    time: Any
    input: Float[Array, " du"] | None
    filter_state: State | SamplingState
    total: Float[Array, ""]
    #: What rounding took from `total` (Neumaier 1974).
    lost: Float[Array, ""]

    @property
    def belief(self) -> Any:
        return self.filter_state.belief

    @property
    def mean(self) -> Float[Array, " dx"]:
        return self.belief.mean

    @property
    def cov(self) -> Float[Array, "dx dx"]:
        return self.belief.cov

    @property
    def status(self) -> Int[Array, ""]:
        return self.filter_state.status

    @property
    def log_likelihood(self) -> Float[Array, ""]:
        return jnp.where(self.status == Status.OK, self.total + self.lost, -jnp.inf)


class StepResult(NamedTuple):
    """What one measurement said.

    - `mean` (dx,), `cov` (dx, dx): the state given everything so far;
    - `innovation` (dy,), NaN where the entry is missing, and `innovation_cov` (dy, dy): the
      measurement less its prediction (of a transformed Gaussian, in the space where it is Gaussian);
    - `log_likelihood`: log p(y_t | y_1:t-1), exactly 0 if all is missing;
    - `nis`: normalised innovation squared, chi-square with as many degrees of freedom as there are
      observed entries if the model is right; NaN if all is missing;
    - `status`: an integer of `Status`. After a failure everything else is NaN, the log-likelihood
      `-inf`, and the state stays at its last good belief;
    - `diagnostics`: of an ensemble or particle filter, by name (`effective_sample_size`, ...).

    An ensemble or particle filter of more than 64 states gives `None` as `cov`, of more than 64
    measurements as `innovation_cov`.
    """

    mean: Float[Array, " dx"]
    cov: Float[Array, "dx dx"] | None
    innovation: Float[Array, " dy"]
    innovation_cov: Float[Array, "dy dy"] | None
    log_likelihood: Float[Array, ""]
    nis: Float[Array, ""]
    status: Int[Array, ""]
    diagnostics: Any = None


class OnlineFilter:
    """Follows a system measurement by measurement, with the step of the batch verb `filter`:

        online = fd.OnlineFilter(model, fd.ExtendedKalmanFilter())
        state = online.init(t0)
        for t, y in stream:
            state, result = online.step(state, t, y)

    The state is a value: keep it, copy it, go back to it. One compilation serves all steps.
    """

    def __init__(self, model: StateSpaceModel, filter: AnyFilter):
        """**Raises:** `TypeError` if the filter cannot treat the model; `ValueError` for dynamics with
        `dt` and without `max_substeps`: how long a gap will be is not known beforehand."""
        check_is_model(_NAME, model)
        check_is_filter(_NAME, filter)
        filter.check(model)
        self.model = model
        self.filter = filter
        # Dynamics that cannot plan for unknown gaps say so now and not at the first step.
        jax.eval_shape(lambda gaps: model.dynamics.plan(gaps), jnp.zeros(1))
        self._arrays, self._static = eqx.partition((model, filter), eqx.is_array)
        self._jitted = jax.jit(self._run)

    def init(self, t0: Any, u0: Any = None, *, key: Array | None = None) -> OnlineState:
        """The state before any measurement.

        **Arguments:** `t0`: when `initial` holds; a first measurement at `t0` meets it without a
        prediction, a later one after it. `u0` (du,): the input from `t0` to the first measurement.
        `key`: a random key, needed by filters that sample only; it is carried in the state, so that a
        stream repeats the numbers of `fd.filter(..., key=key)`.
        """
        require_key(f"{_NAME}.init", self.filter, key)
        dtype = self.model.dtype()
        if not is_traced(t0):
            t0 = np.float64(t0)
            if not np.isfinite(t0):
                raise ValueError(f"{_NAME}.init: `t0` is {t0}; expected a finite time")
        if u0 is not None:
            u0 = self._vector("u0", u0, dtype, lambda x: ~np.isfinite(x), "NaN or infinite entries")
        zero = jnp.zeros((), dtype)
        begin = start(self.filter, self.model, dtype, key)
        return OnlineState(t0, u0, begin, zero, zero)

    def step(
        self, state: OnlineState, t: Any, y: Any, u: Any = None
    ) -> tuple[OnlineState, StepResult]:
        """Predict to time `t` with the stored input, then observe `y` with the input `u`.

        **Arguments:**

        - `state`: what `init` or the step before returned;
        - `t`: not before the state's time; the same time is a second sensor at one instant;
        - `y` (dy,) or a number: the measurement, NaN where an entry is missing;
        - `u` (du,) or a number: the input from `t` on, which the measurement sees; `None` holds the
          stored one.

        **Raises:** `ValueError` for a time before the state's, a measurement of another shape or with
        infinite entries.
        """
        row, plan = self._row(state, t, y, u)
        if is_traced((state, row, self._arrays)) or inside_a_trace():
            new, result = self._run(self._arrays, state[2:], row, plan)
        else:
            new, result = self._jitted(self._arrays, state[2:], row, plan)
        time = t if is_traced(t) else np.float64(t)
        return OnlineState(time, row.input, *new), result

    def forecast(
        self,
        state: OnlineState,
        times: Any,
        inputs: Any = None,
        *,
        key: Array | None = None,
        num_samples: int = 1000,
    ) -> Forecast:
        """The state and the measurements at `times`; arguments and result as for `fd.forecast`."""
        return forecast_from(
            self.model,
            self.filter,
            state.filter_state,
            state.time,
            state.input,
            times,
            inputs,
            key,
            num_samples,
        )

    def _run(self, arrays: Any, carry: Any, row: Row, plan: Plan) -> tuple[Any, StepResult]:
        model, filter = eqx.combine(arrays, self._static)
        dy = (model.dy(row.time, row.input),)
        check_shape(f"{_NAME}.step", "y", row.observation, dy, "the observation's entries")
        check_model(_NAME, model, jax.tree.map(lambda x: x[None], row))
        filter_state, total, lost = carry
        table = model.dynamics.tabulate(plan)
        new, record = step(filter, model, table, filter_state, row)
        total, lost = add(total, lost, finite_term(record))
        sampled = isinstance(new, SamplingState)
        result = StepResult(
            record.filtered.mean,
            None if sampled and model.dx > FULL else record.filtered.cov,
            record.innovation,
            None if sampled and dy[0] > FULL else record.innovation_cov,
            record.log_likelihood,
            squared_norm(record.standardized),
            record.status,
            record.diagnostics if sampled else None,
        )
        return (new, total, lost), result

    def _row(self, state: OnlineState, t: Any, y: Any, u: Any) -> tuple[Row, Plan]:
        dtype = state.mean.dtype
        y = self._vector("y", y, dtype, np.isinf, "infinite entries; NaN marks a missing one")
        xp = jnp if is_traced((state.time, t)) else np
        if xp is np:
            t = np.float64(t)
            if not t >= state.time:
                raise ValueError(
                    f"{_NAME}.step: `t` is {float(t)!r}, before the last row at "
                    f"{float(state.time)!r}; expected a time that is not earlier"
                )
        times = xp.asarray(t)[None]
        gaps = times - state.time
        before, now = self._inputs(state.input, u, gaps, dtype)
        plan = self.model.dynamics.plan(gaps)
        status = clock_status(times, gaps, xp is jnp and times.dtype != jnp.float64)
        row = Row(
            xp.asarray(state.time, dtype),
            gaps[0].astype(dtype),
            before,
            xp.asarray(t, dtype),
            now,
            y,
            status[0],
            None if plan.rows is None else plan.rows[0],
        )
        return row, plan.cast(dtype)

    def _inputs(self, held: Any, u: Any, gaps: Any, dtype: Any) -> tuple[Any, Any]:
        """The input over the gap and the one that the measurement sees."""
        if u is None:
            return held, held
        u = self._vector("u", u, dtype, lambda x: ~np.isfinite(x), "NaN or infinite entries")
        if held is not None:
            if held.shape != u.shape:
                raise ValueError(
                    f"{_NAME}.step: `u` has shape {u.shape} but the input before has shape "
                    f"{held.shape}"
                )
            return held, u
        if not self.model.dynamics.is_linear and (is_traced(gaps) or gaps[0] > 0):
            raise ValueError(
                f"{_NAME}.step: the input since `t0` is missing, and "
                f"{type(self.model.dynamics).__name__} needs it; give it to init as `u0`"
            )
        return np.zeros_like(u) if isinstance(u, np.ndarray) else jnp.zeros_like(u), u

    def _vector(self, name: str, value: Any, dtype: Any, bad: Any, what: str) -> Any:
        """A number or a vector, on the host where it is concrete: no device call per argument."""
        if is_traced(value):
            value = jnp.asarray(value, dtype)
        else:
            value = as_numbers(_NAME, name, value).astype(dtype)
            if bad(value).any():
                raise ValueError(f"{_NAME}: `{name}` has {what}")
        if value.ndim > 1:
            raise ValueError(f"{_NAME}: `{name}` has shape {value.shape}; expected one axis")
        return value.reshape(-1)
