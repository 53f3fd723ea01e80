"""A state-space model as a NumPyro distribution over whole series."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from filterdyn._checks import is_traced
from filterdyn._compile import compiled
from filterdyn.dynamics import Plan
from filterdyn.filters import sampling_scan
from filterdyn.filters.batches import have_one_pattern, run_many
from filterdyn.filters.rows import Row, is_complete
from filterdyn.filters.running import run
from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.filters.sampling_verbs import require_key
from filterdyn.filters.stepping import AnyFilter
from filterdyn.filters.verbs import check_is_filter, check_is_model, check_model
from filterdyn.inference.batch import check_batch, over_batch, series_value
from filterdyn.inference.series_distribution import SeriesDistribution
from filterdyn.model import StateSpaceModel
from filterdyn.series import blank

_NAME = "ObservedSeries"


class ObservedSeries(SeriesDistribution):
    """The distribution of the observations of a state-space model, event shape (T, dy).

    `log_prob` is the marginal likelihood that the filter computes, in which NaN marks a missing
    entry; `sample` simulates the model (the filter takes no part in it). So NUTS, SVI, `Predictive`,
    `numpyro.infer.log_likelihood` and plates work as with any other distribution:

        numpyro.sample("y", fd.ObservedSeries(model, times, filter=fd.KalmanFilter()), obs=y)

    A value with further leading axes is that many series of the same model: in a plate over series
    that share their parameters nothing else is needed. Series with parameters of their own are a
    batch of models, `equinox.filter_vmap(make)(parameters)`, and series with times of their own
    (ragged ones padded by `stack`) have `times` (S, T); either is declared by `batch_shape=(S,)`.

    A series in which anything fails has log-density `-inf`, and its derivative is 0.
    """

    pytree_data_fields = ("filter", "key")
    owner = _NAME

    def __init__(
        self,
        model: StateSpaceModel,
        times: Any,
        inputs: Any = None,
        *,
        filter: AnyFilter,
        key: Array | None = None,
        t0: Any = None,
        u0: Any = None,
        batch_shape: tuple[int, ...] = (),
        validate_args: bool | None = None,
    ):
        """**Arguments:**

        - `model`: one model, or a batch of shape (S,);
        - `times` (T,), or (S, T); `inputs` (T, du) or (S, T, du), as in a `Series`;
        - `filter`: whose likelihood it is; `key`: needed by filters that sample only, whose likelihood
          is an estimate: the same key at every evaluation makes it a function of the parameters;
        - `t0`, `u0`: as for `filter`;
        - `batch_shape`: `()` for one model on one timeline, `(S,)` for a batch; never inferred.

        **Raises:** `ValueError` for shapes that disagree, `TypeError` if the filter cannot treat the
        model.
        """
        check_is_model(_NAME, model)
        check_is_filter(_NAME, filter)
        require_key(_NAME, filter, key)
        batch_shape = tuple(int(n) for n in batch_shape)
        if t0 is not None and np.ndim(t0) and np.ndim(times) == 1:
            xp = jnp if is_traced(times) else np
            times = xp.broadcast_to(xp.asarray(times), (*batch_shape, *np.shape(times)))
        check_batch(_NAME, model, times, batch_shape)
        many = np.ndim(times) > 1
        self.model = model
        self.series = blank(_NAME, times, inputs, model.dtype(), batch_shape if many else ())
        self.filter = filter
        self.key = key
        self.t0 = t0
        self.u0 = u0
        dy = self._dy(filter.check)
        super().__init__(
            batch_shape, (self.series.times.shape[-1], dy), validate_args=validate_args
        )

    def _value(self, value: Any) -> Float[Array, "n *S T dy"]:
        return series_value(_NAME, value, self.batch_shape, self.event_shape)

    def flat(self, value: Any) -> tuple[Row, Plan, Float[Array, "n *S T dy"], tuple[int, ...]]:
        """The rows of a scan, their plan, the series of `value` along one axis, and its leading axes."""
        complete = is_complete(value)
        value = self._value(value)
        rows, plan = self._rows(value)
        plan = plan.cast(rows.observation.dtype, complete)
        flat = value.reshape(-1, *self.batch_shape, *self.event_shape)
        return rows, plan, flat, value.shape[:-2]

    def _log_density(self, value: Any, pointwise: bool) -> Array:
        one_pattern = have_one_pattern(value) if np.ndim(value) > 2 else True
        rows, plan, flat, lead = self.flat(value)
        out = _compiled_log_density(
            self.model,
            rows,
            plan,
            self.filter,
            self.key,
            self.batch_shape,
            flat,
            pointwise,
            one_pattern,
        )
        return out.reshape(*lead, *out.shape[1 + len(self.batch_shape) :])

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        """The log-density of one or more series, from which missing (NaN) entries are left out."""
        return self._log_density(value, pointwise=False)

    def log_likelihoods(self, value: Any) -> Float[Array, "*S T"]:
        """log p(y_t | y_1:t-1) in every row; their sum is `log_prob`."""
        return self._log_density(value, pointwise=True)


def _log_density(
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    filter: AnyFilter,
    key: Array | None,
    batch_shape: tuple[int, ...],
    values: Array,
    pointwise: bool,
    one_pattern: bool | None,
) -> Array:
    keep = lambda record: record.log_likelihood if pointwise else None
    of_one_model = model.batch_shape == () and rows.time.ndim == 1
    if of_one_model and not isinstance(filter, AbstractSamplingFilter):
        each = values.reshape(-1, *values.shape[-2:]).astype(rows.observation.dtype)
        rows = rows._replace(observation=each[0])
        check_model(_NAME, model, rows)
        total, kept = run_many(filter, model, rows, plan, each, None, keep, one_pattern)
        out = kept if pointwise else total
        return out.reshape(*values.shape[:-2], *out.shape[1:])

    def one(model: StateSpaceModel, rows: Row, given: tuple[Array, Array | None]) -> Array:
        y, key = given
        rows = rows._replace(observation=y.astype(rows.observation.dtype))
        check_model(_NAME, model, rows)
        if isinstance(filter, AbstractSamplingFilter):
            assert key is not None
            _, total, each = sampling_scan.run(filter, model, rows, plan, key, keep)
        else:
            _, total, each = run(filter, model, rows, plan, keep)
        return each if pointwise else total

    if not isinstance(filter, AbstractSamplingFilter):
        return over_batch(one, model, rows, batch_shape, (values, None))
    # Series of a batch have keys of their own; one without a batch has that of `filter`.
    assert key is not None
    keys = jax.random.split(key, batch_shape) if batch_shape else key
    keys = jnp.broadcast_to(keys, (len(values), *keys.shape))
    return over_batch(one, model, rows, batch_shape, (values, keys))


_compiled_log_density = compiled("ObservedSeries.log_prob", _log_density)
