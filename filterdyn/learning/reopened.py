"""What a filter believes once it no longer trusts what it has learnt."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.beliefs import Gaussian
from filterdyn.filters.base import AbstractFilter
from filterdyn.learning.augmented import JointMemory
from filterdyn.learning.model import ParametricModel
from filterdyn.linalg import PSD, congruence
from filterdyn.model import StateSpaceModel


def check_reopens(owner: str, filter: AbstractFilter, model: StateSpaceModel) -> None:
    """**Raises:** `TypeError` for a filter that learns in a way that cannot be set free again."""
    memory = eqx.filter_eval_shape(lambda: filter.init(model, jnp.result_type(float))).memory
    if memory is not None and not isinstance(memory, JointMemory) and not _holds_inverse(memory):
        raise TypeError(
            f"{owner}: `filter` is {type(filter).__name__}, which keeps {type(memory).__name__}; expected "
            "a Gaussian filter without `adaptive` noise, AugmentedFilter, DualFilter or a recursive one"
        )


def _holds_inverse(memory: Any) -> bool:
    """Does it hold parameters and the inverse of the information on them?"""
    return isinstance(getattr(memory, "spread", None), PSD) and hasattr(memory, "theta")


def reopened(model: StateSpaceModel, belief: Gaussian) -> Gaussian:
    """`belief`, the covariance of the prior added to that of the parameters: they may have moved anywhere.
    Of a filter that does not learn it is the belief itself."""
    memory = belief.memory
    if memory is None:
        return belief
    assert isinstance(model, ParametricModel)
    dtype = belief.mean.dtype
    prior = model.prior_cov.astype(dtype)
    unmeasured = memory.unmeasured_cov + prior
    if isinstance(memory, JointMemory):
        dx, joint = model.dx, memory.joint
        nothing = jnp.zeros((dx, dx), dtype)
        more = PSD.from_matrix(jax.scipy.linalg.block_diag(nothing, prior))
        spread = _sum(joint.spread, more)
        memory = JointMemory(Gaussian(joint.mean, spread=spread), unmeasured, memory.space)
    else:
        spread = _sum(memory.spread, PSD.from_matrix(prior))
        memory = eqx.tree_at(lambda m: (m.spread, m.unmeasured_cov), memory, (spread, unmeasured))
    return Gaussian(belief.mean, spread=belief.spread, memory=memory)


def faded(belief: Gaussian, factor: Float[Array, ""]) -> Gaussian:
    """`belief`, the standard deviations of the state `factor` times as large, of a filter that does not
    learn; of any other the belief itself."""
    if belief.memory is not None:
        return belief
    spread = belief.spread
    factors = None if spread.factor is None else spread.factor * factor
    scaled = PSD(factors, spread.matrix * factor * factor, spread.diffuse)
    return Gaussian(belief.mean, spread=scaled)


def _sum(a: PSD, b: PSD) -> PSD:
    return congruence(jnp.eye(a.matrix.shape[0], dtype=a.matrix.dtype), a, b)
