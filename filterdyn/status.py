"""Failures inside compiled code, as integers that travel with a result."""

from enum import IntEnum

import jax.numpy as jnp
from jaxtyping import Array, Int


class Status(IntEnum):
    """What became of one series. `OK` is zero, everything else is the first failure that was met.

    A failed series has log-likelihood `-inf` and NaN moments from the failed row on; other series
    of the same batch are untouched.
    """

    OK = 0
    #: A model function, or a belief computed from it, is NaN or infinite.
    MODEL_NOT_FINITE = 1
    #: An adaptive solver used up `max_steps`, or a gap needs more than `max_substeps`.
    SOLVER_OUT_OF_STEPS = 2
    #: An observed entry has predictive variance zero: its density does not exist.
    SINGULAR_INNOVATION = 3
    #: Traced times decrease, are not finite, or lie before `t0`.
    TIMES_DECREASING = 4
    #: A traced float32 clock is too coarse to resolve the gaps between its own ticks.
    TIMES_UNRESOLVED = 5
    #: An observed value lies outside the support of the observation distribution.
    OBSERVATION_OUT_OF_SUPPORT = 6
    #: A row is partly missing and the observation distribution has no marginals to fall back on.
    MARGINAL_NOT_AVAILABLE = 7
    #: A conditional mean or variance needed by a Gaussian filter is infinite.
    MOMENTS_NOT_FINITE = 8
    #: A parallel scan is further from the filter's own step than its tolerance; `KalmanFilter` is not.
    PARALLEL_INACCURATE = 9
    #: Every particle has weight zero, or an ensemble has lost all of its spread.
    COLLAPSED = 10
    #: The iterations of a filter that is parallel in time did not converge; `max_iterations` may do it.
    ITERATIONS_NOT_CONVERGED = 11


def failed_at(statuses: Int[Array, "*B T"]) -> Int[Array, "*B"]:
    """The first row that is not `OK`, or -1."""
    failed = statuses != Status.OK
    return jnp.where(failed.any(-1), jnp.argmax(failed, axis=-1), -1)
