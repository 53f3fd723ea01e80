"""What the sigma-point filters refuse."""

from filterdyn.initial import Diffuse
from filterdyn.linearization import AbstractSigmaPointRule
from filterdyn.model import StateSpaceModel


def check_sigma_points(owner: str, model: StateSpaceModel, rule: AbstractSigmaPointRule) -> None:
    """**Raises:** `ValueError` if there is no such rule for so many states, `TypeError` for a diffuse
    start of a model that is not linear."""
    rule.check(owner, model.dx)
    linear = model.dynamics.is_linear and model.observation.is_linear
    if isinstance(model.initial, Diffuse) and not linear:
        raise TypeError(
            f"{owner}: `initial` is Diffuse and the model may be nonlinear; sigma points cannot be spread "
            "infinitely far (give a proper start, or use fd.ExtendedKalmanFilter())"
        )
