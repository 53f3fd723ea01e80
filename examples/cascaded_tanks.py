"""Two tanks, one above the other: physics, a neural residual and process noise, from one level.

A pump fills the upper tank, which drains into the lower one, and that into a reservoir. When the pump
is strong the upper tank overflows, partly into the lower one. Only the level of the lower tank is
measured, and the sensor ends at 10 V. Known is the shape of the physics; what it leaves out (pipes,
the pump, water that splashes) is left to a small network whose weights have a prior. Both are trained
together on the free simulation of one record, from four starts side by side; the best is kept. Then the
likelihood of the filter says how large the noises are. The second record is simulated from the pump alone.

The records are those of Schoukens, Mattsson, Wigren, Noel (2016), looked for in the folder that the
environment variable FILTERDYN_DATA names. Where there are none simulated tanks stand in.

    python examples/cascaded_tanks.py            # two minutes; a figure in examples/output
    python examples/cascaded_tanks.py --quick    # a few steps, to see that it runs
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import filterdyn as fd

numpyro.enable_x64()

OUTPUT = Path(__file__).parent / "output"
FILTER = fd.ExtendedKalmanFilter()
STEP = 4.0  # s
UPPER = 5.0  # the upper level is in units of so many volts of the lower one's sensor

#: Per ten seconds, where the search starts.
PHYSICS = {
    "pump": 0.7,
    "root": 0.05,  # outflow of the upper tank: with the root of the level, and with the level
    "level": 0.25,
    "drain": 1.3,  # of the lower tank
    "return": -0.1,
    "spill": 10.0,
    "rim": 8.0,
    "share": 0.5,  # of what is spilled, the part that the lower tank gets
}


def above(x, sharpness):
    """x where it is positive, rounded off at 0."""
    return jax.nn.softplus(sharpness * x) / sharpness


def root(x):
    return jnp.sqrt(above(x, 10.0) + 1e-3)


class Tanks(eqx.Module):
    """Levels of the upper and the lower tank under a pump, one row later."""

    physics: dict
    residual: fd.fields.MLP
    noise: jax.Array

    def field(self, x, u):
        p = self.physics
        spilled = p["spill"] * above(x[0] - p["rim"], 15.0)
        drained = p["root"] * root(UPPER * x[0]) + p["level"] * x[0]
        into_lower = drained + p["share"] * spilled - p["drain"] * root(x[1]) - p["return"] * x[1]
        known = jnp.stack([p["pump"] * u[0] - drained - spilled, into_lower])
        return 0.1 * (known + self.residual(0.0, x, u)) / jnp.array([UPPER, 1.0])

    def __call__(self, t, x, u):
        a = self.field(x, u)
        b = self.field(x + 0.5 * STEP * a, u)
        c = self.field(x + 0.5 * STEP * b, u)
        d = self.field(x + STEP * c, u)
        mean = x + STEP / 6 * (a + 2 * b + 2 * c + d)
        return dist.MultivariateNormal(mean, scale_tril=self.noise * jnp.eye(2))


class Sensor(eqx.Module):
    """The lower level, up to 10 V."""

    noise: jax.Array

    def __call__(self, t, x, u):
        seen = 10.0 - above(10.0 - x[1:], 20.0)
        return dist.MultivariateNormal(seen, scale_tril=self.noise * jnp.eye(1))


def tanks(key):
    network = fd.fields.MLP(
        2,
        1,
        key=key,
        width=8,
        depth=1,
        zero=True,
        state_center=[4.0, 6.0],
        state_scale=[2.0, 2.0],
        input_center=3.3,
        input_scale=1.5,
    )
    physics = {name: jnp.asarray(value) for name, value in PHYSICS.items()}
    return fd.StateSpaceModel(
        dist.Normal(jnp.array([5.0, 5.0]), 3.0).to_event(1),
        fd.Transition(Tanks(physics, network, jnp.asarray(0.02))),
        fd.Observation(Sensor(jnp.asarray(0.05))),
    )


def weights(model):
    network = model.dynamics.fn.value.residual
    return [*network.weights, *network.biases]


def log_prior(model):
    return -1.0 * sum(jnp.sum(w**2) for w in weights(model))


def train(series, burn_in, steps, starts):
    """The best of several starts in free simulation, and then the noises by the likelihood."""
    models = eqx.filter_vmap(tanks)(jr.split(jr.key(0), starts))
    fitted = fd.fit(
        models,
        series,
        FILTER,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.02, steps)),
        steps=steps,
        chunk=steps // 3,
        burn_in=burn_in,
        objective="simulation",
        trainable=lambda m: (m.dynamics.fn.value.physics, weights(m)),
        log_prior=log_prior,
        clip=1.0,
        progress=True,
    )
    noises = lambda m: (m.dynamics.fn.value.noise, m.observation.fn.value.noise)
    noisy = fd.fit(
        fitted.model,
        series,
        FILTER,
        optimizer=optax.adam(0.05),
        steps=max(steps // 20, 2),
        burn_in=burn_in,
        trainable=noises,
        positive=noises,
    )
    return fitted, noisy.model


def draw(series, free, losses, path):
    figure, axes = plt.subplots(3, 1, figsize=(9, 8), layout="constrained")
    y, mean = np.asarray(series.observations)[:, 0], np.asarray(free.mean)[:, 0]
    sd = np.sqrt(np.asarray(free.cov)[:, 0, 0])
    t = series.times
    axes[0].plot(t, y, color="#009E73", linewidth=1, label="measured")
    axes[0].plot(t, mean, "--", color="#0072B2", linewidth=1, label="free run")
    axes[0].fill_between(t, mean - 1.645 * sd, mean + 1.645 * sd, color="#0072B2", alpha=0.2)
    axes[0].set(xlabel="time (s)", ylabel="lower level (V)")
    axes[0].legend(loc="lower left")
    axes[1].plot(t, y - mean, color="#0072B2", linewidth=1)
    axes[1].axhline(0, color="#999999", linewidth=0.8)
    axes[1].set(xlabel="time (s)", ylabel="measured - free run (V)")
    for one in np.sqrt(np.atleast_2d(losses)):
        axes[2].semilogy(one, color="#0072B2", linewidth=0.8)
    axes[2].set(xlabel="step", ylabel="root of the loss (V)")
    figure.savefig(path, dpi=130)


def main(quick, output):
    output.mkdir(exist_ok=True)
    records = fd.datasets.cascaded_tanks(stand_in=True)
    print("cascaded tanks" if records.real else "simulated tanks (no recording was found)")
    series, test = records.train, records.tests["test"]
    fitted, model = train(series, records.burn_in, *((6, 2) if quick else (2400, 4)))

    rows = f"{'':16s}{'free run (V)':>14s}{'one row ahead (V)':>20s}{'90 % intervals hold':>22s}"
    print(rows)
    scores = {}
    for name, record in (("training record", series), ("test record", test)):
        free = fd.free_run(model, record, FILTER, burn_in=records.burn_in)
        ahead = fd.predict(model, record, FILTER).scores()
        scores[name] = float(free.scores().rmse[0])
        print(f"{name:16s}{scores[name]:14.3f}{float(ahead.rmse[0]):20.3f}", end="")
        print(f"{float(ahead.coverage[0]):22.1%}")
    part, sensor = model.dynamics.fn.value, model.observation.fn.value
    print(f"process noise {float(part.noise):.3f} a row, sensor noise {float(sensor.noise):.3f} V")
    draw(test, free, fitted.losses, output / "cascaded_tanks.png")

    error = scores["test record"]
    fine = np.isfinite(error) and fitted.skipped == 0
    if not quick:
        fine = error <= 0.31
    print(
        f"{'OK' if fine else 'FAILED'}: free-run error on the test record {error:.3f} V of a spread of "
        f"{float(np.std(test.observations)):.2f} V, from the pump and {records.burn_in} rows"
    )
    return bool(fine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figure")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
