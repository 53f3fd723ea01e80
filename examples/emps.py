"""A drive of a machine tool: its mass and its friction, with intervals, from force and position.

A motor pushes a carriage to and fro, a controller sets the force, and an encoder reports the position
a thousand times a second. Unknown are the mass, viscous and dry friction, a constant force, and how
large the noises are: near a standstill friction is least certain, so the noise there has a size of
its own. All are found by the likelihood of an extended Kalman filter. A second record, in which pulses
of force disturb the drive, is then predicted one row ahead, and simulated from the force alone.

The records are those of the EMPS benchmark (Janot, Gautier, Brunot 2019), looked for in the folder
that the environment variable FILTERDYN_DATA names. Where there are none a simulated drive stands in.

    python examples/emps.py            # two minutes; a figure in examples/output
    python examples/emps.py --quick    # a few steps, to see that it runs
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import filterdyn as fd

numpyro.enable_x64()

OUTPUT = Path(__file__).parent / "output"
FILTER = fd.ExtendedKalmanFilter()
STEP = 1e-3  # s

#: Unit, and where the search starts.
PARAMETERS = {
    "mass": ("kg", 90.0),
    "viscous": ("N s/m", 180.0),
    "dry": ("N", 22.0),
    "offset": ("N", -3.0),
    "creep": ("m/s", 5e-4),
    "force_noise": ("N sqrt(s)", 0.1),
    "reversal_noise": ("N sqrt(s)", 0.3),
    "reversal_speed": ("m/s", 0.015),
    "sensor_noise": ("m", 2e-8),
}
PHYSICAL = ("mass", "viscous", "dry", "offset")
#: What inverse models say of this drive (least squares on filtered accelerations).
BY_LEAST_SQUARES = {"mass": 95.12, "viscous": 203.4, "dry": 20.41, "offset": -3.17}
STAND_IN = {"mass": 95.0, "viscous": 200.0, "dry": 20.0, "offset": -3.0}


class Drive(eqx.Module):
    """Position (m) and speed (m/s) a millisecond later, under a force (N)."""

    p: dict

    def field(self, x, force):
        p = self.p
        friction = p["viscous"] * x[1] + p["dry"] * jnp.tanh(x[1] / p["creep"]) + p["offset"]
        return jnp.array([x[1], (force - friction) / p["mass"]])

    def __call__(self, t, x, u):
        a = self.field(x, u[0])
        b = self.field(x + 0.5 * STEP * a, u[0])
        c = self.field(x + 0.5 * STEP * b, u[0])
        d = self.field(x + STEP * c, u[0])
        turning = jnp.exp(-((x[1] / self.p["reversal_speed"]) ** 2))
        variance = self.p["force_noise"] ** 2 + turning * self.p["reversal_noise"] ** 2
        sds = jnp.stack([1e-10, jnp.sqrt(variance * STEP) / self.p["mass"]])
        mean = x + STEP / 6 * (a + 2 * b + 2 * c + d)
        return dist.MultivariateNormal(mean, scale_tril=jnp.diag(sds))


class Encoder(eqx.Module):
    """The position with noise, rounded to a multiple of `resolution` (m)."""

    sensor_noise: jax.Array
    resolution: jax.Array

    def __call__(self, t, x, u):
        sd = jnp.sqrt(self.sensor_noise**2 + self.resolution**2 / 12)
        return dist.MultivariateNormal(x[:1], scale_tril=sd * jnp.eye(1))


def drive(p, resolution):
    p = {name: jnp.asarray(value) for name, value in p.items()}
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), jnp.array([0.01, 0.1])).to_event(1),
        fd.Transition(Drive({name: p[name] for name in p if name != "sensor_noise"})),
        fd.Observation(Encoder(p["sensor_noise"], jnp.asarray(resolution))),
    )


def parameters(model):
    return {
        **model.dynamics.fn.value.p,
        "sensor_noise": model.observation.fn.value.sensor_noise,
    }


def resolution(series):
    """The step of which all positions are multiples, or 0."""
    y = np.asarray(series.observations)[:, 0]
    moves = np.abs(np.diff(y))
    step = moves[moves > 1e-12].min()
    return float(step) if np.abs(y / step - np.round(y / step)).max() < 0.02 else 0.0


def identify(series, burn_in, steps):
    """The most likely parameters and their standard errors, from the Fisher information."""
    positive = lambda m: [value for name, value in parameters(m).items() if name != "offset"]
    fitted = fd.fit(
        drive({name: start for name, (_, start) in PARAMETERS.items()}, resolution(series)),
        series,
        FILTER,
        optimizer=optax.lbfgs(),
        steps=steps,
        burn_in=burn_in,
        trainable=lambda m: m.dynamics.fn.value.p["offset"],
        positive=positive,
    )
    found = {name: float(value) for name, value in parameters(fitted.model).items()}
    information = fd.diagnostics.identifiability(
        lambda p: drive(p, resolution(series)), found, series, FILTER
    )
    errors = dict(zip(information.names, information.standard_errors, strict=True))
    return fitted, found, {name: float(errors[name]) for name in found}


def draw(series, free, path):
    figure, axes = plt.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
    measured = np.asarray(series.observations)[:, 0]
    axes[0].plot(series.times, np.asarray(series.inputs)[:, 0], color="black", linewidth=0.4)
    axes[0].set(ylabel="force (N)")
    axes[1].plot(series.times, 1e3 * measured, color="#009E73", label="measured")
    axes[1].plot(series.times, 1e3 * free.mean[:, 0], "--", color="#0072B2", label="free run")
    axes[1].set(ylabel="position (mm)")
    axes[1].legend()
    axes[2].plot(series.times, 1e3 * free.residuals[:, 0], color="#0072B2")
    axes[2].axhline(0, color="#999999", linewidth=0.8)
    axes[2].set(xlabel="time (s)", ylabel="measured - free run (mm)")
    figure.savefig(path, dpi=130)


def main(quick, output):
    output.mkdir(exist_ok=True)
    records = fd.datasets.emps(stand_in=True)
    print("EMPS drive" if records.real else "a simulated drive (FILTERDYN_DATA names no recording)")
    train, test = records.train, records.tests["pulses"]
    if quick:
        train, test = train[:4000], test[:3000]
    _, found, errors = identify(train, records.burn_in, 6 if quick else 50)

    reference = BY_LEAST_SQUARES if records.real else STAND_IN
    heading = "least squares" if records.real else "truth"
    print(f"\n{'parameter':16s}{'unit':12s}{'5 %':>11s}{'value':>11s}{'95 %':>11s}{heading:>15s}")
    for name, (unit, _) in PARAMETERS.items():
        value, reach = found[name], 1.645 * errors[name]
        row = "".join(f"{x:11.4g}" for x in (value - reach, value, value + reach))
        print(f"{name:16s}{unit:12s}{row}{reference.get(name, np.nan):15.4g}".replace("nan", "  -"))

    model = drive(found, resolution(test))
    one_step = fd.predict(model, test, FILTER)
    free = fd.free_run(model, test, FILTER, burn_in=records.burn_in)
    coverage = float(one_step.scores(0.9).coverage[0])
    error = 1e3 * float(free.scores().rmse[0])
    print(f"\n{one_step.kind}: {coverage:.1%} of the second record in their 90 % interval")
    print(f"{free.kind}: error {error:.2f} mm (the position has a spread of ", end="")
    print(f"{1e3 * float(np.std(test.observations)):.0f} mm)")
    draw(test, free, output / "emps.png")

    close = max(abs(found[n] / reference[n] - 1) for n in PHYSICAL)
    fine = np.isfinite(error) and close < 0.2
    if not quick:
        fine = error < 8 and 0.85 < coverage < 0.95 and close < 0.1
    print(
        f"{'OK' if fine else 'FAILED'}: free-run error {error:.2f} mm, one-step coverage "
        f"{coverage:.1%} of 90 %, physical parameters within {close:.1%} of those "
        f"{'by least squares' if records.real else 'of the simulation'}"
    )
    return bool(fine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figure")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
