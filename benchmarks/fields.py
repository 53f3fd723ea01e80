"""Every field, trained through every kind of filter, on a system of which the field is capable.

32 noisy records of 20 rows are made by a known system, from starts all over: one that has come to rest shows
nothing more. Each field starts from random weights and is trained by `fd.fit` on the likelihood of each
filter; then another record of 100 rows is simulated from its inputs and its first row (ten rows, where not
all states are measured). The figure is the error of that simulation over the spread of the true states that
are measured (NRMSE). A diffusion needs more records; its figure is the error of the covariance of the noise
over its spread, at the states of another record. Below 10 % is wanted.

`KalmanFilter` takes linear models only: of the fields `Linear`, as a `LinearSDE`.

Of the particles drawn from a wide prior none is near a precise sensor's first measurement. So their records
begin a step early, with a row that measures nothing: what moves from there is drawn anew from the prior,
and a proposal, which sees the measurement of the row that is reached, puts it where it must be. Their
noise is trained too, from 0.3 on: under the noise of the truth a field that is still wrong leaves one
particle with all of the weight.

    python benchmarks/fields.py
    python benchmarks/fields.py --only liquid linear --filters extended --write
    python benchmarks/fields.py --quick
"""

import argparse
import os
import time
from datetime import date

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from harness import read_section, table, write_section

import filterdyn as fd
from filterdyn import fields

numpyro.enable_x64()

STEP, NOISE = 0.2, 0.02
STARTS = np.random.default_rng(100).uniform(-1.6, 1.6, (32, 2))
HELD_OUT = np.array([-0.9, -0.2])
FILTERS = {
    "kalman": fd.KalmanFilter(),
    "extended": fd.ExtendedKalmanFilter(),
    "unscented": fd.UnscentedKalmanFilter(),
    "cubature": fd.CubatureKalmanFilter(),
    "gauss_hermite": fd.GaussHermiteKalmanFilter(3),
    "ensemble": fd.EnsembleKalmanFilter(40),
    "particles": fd.ParticleFilter(30, proposal=fd.ExtendedKalmanFilter(), gradient="score"),
}
PRIOR = 1.5


class Moves(eqx.Module):
    """A Heun step of a field, with a little noise."""

    field: eqx.Module
    noise: object = 0.01

    def __call__(self, t, x, u):
        slope = self.field(t, x, u)
        mean = x + 0.5 * STEP * (slope + self.field(t, x + STEP * slope, u))
        return dist.MultivariateNormal(mean, scale_tril=self.noise * jnp.eye(len(x)))


class Started(eqx.Module):
    """Before time 0 a draw from the prior, whatever the state was; then the move."""

    moves: eqx.Module

    def __call__(self, t, x, u):
        move = self.moves(t, x, u)
        early, prior = t < -0.5 * STEP, PRIOR * jnp.eye(len(x))
        return dist.MultivariateNormal(
            jnp.where(early, 0.0, move.mean),
            scale_tril=jnp.where(early, prior, move.scale_tril),
        )


class Shaken(eqx.Module):
    """The move of a known field, with the noise that a diffusion says."""

    diffusion: eqx.Module

    def __call__(self, t, x, u):
        mean = Moves(Written(turning))(t, x, jnp.zeros(1)).mean
        return dist.MultivariateNormal(mean, scale_tril=STEP**0.5 * square(self.diffusion(t, x, u)))


def square(diffusion):
    return jnp.diag(diffusion) if diffusion.ndim == 1 else diffusion


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


def two_noises(x, u):
    return 0.1 + 0.4 * jax.nn.sigmoid(jnp.stack([2 * x[0], -2 * x[1]]))


def joined_noises(x, u):
    first, second = two_noises(x, u)
    return jnp.array([[first, 0.0], [0.2 * jnp.tanh(2 * x[0]), second]])


def small(key, *sizes, **options):
    return fields.MLP(*sizes, key=key, width=24, depth=1, **options)


def energy(key):
    return fields.Energy(2, key=key, width=24, depth=1)


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
        lambda k: fields.Stable(
            small(k, 2), fields.Lyapunov(2, key=jr.fold_in(k, 1), width=12, depth=1), 0.05
        ),
        damped,
        False,
        2,
    ),
}


#: How the diffusion is made, and the truth.
DIFFUSIONS = {
    "diagonal_diffusion": (
        lambda k: fields.DiagonalDiffusion(small(k, 2, zero=True), 0.05, 1.0),
        two_noises,
    ),
    "cholesky_diffusion": (
        lambda k: fields.CholeskyDiffusion(small(k, 2, out=3, zero=True), 0.05, 1.0),
        joined_noises,
    ),
}


def model_of(moves, dx=2, observed=2):
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(dx), PRIOR).to_event(1),
        moves if isinstance(moves, fd.LinearSDE) else fd.Transition(moves),
        fd.LinearObservation(jnp.eye(dx)[:observed], NOISE**2),
    )


def record(truth, has_input, observed, seed, start, rows):
    """A noisy record of the truth, and its states."""
    rng = np.random.default_rng(seed)
    u = np.repeat(rng.uniform(-1.5, 1.5, rows // 8 + 1), 8)[:rows, None] if has_input else None
    step = jax.jit(lambda x, u: Moves(Written(truth))(0.0, x, u).mean)
    states = [np.asarray(start, float)]
    for k in range(rows - 1):
        states.append(np.asarray(step(states[-1], None if u is None else u[k])))
    states = np.array(states)
    y = states[:, :observed] + NOISE * rng.normal(size=(rows, observed))
    return fd.Series(STEP * np.arange(rows), y, u), states


def led(series):
    """A row that measures nothing, one step before a record."""
    u = None if series.inputs is None else np.pad(series.inputs, ((1, 0), (0, 0)))
    y = np.pad(series.observations, ((1, 0), (0, 0)), constant_values=np.nan)
    return fd.Series(np.append(series.times[0] - STEP, series.times), y, u)


def train(model, series, filter, steps, **options):
    """What `fit` finds, and the CPU seconds it took."""
    began = time.process_time()
    fitted = fd.fit(
        model,
        series,
        filter,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        steps=steps,
        chunk=steps,
        clip=20.0,
        key=jr.key(2),
        **options,
    )
    return fitted, time.process_time() - began


def measure(name, through, steps):
    """NRMSE of the simulation of another record, CPU seconds, and skipped steps."""
    make, truth, has_input, observed = CASES[name]
    dx = 3 if truth is lagging else 2
    hidden, field, filter = np.zeros(dx - 2), make(jr.key(1)), FILTERS[through]
    series = [
        record(truth, has_input, observed, i, np.append(start, hidden), 20)[0]
        for i, start in enumerate(STARTS)
    ]
    held_out, states = record(truth, has_input, observed, 99, np.append(HELD_OUT, hidden), 100)
    moves, options = Moves(field), {}
    if through == "kalman":
        moves = fd.LinearSDE(field.A, 0.01 / STEP**0.5, field.B)
        options["trainable"] = lambda m: (m.dynamics.A, m.dynamics.B)
    if through == "particles":
        moves, series = Started(Moves(field, jnp.array(0.3))), [led(one) for one in series]
        options["positive"] = lambda m: m.dynamics.fn.value.moves.noise
    fitted, took = train(model_of(moves, dx, observed), series, filter, steps, **options)
    seen = 1 if observed == dx else 10
    run = fd.free_run(fitted.model, held_out, fd.ExtendedKalmanFilter(), burn_in=seen)
    errors = np.asarray(run.mean)[seen:] - states[seen:, :observed]
    return np.sqrt((errors**2).mean() / states[seen:, :observed].var()), took, fitted.skipped


def measure_diffusion(name, through, steps):
    """NRMSE of the covariances of the noise, CPU seconds, and skipped steps."""
    make, truth = DIFFUSIONS[name]
    known = model_of(Shaken(Written(truth)))
    drawn = fd.simulate(known, STEP * np.arange(100), key=jr.key(5), num_samples=160)
    series = [fd.Series(STEP * np.arange(100), y) for y in np.asarray(drawn.observations)]
    fitted, took = train(model_of(Shaken(make(jr.key(1)))), series, FILTERS[through], steps)
    states = fd.simulate(known, STEP * np.arange(200), key=jr.key(6)).states

    def covariances(diffusion):
        factors = jax.vmap(lambda x: square(diffusion(0.0, x, None)))(states)
        return np.asarray(factors @ factors.mT)

    right = covariances(Written(truth))
    errors = covariances(fitted.model.dynamics.fn.value.diffusion) - right
    spread = right - right.mean(axis=0)
    return np.sqrt((errors**2).sum() / (spread**2).sum()), took, fitted.skipped


def merged(section, cells, run):
    """The section with these cells in its table, and this run in the list below it."""
    lines = section.splitlines()
    known = [[x.strip() for x in line.strip("| ").split("|")] for line in lines if line[:1] == "|"]
    old = {
        (row[0], through): x
        for row in known[2:]
        for through, x in zip(known[0][1:], row[1:], strict=True)
    }
    found = old | cells
    blank = lambda name, through: "-" if takes(name, through) is None else "not run"
    rows = [
        [name, *(found.get((name, through), blank(name, through)) for through in FILTERS)]
        for name in [*CASES, *DIFFUSIONS]
    ]
    runs = [line for line in lines if line.startswith("- ")]
    return "\n".join([table(["field", *FILTERS], rows), "", *runs, f"- {run}"])


def takes(name, through):
    """What measures this cell, or `None` if the filter cannot take the field."""
    if through == "kalman" and name != "linear":
        return None
    return measure if name in CASES else measure_diffusion


if __name__ == "__main__":
    everything = [*CASES, *DIFFUSIONS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=everything, choices=everything)
    parser.add_argument("--filters", nargs="*", default=list(FILTERS), choices=list(FILTERS))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--quick", action="store_true", help="two steps: does it run?")
    parser.add_argument("--write", action="store_true", help="these cells into RESULTS.md")
    arguments = parser.parse_args()
    steps = 2 if arguments.quick else arguments.steps
    before, cells, worst = os.getloadavg()[0], {}, 0.0
    print("NRMSE of a held-out simulation (CPU seconds of the fit)\n")
    for name in arguments.only:
        for through in arguments.filters:
            if (found := takes(name, through)) is None:
                continue
            error, took, skipped = found(name, through, steps)
            worst = max(worst, error)
            note = (f", {skipped} skipped" if skipped else "") + (", missed" * (not error < 0.1))
            cells[name, through] = f"{100 * error:.1f} % ({took:.0f}){note}"
            print(f"{name} through {through}: {cells[name, through]}", flush=True)
    load = f"load {before:.0f} to {os.getloadavg()[0]:.0f}"
    print(f"\n{load}; largest {worst:.1%}")
    if arguments.write:
        which = "" if arguments.only == everything else f"--only {' '.join(arguments.only)} "
        run = f"`{which}--filters {' '.join(arguments.filters)} --steps {steps}`"
        write_section(
            "fields", merged(read_section("fields"), cells, f"{date.today()}, {load}: {run}")
        )
    raise SystemExit(not (arguments.quick or worst < 0.1))
