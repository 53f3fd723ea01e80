"""A neural ODE on a spiral: thirty noisy points at irregular times, and where they go on to.

The field u' = A u^3 turns and shrinks (Chen, Rubanova, Bettencourt, Duvenaud 2018). A network of the
cubes, as in that paper, learns it from thirty points, measured with noise in the first 1.5 s. It is
trained on the likelihood of an extended Kalman filter whose process noise is trained too, and shrinks as
the network gets better; then on the free path. Judged is the path without noise, in the time that was
seen and as long after.

    python examples/spiral.py            # under a minute a seed; a figure in examples/output
    python examples/spiral.py --quick    # a few steps, to see that it runs
"""

import argparse
import time
from pathlib import Path

import diffrax
import equinox as eqx
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
A = np.array([[-0.1, 2.0], [-2.0, -0.1]])
START = np.array([2.0, 0.0])
NOISE = 0.02
SEEN, LATER = 1.5, 3.0  # s


class Cubes(eqx.Module):
    """A network of the cubes of the state, in units of 8."""

    network: fd.fields.MLP

    def __call__(self, t, x, u):
        return self.network(t, x**3 / 8.0, u)


class Truth(eqx.Module):
    def __call__(self, t, x, u):
        return jnp.asarray(A) @ x**3


def spiral(field, diffusion=0.5):
    """The start is known to two hundredths, as if it were measured."""
    return fd.StateSpaceModel(
        dist.Normal(jnp.asarray(START), NOISE).to_event(1),
        fd.SDE(field, jnp.asarray(diffusion), solver=diffrax.Bosh3(), dt=0.03),
        fd.LinearObservation(jnp.eye(2), NOISE**2),
    )


def path(field, times):
    """Where a field leads from the start, without any noise."""
    flow = fd.StateSpaceModel(
        dist.Delta(jnp.asarray(START), event_dim=1),
        fd.ODE(field, substeps=2),
        fd.LinearObservation(jnp.eye(2), NOISE**2),
    )
    return np.asarray(fd.simulate(flow, times, key=jr.key(0)).states)


def measured(seed, rows=30):
    rng = np.random.default_rng(seed)
    times = np.append(0.0, np.sort(rng.uniform(0, SEEN, rows)))
    y = path(Truth(), times) + NOISE * rng.normal(size=(rows + 1, 2))
    y[0] = np.nan  # (the start of the record; it is not one of the thirty)
    return fd.Series(times, y)


def weights(model):
    network = model.dynamics.drift.value.network
    return [*network.weights, *network.biases]


def untrained(key):
    """A model whose network has random weights."""
    return spiral(Cubes(fd.fields.MLP(2, key=key, width=16, depth=1, output_scale=8.0)))


def train(model, series, steps):
    """First by the likelihood of one-step predictions, which leads near, then by the free path. Weights
    are normal with standard deviation 1/2, or thirty points would not tell noise from curves. A batch of
    models is trained side by side."""
    squares = lambda m: sum(jnp.sum(w**2) for w in weights(m)) / 0.5**2
    options = {"steps": steps, "chunk": steps, "clip": 10.0, "trainable": weights}
    near = fd.fit(
        model,
        series,
        FILTER,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        positive=lambda m: m.dynamics.diffusion,
        log_prior=lambda m: -0.5 * squares(m),
        **options,
    )
    # In squared errors a log-density weighs twice the variance of the noise.
    return fd.fit(
        near.model if near.models is None else near.models,
        series,
        FILTER,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.01, steps)),
        objective="simulation",
        log_prior=lambda m: -(NOISE**2) * squares(m),
        **options,
    )


def draw(series, grid, truth, learnt, figure_path):
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    seen = grid <= SEEN
    ax = axes[0]
    ax.plot(*truth.T, "--", color="#D55E00", label="truth")
    ax.plot(*learnt[seen].T, color="#0072B2", label="network, seen")
    ax.plot(*learnt[~seen].T, color="#CC79A7", label="network, extrapolated")
    ax.plot(*np.asarray(series.observations).T, "o", color="#009E73", markersize=4, label="points")
    ax.set(xlabel="$u_1$", ylabel="$u_2$", aspect="equal")
    ax.legend(loc="center", fontsize=8)
    for i, name in enumerate(("$u_1$", "$u_2$")):
        axes[1].plot(grid, learnt[:, i] - truth[:, i], label=name)
    axes[1].axvspan(SEEN, LATER, color="#999999", alpha=0.2, label="extrapolated")
    axes[1].set(xlabel="time (s)", ylabel="network - truth")
    axes[1].legend()
    figure.savefig(figure_path, dpi=130)


def main(quick, output):
    output.mkdir(exist_ok=True)
    grid = np.linspace(0.0, LATER, 301)
    truth, errors = path(Truth(), grid), []
    print(f"{'seed':6s}{'CPU (s)':>10s}{'MSE, seen':>14s}{'MSE, extrapolated':>20s}")
    for seed in range(1 if quick else 5):
        began, series = time.process_time(), measured(seed)
        fitted = train(untrained(jr.key(seed)), series, 10 if quick else 1000)
        took = time.process_time() - began
        learnt = path(fitted.model.dynamics.drift.value, grid)
        seen, later = (
            float(np.mean((learnt - truth)[part] ** 2)) for part in (grid <= SEEN, grid > SEEN)
        )
        errors.append(seen)
        print(f"{seed:<6d}{took:10.1f}{seen:14.2e}{later:20.2e}", flush=True)
    draw(series, grid, truth, learnt, output / "spiral.png")

    fine = np.isfinite(errors).all() and (quick or max(errors) < 1e-3)
    print(
        f"{'OK' if fine else 'FAILED'}: the mean squared error against the path without noise is at most "
        f"{max(errors):.1e} over {len(errors)} seed{'s' if len(errors) > 1 else ''}"
    )
    return bool(fine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figure")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
