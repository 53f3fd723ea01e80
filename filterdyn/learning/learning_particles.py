"""What particle learning believes: states, statistics of their paths, and what these say together."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import block_diag
from jaxtyping import Array, Bool, Float

from filterdyn.beliefs import AbstractParticles
from filterdyn.learning.lineages import Lineages
from filterdyn.learning.parameters import ParameterEstimate, ParameterSpace
from filterdyn.learning.statistics import AbstractStatistics


class LearningParticles(AbstractParticles):
    """Weighted draws of the state, each with the statistics of its path and what they say."""

    positions: Float[Array, "*T N dx"]
    log_weights: Float[Array, "*T N"]
    #: Of each family of parameters, with a leading axis N.
    statistics: tuple[Any, ...]
    lineages: Lineages
    #: Mean and covariance of the parameters, averaged over the particles' posteriors.
    estimate: Float[Array, "*T k"]
    estimate_cov: Float[Array, "*T k k"]
    prior_cov: Float[Array, "*T k k"]
    space: ParameterSpace
    #: Is the covariance that of a posterior? Of parameters that are forgotten it is not.
    claims: bool = eqx.field(static=True)

    @property
    def parameters(self) -> ParameterEstimate:
        cov = self.estimate_cov if self.claims else None
        unmeasured = self.prior_cov if self.claims else None
        return ParameterEstimate(self.space, self.estimate, cov, unmeasured_cov=unmeasured)

    @property
    def is_finite(self) -> Bool[Array, ""]:
        parts = (self.positions, self.statistics, self.estimate, self.estimate_cov)
        finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(parts)]).all()
        return finite & jnp.isfinite(self.log_weights.max())


def pooled(
    space: ParameterSpace,
    families: Sequence[AbstractStatistics],
    known: Sequence[tuple[Float[Array, "N n"], Float[Array, "N n n"]] | None],
    drawn: Float[Array, "N k"] | None,
    log_weights: Float[Array, " N"],
) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    """Mean and covariance of the parameters over weighted particles, of each of which `known` has the
    moments, family by family, or `drawn` a draw where they are not known."""
    dtype, size = log_weights.dtype, len(log_weights)
    order, means, covs = [], [], []
    for family, found in zip(families, known, strict=True):
        mine = np.concatenate([np.r_[space.parts[name]] for name in family.names])
        if found is None:
            assert drawn is not None
            found = drawn[:, mine], jnp.zeros((size, len(mine), len(mine)), dtype)
        order.append(mine)
        means.append(found[0].astype(dtype))
        covs.append(found[1].astype(dtype))
    weights = jax.nn.softmax(log_weights)
    each = jnp.concatenate(means, axis=1)
    mean = weights @ each
    a = each - mean
    within = block_diag(*(jnp.tensordot(weights, cov, 1) for cov in covs))
    cov = within + (weights[:, None] * a).T @ a
    back = np.argsort(np.concatenate(order))
    return mean[back], cov[back][:, back]
