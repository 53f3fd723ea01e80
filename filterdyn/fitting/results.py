"""What `fit` returns."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

from filterdyn.model import StateSpaceModel


class FitState(eqx.Module):
    """Where a fit stands: parameters, those last known to be fine, the best ones, the optimiser."""

    parameters: list[Array]
    fine: list[Array]
    best: list[Array]
    best_loss: Float[Array, ""]
    optimizer: Any
    key: Array
    step: Int[Array, ""]
    skipped: Int[Array, ""]


class FitResult(eqx.Module):
    """A fitted model and how it was found.

    - `model`: the best one: of the lowest validation loss; without `validation` of the lowest loss, or the
      last one if windows were drawn or the filter samples: such losses do not compare. Of a batch of models
      the best of all;
    - `filter`: the filter, that of a `LearnedNoiseFilter` or `LearnedGainFilter` with its trained network;
    - `losses` (steps,): before each step, of a measurement; NaN where it was not finite and the step
      was skipped;
    - `validation_losses` (checks,): of a measurement, after every chunk; `None` without `validation`;
      `validation_steps` (checks,): how many steps had been taken then;
    - `skipped`: how many steps were; `stopped_early`: did the validation loss stop falling?
    - `state`: what `fd.fit(..., resume=result)` goes on from;
    - `models`, `best`: of a batch of S models all of them, and which is the best; else `None` and 0. Then
      losses have a leading axis S.
    """

    model: StateSpaceModel
    filter: Any
    losses: np.ndarray
    validation_losses: np.ndarray | None
    skipped: int
    stopped_early: bool
    state: FitState
    models: StateSpaceModel | None = None
    best: int = 0
    validation_steps: np.ndarray | None = None
