"""Recurrent networks that say how a gain differs from that of the filter they sit in."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from filterdyn.filters.learned import (
    bounded_by,
    compressed,
    number_of_entries,
    root_of,
    triangular,
    zeroed,
)
from filterdyn.linalg import mm

#: In standard deviations of belief and innovation the entries of the gain of one measurement are within
#: +- 1. No network moves one further than this, or a factor of `SplitUnits` further than its exponential.
_REACH = 2.0


class Signs(NamedTuple):
    """What a network sees of a row, without units: the features F1 to F4 of KalmanNet, which entries were
    measured, the gap before, and the slope of the observation."""

    #: Since each entry was last measured, in standard deviations of the innovation.
    observation_change: Float[Array, " dy"]
    innovation: Float[Array, " dy"]
    #: Of the means after the last two measurements, and at the last one, in standard deviations of the
    #: belief.
    evolution_change: Float[Array, " dx"]
    update_change: Float[Array, " dx"]
    mask: Float[Array, " dy"]
    gap: Float[Array, " one"]
    slope: Float[Array, "dy dx"]


class Scales(NamedTuple):
    """What makes a gain of numbers without units: covariances before the measurement. Of an entry that
    is missing `innovation_cov` has a 1 on the diagonal and `slope` zeros."""

    cov: Float[Array, "dx dx"]
    slope: Float[Array, "dy dx"]
    innovation_cov: Float[Array, "dy dy"]
    observed: Bool[Array, " dy"]

    @property
    def state(self) -> Float[Array, " dx"]:
        """Standard deviations of the belief."""
        return root_of(jnp.diagonal(self.cov))

    @property
    def measurement(self) -> Float[Array, " dy"]:
        """Standard deviations of the innovation."""
        return root_of(jnp.diagonal(self.innovation_cov))


def over(x: Float[Array, " n"], sd: Float[Array, " n"]) -> Float[Array, " n"]:
    """x in standard deviations, compressed; 0 where there are none."""
    return compressed(x / jnp.where(sd > 0, sd, 1.0) * (sd > 0))


def additive_gain(entries: Float[Array, " dx_dy"], scales: Scales) -> Float[Array, "dx dy"]:
    """What is added to the gain, from numbers in standard deviations of belief and innovation."""
    dx, dy = len(scales.state), len(scales.measurement)
    sd = scales.measurement
    unit = bounded_by(_REACH, entries).reshape(dx, dy) * (scales.observed & (sd > 0))
    return scales.state[:, None] * unit / jnp.where(sd > 0, sd, 1.0)


class AbstractGainNetwork(eqx.Module):
    """From `Signs` and a hidden state to what is added to a gain, and the next hidden state."""

    @abc.abstractmethod
    def start(self, dtype: jnp.dtype) -> Any:
        """The hidden state before any measurement."""

    @abc.abstractmethod
    def __call__(
        self, signs: Signs, hidden: Any, scales: Scales
    ) -> tuple[Float[Array, "dx dy"], Any]:
        """A matrix that is 0 before training, and the new hidden state."""


class OneUnit(AbstractGainNetwork):
    """Architecture 1 of KalmanNet (Revach et al. 2022, section III-C): one recurrent unit between layers
    sees innovation and last update."""

    into: eqx.nn.Linear
    cell: eqx.nn.GRUCell
    between: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, dx: int, dy: int, width: int, key: Array):
        keys = jax.random.split(key, 4)
        self.into = eqx.nn.Linear(2 * dy + dx + 1, 2 * width, key=keys[0])
        self.cell = eqx.nn.GRUCell(2 * width, width, key=keys[1])
        self.between = eqx.nn.Linear(width, 2 * width, key=keys[2])
        self.out = zeroed(eqx.nn.Linear(2 * width, dx * dy, key=keys[3]))

    def start(self, dtype: jnp.dtype) -> Any:
        return jnp.zeros(self.cell.hidden_size, dtype)

    def __call__(
        self, signs: Signs, hidden: Any, scales: Scales
    ) -> tuple[Float[Array, "dx dy"], Any]:
        seen = jnp.concatenate([signs.innovation, signs.update_change, signs.mask, signs.gap])
        hidden = self.cell(jax.nn.relu(self.into(seen)), hidden)
        entries = self.out(jax.nn.relu(self.between(hidden)))
        return additive_gain(entries, scales), hidden


class ThreeUnits(AbstractGainNetwork):
    """Architecture 2 of KalmanNet (Revach et al. 2022, section III-C): recurrent units that stand for the
    covariances of process noise, state and innovation, each fed by what informs it, and a way back from
    the gain to the second."""

    evolution: eqx.nn.Linear
    update: eqx.nn.Linear
    measured: eqx.nn.Linear
    process: eqx.nn.GRUCell
    state: eqx.nn.GRUCell
    innovation: eqx.nn.GRUCell
    projected: eqx.nn.Linear
    between: eqx.nn.Linear
    out: eqx.nn.Linear
    back: eqx.nn.Linear
    onto_state: eqx.nn.Linear

    def __init__(self, dx: int, dy: int, width: int, key: Array):
        keys = iter(jax.random.split(key, 11))
        linear = lambda n, m: eqx.nn.Linear(n, m, key=next(keys))
        cell = lambda n: eqx.nn.GRUCell(n, width, key=next(keys))
        self.evolution, self.update = linear(dx + 1, width), linear(dx, width)
        self.measured = linear(3 * dy, width)
        self.process, self.state, self.innovation = cell(width), cell(2 * width), cell(2 * width)
        self.projected = linear(width, width)
        self.between = linear(2 * width, 2 * width)
        self.out = zeroed(linear(2 * width, dx * dy))
        self.back = linear(width + dx * dy, width)
        self.onto_state = linear(2 * width, width)

    def start(self, dtype: jnp.dtype) -> Any:
        return tuple(jnp.zeros(self.process.hidden_size, dtype) for _ in range(3))

    def __call__(
        self, signs: Signs, hidden: Any, scales: Scales
    ) -> tuple[Float[Array, "dx dy"], Any]:
        relu, join = jax.nn.relu, lambda *parts: jnp.concatenate(parts)
        process, state, innovation = hidden
        moved = relu(self.evolution(join(signs.evolution_change, signs.gap)))
        process = self.process(moved, process)
        state = self.state(join(process, relu(self.update(signs.update_change))), state)
        seen = join(signs.observation_change, signs.innovation, signs.mask)
        shown = join(relu(self.projected(state)), relu(self.measured(seen)))
        innovation = self.innovation(shown, innovation)
        entries = self.out(relu(self.between(join(state, innovation))))
        back = relu(self.back(join(innovation, entries)))
        state = relu(self.onto_state(join(state, back)))
        return additive_gain(entries, scales), (process, state, innovation)


class SplitUnits(AbstractGainNetwork):
    """Split-KalmanNet (Choi, Park, Shlezinger, Eldar 2023): the gain is G1 H^T G2, and a recurrent unit each
    stands for G1, the covariance of the state, and for G2, the inverse of that of the innovation.

    Here both are D E C E^T D with a triangular E (see `NoiseModulation`), so both are positive definite.
    The slope H of the observation is shown to both, in units of the two covariances.
    """

    state_in: eqx.nn.Linear
    state_cell: eqx.nn.GRUCell
    state_out: eqx.nn.Linear
    innovation_in: eqx.nn.Linear
    innovation_cell: eqx.nn.GRUCell
    innovation_out: eqx.nn.Linear

    def __init__(self, dx: int, dy: int, width: int, key: Array):
        keys = iter(jax.random.split(key, 6))
        linear = lambda n, m: eqx.nn.Linear(n, m, key=next(keys))
        self.state_in = linear(2 * dx + 1 + dx * dy, width)
        self.state_cell = eqx.nn.GRUCell(width, width, key=next(keys))
        self.state_out = zeroed(linear(width, number_of_entries(dx)))
        self.innovation_in = linear(3 * dy + dx * dy, width)
        self.innovation_cell = eqx.nn.GRUCell(width, width, key=next(keys))
        self.innovation_out = zeroed(linear(width, number_of_entries(dy)))

    def start(self, dtype: jnp.dtype) -> Any:
        return tuple(jnp.zeros(self.state_cell.hidden_size, dtype) for _ in range(2))

    def __call__(
        self, signs: Signs, hidden: Any, scales: Scales
    ) -> tuple[Float[Array, "dx dy"], Any]:
        slope = signs.slope.reshape(-1)
        moved = [signs.evolution_change, signs.update_change, signs.gap, slope]
        seen = [signs.observation_change, signs.innovation, signs.mask, slope]
        relu = jax.nn.relu
        state = self.state_cell(relu(self.state_in(jnp.concatenate(moved))), hidden[0])
        innovation = self.innovation_cell(
            relu(self.innovation_in(jnp.concatenate(seen))), hidden[1]
        )
        first = triangular(self.state_out(state), len(scales.state), _REACH)
        second = triangular(self.innovation_out(innovation), len(scales.measurement), _REACH)
        return _split_gain(first, second, scales), (state, innovation)


def _split_gain(
    first: Float[Array, "dx dx"], second: Float[Array, "dy dy"], scales: Scales
) -> Float[Array, "dx dy"]:
    """G1 H^T G2 less what it is where both triangular matrices are the identity."""
    sd = scales.measurement
    some = scales.observed & (sd > 0)
    inverse_sd = jnp.where(some, 1.0 / jnp.where(some, sd, 1.0), 0.0)
    correlations = inverse_sd[:, None] * scales.innovation_cov * inverse_sd[None, :]
    inverse = jnp.linalg.inv(correlations + jnp.diag(jnp.where(some, 0.0, 1.0)))
    sd_x = scales.state
    inverse_sd_x = jnp.where(sd_x > 0, 1.0 / jnp.where(sd_x > 0, sd_x, 1.0), 0.0)
    unit = inverse_sd_x[:, None] * scales.cov * inverse_sd_x[None, :]
    seen = inverse_sd[:, None] * scales.slope * sd_x[None, :]
    changed = mm(mm(mm(mm(first, unit), first.T), seen.T), mm(mm(second, inverse), second.T))
    plain = mm(mm(unit, seen.T), inverse)
    return sd_x[:, None] * (changed - plain) * inverse_sd[None, :]


ARCHITECTURES: dict[str, type[AbstractGainNetwork]] = {
    "kalmannet-1": OneUnit,
    "kalmannet-2": ThreeUnits,
    "split": SplitUnits,
}
