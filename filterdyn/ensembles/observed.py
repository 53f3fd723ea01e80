"""A measurement as the members of an ensemble see it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from filterdyn.beliefs import Ensemble, Gaussian
from filterdyn.linalg import PSD
from filterdyn.linearization import AbstractLinearization, Linearized
from filterdyn.model import StateSpaceModel
from filterdyn.observations import LinearObservation


class ObservedEnsemble(NamedTuple):
    """z = value + anomalies^T w + noise, with w the weights of the members' anomalies: the measurement
    in the space where it is Gaussian. Rows and columns of missing entries mean nothing."""

    innovation: Float[Array, " dy"]
    observed: Bool[Array, " dy"]
    #: What members expect less their mean, over sqrt(N - 1).
    anomalies: Float[Array, "N dy"]
    noise: Float[Array, " dy"] | Float[Array, "dy dy"]
    log_jacobian: Float[Array, ""]
    exact_log_prob: Float[Array, ""] | None
    status: Array

    @property
    def masked(self) -> tuple[Array, Array, Array]:
        """Innovation, anomalies and noise in which a missing entry is a measurement of nothing with
        noise one: it changes nothing."""
        seen = self.observed
        y = jnp.where(seen, self.anomalies, 0.0)
        d = jnp.where(seen, self.innovation, 0.0)
        if self.noise.ndim == 1:
            return d, y, jnp.where(seen, self.noise, 1.0)
        both = seen[:, None] & seen[None, :]
        r = 0.5 * (self.noise + self.noise.T)
        return d, y, jnp.where(both, r, jnp.eye(len(seen), dtype=r.dtype))

    @property
    def variances(self) -> Float[Array, " dy"]:
        """Those of the noise, entry by entry."""
        if self.noise.ndim == 1:
            return self.noise
        return jnp.diagonal(self.noise)


class _OnMembers(AbstractLinearization):
    """The affine stand-in for a function over an ensemble, in the weights w of the members' anomalies
    (x = mean + A^T w, of mean 0 and covariance I) instead of the state: its slope is what the function
    makes of the anomalies. So nothing of dx^2 numbers is formed."""

    members: Float[Array, "N dx"]

    def __call__(
        self, function: Callable[[Array], Any], belief: Gaussian, has_aux: bool = False
    ) -> Linearized:
        dtype = self.members.dtype
        z, aux = jax.vmap(lambda x: function(x) if has_aux else (function(x), None))(self.members)
        z = z.astype(dtype)
        value = z.mean(0)
        return Linearized(value, (z - value).T / (len(z) - 1) ** 0.5, None, aux)

    def average(self, function: Callable[[Array], Any], belief: Gaussian) -> Any:
        total = jax.eval_shape(function, self.members[0])
        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), total)

        def add(total: Any, x: Array) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, function(x)), None

        # One by one: covariances of all members at once may not fit.
        total, _ = jax.lax.scan(add, start, self.members)
        return jax.tree.map(lambda x: x / len(self.members), total)

    def check(self, owner: str, dx: int) -> None:
        """Every number of states will do."""


def observe(
    model: StateSpaceModel, belief: Ensemble, t: Any, u: Any, y: Float[Array, " dy"]
) -> ObservedEnsemble:
    """What the members expect of a measurement at time `t` under the input `u`, and what it was.

    A transformed Gaussian (`LogNormal`) is seen in the space where it is Gaussian; other families
    enter by their conditional means and their conditional covariance, averaged over the members.
    """
    x = belief.members
    at = Gaussian(belief.mean, spread=PSD.zeros(0, x.dtype))
    lin = model.observation.linearize(_OnMembers(x), at, t, u, y)
    slope = lin.slope.T
    if isinstance(model.observation, LinearObservation):
        slope = jnp.matmul(belief.anomalies, slope, precision="highest") / (len(x) - 1) ** 0.5
    cast = lambda a: a.astype(x.dtype)
    return ObservedEnsemble(
        cast(lin.z - lin.value),
        lin.observed,
        cast(slope),
        cast(lin.noise),
        cast(lin.log_jacobian),
        None if lin.exact_log_prob is None else cast(lin.exact_log_prob),
        lin.status,
    )
