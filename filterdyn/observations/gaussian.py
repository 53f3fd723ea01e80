"""A nonlinear measurement with Gaussian noise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from filterdyn._callables import Function, Held, hold_function
from filterdyn._checks import batch_hint, check_shape, returned
from filterdyn.beliefs import Gaussian
from filterdyn.linearization import AbstractLinearization
from filterdyn.observations.additive import (
    additive,
    gaussian,
    noise_at,
    noise_parameter,
    with_error,
)
from filterdyn.observations.base import AbstractObservation, LinearizedObservation

_OWNER = "GaussianObservation"


class GaussianObservation(AbstractObservation):
    """y = h(t, x, u) + v, v ~ N(0, R).

    **Angles.** A bearing of 3.1 and one of -3.1 are 0.08 apart, not 6.2. `residual` says so: a filter
    then takes `residual(y, expected)` for the innovation, and the moments of h from differences in
    the same sense: over the images z_i of sigma points with z the image of the mean of the belief,
    the expected measurement is z + mean of residual(z_i, z), and slope and spread are those of
    z + residual(h(x), z). With residual(y, z) = wrap(y - z) the likelihood is the density of that
    difference, the leading term of a wrapped normal: right where the standard deviation of an
    innovation is well below half a turn (at a fifth of a turn 1 % of the normal lies beyond). So it is
    where the state is known exactly.

    A measurement is compared, never wrapped: simulated and forecast ones are h(t, x, u) + v, and an
    interval reaches from 2.9 to 3.5 where it reaches over the cut. To the filter the two ways to
    write an angle are the same; `wrap_angle` gives the usual one.

    **An angle as a state** needs no such thing, as long as the dynamics let it run on (3.1, 3.2, ...)
    instead of wrapping it: predictions and smoothing take differences of means that are then small,
    and sine, cosine and the residual of a compass do not see whole turns. Wrap it for reports.
    """

    h: Held
    R: Held | Array
    residual: Held | None

    def __init__(self, h: Function, R: Any, residual: Function | None = None):
        """**Arguments:**

        - `h(t, x, u) -> (dy,)`: the noise-free measurement, in the units of y;
        - `R`: covariance (dy, dy), variances (dy,), one variance () for all entries, or a function
          of `t` that returns one of these. In squared units of y; 0 means exact;
        - `residual(y, z) -> (dy,)`: the difference of two measurements, entry by entry, if it is not
          y - z. A missing entry of y comes as that of z.

        **Raises:** `ValueError` for an `R` that is not symmetric positive semi-definite, and in use
        for an `h` or a `residual` of another shape.
        """
        self.h = hold_function(_OWNER, "h", h)
        self.R = noise_parameter(_OWNER, "R", R)
        self.residual = None if residual is None else _hold_residual(residual)

    def _mean(self, t: Any, x: Any, u: Any) -> Array:
        value = returned(_OWNER, "h(t, x, u)", self.h(t, x, u))
        if value.ndim != 1:
            raise ValueError(
                f"{_OWNER}: `h(t, x, u)` returned shape {value.shape}; expected (dy,)"
                f"{batch_hint(value.ndim > 1)}"
            )
        return value

    def _between(self, y: Float[Array, " dy"], z: Float[Array, " dy"]) -> Float[Array, " dy"]:
        assert self.residual is not None
        value = returned(_OWNER, "residual(y, z)", self.residual(y, z))
        if value.shape != z.shape:
            raise ValueError(
                f"{_OWNER}: `residual(y, z)` returned shape {value.shape}; expected {z.shape}, as y and "
                f"z{batch_hint(value.size > z.size)}"
            )
        return value

    def _near(self, y: Float[Array, " dy"], z: Float[Array, " dy"]) -> Float[Array, " dy"]:
        """z plus the residual of y, which is missing where y is."""
        observed = ~jnp.isnan(y)
        return jnp.where(observed, z + self._between(jnp.where(observed, y, z), z), jnp.nan)

    def nearest(
        self, t: Any, x: Float[Array, " dx"], u: Any, y: Float[Array, " dy"]
    ) -> Float[Array, " dy"]:
        return y if self.residual is None else self._near(y, self._mean(t, x, u))

    def distribution(self, t: Any, x: Float[Array, " dx"], u: Any) -> dist.Distribution:
        mean = self._mean(t, x, u)
        return gaussian(mean, noise_at(_OWNER, self.R, t, mean.shape[0]))

    def linearize(
        self, rule: AbstractLinearization, at: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> LinearizedObservation:
        h = lambda x: self._mean(t, x, u)
        if self.residual is None:
            mean = rule(h, at)
        else:
            # One chart for all images, in which sums and averages mean something.
            middle = h(at.mean)
            mean = rule(lambda x: middle + self._between(h(x), middle), at)
            # The filter takes y - value.
            y = self._near(y, mean.value)
        r = noise_at(_OWNER, self.R, t, len(mean.value))
        return additive(mean.value, mean.slope, with_error(r, mean), y)

    def check(self, owner: str, t: Any, x: Any, u: Any, dy: int | None) -> None:
        value = jax.eval_shape(self._mean, t, x, u)
        if dy is not None:
            check_shape(owner, "h(t, x, u)", value, (dy,), "the series has that many columns")
        jax.eval_shape(lambda t: noise_at(owner, self.R, t, value.shape[0]), t)
        if self.residual is not None:
            jax.eval_shape(self._between, value, value)


def _hold_residual(residual: Any) -> Held:
    if not isinstance(residual, Held) and not callable(residual):
        raise TypeError(
            f"{_OWNER}: `residual` is {type(residual).__name__}; expected a function of (y, z), two "
            "measurements (dy,)"
        )
    return hold_function(_OWNER, "residual", residual)
