"""A neural SDE of series that are measured now and then, by the likelihood of a filter.

    python benchmarks/latent_sde.py [--quick] [--write] [--seeds N]

**Double Ornstein-Uhlenbeck, sporadic** (de Brouwer et al. 2019): dx = (mu - x) dt + 0.1 dW from x = 0, noises
with correlation 0.99, mu = (1, -1) + U(-0.5, 0.5)^2 in each series, Euler steps of 0.05 to t = 10, 16 to 23
rows a series of which a fifth measure both quantities and the others one, without an error. Scored is the
first row after t = 4, by the marginal density of each entry given what came before. The drift is a
perceptron of the state and of two constants of each series, the diffusion a constant matrix, the start a
Gaussian over states and constants; all are trained by the likelihood of an extended Kalman filter (which is
told of a sensor variance of 1e-6) on 2,000 series, and what is best on 500 others is kept.

The exit status says whether what is wanted of answers is reached.
"""

import argparse
import sys
import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import optax
from harness import Aim, aims, surroundings, table, write_section

import filterdyn as fd

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpy", "equinox", "optax")

# --- double Ornstein-Uhlenbeck ------------------------------------------------------------------------

STEP, ROWS, SPLIT = 0.05, 24, 4.0
NOISE = 0.1 * np.linalg.cholesky(np.array([[1.0, 0.99], [0.99, 1.0]]))
SENSOR = 1e-6


def sporadic(count, seed):
    """Series of 24 rows, the first at t = 0 and empty, the last ones too where there are fewer; and for
    each the first row after t = 4."""
    rng = np.random.default_rng(seed)
    mu = np.array([1.0, -1.0]) + rng.uniform(-0.5, 0.5, (count, 2))
    x, path = np.zeros((count, 2)), []
    for _ in range(200):
        path.append(x)
        x = x + STEP * (mu - x) + STEP**0.5 * rng.normal(size=(count, 2)) @ NOISE.T
    path = np.stack(path, axis=1)
    series, first = [], []
    while len(series) < count:
        at = np.sort(rng.choice(200, rng.integers(16, 24), replace=False))
        late = np.flatnonzero(STEP * at > SPLIT)
        if not len(late) or late[0] == 0:
            continue
        y = path[len(series), at]
        kind = rng.uniform(size=len(at))
        y[kind < 0.4, 1] = np.nan
        y[(kind >= 0.4) & (kind < 0.8), 0] = np.nan
        rest = ROWS - 1 - len(at)
        times = STEP * np.concatenate([[0], at, np.repeat(at[-1:], rest)])
        blank = lambda rows: np.full((rows, 2), np.nan)
        series.append(fd.Series(times, np.concatenate([blank(1), y, blank(rest)])))
        first.append(1 + late[0])
    return series, np.array(first)


def moments(series):
    """Of all measurements."""
    y = np.concatenate([np.asarray(one.observations) for one in series])
    return np.nanmean(y, 0), np.nanstd(y, 0)


def exact_ou(start=(0.0, 0.0), spread=(1e-6, 1e-6)):
    """The process at the times of its Euler steps, with mu as two states more."""
    decay = 1 - STEP
    rate = -np.log(decay) / STEP
    size = np.sqrt(2 * rate / (1 - decay**2) * STEP)
    eye, zero = np.eye(2), np.zeros((2, 2))
    A = np.block([[-rate * eye, rate * eye], [zero, zero]])
    sds = jnp.array([*spread, 12**-0.5, 12**-0.5])
    return fd.StateSpaceModel(
        dist.Normal(jnp.array([*start, 1.0, -1.0]), sds).to_event(1),
        fd.LinearSDE(A, np.concatenate([size * NOISE, zero])),
        fd.LinearObservation(np.eye(2, 4), 1e-12 * np.eye(2)),
    )


class Drift(eqx.Module):
    """A network of the state and the constants of a series, which stay."""

    network: fd.fields.MLP

    def __call__(self, t, x, u):
        return jnp.concatenate([self.network(t, x, u), jnp.zeros(2, x.dtype)])


class Constant(eqx.Module):
    """A diffusion matrix: logarithms of its diagonal, and what is below it."""

    logs: jax.Array
    below: jax.Array

    def __call__(self, t, x, u):
        (a, b), zero = jnp.exp(self.logs), jnp.zeros(2)
        return jnp.stack([jnp.stack([a, 0.0 * a]), jnp.stack([self.below, b]), zero, zero])


def neural_ou(key, series):
    """Starts from the moments of the measurements, knows nothing else."""
    mean, sd = moments(series)
    network = fd.fields.MLP(
        4, key=key, out=2, width=24, state_center=[*mean, 0, 0], state_scale=[*sd, 1, 1]
    )
    dynamics = fd.SDE(
        Drift(network),
        Constant(jnp.full(2, -1.0), jnp.zeros(())),
        solver=diffrax.Heun(),
        substeps=3,
    )
    return fd.StateSpaceModel(
        dist.MultivariateNormal(
            jnp.array([*mean, 0.0, 0.0]), scale_tril=jnp.diag(jnp.array([*sd, 1.0, 1.0]))
        ),
        dynamics,
        fd.LinearObservation(np.eye(2, 4), SENSOR * np.eye(2)),
    )


def trained(model):
    """Drift, diffusion, and what is known of a series before it is seen."""
    network, diffusion = model.dynamics.drift.value.network, model.dynamics.diffusion.value
    start = model.initial.loc, model.initial.scale_tril
    return network.weights, network.biases, diffusion.logs, diffusion.below, *start


def one_ahead(model, series, first, filter):
    """Negative log-densities and squared errors of every entry of the rows that are scored."""
    result = fd.filter(model, fd.stack(series), filter)
    assert (np.asarray(result.status) == 0).all()
    k = np.arange(len(series)), first
    error = np.asarray(result.innovations)[k]
    variance = np.diagonal(np.asarray(result.innovation_covs)[k], axis1=-2, axis2=-1)
    there = ~np.isnan(np.stack([np.asarray(s.observations) for s in series])[k])
    squares = error[there] ** 2
    return 0.5 * np.log(2 * np.pi * variance[there]) + 0.5 * squares / variance[there], squares


def double_ou(quick, seeds):
    train_count, test_count, steps = (40, 40, 20) if quick else (2000, 4000, 900)
    train, _ = sporadic(train_count, 0)
    validation, _ = sporadic(train_count // 4, 2)
    test, first = sporadic(test_count, 1)
    exact, exact_squares = one_ahead(exact_ou(), test, first, fd.KalmanFilter())
    carried = []
    for one, k in zip(test, first, strict=True):
        y = np.asarray(one.observations)
        for j in np.flatnonzero(~np.isnan(y[k])):
            known = y[:k, j][~np.isnan(y[:k, j])]
            carried += [(known[-1] - y[k, j]) ** 2] if len(known) else []
    lines = [["last value", "-", f"{np.mean(carried):.4f}", "-", "-", "-"]]
    se = lambda x: x.std() / np.sqrt(len(x))
    shown = lambda nll: f"{nll.mean():.3f} ± {se(nll):.3f}"
    lines.append(
        ["exact Kalman filter", shown(exact), f"{exact_squares.mean():.4f}", "-", "-", "-"]
    )
    # What it costs not to know the start: as if it had the moments of all measurements.
    lost, lost_squares = one_ahead(exact_ou(*moments(train)), test, first, fd.KalmanFilter())
    lines.append(
        ["the same, start unknown", shown(lost), f"{lost_squares.mean():.4f}", "-", "-", "-"]
    )
    behind = []
    for seed in range(seeds):
        began = time.process_time()
        found = fd.fit(
            neural_ou(jr.key(seed), train),
            train,
            fd.ExtendedKalmanFilter(),
            trainable=trained,
            optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, steps)),
            steps=steps,
            window=ROWS,
            batch=min(64, train_count),
            key=jr.key(100 + seed),
            clip=10.0,
            validation=validation,
            chunk=max(steps // 10, 1),
        )
        seconds = time.process_time() - began
        nll, squares = one_ahead(found.model, test, first, fd.ExtendedKalmanFilter())
        behind.append(float((nll - exact).mean()))
        L = np.asarray(found.model.dynamics.diffusion(0.0, jnp.zeros(4), None))[:2]
        cov = L @ L.T
        correlation = cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1])
        lines.append(
            [
                f"neural SDE, seed {seed}",
                shown(nll),
                f"{squares.mean():.4f}",
                f"{np.sqrt(cov[0, 0]):.4f}, {np.sqrt(cov[1, 1]):.4f}",
                f"{correlation:.4f}",
                f"{seconds:.0f}",
            ]
        )
    checks = [
        Aim("exact filter: away from -1.269", abs(float(exact.mean()) + 1.269), 0.03),
        Aim("neural SDE: nats above the exact filter, worst seed", max(behind), 0.03),
    ]
    head = ["model", "NLL", "MSE", "diffusion", "correlation", "CPU s to train"]
    return f"{table(head, lines)}\n\n{aims(checks)}", all(c.measured <= c.limit for c in checks)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    text, fine = double_ou(options.quick, options.seeds)
    text = f"{text}\n\n{surroundings(*PACKAGES)}"
    print(text)
    if options.write:
        write_section("latent-sde-double-ou", text)
    return 0 if fine or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
