"""The Silverbox: an electronic oscillator with a hardening spring, simulated to a quarter of a millivolt.

Voltage in, voltage out, as a mass on a spring that hardens. The model is that of a textbook: spring and
damping are polynomials of the displacement, and the input is a straight line between samples, up to
factors that are fitted too. The likelihood of the filter's one-step predictions leads near the right
numbers, then the error of a free simulation is made small. It is trained on 10,000 rows of multisines,
and tested, on the input alone after 50 rows that say where the state is, on another multisine and on an
arrow whose amplitude grows beyond what was trained on.

The records are those of Wigren, Schoukens (2013), looked for in the folder that the environment variable
FILTERDYN_DATA names. Where there are none a simulated oscillator stands in.

    python examples/silverbox.py            # two minutes; a figure in examples/output
    python examples/silverbox.py --quick    # a few steps, to see that it runs
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
RATE = 400.0  # rad/s, about that of the oscillator: time runs in units of 1 / RATE
STEP = RATE / 610.35
SIZE = 0.05  # V, about the spread of the output
PUSH = 0.022  # V, that of the input
#: mV, what eleven parameters by least squares reach, from the literature of the benchmark.
PUBLISHED = {"multisine": 0.289, "arrow": 0.414, "arrow, no extrapolation": 0.281}


class Oscillator(eqx.Module):
    """Displacement and speed, in units of SIZE and RATE, one sample later."""

    spring: jax.Array  # of 1, z, z^2 and z^3, each made nearly uncorrelated with those before it
    damping: jax.Array  # of 1, z, z^2
    drive: jax.Array  # of the mean of an input and the next one, and of their difference

    def acceleration(self, z, speed, force):
        square = z * z - 1.2
        powers = jnp.stack([jnp.ones_like(z), z, square, (z**3 - 3.6 * z) / 4])
        return force - self.spring @ powers - (self.damping @ jnp.stack([1.0, z, square])) * speed

    def __call__(self, t, x, u):
        middle, slope = (u[0] + u[1]) / 2 / PUSH, (u[1] - u[0]) / PUSH
        a, b, c, d = self.drive
        force = lambda part: a * middle + b * slope + (part - 0.5) * (c * slope + d * middle)
        field = lambda x, part: jnp.stack([x[1], self.acceleration(x[0], x[1], force(part))])
        h = STEP / 2
        for start in (0.0, 0.5):
            k1 = field(x, start)
            k2 = field(x + 0.5 * h * k1, start + 0.25)
            k3 = field(x + 0.5 * h * k2, start + 0.25)
            k4 = field(x + h * k3, start + 0.5)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return dist.MultivariateNormal(x, scale_tril=1e-5 * jnp.eye(2))


def oscillator():
    numbers = ([0.0, 1.2, 0.0, 0.04], [0.1, 0.0, 0.0], [0.48, 0.0, 0.48, 0.0])
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        fd.Transition(Oscillator(*map(jnp.array, numbers))),
        fd.LinearObservation(jnp.array([[SIZE, 0.0]]), 2e-4**2),
    )


def with_next_input(series):
    """Inputs: the voltage now, and that of the next row."""
    u = np.asarray(series.inputs)[:, 0]
    return fd.Series(series.times, series.observations, np.stack([u, np.append(u[1:], u[-1])], 1))


def train(series, burn_in, quick):
    options = {"optimizer": optax.lbfgs(), "burn_in": burn_in, "chunk": 10}
    near = oscillator()
    if not quick:
        near = fd.fit(near, series, FILTER, steps=25, objective="prediction", **options).model
    steps = 6 if quick else 50
    return fd.fit(near, series, FILTER, steps=steps, objective="simulation", **options)


def draw(tests, free, path):
    figure, axes = plt.subplots(2, 2, figsize=(11, 6), sharex="col", layout="constrained")
    for (top, bottom), name in zip(axes.T, ("multisine", "arrow"), strict=True):
        series, residuals = tests[name], 1e3 * np.asarray(free[name].residuals)[:, 0]
        top.plot(series.times, series.observations[:, 0], color="#009E73", linewidth=0.3)
        top.set(title=name, ylabel="measured (V)")
        bottom.plot(series.times, residuals, color="#0072B2", linewidth=0.3)
        bottom.set(xlabel="time (s)", ylabel="measured - free run (mV)")
    figure.savefig(path, dpi=130)


def main(quick, output):
    output.mkdir(exist_ok=True)
    records = fd.datasets.silverbox(stand_in=True)
    print("Silverbox" if records.real else "a simulated oscillator (no recording was found)")
    rows = 1000 if quick else 10_000
    fitted = train(with_next_input(records.train[:rows]), records.burn_in, quick)
    tests = {name: with_next_input(one) for name, one in records.tests.items()}
    if quick:
        tests = {name: one[:1000] for name, one in tests.items()}

    found = fitted.model.dynamics.fn.value
    linear = (found.spring[1] - 0.9 * found.spring[3]) * RATE**2
    cubic = found.spring[3] / 4 * RATE**2 / SIZE**2
    print(f"spring: {linear:.4g} / s^2, hardening {cubic:.4g} / (V s)^2, ", end="")
    print(f"damping {found.damping[0] * RATE:.4g} / s")
    free = {
        n: fd.free_run(fitted.model, s, FILTER, burn_in=records.burn_in) for n, s in tests.items()
    }
    errors = {name: 1e3 * float(one.scores().rmse[0]) for name, one in free.items()}
    print(
        f"\n{'free run after 50 rows':28s}{'error (mV)':>12s}{'published':>12s}{'spread (mV)':>13s}"
    )
    for name, error in errors.items():
        spread = 1e3 * float(np.std(tests[name].observations))
        theirs = f"{PUBLISHED[name]:12.3f}" if records.real else f"{'-':>12s}"
        print(f"{name:28s}{error:12.3f}{theirs}{spread:13.1f}")
    draw(tests, free, output / "silverbox.png")

    wanted = {"multisine": 0.30, "arrow": 0.45, "arrow, no extrapolation": 0.30}
    fine = all(np.isfinite(e) for e in errors.values())
    if not quick:
        fine = all(errors[name] <= most for name, most in wanted.items())
    said = ", ".join(f"{error:.3f} mV on the {name}" for name, error in errors.items())
    print(f"{'OK' if fine else 'FAILED'}: free-run errors {said}")
    return bool(fine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figure")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
