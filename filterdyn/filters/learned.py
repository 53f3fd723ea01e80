"""What filters with a recurrent network share: the noise that the network believes in, and what it sees."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from filterdyn._checks import check_count, check_key, is_traced
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.filters.base import AbstractFilter, Prediction
from filterdyn.filters.cubature import CubatureKalmanFilter
from filterdyn.filters.extended import ExtendedKalmanFilter
from filterdyn.filters.gauss_hermite import GaussHermiteKalmanFilter
from filterdyn.filters.kalman import KalmanFilter
from filterdyn.filters.unscented import UnscentedKalmanFilter
from filterdyn.linalg import PSD, mm
from filterdyn.model import StateSpaceModel

#: No network moves the logarithm of a standard deviation, or an entry beside the diagonal, further.
REACH = 6.0

_BASES = (
    KalmanFilter,
    ExtendedKalmanFilter,
    UnscentedKalmanFilter,
    CubatureKalmanFilter,
    GaussHermiteKalmanFilter,
)


class AbstractLearnedFilter(AbstractFilter):
    """A filter with a network. `fd.fit` trains the floating numbers in `network`."""

    network: eqx.AbstractVar[Any]


def changes_its_noise(filter: Any) -> bool:
    """Does the noise that this filter believes in depend on what it has seen?"""
    return getattr(filter, "adaptive", None) is not None or isinstance(
        filter, AbstractLearnedFilter
    )


class NoiseModulation(eqx.Module):
    """What a network says of the noise of the next row, and where the network stands.

    - `process` (dx, dx) and `sensors` (dy, dy): lower triangular with a positive diagonal. With C the
      correlations and D the standard deviations of a nominal covariance D C D, what the filter believes in
      is D E C E^T D: the logarithms of the diagonal of E are added to those of the Cholesky factor.
      `None` is a covariance that stays as in the model;
    - `hidden`: the state of the network;
    - `elapsed`: the time since something was last measured.
    """

    process: Float[Array, "*T dx dx"] | None
    sensors: Float[Array, "*T dy dy"] | None
    hidden: Any
    elapsed: Float[Array, "*T"]

    def of_process(self, noise: PSD) -> PSD:
        """The process noise as it is believed to be."""
        if self.process is None:
            return noise
        scaled = _in_units(self.process, jnp.diagonal(noise.matrix))
        factor = None if noise.factor is None else mm(jax.lax.stop_gradient(scaled), noise.factor)
        return PSD(factor, mm(mm(scaled, noise.matrix), scaled.T))

    def of_sensors(self, noise: Array) -> Array:
        """R, or its diagonal, as it is believed to be."""
        if self.sensors is None:
            return noise
        variances = noise if noise.ndim == 1 else jnp.diagonal(noise)
        scaled = _in_units(self.sensors, variances)
        half = scaled * noise if noise.ndim == 1 else mm(scaled, noise)
        return mm(half, scaled.T)

    def waited(self, gap: Float[Array, ""]) -> "NoiseModulation":
        """After a prediction over `gap`."""
        return eqx.tree_at(lambda m: m.elapsed, self, self.elapsed + gap)


def bounded_by(reach: float, entries: Array) -> Array:
    """Numbers within +- `reach`; near 0 they are what they were."""
    return reach * jnp.tanh(entries / reach)


def triangular(entries: Float[Array, " k"], n: int, reach: float = REACH) -> Float[Array, "n n"]:
    """The E of a `NoiseModulation`: log diagonal first, then what is below it row by row. Zeros give the
    identity."""
    bounded = bounded_by(reach, entries)
    below = jnp.zeros((n, n), entries.dtype).at[np.tril_indices(n, -1)].set(bounded[n:])
    return below + jnp.diag(jnp.exp(bounded[:n]))


def number_of_entries(n: int) -> int:
    """How many numbers `triangular` takes."""
    return n * (n + 1) // 2


def _in_units(e: Float[Array, "n n"], variances: Float[Array, " n"]) -> Float[Array, "n n"]:
    """D E D^-1 with D the standard deviations (what has none stays as it is)."""
    sd = root_of(variances)
    ratios = sd[:, None] / jnp.where(sd > 0, sd, 1.0)[None, :]
    return e * jnp.where(jnp.eye(len(sd), dtype=bool), 1.0, ratios)


def root_of(variances: Float[Array, " n"]) -> Float[Array, " n"]:
    """Square roots, 0 with a derivative of 0 where a variance is 0. (A NaN is kept.)"""
    positive = ~(variances <= 0)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variances, 1.0)), 0.0)


def compressed(z: Float[Array, " n"]) -> Float[Array, " n"]:
    """A standardised number in which outliers weigh little."""
    return jnp.arcsinh(z)


def seen_of(
    standardized: Float[Array, " dy"],
    observed: Bool[Array, " dy"],
    elapsed: Float[Array, ""],
    gap_scale: float,
) -> Float[Array, " three_dy_plus_one"]:
    """What a measurement shows to a network: whitened innovations and their squares, which entries were
    there, and the gap before."""
    dtype = elapsed.dtype
    z = jnp.where(observed, standardized, 0.0)
    gap = jnp.log1p(elapsed / gap_scale)[None]
    return jnp.concatenate([compressed(z), jnp.log1p(z * z), observed.astype(dtype), gap])


def cast_weights(network: Any, dtype: jnp.dtype) -> Any:
    """The network in the precision of the filter."""
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, network)


def zeroed(layer: eqx.nn.Linear) -> eqx.nn.Linear:
    """A layer whose output is 0 until it is trained."""
    parts = lambda layer: (layer.weight, layer.bias)
    return eqx.tree_at(parts, layer, [jnp.zeros_like(x) for x in parts(layer)])


def started(
    owner: str,
    base: AbstractFilter,
    model: StateSpaceModel,
    dtype: jnp.dtype,
) -> Gaussian:
    """The belief of `base` before any measurement.

    **Raises:** `ValueError` if it is diffuse: there is no whitened innovation then.
    """
    belief = base.init(model, dtype)
    if belief.spread.diffuse is not None:
        raise ValueError(
            f"{owner}: `initial` is Diffuse; a learned filter needs a proper initial distribution"
        )
    return belief


def check_base(owner: str, base: Any, argument: str = "base") -> AbstractFilter:
    """**Raises:** `TypeError` unless `base` is a Gaussian filter, `ValueError` if it adapts its noise."""
    if not isinstance(base, _BASES):
        name = getattr(base, "__name__", type(base).__name__)
        raise TypeError(
            f"{owner}: `{argument}` is {name}; expected a Gaussian filter, such as "
            "fd.ExtendedKalmanFilter()"
        )
    if getattr(base, "adaptive", None) is not None:
        raise ValueError(f"{owner}: `{argument}` has AdaptiveNoise; expected a filter without it")
    return base


def check_fits(owner: str, model: StateSpaceModel, dx: int) -> None:
    """**Raises:** `ValueError` for a model with another number of states."""
    if model.dx != dx:
        raise ValueError(
            f"{owner}: `dx` is {dx} but the model has {model.dx} states; a network belongs to one size"
        )


def check_measurement(owner: str, y: Array, dy: int) -> None:
    """**Raises:** `ValueError` for another number of observed quantities."""
    if y.shape != (dy,):
        raise ValueError(
            f"{owner}: `dy` is {dy} but a measurement has shape {y.shape}; a network belongs to one size"
        )


class Size(NamedTuple):
    """What a network is made for."""

    dx: int
    dy: int
    width: int
    gap_scale: float


def check_size(owner: str, dx: Any, dy: Any, width: Any, gap_scale: Any, key: Any) -> Size:
    """**Raises:** `ValueError` for what is not a whole number, and unless `gap_scale` is a positive one;
    `TypeError` for a `key` that is none."""
    counts = {"dx": dx, "dy": dy, "width": width}
    dx, dy, width = (check_count(owner, name, value) for name, value in counts.items())
    check_key(owner, key)
    if is_traced(gap_scale) or not 0 < gap_scale < float("inf"):
        raise ValueError(f"{owner}: `gap_scale` is {gap_scale!r}; expected a positive number")
    return Size(dx, dy, width, float(gap_scale))


class Modulated(NamedTuple):
    """Which covariances a network modulates."""

    process: bool
    sensors: bool


def check_modulated(owner: str, process: Any, sensors: Any) -> Modulated:
    """**Raises:** `TypeError` for what is not a boolean."""
    for name, value in {"process": process, "sensors": sensors}.items():
        if not isinstance(value, bool):
            raise TypeError(f"{owner}: `{name}` is {value!r}; expected True or False")
    return Modulated(process, sensors)


def predict_and_wait(
    base: AbstractFilter, model: StateSpaceModel, belief: Gaussian, interval: Interval
) -> Prediction:
    """The prediction of `base`, and a memory that has waited as long."""
    prediction = base.predict(model, belief, interval)
    moved, memory = prediction.belief, belief.memory.waited(interval.gap)
    return prediction._replace(belief=Gaussian(moved.mean, spread=moved.spread, memory=memory))
