"""filterdyn: probabilistic filtering and system identification in JAX and NumPyro."""

from filterdyn import datasets
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import ODE, SDE, LinearSDE, LinearTransition, Transition
from filterdyn.filters import (
    ExtendedKalmanFilter,
    FilterResult,
    KalmanFilter,
    filter,
    log_likelihood,
)
from filterdyn.forecasting import Forecast, forecast
from filterdyn.inference import ObservedSeries, to_datatree
from filterdyn.model import StateSpaceModel
from filterdyn.moments import conditional_moments
from filterdyn.observations import GaussianObservation, LinearObservation, Observation
from filterdyn.online import OnlineFilter, OnlineState, StepResult
from filterdyn.series import Series, stack
from filterdyn.simulation import Simulation, simulate
from filterdyn.smoothers import SmootherResult, sample_paths, smooth
from filterdyn.status import Status
