"""What distributions over the series of a state-space model share: their support, and simulation."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from filterdyn._compile import compiled
from filterdyn.dynamics import Plan
from filterdyn.filters.rows import Row, rows_of
from filterdyn.filters.verbs import check_model
from filterdyn.inference.batch import over_batch
from filterdyn.inference.support import SeriesSupport, series_support
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series
from filterdyn.simulation import simulate_model


class SeriesDistribution(dist.Distribution):
    """A distribution over the observations of `model` at the times of `series`, event shape (T, dy)."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (NumPyro's own class attribute)
    reparametrized_params: list[str] = []  # noqa: RUF012  (the same)
    pytree_data_fields: tuple[str, ...] = ("model", "series", "t0", "u0")

    owner: ClassVar[str]
    model: StateSpaceModel
    series: Series
    t0: Any
    u0: Any

    @property
    def support(self) -> SeriesSupport:
        """What the observation distribution supports, entry by entry; NaN is missing."""
        if self.model.batch_shape != ():
            return SeriesSupport(constraints.real)
        return series_support(self.model, self._first_input())

    def _first_input(self) -> Float[Array, " du"] | None:
        inputs = self.series.inputs
        return None if inputs is None else inputs.reshape(-1, inputs.shape[-1])[0]

    def _dy(self, check: Callable[[StateSpaceModel], None]) -> int:
        """Number of observed quantities; `check` sees the model, or one of a batch, on the way."""
        u = self._first_input()

        def one(model: StateSpaceModel) -> Array:
            check(model)
            return jnp.zeros(model.dy(jnp.zeros((), model.dtype()), u))

        look: Any = one
        for _ in self.model.batch_shape:
            look = eqx.filter_vmap(look)
        return int(eqx.filter_eval_shape(look, self.model).shape[-1])

    def _rows(self, *others: Any) -> tuple[Row, Plan]:
        dtype = self.model.dtype(*others)
        return rows_of(self.owner, self.model, self.series, self.t0, self.u0, dtype)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Simulated observations, `sample_shape` of them, nothing missing."""
        rows, plan = self._rows()
        keys = jax.random.split(key, (int(np.prod(sample_shape)), *self.batch_shape))
        out = _compiled_sample(self.owner, self.model, rows, plan, self.batch_shape, keys)
        return out.reshape(*sample_shape, *self.batch_shape, *self.event_shape)


def _sample(
    owner: str,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    batch_shape: tuple[int, ...],
    keys: Array,
) -> Array:
    def one(model: StateSpaceModel, rows: Row, key: Array) -> Array:
        check_model(owner, model, rows, any_dy=True)
        return simulate_model(model, rows, plan, key)[1]

    return over_batch(one, model, rows, batch_shape, keys)


_compiled_sample = compiled("ObservedSeries.sample", _sample)
