"""A latent neural SDE of the stochastic Lorenz attractor, by a variational posterior over paths.

    python benchmarks/latent_lorenz.py [--quick] [--write] [--seeds N]

**Stochastic Lorenz attractor** (Li et al. 2020): drift (10, 28, 8/3), diffusion (0.1 x, 0.28 y, 0.3 z), from
N(0, I), 41 times on [0, 2], normalised, observation noise 0.01; 1,024 series to train on, 128 to test on.
Drift and diagonal diffusion of the latent SDE are networks on 4 states, with two Euler steps a gap; the
decoder is affine. The posterior is a `PosteriorSDE` with a covariance of its own: a bridge to the next row,
and what a network makes of the state and of a `PathEncoder` beside it. All of it is trained on the bound,
with an observation noise that falls from 0.3 to 0.01 over the first third of the steps. The time of the first
training includes the compilation for all.

Reported is the bound on series that were held out, beside log-likelihoods of a linear SDE of 4 states trained
by a Kalman filter, of the equations themselves by an extended one, and of linear autoregressions. What the
training is like was settled on 128 series that are neither trained nor tested on.

The exit status says whether what is wanted is reached.
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
from filterdyn.inference import PathEncoder, PosteriorSDE, VariationalSeries, path_elbo
from filterdyn.inference.posterior_sde import mean_and_factor

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpy", "equinox", "optax")
LATENT, MEASURED, WIDTH, SIZE = 4, 0.01, 64, 16
#: What a mean and a triangular factor have.
NUMBERS = LATENT + LATENT * (LATENT + 1) // 2
SUBSTEPS = 2
STEP = 0.05 / SUBSTEPS
TIMES = np.linspace(0.0, 2.0, 41)
ENTRIES = 3 * len(TIMES)


def lorenz(center=(0.0, 0.0, 0.0), scale=(1.0, 1.0, 1.0), substeps=50):
    """The equations, in units in which a state is (x - center) / scale."""
    center, scale = jnp.asarray(center), jnp.asarray(scale)
    sizes = jnp.array([0.1, 0.28, 0.3])

    def drift(t, s, u):
        x, y, z = s * scale + center
        return jnp.array([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z]) / scale

    diffusion = lambda t, s, u: sizes * (s * scale + center) / scale
    start = dist.Normal(-center / scale, 1 / scale).to_event(1)
    seen = fd.LinearObservation(jnp.eye(3), MEASURED**2 * jnp.eye(3))
    return fd.StateSpaceModel(start, fd.SDE(drift, diffusion, substeps=substeps), seen)


def records(count, fitted):
    """Normalised by the moments of the first `fitted` series, and what they were normalised by."""
    states = np.asarray(fd.simulate(lorenz(), TIMES, key=jr.key(0), num_samples=count).states)
    center, scale = states[:fitted].mean((0, 1)), states[:fitted].std((0, 1))
    noise = MEASURED * np.random.default_rng(1).normal(size=states.shape)
    return jnp.asarray((states - center) / scale + noise, jnp.float32), center, scale


class Drift(eqx.Module):
    """A perceptron beside a matrix."""

    network: fd.fields.MLP
    linear: jax.Array

    def __call__(self, t, x, u):
        return self.network(t, x, u) + self.linear @ x


class Diagonal(eqx.Module):
    """Of each latent state its own diffusion, a network of this state alone (Li et al., section 7)."""

    first: jax.Array
    shift: jax.Array
    last: jax.Array
    base: jax.Array

    def __init__(self, key, width=16):
        one, two = jr.split(key)
        self.first = jr.normal(one, (LATENT, width))
        self.shift = jnp.zeros((LATENT, width))
        self.last = 0.1 * jr.normal(two, (LATENT, width))
        self.base = jnp.full(LATENT, -0.5)

    def __call__(self, t, x, u):
        hidden = jnp.tanh(self.first * x[:, None] + self.shift)
        return jax.nn.softplus((self.last * hidden).sum(1) + self.base) + 1e-3


class Decoder(eqx.Module):
    """Measurements from latent states."""

    matrix: jax.Array
    offset: jax.Array
    noise: jax.Array

    def __call__(self, t, x, u):
        return dist.Normal(self.matrix @ x + self.offset, self.noise).to_event(1)


class Latent(eqx.Module):
    """The numbers of the model."""

    drift: Drift
    diffusion: Diagonal
    decoder: jax.Array
    offset: jax.Array
    start: jax.Array
    start_log_scale: jax.Array

    def __init__(self, key):
        a, b, c = jr.split(key, 3)
        network = fd.fields.MLP(LATENT, key=a, width=WIDTH)
        self.drift = Drift(network, jnp.zeros((LATENT, LATENT)))
        self.diffusion = Diagonal(b)
        self.decoder = jnp.eye(3, LATENT) + 0.1 * jr.normal(c, (3, LATENT))
        self.offset = jnp.zeros(3)
        self.start, self.start_log_scale = jnp.zeros(LATENT), jnp.zeros(LATENT)

    def model(self, noise):
        return fd.StateSpaceModel(
            dist.Normal(self.start, jnp.exp(self.start_log_scale)).to_event(1),
            fd.SDE(self.drift, self.diffusion, substeps=SUBSTEPS, path_solver=diffrax.Euler()),
            fd.Observation(Decoder(self.decoder, self.offset, noise)),
        )


class Context(eqx.Module):
    """The measurements of a row, and what an encoder knows of it and of later ones."""

    encoder: PathEncoder

    def __call__(self, gaps, y, u, index):
        return jnp.concatenate([y, self.encoder(gaps, y, u, index)], axis=1)


class Start(eqx.Module):
    """An affine function of the first context."""

    last: eqx.nn.Linear

    def __init__(self, key):
        last = eqx.nn.Linear(3 + SIZE, NUMBERS, key=key)
        self.last = jax.tree.map(jnp.zeros_like, last)

    def __call__(self, context):
        return mean_and_factor(self.last(context), LATENT)


def inverse(a):
    """Of a matrix of 3 x 3, without a call of LAPACK for each of a batch."""
    rows = jnp.stack(
        [jnp.cross(a[:, 1], a[:, 2]), jnp.cross(a[:, 2], a[:, 0]), jnp.cross(a[:, 0], a[:, 1])]
    )
    return rows / (a[:, 0] @ rows[0])


class Bridge(eqx.Module):
    """To the next row, by the prior's drift along the way without noise and its diffusion at the state
    (Durham, Gallant 2002), and what a network of state and context adds to its mean and covariance."""

    latent: Latent
    network: fd.fields.MLP
    noise: jax.Array

    def __call__(self, t, x, context):
        seen, context, left = context[:3], context[3:-1], context[-1]
        drift, decoder = self.latent.drift, self.latent.decoder
        near = x + STEP * drift(t, x, None)
        ahead = near + (left - STEP) * drift(t, near, None)
        error = seen - decoder @ ahead - self.latent.offset
        gain = self.latent.diffusion(t, x, None)[:, None] * decoder.T
        covariance = left * gain.T @ gain + self.noise**2 * jnp.eye(3)
        back = inverse(covariance) @ gain.T
        spread = jnp.linalg.cholesky(jnp.eye(LATENT) - STEP * gain @ back)
        seen_by_network = jnp.concatenate([x, error, context])
        shift, own = mean_and_factor(self.network(t, seen_by_network), LATENT)
        return back.T @ error + spread @ shift / STEP**0.5, spread @ own


class Both(eqx.Module):
    """All that is trained."""

    latent: Latent
    network: fd.fields.MLP
    encoder: PathEncoder
    start: Start

    def __init__(self, key):
        a, b, c, d = jr.split(key, 4)
        self.latent = Latent(a)
        self.encoder = PathEncoder(3, key=b, width=WIDTH, size=SIZE, time_scale=0.05)
        self.network = fd.fields.MLP(LATENT + 3 + SIZE, out=NUMBERS, key=c, width=32, zero=True)
        self.start = Start(d)

    def parts(self, noise):
        """Model and posterior at this observation noise."""
        noise = jnp.asarray(noise, jnp.float32)
        control = Bridge(self.latent, self.network, noise)
        return self.latent.model(noise), PosteriorSDE(control, Context(self.encoder), self.start)


def trainer(values, steps, batch):
    """A function of the seed: all that is trained, and the CPU and wall seconds that it took."""
    static = eqx.partition(Both(jr.key(0)), eqx.is_inexact_array)[1]
    rule = optax.chain(
        optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    )

    def loss(both, some, noise, key):
        model, posterior = eqx.combine(both, static).parts(noise)
        series = VariationalSeries(model, TIMES, posterior=posterior, key=key)
        return -series.log_prob(some).mean()

    @jax.jit
    def run(both, key):
        def step(carry, i):
            both, state = carry
            noise = jnp.maximum(0.3 * (MEASURED / 0.3) ** (3 * i / steps), MEASURED)
            choose, draw = jr.split(jr.fold_in(key, i))
            some = values[jr.choice(choose, len(values), (batch,), replace=False)]
            updates, state = rule.update(jax.grad(loss)(both, some, noise, draw), state)
            return (optax.apply_updates(both, updates), state), None

        return jax.lax.scan(step, (both, rule.init(both)), jnp.arange(steps))[0][0]

    def train(seed):
        began, cpu = time.perf_counter(), time.process_time()
        of_networks, of_steps = jr.split(jr.key(seed))
        both = eqx.filter(Both(of_networks), eqx.is_inexact_array)
        both = eqx.combine(jax.block_until_ready(run(both, of_steps)), static)
        return both, time.process_time() - cpu, time.perf_counter() - began

    return train


def linear(values, steps):
    """A linear SDE of as many states, trained by its likelihood from a random walk."""
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(jnp.zeros(LATENT), scale_tril=jnp.eye(LATENT)),
        fd.LinearSDE(-0.1 * jnp.eye(LATENT), jnp.eye(LATENT), b=jnp.zeros(LATENT)),
        fd.LinearObservation(jnp.eye(3, LATENT), MEASURED**2 * jnp.eye(3), d=jnp.zeros(3)),
    )

    def pick(m):
        of_dynamics = m.dynamics.A, m.dynamics.L, m.dynamics.b
        return *of_dynamics, m.observation.H, m.observation.d, m.initial.loc, m.initial.scale_tril

    return fd.fit(
        model,
        [fd.Series(TIMES, one) for one in values],
        fd.KalmanFilter(),
        optimizer=optax.adam(optax.cosine_decay_schedule(5e-2, steps)),
        steps=steps,
        trainable=pick,
        window=len(TIMES),
        batch=64,
        key=jr.key(0),
        clip=10.0,
    ).model


def distance(both, values, number):
    """Largest Kolmogorov-Smirnov distance between entries of the last row, simulated and held out."""
    model, _ = both.parts(MEASURED)
    drawn = fd.simulate(model, TIMES, key=jr.key(3), num_samples=number).observations[:, -1]
    found = []
    for a, b in zip(np.asarray(drawn).T, np.asarray(values)[:, -1].T, strict=True):
        at = np.concatenate([a, b])
        below = lambda x, at=at: np.searchsorted(np.sort(x), at, side="right") / len(x)
        found.append(np.abs(below(a) - below(b)).max())
    return max(found)


def normal_density(errors, cov):
    """log N(0, cov) of each error in the last axis, summed over the axes between it and the first."""
    squares = np.einsum("s...i,ij,s...j->s...", errors, np.linalg.inv(cov), errors)
    found = -0.5 * (squares + np.linalg.slogdet(2 * np.pi * cov)[1])
    return found.reshape(len(errors), -1).sum(1)


def autoregression(values, test, order):
    """Log-likelihoods where rows are linear functions of the `order` rows before, by least squares, and the
    first ones are one normal vector."""
    values, test = np.asarray(values, float), np.asarray(test, float)
    rows = values.shape[1]

    def before(x):
        lags = [x[:, order - 1 - i : rows - 1 - i] for i in range(order)]
        return np.concatenate([*lags, np.ones((len(x), rows - order, 1))], axis=-1)

    flat = lambda x: x.reshape(-1, x.shape[-1])
    weights = np.linalg.lstsq(flat(before(values)), flat(values[:, order:]), rcond=None)[0]
    left = flat(values[:, order:] - before(values) @ weights)
    first, first_test = (x[:, :order].reshape(len(x), -1) for x in (values, test))
    of_first = normal_density(first_test - first.mean(0), np.atleast_2d(np.cov(first.T)))
    errors = test[:, order:] - before(test) @ weights
    return of_first + normal_density(errors, left.T @ left / len(left))


def shown(x):
    return [f"{np.mean(x):.1f} ± {np.std(x) / len(x) ** 0.5:.1f}", f"{np.mean(x) / ENTRIES:.3f}"]


def study(quick, seeds):
    """Sections, by their names, and whether what is wanted is reached; the second after every seed."""
    fitted, held, steps, batch = (16, 8, 6, 8) if quick else (1024, 128, 1500, 64)
    values, center, scale = records(fitted + 2 * held, fitted)
    test = values[fitted + held :]
    orders = (1,) if quick else (1, 2, 3, 5)
    lines = [[f"{k}", *shown(autoregression(values[:fitted], test, k))] for k in orders]
    head = ["rows before", "log-likelihood, a series", "an entry"]
    yield "autoregressions", table(head, lines), True
    if not seeds:
        return
    series = fd.stack([fd.Series(TIMES, one) for one in test])
    rest = ["-"] * 6
    independent = -0.5 * np.asarray((test**2).sum((1, 2))) - 0.5 * ENTRIES * np.log(2 * np.pi)
    lines = [["independent standard normals", *shown(independent), *rest]]
    references = {
        "linear SDE": (linear(values[:fitted], max(steps // 5, 6)), fd.KalmanFilter()),
        "the equations": (lorenz(center, scale, substeps=10), fd.ExtendedKalmanFilter()),
    }
    for name, (model, filter) in references.items():
        result = fd.filter(model, series, filter)
        assert (np.asarray(result.status) == 0).all()
        likelihood = np.asarray(result.log_likelihood)
        lines.append([name, *shown(likelihood), *rest])
        if name == "linear SDE":
            of_linear = float(likelihood.mean())
    train = trainer(values[:fitted], steps, batch)
    bounds, used, waited = [], [], []
    head = ["model", "log-likelihood or bound, a series", "an entry", "weighted, 16 paths"]
    head += ["E log p(y given path)", "KL", "active noises", "KS distance", "CPU / wall s to train"]
    for seed in range(seeds):
        both, cpu, wall = train(seed)
        model, posterior = both.parts(MEASURED)
        found = path_elbo(model, series, posterior, key=jr.key(7), num_samples=16)
        lines.append(
            [
                f"latent SDE, seed {seed}",
                *shown(found.value),
                f"{np.mean(found.weighted_value):.1f}",
                f"{np.asarray(found.log_likelihoods).sum(-1).mean():.1f}",
                f"{np.mean(found.kl):.1f}",
                f"{int(found.noises.active.sum())} of {LATENT}",
                f"{distance(both, test, 4 * held):.2f}",
                f"{cpu:.0f} / {wall:.0f}",
            ]
        )
        bounds.append(float(np.mean(found.value)))
        used.append(cpu)
        waited.append(wall)
        checks = [
            Aim("CPU minutes to train, longest", max(used) / 60, 15.0),
            Aim("minutes to train by the clock, longest", max(waited) / 60, 10.0),
            Aim(
                "nats a series above the linear SDE, worst seed", min(bounds) - of_linear, 0.0, True
            ),
        ]
        fine = min(bounds) > of_linear and max(used) < 900
        yield "lorenz", f"{table(head, lines)}\n\n{aims(checks)}", fine


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    fine = False
    for name, text, reached in study(options.quick, options.seeds):
        fine = reached
        text = f"{text}\n\n{surroundings(*PACKAGES)}"
        print(f"{text}\n", flush=True)
        if options.write:
            write_section(f"latent-sde-{name}", text)
    return 0 if fine or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
