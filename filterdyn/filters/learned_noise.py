"""A Gaussian filter whose noise covariances a recurrent network sets."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.extended import ExtendedKalmanFilter
from filterdyn.filters.learned import (
    AbstractLearnedFilter,
    Modulated,
    NoiseModulation,
    Size,
    cast_weights,
    check_base,
    check_fits,
    check_measurement,
    check_modulated,
    check_size,
    number_of_entries,
    predict_and_wait,
    seen_of,
    started,
    triangular,
    zeroed,
)
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.model import StateSpaceModel

_NAME = "LearnedNoiseFilter"


class NoiseNetwork(eqx.Module):
    """A gated recurrent unit (Cho et al. 2014) that sees what was measured, and a linear layer, zero at
    the start, that makes two triangular matrices of its state."""

    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear
    dx: int = eqx.field(static=True)
    dy: int = eqx.field(static=True)
    gap_scale: float = eqx.field(static=True)
    modulated: Modulated = eqx.field(static=True)

    def __init__(self, size: Size, key: Array, modulated: Modulated):
        dx, dy, width, gap_scale = size
        key_cell, key_head = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(3 * dy + 1, width, key=key_cell)
        process, sensors = modulated
        outputs = process * number_of_entries(dx) + sensors * number_of_entries(dy)
        self.head = zeroed(eqx.nn.Linear(width, outputs, key=key_head))
        self.dx, self.dy, self.gap_scale = dx, dy, gap_scale
        self.modulated = modulated

    def start(self, dtype: jnp.dtype) -> NoiseModulation:
        """What it says before anything was measured."""
        hidden = jnp.zeros(self.cell.hidden_size, dtype)
        return self._of(hidden, jnp.zeros((), dtype))

    def after(
        self,
        before: NoiseModulation,
        standardized: Float[Array, " dy"],
        observed: Bool[Array, " dy"],
    ) -> NoiseModulation:
        """What it says after a measurement. Where nothing was measured it only goes on waiting."""
        own = cast_weights(self, before.elapsed.dtype)
        seen = seen_of(standardized, observed, before.elapsed, self.gap_scale)
        new = own._of(own.cell(seen, before.hidden), jnp.zeros_like(before.elapsed))
        return jax.tree.map(lambda a, b: jnp.where(observed.any(), a, b), new, before)

    def _of(self, hidden: Array, elapsed: Array) -> NoiseModulation:
        head = cast_weights(self.head, hidden.dtype)
        entries, k = head(hidden), self.modulated.process * number_of_entries(self.dx)
        process = triangular(entries[:k], self.dx) if self.modulated.process else None
        sensors = triangular(entries[k:], self.dy) if self.modulated.sensors else None
        return NoiseModulation(process, sensors, hidden, elapsed)


class LearnedNoiseFilter(AbstractLearnedFilter):
    """A Gaussian filter in which a recurrent network modulates process and sensor noise.

    Prediction and update stay those of `base`, in square-root form. After every measurement a gated
    recurrent unit is shown the whitened innovation, which entries were there, and the gap before, and says
    what the covariances of the next row are: with D the standard deviations and C the correlations of the
    model's covariance D C D the filter uses D E C E^T D, where E is lower triangular with a positive
    diagonal. So they are positive semi-definite whatever the weights are, do not depend on units, and a
    direction without noise stays without.

    E depends on earlier rows only. So the log-likelihood is that of a proper density of the series, the
    surrogate's, and trained by it the network cannot do better than the truth on average. Zero weights in
    the last layer make E the identity: **before training this is `base`**. The matrices are recorded in
    `FilterResult.noise_factors`.

    Where the sensors are known say so by `sensors=False`: the sum H P H^T + R of innovations is then P up
    to what is known. With both modulated the likelihood hardly tells the one from the other.

    A row in which nothing was measured shows the network nothing; it goes on waiting.

    Train it with `fd.fit(model, series, filter, ...)`, which returns it as `FitResult.filter`.
    """

    network: NoiseNetwork
    base: AbstractFilter

    def __init__(
        self,
        dx: int,
        dy: int,
        *,
        key: Array,
        width: int = 16,
        base: AbstractFilter | None = None,
        gap_scale: float = 1.0,
        process: bool = True,
        sensors: bool = True,
    ):
        """**Arguments:**

        - `dx`, `dy`: number of states and of observed quantities of the model;
        - `key`: a JAX random key for the weights;
        - `width`: size of the state of the recurrent unit;
        - `base`: `ExtendedKalmanFilter()` (the default), `KalmanFilter`, or a sigma-point filter, with any
          setting but `AdaptiveNoise`;
        - `gap_scale`: a typical gap between rows, in units of time;
        - `process`, `sensors`: what is modulated. What is not stays as in the model.

        **Raises:** `ValueError` for counts that are not whole numbers, a `gap_scale` that is not positive
        and nothing to modulate; `TypeError` for another `base` and for switches that are not booleans.
        """
        size = check_size(_NAME, dx, dy, width, gap_scale, key)
        modulated = check_modulated(_NAME, process, sensors)
        if not any(modulated):
            raise ValueError(
                f"{_NAME}: `process` and `sensors` are both False; expected at least one to modulate"
            )
        self.base = check_base(_NAME, ExtendedKalmanFilter() if base is None else base)
        self.network = NoiseNetwork(size, key, modulated)

    def check(self, model: StateSpaceModel) -> None:
        """**Raises:** also `ValueError` for a model of another size."""
        check_fits(_NAME, model, self.network.dx)
        self.base.check(model)

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        belief = started(_NAME, self.base, model, dtype)
        return Gaussian(belief.mean, spread=belief.spread, memory=self.network.start(dtype))

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        return predict_and_wait(self.base, model, belief, interval)

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        check_measurement(_NAME, y, self.network.dy)
        new = self.base.update(model, belief, t, u, y)
        memory = self.network.after(belief.memory, new.standardized, ~jnp.isnan(new.standardized))
        after = Gaussian(new.belief.mean, spread=new.belief.spread, memory=memory)
        return new._replace(belief=after)

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        return self.base.predict_observation(model, belief, t, u)
