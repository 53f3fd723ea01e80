"""A pendulum whose friction nobody wrote down: physics and a neural residual, fitted to noisy angles.

A motor pushes a pendulum, and a sensor reports its angle. Gravity is known but for its strength; what
slows the pendulum down (here: drag that grows with the square of the speed) is left to a small network.
Both are trained together on the likelihood of the filter. A second experiment, with another force, is
simulated without looking at its measurements.

    python examples/neural_residual.py            # two minutes at most; a figure in examples/output
    python examples/neural_residual.py --quick    # a few steps, to see that it runs
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
STEP = 0.1  # s


class Pendulum(eqx.Module):
    """Angle (rad) and speed (rad/s) under gravity and a motor; `gravity` in 1/s^2."""

    gravity: jax.Array

    def __call__(self, t, x, u):
        return jnp.array([x[1], u[0] - self.gravity * jnp.sin(x[0])])


class Drag(eqx.Module):
    """What slows the pendulum down: a network of its speed."""

    network: fd.fields.MLP

    def __call__(self, t, x, u):
        return jnp.array([0.0, 1.0]) * self.network(t, x[1:], None)


def model_of(field):
    """Heun steps of the field, with a little process noise."""

    def move(t, x, u):
        slope = field(t, x, u)
        step = 0.5 * STEP * (slope + field(t, x + STEP * slope, u))
        return dist.MultivariateNormal(x + step, scale_tril=jnp.diag(jnp.array([1e-3, 1e-2])))

    return move


class Moves(eqx.Module):
    """`model_of` as a module, so that the numbers of the field are leaves of the model."""

    field: eqx.Module

    def __call__(self, t, x, u):
        return model_of(self.field)(t, x, u)


def pendulum(field):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(2), 0.1).to_event(1),
        fd.Transition(Moves(field)),
        fd.LinearObservation(jnp.array([[1.0, 0.0]]), 0.02**2),
    )


class TrueDrag(eqx.Module):
    """Quadratic in the speed."""

    def __call__(self, t, x, u):
        return jnp.array([0.0, -0.6 * x[1] * jnp.abs(x[1])])


def experiment(seed, rows):
    """Forces that change every second, and the angles that the sensor reports."""
    force = np.repeat(np.random.default_rng(seed).uniform(-6, 6, rows // 10 + 1), 10)[:rows, None]
    truth = pendulum(fd.fields.UniversalField(Pendulum(jnp.asarray(9.0)), TrueDrag()))
    times = STEP * np.arange(rows)
    found = fd.simulate(truth, times, force, key=jr.key(seed))
    return fd.Series(times, found.observations, force), found.states


def free_run(model, series):
    """Angles from the forces alone."""
    blind = fd.Series(series.times, jnp.full((len(series), 1), jnp.nan), series.inputs)
    return fd.filter(model, blind, FILTER).mean[:, 0]


def main(quick, output):
    output.mkdir(exist_ok=True)
    series, _ = experiment(1, 200)
    later, states = experiment(2, 150)
    network = fd.fields.MLP(1, out=1, key=jr.key(0), width=8, depth=1, zero=True)
    start = pendulum(fd.fields.UniversalField(Pendulum(jnp.asarray(6.0)), Drag(network)))
    rate = optax.cosine_decay_schedule(0.03, 1000)
    fitted = fd.fit(
        start,
        [series[:100], series[100:]] if quick else series,
        FILTER,
        optimizer=optax.adam(rate),
        steps=5 if quick else 1000,
        clip=10.0,
    )
    known = free_run(pendulum(Pendulum(jnp.asarray(9.0))), later)
    learnt = free_run(fitted.model, later)
    angle = states[:, 0]
    error = lambda x: float(jnp.sqrt(jnp.mean((x - angle) ** 2)) / jnp.std(angle))
    field = fitted.model.dynamics.fn.value.field
    gravity = float(field.known.gravity)

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot(later.times, angle, "--", color="#D55E00", label="truth")
    left.plot(later.times, known, color="#999999", label="known physics")
    left.plot(later.times, learnt, color="#0072B2", label="physics and network")
    left.set(xlabel="time (s)", ylabel="angle (rad)")
    left.legend()
    speeds = jnp.linspace(-3, 3, 61)
    drag = jax.vmap(lambda v: field.residual(0.0, jnp.array([0.0, v]), None)[1])(speeds)
    right.plot(speeds, -0.6 * speeds * jnp.abs(speeds), "--", color="#D55E00", label="truth")
    right.plot(speeds, drag, color="#0072B2", label="network")
    right.set(xlabel="speed (rad/s)", ylabel="drag (rad/s$^2$)")
    right.legend()
    figure.savefig(output / "neural_residual.png", dpi=130)

    print(f"loss {fitted.losses[0]:.2f} -> {np.nanmin(fitted.losses):.2f} per measurement")
    fine = fitted.losses[-1] < fitted.losses[0] and (quick or error(learnt) < 0.1)
    print(
        f"{'OK' if fine else 'FAILED'}: simulated without measurements, the second experiment is met to "
        f"{error(learnt):.1%} of its spread (known physics alone: {error(known):.1%}); gravity "
        f"{gravity:.2f} (truth 9.00), {fitted.skipped} steps skipped"
    )
    return bool(fine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figure")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
