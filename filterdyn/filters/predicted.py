"""What a measurement would be: its distribution under a Gaussian belief of the state."""

from statistics import NormalDist
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.linalg import factor_of
from filterdyn.transforms import GaussianView


class PredictedObservation(eqx.Module):
    """y = T(z), z ~ N(loc, cov): a measurement that has not come yet.

    T is the identity, but for a transformed Gaussian (`LogNormal`, logit-normal). A family that
    is matched by moments counts as Gaussian. In results all have a leading axis of times.
    """

    loc: Float[Array, "*T dy"]
    cov: Float[Array, "*T dy dy"]
    transforms: tuple[Any, ...]

    def _each(self, function: Any, *args: Any) -> Any:
        for _ in range(self.loc.ndim - 1):
            function = jax.vmap(function, in_axes=(0, *(None for _ in args)))
        return function(self, *args)

    def moments(self) -> tuple[Float[Array, "*T dy"], Float[Array, "*T dy dy"]]:
        """Mean and covariance of y, the log-normal ones in closed form, others by quadrature."""
        return self._each(lambda one: _view(one).moments(one.loc, one.cov))

    def interval(self, probability: float) -> tuple[Float[Array, "*T dy"], Float[Array, "*T dy"]]:
        """Lower and upper end of the central interval of each entry of y.

        **Raises:** `ValueError` unless 0 < `probability` < 1.
        """
        if not 0 < probability < 1:
            raise ValueError(f"interval: `probability` is {probability}; expected 0 < p < 1")
        reach = NormalDist().inv_cdf(0.5 + 0.5 * float(probability))

        def one(p: PredictedObservation) -> tuple[Array, Array]:
            sd = jnp.sqrt(jnp.diagonal(p.cov))
            ends = [_view(p).push_forward(p.loc + sign * reach * sd) for sign in (-1, 1)]
            return jnp.minimum(*ends), jnp.maximum(*ends)

        return self._each(one)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Float[Array, "*shape dy"]:
        """Draws of one measurement (no leading axis)."""
        noise = jax.random.normal(key, (*shape, *self.loc.shape), self.loc.dtype)
        return _view(self).push_forward(self.loc + noise @ factor_of(self.cov).T)


class SampledObservation(eqx.Module):
    """A measurement that has not come yet, as draws of it: `values` (num_samples, *T, dy)."""

    values: Float[Array, "S *T dy"]

    @property
    def loc(self) -> Float[Array, "*T dy"]:
        """The median."""
        return jnp.median(self.values, axis=0)

    @property
    def transforms(self) -> tuple[Any, ...]:
        return ()

    def interval(self, probability: float) -> tuple[Float[Array, "*T dy"], Float[Array, "*T dy"]]:
        """Lower and upper end of the central interval of each entry of y, by quantiles.

        **Raises:** `ValueError` unless 0 < `probability` < 1.
        """
        if not 0 < probability < 1:
            raise ValueError(f"interval: `probability` is {probability}; expected 0 < p < 1")
        ends = (0.5 - 0.5 * probability, 0.5 + 0.5 * probability)
        low, high = jnp.quantile(self.values, jnp.asarray(ends, self.values.dtype), axis=0)
        return low, high


def _view(one: PredictedObservation) -> GaussianView:
    return GaussianView(one.loc, one.cov, one.transforms)
