"""What filters refuse that see the spread of a belief: sigma points, and second order."""

from filterdyn.initial import Diffuse
from filterdyn.linearization import AbstractSpreadRule
from filterdyn.model import StateSpaceModel


def check_spread_rule(owner: str, model: StateSpaceModel, rule: AbstractSpreadRule) -> None:
    """**Raises:** `ValueError` if there is no such rule for so many states, `TypeError` for a diffuse
    start of a model that is not linear."""
    rule.check(owner, model.dx)
    linear = model.dynamics.is_linear and model.observation.is_linear
    if isinstance(model.initial, Diffuse) and not linear:
        raise TypeError(
            f"{owner}: `initial` is Diffuse and the model may be nonlinear; means and covariances under "
            "an infinite spread do not exist (give a proper start, or use fd.ExtendedKalmanFilter())"
        )
