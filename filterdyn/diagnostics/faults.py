"""A model with faults planted in it: what a likelihood must be able to see before it can name one."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import AbstractDynamics, Interval, Plan
from filterdyn.linalg import PSD, mv
from filterdyn.linearization import AbstractLinearization, Affine
from filterdyn.model import StateSpaceModel
from filterdyn.observations import AbstractObservation, LinearizedObservation


class Faults(eqx.Module):
    """Sizes of all faults that one number describes; all zero is the model as it stands.

    Those of sensors act where the measurement is Gaussian (for `LogNormal` on its logarithm).
    """

    #: log of the factor on the noise variance of each sensor, and on all of them together.
    noise: Float[Array, " dy"]
    noise_of_all: Float[Array, ""]
    #: log of the factor on the process noise covariance.
    process_noise: Float[Array, ""]
    #: What is added to each reading; what has been added by the end, growing from 0.
    bias: Float[Array, " dy"]
    trend: Float[Array, " dy"]
    #: The response of each sensor is 1 + gain times the model's.
    gain: Float[Array, " dy"]
    #: Added to the state per unit of time (per row in discrete time); by the end, growing from 0.
    push: Float[Array, " dx"]
    growing_push: Float[Array, " dx"]
    #: Each state, and all of them together, move 1 + pace times as far; by the end, growing from 0.
    pace: Float[Array, " dx"]
    pace_of_all: Float[Array, ""]
    growing_pace: Float[Array, " dx"]
    growing_pace_of_all: Float[Array, ""]

    @staticmethod
    def none(dx: int, dy: int, dtype: Any) -> "Faults":
        sensors, states = jnp.zeros(dy, dtype), jnp.zeros(dx, dtype)
        one = jnp.zeros((), dtype)
        return Faults(
            noise=sensors,
            noise_of_all=one,
            process_noise=one,
            bias=sensors,
            trend=sensors,
            gain=sensors,
            push=states,
            growing_push=states,
            pace=states,
            pace_of_all=one,
            growing_pace=states,
            growing_pace_of_all=one,
        )


class _Clock(eqx.Module):
    """How much of the series has passed: 0 in its first row, 1 in its last."""

    start: Float[Array, ""]
    length: Float[Array, ""]

    def __call__(self, t: Any) -> Any:
        return (t - self.start) / self.length


class FaultyObservation(AbstractObservation):
    """An observation model with faults in its linearised form, all that a Gaussian filter sees."""

    inner: AbstractObservation
    faults: Faults
    clock: _Clock

    def distribution(self, t: Any, x: Float[Array, " dx"], u: Any) -> dist.Distribution:
        return self.inner.distribution(t, x, u)

    def linearize(
        self, rule: AbstractLinearization, at: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> LinearizedObservation:
        lin = self.inner.linearize(rule, at, t, u, y)
        faults = self.faults
        scale = jnp.exp(0.5 * (faults.noise + faults.noise_of_all))
        squared = scale * scale if lin.noise.ndim == 1 else scale[:, None] * scale
        # What a linear sensor adds to H x (D u + d) is no part of its response.
        response = mv(lin.slope, at.mean) if self.inner.is_linear else lin.value
        added = faults.bias + faults.trend * self.clock(t) + faults.gain * response
        return lin._replace(
            value=lin.value + added,
            slope=(1 + faults.gain)[:, None] * lin.slope,
            noise=lin.noise * squared,
            exact_log_prob=None,
        )

    def check(self, owner: str, t: Any, x: Any, u: Any, dy: int | None) -> None:
        self.inner.check(owner, t, x, u, dy)


class FaultyDynamics(AbstractDynamics):
    """Dynamics with faults in their moments, all that a Gaussian filter asks for."""

    inner: AbstractDynamics
    faults: Faults
    clock: _Clock

    def plan(self, gaps: Any) -> Plan:
        return self.inner.plan(gaps)

    def tabulate(self, plan: Plan) -> Any:
        return self.inner.tabulate(plan)

    def moments(
        self, rule: AbstractLinearization, belief: Gaussian, interval: Interval
    ) -> tuple[Affine, Int[Array, ""]]:
        move, status = self.inner.moments(rule, belief, interval)
        faults, passed = self.faults, self.clock(interval.time)
        growing = faults.growing_pace + faults.growing_pace_of_all
        further = faults.pace + faults.pace_of_all + growing * passed
        push = faults.push + faults.growing_push * passed
        duration = interval.gap if self.inner.is_continuous else 1.0
        value = move.value + further * (move.value - belief.mean) + push * duration
        slope = move.slope + further[:, None] * (move.slope - jnp.eye(len(push), dtype=push.dtype))
        return Affine(value, slope, _scaled(move.noise, faults.process_noise)), status

    def sample(self, key: Array, x: Float[Array, " dx"], interval: Interval) -> Float[Array, " dx"]:
        raise TypeError("faults are judged by filters that ask for moments, not for samples")

    def check(self, owner: str, t: Any, x: Any, u: Any) -> None:
        self.inner.check(owner, t, x, u)


def _scaled(noise: PSD, log_factor: Float[Array, ""]) -> PSD:
    factor = noise.factor
    if factor is not None:
        factor = factor * jnp.exp(0.5 * log_factor)
    return PSD(factor, noise.matrix * jnp.exp(log_factor))


def plant(
    model: StateSpaceModel, faults: Faults, start: Float[Array, ""], end: Float[Array, ""]
) -> StateSpaceModel:
    """`model` with `faults`, over a series from `start` to `end`."""
    clock = _Clock(start, jnp.where(end > start, end - start, 1.0))
    return StateSpaceModel(
        model.initial,
        FaultyDynamics(model.dynamics, faults, clock),
        FaultyObservation(model.observation, faults, clock),
    )
