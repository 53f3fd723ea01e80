"""A Gaussian filter whose gain a recurrent network corrects: the family of KalmanNet, with covariances."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.anchored import rule_of
from filterdyn.filters.base import AbstractFilter, Prediction, Update
from filterdyn.filters.extended import ExtendedKalmanFilter
from filterdyn.filters.gaussian import cast
from filterdyn.filters.learned import (
    AbstractLearnedFilter,
    NoiseModulation,
    cast_weights,
    check_base,
    check_fits,
    check_measurement,
    check_modulated,
    check_size,
    compressed,
    predict_and_wait,
    started,
)
from filterdyn.filters.learned_networks import (
    ARCHITECTURES,
    AbstractGainNetwork,
    Scales,
    Signs,
    over,
)
from filterdyn.filters.learned_noise import NoiseNetwork
from filterdyn.filters.predicted import PredictedObservation
from filterdyn.linalg import PSD, accurately, factor_of, mm, mv, triangularize
from filterdyn.model import StateSpaceModel

_NAME = "LearnedGainFilter"


class GainNetworks(eqx.Module):
    """The network of the gain, and that of the noise behind the covariance."""

    gain: AbstractGainNetwork
    noise: NoiseNetwork


class GainMemory(eqx.Module):
    """Where both networks stand, and what the last measurement left behind."""

    noise: NoiseModulation
    hidden: Any
    #: Each entry when it was last measured (in the space where it is Gaussian), and 1 if it ever was.
    last: Float[Array, "*T dy"]
    known: Float[Array, "*T dy"]
    #: The mean after the last measurement, and the changes that F3 and F4 of KalmanNet are.
    mean: Float[Array, "*T dx"]
    evolution: Float[Array, "*T dx"]
    update: Float[Array, "*T dx"]

    @property
    def process(self) -> Float[Array, "*T dx dx"] | None:
        return self.noise.process

    @property
    def sensors(self) -> Float[Array, "*T dy dy"] | None:
        return self.noise.sensors

    def of_process(self, noise: PSD) -> PSD:
        return self.noise.of_process(noise)

    def of_sensors(self, noise: Array) -> Array:
        return self.noise.of_sensors(noise)

    def waited(self, gap: Float[Array, ""]) -> "GainMemory":
        return eqx.tree_at(lambda m: m.noise, self, self.noise.waited(gap))


class LearnedGainFilter(AbstractLearnedFilter):
    """A Gaussian filter whose gain is corrected by a recurrent network.

    KalmanNet (Revach, Shlezinger, Ni, Escoriza, van Sloun, Eldar 2022) replaces the gain of an extended
    Kalman filter by what a network makes of differences of measurements and means. Here the network says
    what is *added* to the gain K0 of `base`, in standard deviations of belief and innovation, so that
    **before training this is `base`**, and units do not matter.

    The covariance is that of Joseph's form for the gain K that was used, (I - K H) P (I - K H)^T + K R K^T,
    which with K = K0 + D and S the innovation covariance is that of `base` plus D S D^T: positive
    semi-definite whatever the network says. A second network modulates Q and R in it as in
    `LearnedNoiseFilter`: what Joseph's recursion adds in a row, (I - K H) Q (I - K H)^T + K R K^T, is then
    a learned positive semi-definite term (Recursive KalmanNet: Mortada et al. 2025). A term that starts at
    zero could not be learned: at its minimum it has no gradient.

    Predictions depend on earlier rows only, so the log-likelihood is that of a proper density of the
    series. Missing entries have no gain, in a row without measurements the networks go on waiting.

    Train it with `fd.fit(model, series, filter, ...)`, on the likelihood or on known states; the result has
    it as `FitResult.filter`. `fd.smooth` reverses the model from the beliefs that this filter found; there
    is no learned gain in it. If the model is right its covariance is that of its error for every gain that
    does not depend on the measurements, as Joseph's is: what regression leaves of the state in a row, given
    the error of the prediction of the next, is uncorrelated with all that comes later.
    """

    network: GainNetworks
    base: AbstractFilter

    def __init__(
        self,
        dx: int,
        dy: int,
        *,
        key: Array,
        architecture: Literal["kalmannet-1", "kalmannet-2", "split"] = "kalmannet-2",
        width: int = 16,
        base: AbstractFilter | None = None,
        gap_scale: float = 1.0,
        process: bool = True,
        sensors: bool = True,
    ):
        """**Arguments:**

        - `dx`, `dy`: number of states and of observed quantities of the model;
        - `key`: a JAX random key for the weights;
        - `architecture`: `"kalmannet-1"`, one recurrent unit; `"kalmannet-2"`, one each for process noise,
          state and innovation; `"split"`, the gain as a product G1 H^T G2 of two learned positive definite
          matrices and the slope of the observation (Split-KalmanNet: Choi et al. 2023);
        - `width`: size of the state of each recurrent unit (in the papers it grows with dx^2);
        - `base`: `ExtendedKalmanFilter()` (the default), `KalmanFilter`, or a sigma-point filter, with one
          iteration, without an outlier rule and without `AdaptiveNoise`;
        - `gap_scale`: a typical gap between rows, in units of time;
        - `process`, `sensors`: which of the covariances behind Joseph's form are modulated. What is not stays
          as in the model.

        **Raises:** `ValueError` for counts that are not whole numbers, an unknown architecture, a
        `gap_scale` that is not positive and settings of `base` that are not allowed; `TypeError` for another
        `base` and for switches that are not booleans.
        """
        size = check_size(_NAME, dx, dy, width, gap_scale, key)
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"{_NAME}: `architecture` is {architecture!r}; expected one of {list(ARCHITECTURES)}"
            )
        base = check_base(_NAME, ExtendedKalmanFilter() if base is None else base)
        for name, value in {"iterations": 1, "outliers": None}.items():
            if getattr(base, name, value) != value:
                raise ValueError(
                    f"{_NAME}: `base` has {name}={getattr(base, name)!r}; expected {value!r}, so that an "
                    "update has one gain"
                )
        key_gain, key_noise = jax.random.split(key)
        self.network = GainNetworks(
            ARCHITECTURES[architecture](size.dx, size.dy, size.width, key_gain),
            NoiseNetwork(size, key_noise, check_modulated(_NAME, process, sensors)),
        )
        self.base = base

    def check(self, model: StateSpaceModel) -> None:
        """**Raises:** also `ValueError` for a model of another size."""
        check_fits(_NAME, model, self.network.noise.dx)
        self.base.check(model)

    def init(self, model: StateSpaceModel, dtype: jnp.dtype) -> Gaussian:
        belief = started(_NAME, self.base, model, dtype)
        dy, nothing = self.network.noise.dy, jnp.zeros_like(belief.mean)
        memory = GainMemory(
            self.network.noise.start(dtype),
            self.network.gain.start(dtype),
            jnp.zeros(dy, dtype),
            jnp.zeros(dy, dtype),
            belief.mean,
            nothing,
            nothing,
        )
        return Gaussian(belief.mean, spread=belief.spread, memory=memory)

    def predict(self, model: StateSpaceModel, belief: Gaussian, interval: Interval) -> Prediction:
        return predict_and_wait(self.base, model, belief, interval)

    def update(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> Update:
        check_measurement(_NAME, y, self.network.noise.dy)
        memory: GainMemory = belief.memory
        new = self.base.update(model, belief, t, u, y)
        # The same stand-in once more; compiled it is computed once.
        seen = cast(model.observation.linearize(rule_of(self.base), belief, t, u, y), y.dtype)
        observed = seen.observed
        scales = _scales(belief, seen.slope, new.innovation_cov, observed)
        gap = jnp.log1p(memory.noise.elapsed / self.network.noise.gap_scale)[None]
        signs = _signs(memory, scales, seen.z, new.standardized, observed, gap)
        own = cast_weights(self.network, y.dtype)
        change, hidden = own.gain(signs, memory.hidden, scales)

        mean = new.belief.mean + mv(change, jnp.where(observed, new.innovation, 0.0))
        noise = memory.of_sensors(seen.noise)
        spread = _widened(new.belief.spread, belief.spread, change, scales, noise)
        after = GainMemory(
            own.noise.after(memory.noise, new.standardized, observed),
            hidden,
            jnp.where(observed, seen.z, memory.last),
            jnp.where(observed, 1.0, memory.known),
            mean,
            mean - memory.mean,
            mean - belief.mean,
        )
        some = observed.any()
        kept = jax.tree.map(lambda a, b: jnp.where(some, a, b), after, memory)
        return new._replace(belief=Gaussian(mean, spread=spread, memory=kept))

    def predict_observation(
        self, model: StateSpaceModel, belief: Gaussian, t: Any, u: Any
    ) -> PredictedObservation:
        return self.base.predict_observation(model, belief, t, u)


def _scales(belief: Gaussian, slope: Array, innovation_cov: Array, observed: Array) -> Scales:
    both = observed[:, None] & observed[None, :]
    eye = jnp.eye(len(observed), dtype=slope.dtype)
    return Scales(
        belief.spread.matrix,
        jnp.where(observed[:, None], slope, 0.0),
        jnp.where(both, innovation_cov, eye),
        observed,
    )


def _signs(
    memory: GainMemory,
    scales: Scales,
    z: Float[Array, " dy"],
    standardized: Float[Array, " dy"],
    observed: Array,
    gap: Float[Array, " one"],
) -> Signs:
    sd_x, sd_y = scales.state, scales.measurement
    change = jnp.where(observed, (z - memory.last) * memory.known, 0.0)
    return Signs(
        over(change, sd_y),
        compressed(jnp.where(observed, standardized, 0.0)),
        over(memory.evolution, sd_x),
        over(memory.update, sd_x),
        observed.astype(sd_x.dtype),
        gap,
        scales.slope * sd_x[None, :] / jnp.where(sd_y > 0, sd_y, 1.0)[:, None],
    )


def _widened(
    spread: PSD, prior: PSD, change: Float[Array, "dx dy"], scales: Scales, noise: Array
) -> PSD:
    """The covariance `spread` after an update with the best gain, for one that differs by `change`.

    Joseph's form is quadratic in the gain, with its minimum at K0 = P H^T S^-1, so that at K0 + D it is that
    at K0 plus D S D^T, S = H P H^T + R.
    """
    matrix = spread.matrix + mm(mm(change, scales.innovation_cov), change.T)
    if spread.factor is None or prior.factor is None:
        return PSD(None, 0.5 * (matrix + matrix.T))
    noise = noise * jnp.eye(len(noise), dtype=noise.dtype) if noise.ndim == 1 else noise
    fixed = stop_gradient(change)
    both = scales.observed[:, None] & scales.observed[None, :]
    root = factor_of(stop_gradient(jnp.where(both, noise, 0.0)))
    seen = mm(stop_gradient(scales.slope), prior.factor)
    wide = jnp.concatenate([spread.factor, mm(fixed, seen), mm(fixed, root)], axis=1)
    factor = triangularize(wide)
    return PSD(factor, accurately(mm(factor, factor.T), matrix))
