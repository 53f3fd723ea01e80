"""Every field, trained through every kind of filter, on a system of which the field is capable.

Four records of 100 noisy rows are made by a known system. Each field starts from random weights and is
trained by `fd.fit` on the likelihood of each filter; then another record is simulated from its inputs and
its first row (ten rows, where not all states are measured). The figure is the error of that simulation over
the spread of the true states that are measured (NRMSE). Below 10 % is wanted.

    python benchmarks/fields.py
    python benchmarks/fields.py --only liquid linear --filters extended
"""

import argparse
import os
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import filterdyn as fd
from filterdyn import fields

numpyro.enable_x64()

STEP, ROWS, NOISE = 0.2, 100, 0.02
STARTS, HELD_OUT = ((1.6, 0.0), (-0.5, 0.4), (0.3, 1.1), (-1.3, -0.9)), (-0.9, -0.2)
FILTERS = {
    "extended": fd.ExtendedKalmanFilter(),
    "unscented": fd.UnscentedKalmanFilter(),
    "cubature": fd.CubatureKalmanFilter(),
    "gauss_hermite": fd.GaussHermiteKalmanFilter(3),
    "ensemble": fd.EnsembleKalmanFilter(40),
    "particles": fd.ParticleFilter(100),
}


class Moves(eqx.Module):
    """A Heun step of a field, with a little noise."""

    field: eqx.Module
    noise: float = eqx.field(static=True, default=0.01)

    def __call__(self, t, x, u):
        slope = self.field(t, x, u)
        mean = x + 0.5 * STEP * (slope + self.field(t, x + STEP * slope, u))
        return dist.MultivariateNormal(mean, scale_tril=self.noise * jnp.eye(len(x)))


class Written(eqx.Module):
    """A field that a person wrote."""

    function: object = eqx.field(static=True)

    def __call__(self, t, x, u):
        return self.function(x, u)


def duffing(x, u):
    return jnp.stack([x[1], u[0] - x[0] - 0.3 * x[0] ** 3 - 0.3 * x[1]])


def lagging(x, u):
    """An oscillator whose force follows the input late: the third state is seen by nobody."""
    return jnp.stack([x[1], x[2] - x[0] - 0.3 * x[1], (u[0] - x[2]) / 0.8])


def frictionless(x, u):
    return jnp.stack([x[1], -x[0] - 0.3 * x[0] ** 3])


def downhill(x, u):
    """Down the potential (x0^2 - 1)^2 / 4 + (x1 - x0)^2 / 2."""
    return -jnp.stack([x[0] * (x[0] ** 2 - 1) - (x[1] - x[0]), x[1] - x[0]])


def damped(x, u):
    return jnp.stack([x[1], -jnp.sin(x[0]) - 0.4 * x[1]])


def turning(x, u):
    return jnp.array([[-0.2, 1.0], [-1.0, -0.2]]) @ x + jnp.array([0.0, 1.0]) * u


def gated(x, u):
    """Liquid time constants: x' = -(1 / tau + g) x + g A."""
    g = jax.nn.sigmoid(jnp.stack([3.0 * u[0] - x[1], 2.0 * x[0] + u[0]]))
    return -(1.0 + g) * x + g * jnp.array([1.0, -1.0])


def small(key, *sizes, **options):
    return fields.MLP(*sizes, key=key, width=12, depth=1, **options)


def energy(key):
    return fields.Energy(2, key=key, width=12, depth=1)


#: How the field is made, the truth, whether the truth has an input, and how many states are observed.
CASES = {
    "mlp": (lambda k: small(k, 2, 1), duffing, True, 2),
    "universal": (
        lambda k: fields.UniversalField(
            Written(lambda x, u: jnp.stack([x[1], u[0] - x[0]])), small(k, 2, 1, zero=True)
        ),
        duffing,
        True,
        2,
    ),
    "second_order": (lambda k: fields.SecondOrder(small(k, 2, 1, out=1)), duffing, True, 1),
    "augmented": (
        lambda k: fields.Augmented(
            small(k, 3, 1), 2, Written(lambda x, u: jnp.stack([x[1], -x[0]]))
        ),
        lagging,
        True,
        2,
    ),
    "linear": (
        lambda k: fields.Linear(0.1 * jr.normal(k, (2, 2)), jnp.zeros((2, 1))),
        turning,
        True,
        2,
    ),
    "liquid": (
        lambda k: fields.LiquidTimeConstant(
            small(k, 2, 1), jnp.full(2, 2.0), jnp.array([0.5, -0.5])
        ),
        gated,
        True,
        2,
    ),
    "hamiltonian": (lambda k: fields.Hamiltonian(energy(k)), frictionless, False, 2),
    "port_hamiltonian": (
        lambda k: fields.PortHamiltonian(
            energy(k),
            jnp.array([[0.0, 0.5], [-0.5, 0.0]]),
            0.3 * jnp.eye(2),
            jnp.array([[0.0], [0.5]]),
        ),
        duffing,
        True,
        2,
    ),
    "gradient_flow": (lambda k: fields.GradientFlow(energy(k)), downhill, False, 2),
    "stable": (
        lambda k: fields.Stable(small(k, 2), fields.Lyapunov(2, key=jr.fold_in(k, 1)), 0.05),
        damped,
        False,
        2,
    ),
}


def model_of(field, dx, observed, noise=0.01):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(dx), 1.5).to_event(1),
        fd.Transition(Moves(field, noise)),
        fd.LinearObservation(jnp.eye(dx)[:observed], NOISE**2),
    )


def record(truth, has_input, observed, seed, start):
    """A noisy record of the truth, and its states."""
    rng = np.random.default_rng(seed)
    u = np.repeat(rng.uniform(-1.5, 1.5, ROWS // 8 + 1), 8)[:ROWS, None] if has_input else None
    step = jax.jit(lambda x, u: Moves(Written(truth))(0.0, x, u).mean)
    states = [np.asarray(start, float)]
    for k in range(ROWS - 1):
        states.append(np.asarray(step(states[-1], None if u is None else u[k])))
    states = np.array(states)
    y = states[:, :observed] + NOISE * rng.normal(size=(ROWS, observed))
    return fd.Series(STEP * np.arange(ROWS), y, u), states


def measure(name, through, steps):
    """NRMSE of the simulation of another record, CPU seconds, and skipped steps."""
    make, truth, has_input, observed = CASES[name]
    dx = 3 if truth is lagging else 2
    starts = [np.append(x, np.zeros(dx - 2)) for x in STARTS]
    series = [record(truth, has_input, observed, i, s)[0] for i, s in enumerate(starts)]
    held_out, states = record(truth, has_input, observed, 9, np.append(HELD_OUT, np.zeros(dx - 2)))
    began = time.process_time()
    fitted = fd.fit(
        model_of(make(jr.key(1)), dx, observed),
        series,
        FILTERS[through],
        optimizer=optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        steps=steps,
        chunk=steps,
        clip=20.0,
        key=jr.key(2),
    )
    took = time.process_time() - began
    field = fitted.model.dynamics.fn.value.field
    seen = 1 if observed == dx else 10
    free = fd.free_run(
        model_of(field, dx, observed), held_out, fd.ExtendedKalmanFilter(), burn_in=seen
    )
    errors = np.asarray(free.mean)[seen:] - states[seen:, :observed]
    return np.sqrt((errors**2).mean() / states[seen:, :observed].var()), took, fitted.skipped


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--filters", nargs="*", default=list(FILTERS), choices=list(FILTERS))
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    print(
        f"load {os.getloadavg()[0]:.1f}; NRMSE of a held-out simulation (CPU seconds of the fit)\n"
    )
    print("| field | " + " | ".join(arguments.filters) + " |")
    print("| --- |" + " ---: |" * len(arguments.filters), flush=True)
    worst = 0.0
    for name in arguments.only:
        print(f"| {name} |", end="", flush=True)
        for through in arguments.filters:
            error, took, skipped = measure(name, through, arguments.steps)
            worst = max(worst, error)
            note = f", {skipped} skipped" if skipped else ""
            print(f" {error:.1%} ({took:.0f}{note}) |", end="", flush=True)
        print(flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f}; largest {worst:.1%}")
    raise SystemExit(not worst < 0.1)
