"""The gradient modes: what derivative resampled particles carry."""

from collections.abc import Callable
from typing import Literal, get_args

from jaxtyping import Array, Float, Int

from filterdyn.resampling.affine_flow import affine_flow
from filterdyn.resampling.optimal_transport import entropic_flow
from filterdyn.resampling.score_function import copies, stop_gradient_weights
from filterdyn.resampling.soft import soft_copies
from filterdyn.resampling.sorted_transport import sorted_flow

Gradient = Literal["affine", "sorted", "entropic", "stop", "score", "soft", "none"]
GRADIENTS: tuple[str, ...] = get_args(Gradient)

Copied = tuple[Float[Array, "N dx"], Float[Array, " N"]]

#: (positions, log_weights, ancestors) -> (positions, log_weights), value and derivative.
COPIERS: dict[str, Callable[[Array, Array, Int[Array, " N"]], Copied]] = {
    "affine": affine_flow,
    "sorted": sorted_flow,
    "entropic": entropic_flow,
    "stop": stop_gradient_weights,
    "score": stop_gradient_weights,
    "soft": soft_copies,
    "none": copies,
}
