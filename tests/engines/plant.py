"""What the engines' workers import."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import filterdyn as fd

model = fd.StateSpaceModel(
    dist.Normal(0.0, jnp.ones(2)).to_event(1),
    fd.LinearSDE([[0.0, 1.0], [-1.0, -0.3]], [[0.0], [0.5]], B=[[0.0], [1.0]]),
    fd.LinearObservation(np.eye(2), 0.1 * np.eye(2)),
)
online = fd.OnlineFilter(model, fd.KalmanFilter())
