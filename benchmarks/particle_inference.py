"""Stochastic volatility of GBP/USD, 750 daily returns: particle Metropolis, NUTS through a particle filter
that can be differentiated, and a posterior by sums over grids (`point_mass.py`), under the same priors.

NUTS takes the likelihood of a particle filter with a fixed key and `SortedTransport` in every row, which
is a continuous function of the parameters, but not quite the likelihood: off by what its draws and its
averages are off. Each chain has another key, so that what a key does shows between the chains; its
standard errors are the larger of those by effective sample size and by the spread of the chains' means.
"Reweighted" are the same draws with weights (estimate by a fresh bootstrap filter) / (likelihood that the
chain saw): unbiased estimates, so that their posterior is the exact one again. Beside them what is known
to be another posterior: NUTS through a Kalman filter of log y^2, whose noise is taken for Gaussian
(Harvey, Ruiz, Shephard 1994); it serves as a start, and is held to nothing.

Held to 4 Monte Carlo standard errors: means, standard deviations and the share of draws below the 5, 50
and 95 % quantiles, of each parameter, and the volatility of four days given all returns.

    FILTERDYN_DATA=... python benchmarks/particle_inference.py --write
    FILTERDYN_DATA=... python benchmarks/particle_inference.py --keep found/    # done is not done again
"""

import argparse
import json
import os
import re
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import point_mass
from harness import Aim, aims, number, surroundings, table, write_section
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_value

import filterdyn as fd

numpyro.enable_x64()
PACKAGES = ("filterdyn", "jax", "jaxlib", "numpy", "numpyro", "scipy")
KNOWN = Path(__file__).parents[1] / "tests/reference/sv_pointmass.json"
FILE = "series/GBP_vs_USD_9798.txt"
PRIORS = {
    "mu": dist.Normal(-1.0, 1.0),
    "rho": dist.Beta(20.0, 2.0),
    "sigma": dist.LogNormal(-1.5, 0.5),
}
LEVELS = (0.05, 0.5, 0.95)
METROPOLIS = fd.ParticleFilter(200, ess_threshold=1.0)
SMOOTH = fd.ParticleFilter(100, fd.SortedTransport(), ess_threshold=1.0)
FRESH = fd.ParticleFilter(800)


def returns():
    """100 times the changes of the logarithm of the rate, (750,)."""
    folder = os.environ.get("FILTERDYN_DATA", "")
    path = Path(folder) / FILE
    if not folder or not path.exists():
        return None
    rows = re.findall(r"^\d{7} \S+ \S+ (\S+)$", path.read_text(), re.MULTILINE)
    return 100 * np.diff(np.log(np.array(rows, float)))


def volatility(mu, rho, sigma):
    start = dist.Normal(mu, sigma / jnp.sqrt(1 - rho**2))
    return fd.StateSpaceModel(
        start.expand([1]).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(mu + rho * (x - mu), sigma).to_event(1)),
        fd.Observation(lambda t, x, u: dist.Normal(0.0, jnp.exp(x / 2)).to_event(1)),
    )


def days(y):
    return np.arange(float(len(y)))


def parameters():
    return [numpyro.sample(name, prior) for name, prior in PRIORS.items()]


def program(y, key=None, *, filter):
    """The posterior, particles in float32."""
    model = volatility(*(x.astype(jnp.float32) for x in parameters()))
    key = numpyro.prng_key() if key is None else key
    y = y[:, None].astype(jnp.float32)
    numpyro.sample("y", fd.ObservedSeries(model, days(y), filter=filter, key=key), obs=y)


def linear_program(z):
    """log y^2 = x + log chi^2, as if that were Gaussian (mean -1.27, variance pi^2 / 2)."""
    mu, rho, sigma = parameters()
    one = jnp.eye(1)
    model = fd.StateSpaceModel(
        dist.Normal(mu, sigma / jnp.sqrt(1 - rho**2)).expand([1]).to_event(1),
        fd.LinearTransition(rho * one, sigma**2 * one, b=((1 - rho) * mu)[None]),
        fd.LinearObservation(one, np.pi**2 / 2 * one, d=jnp.array([-1.2703628454614782])),
    )
    numpyro.sample("z", fd.ObservedSeries(model, days(z), filter=fd.KalmanFilter()), obs=z[:, None])


def by_kalman(y, sizes):
    """Draws (chains, draws) of each parameter by the Kalman filter; returns of 0 count as missing."""
    z = np.log(np.where(y == 0, np.nan, y) ** 2)
    mcmc = MCMC(
        NUTS(linear_program, dense_mass=True),
        num_warmup=sizes["pilot"] // 2,
        num_samples=sizes["pilot"],
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(0), z)
    return {n: np.asarray(x) for n, x in mcmc.get_samples(group_by_chain=True).items()}


def by_metropolis(y, rows, sizes):
    """Draws of each parameter, and as `x` of the state at `rows`, (chains, draws[, rows])."""
    mcmc = MCMC(
        fd.inference.ParticleMetropolis(partial(program, filter=METROPOLIS)),
        num_warmup=sizes["warmup"],
        num_samples=sizes["metropolis"],
        num_chains=8,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(1), y, extra_fields=("paths",))
    found = {n: np.asarray(x) for n, x in mcmc.get_samples(group_by_chain=True).items()}
    fields = mcmc.get_extra_fields(group_by_chain=True)
    found["x"] = np.asarray(fields["paths"]["y"])[:, :, list(rows), 0]
    found["accepted"] = np.asarray(fields["accept_prob"]).mean()
    return found | {"noise": np.asarray(mcmc.last_state.likelihood_sd).mean()}


def free(draws):
    """Draws in the space without limits, (draws, 3), in the order that NUTS has them."""
    mu, rho, sigma = (draws[name].ravel() for name in PRIORS)
    return np.stack([mu, np.log(rho / (1 - rho)), np.log(sigma)], 1)


def by_nuts(y, pilot, sizes):
    """Draws (keys, draws) of each parameter, each chain with a key of its own; as `smooth` and `fresh`
    the log-likelihood it saw and one estimated anew."""
    kernel = NUTS(
        partial(program, filter=SMOOTH),
        dense_mass=True,
        inverse_mass_matrix=jnp.asarray(np.cov(free(pilot).T)),
        step_size=0.5,
        max_tree_depth=5,
        init_strategy=init_to_value(values={n: pilot[n].mean() for n in PRIORS}),
    )
    mcmc = MCMC(
        kernel,
        num_warmup=sizes["nuts_warmup"],
        num_samples=sizes["nuts"],
        progress_bar=False,
        jit_model_args=True,
    )
    series = fd.Series(days(y), y[:, None].astype(np.float32))

    def log_likelihood(filter, values, key):
        model = volatility(*(values[name].astype(jnp.float32) for name in PRIORS))
        return fd.log_likelihood(model, series, filter, key=key)

    smooth = jax.jit(
        lambda values, key: jax.lax.map(lambda v: log_likelihood(SMOOTH, v, key), values)
    )
    fresh = jax.jit(
        lambda values, keys: jax.lax.map(lambda v: log_likelihood(FRESH, *v), (values, keys))
    )
    chains = []
    for k in range(sizes["keys"]):
        key, key_chain, key_fresh = jr.split(jr.fold_in(jr.key(2), k), 3)
        mcmc.run(key_chain, y, key, extra_fields=("num_steps", "diverging"))
        values = {n: x for n, x in mcmc.get_samples().items() if n in PRIORS}
        fields = mcmc.get_extra_fields()
        keys = jr.split(key_fresh, sizes["nuts"])
        chains.append(
            values
            | {
                "smooth": smooth(values, key),
                "fresh": fresh(values, keys),
                "steps": fields["num_steps"],
                "diverging": fields["diverging"],
            }
        )
        print(k, {n: float(values[n].mean()) for n in PRIORS}, flush=True)
    return {n: np.stack([np.asarray(chain[n]) for chain in chains]) for n in chains[0]}


def by_sums(y, rows, quick):
    """Known moments and quantiles of each parameter, and states at `rows`, from the finer and the coarser
    grid."""
    log_prior = lambda mu, rho, s: np.asarray(
        sum(prior.log_prob(x) for prior, x in zip(PRIORS.values(), (mu, rho, s), strict=True))
    )
    box = point_mass.Box(float(np.log(np.mean(y**2))))
    other = box._replace(mu=(-2.6, 2.6, 25), rho=(-1.0, 7.5, 21), s=(-3.7, 0.5, 23))
    grids = [
        point_mass.posterior(y, log_prior, b) for b in ((other, other) if quick else (box, other))
    ]
    found = {"edge": grids[0].edge()}
    for grid, name in zip(grids, ("fine", "coarse"), strict=True):
        for parameter in PRIORS:
            mean = grid.expectation(parameter, lambda x: x)
            sd = np.sqrt(grid.expectation(parameter, lambda x, mean=mean: (x - mean) ** 2))
            quantiles = grid.quantiles(parameter, LEVELS)
            found[f"{name} {parameter}"] = np.array([mean, sd, *quantiles])
        found[f"{name} x"] = point_mass.smoothed(y, grid, rows)
    return found


def against_the_file(y):
    """How far the point-mass filter is from the figures of the file, and `ParticleFilter` in standard
    errors."""
    off, apart = [], []
    rows = (0, 10, 100, len(y) - 1)
    series = fd.Series(days(y), y[:, None])

    @jax.jit
    def run(parameters, key):
        found = fd.filter(volatility(*parameters), series, fd.ParticleFilter(1000), key=key)
        return found.log_likelihood, found.mean[jnp.array(rows), 0]

    for case in json.loads(KNOWN.read_text())["values"]:
        mu, rho, s = (case[name] for name in PRIORS)
        exact, means = case["loglik_G201_401_801"][1], case["filter_mean_t0_10_100_last"]
        total, x = point_mass.run(y, np.array([mu]), rho, np.array([s]), rows)
        off.append([abs(total[0] - exact), np.abs(x[0] - means).max()])
        runs = [run(jnp.array([mu, rho, s]), key) for key in jr.split(jr.key(3), 30)]
        ratio = np.exp(np.array([r[0] for r in runs]) - exact) - 1
        for z in (ratio, *(np.array([r[1] for r in runs]) - means).T):
            apart.append(abs(z.mean()) / (z.std(ddof=1) / np.sqrt(len(z))))
    assert np.max(off) < 1e-9, off
    return np.max(off, 0), max(apart)


class Estimates:
    """Means over draws (chains, draws), weighted or not, and their standard errors."""

    def __init__(self, draws, log_weights=None, by_chain=False):
        self.draws, self.by_chain = draws, by_chain
        if log_weights is None:
            self.weights = 1.0
        else:
            w = np.exp(log_weights - log_weights.max(1, keepdims=True))
            self.weights = w / w.mean(1, keepdims=True)

    def mean(self, values):
        """Of `values` (chains, draws): mean, standard error."""
        mean = (self.weights * values).mean()
        off = self.weights * (values - mean)
        error = off.std() / np.sqrt(effective_sample_size(off))
        if self.by_chain:
            error = max(error, off.mean(1).std(ddof=1) / np.sqrt(len(off)))
        return mean, error

    def statistics(self, name, known):
        """Mean, square distance from the known mean, shares below the known quantiles: (5, 2)."""
        x = self.draws[name].astype(float)
        values = [x, (x - known[0]) ** 2, *((x < q).astype(float) for q in known[2:])]
        return np.array([self.mean(v) for v in values])

    def summary(self, name):
        """Mean and its standard error, standard deviation, quantiles, as text."""
        x = self.draws[name].astype(float)
        mean, error = self.mean(x)
        sd = np.sqrt(self.mean((x - mean) ** 2)[0])
        order = np.argsort(x.ravel())
        w = np.cumsum(np.broadcast_to(self.weights, x.shape).ravel()[order])
        low, middle, high = np.interp(LEVELS, w / w[-1], x.ravel()[order])
        return [f"{mean:.4f} ± {error:.4f}", *(f"{v:.3f}" for v in (sd, low, middle, high))]


def distances(a, b, known):
    """Differences over standard errors, (3, 5), of two `Estimates`, or of one from what is known."""
    out = []
    for name in PRIORS:
        exact = np.array([known[name][0], known[name][1] ** 2, *LEVELS])
        first = a.statistics(name, known[name])
        second = np.stack([exact, 0 * exact], 1) if b is None else b.statistics(name, known[name])
        out.append((first[:, 0] - second[:, 0]) / np.hypot(first[:, 1], second[:, 1]))
    return np.array(out)


def kept(folder, name, make, costs):
    """What `make()` gives, from the folder if it is there; `costs` gets its CPU seconds."""
    path = folder / f"{name}.npz" if folder else None
    if path and path.exists():
        found = dict(np.load(path))
    else:
        before = time.process_time()
        found = make()
        found["cost"] = np.array(time.process_time() - before)
        if path:
            path.parent.mkdir(exist_ok=True)
            np.savez(path, **found)
    costs[name] = float(found.pop("cost"))
    print(name, f"{costs[name]:.0f} s", flush=True)
    return found


def study(y, sizes, folder, quick):
    """The section of RESULTS.md, and whether all aims are met."""
    costs, rows = {}, tuple(k for k in (0, 10, 100, len(y) - 1) if k < len(y))
    grid = kept(folder, "sums", lambda: by_sums(y, rows, quick), costs)
    pilot = kept(folder, "kalman", lambda: by_kalman(y, sizes), costs)
    metropolis = kept(folder, "metropolis", lambda: by_metropolis(y, rows, sizes), costs)
    nuts = kept(folder, "nuts", lambda: by_nuts(y, pilot, sizes), costs)
    known = {name: grid[f"fine {name}"] for name in PRIORS}
    estimates = {
        "particle Metropolis": Estimates(metropolis),
        "NUTS": Estimates(nuts, by_chain=True),
        "NUTS, reweighted": Estimates(nuts, nuts["fresh"] - nuts["smooth"], by_chain=True),
        "NUTS, Kalman filter of log y^2": Estimates(pilot),
    }
    lines = []
    for name in PRIORS:
        mean, sd, *quantiles = known[name]
        lines.append([f"{name}: sums", f"{mean:.4f}", *(f"{v:.3f}" for v in (sd, *quantiles)), ""])
        for title, one in estimates.items():
            z = np.abs(distances(one, None, known))[list(PRIORS).index(name)].max()
            lines.append([f"{name}: {title}", *one.summary(name), f"{z:.1f}"])
    head = ["", "mean ± its error", "sd", "5 %", "50 %", "95 %", "largest difference, in errors"]
    text = [table(head, lines)]

    state = [Estimates({"x": metropolis["x"][..., k]}) for k in range(len(rows))]
    means = [one.mean(one.draws["x"].astype(float)) for one in state]
    z_state = [(m - exact) / e for (m, e), exact in zip(means, grid["fine x"], strict=True)]
    lines = [
        [str(row), f"{exact:.4f}", f"{mean:.4f} ± {error:.4f}", f"{z:+.1f}"]
        for row, exact, (mean, error), z in zip(rows, grid["fine x"], means, z_state, strict=True)
    ]
    text.append(table(["day", "sums", "particle Metropolis", "difference, in errors"], lines))

    lines = []
    for title, draws, cost in (
        ("particle Metropolis", metropolis, costs["metropolis"]),
        ("NUTS", nuts, costs["nuts"]),
    ):
        x = [draws[name].astype(float) for name in PRIORS]
        ess = min(effective_sample_size(v) for v in x)
        rhat = max(split_gelman_rubin(v) for v in x)
        chains, count = x[0].shape
        lines.append(
            [
                title,
                f"{chains} x {count:,}",
                number(ess),
                f"{rhat:.3f}",
                f"{cost:.0f}",
                number(ess / cost),
            ]
        )
    head = [
        "",
        "draws",
        "effective samples, least",
        "R-hat, largest",
        "CPU s",
        "effective per CPU s",
    ]
    text.append(table(head, lines))
    spread = nuts["fresh"] - nuts["smooth"]
    weights = estimates["NUTS, reweighted"].weights
    shares = 1 / np.mean(weights**2)
    text.append(
        f"Particle Metropolis: {METROPOLIS.size} particles, acceptance "
        f"{float(metropolis['accepted']):.2f}, standard deviation of the log-likelihood "
        f"{float(metropolis['noise']):.2f}. NUTS: {SMOOTH.size} particles, {nuts['steps'].mean():.1f} steps "
        f"a draw, {int(nuts['diverging'].sum())} divergences; a fresh estimate less the log-likelihood of "
        f"a key is {spread.mean():+.2f} on average, varies by {spread.mean(1).std(ddof=1):.2f} from key to "
        f"key and by {spread.std(1).mean():.2f} from draw to draw (the noise of the fresh estimate "
        f"included); reweighting leaves {shares:.0%} of the draws. Sums: {costs['sums']:.0f} CPU s, at the "
        f"edges of the box {float(grid['edge']):.0e} of the posterior."
    )

    fineness = max(
        np.abs(grid[f"coarse {name}"] - known[name]).max() / known[name][1] for name in PRIORS
    )
    largest = lambda a, b=None: float(
        np.abs(distances(estimates[a], estimates.get(b), known)).max()
    )
    one, two, three = list(estimates)[:3]
    found = [
        Aim("sums: another grid, change in standard deviations", fineness, 0.02),
        Aim("particle Metropolis - sums, in errors", largest(one), 4),
        Aim("particle Metropolis - sums, volatility of 4 days", float(np.abs(z_state).max()), 4),
        Aim("NUTS - sums, in errors", largest(two), 4),
        Aim("NUTS reweighted - sums, in errors", largest(three), 4),
        Aim("particle Metropolis - NUTS, in errors", largest(one, two), 4),
        Aim("particle Metropolis - NUTS reweighted, in errors", largest(one, three), 4),
    ]
    if not quick:
        off, apart = against_the_file(y)
        found = [
            Aim("sums - reference: log-likelihoods", float(off[0]), 1e-9),
            Aim("sums - reference: filtered means", float(off[1]), 1e-9),
            Aim("particle filter - reference, in errors", float(apart), 4),
            *found,
        ]
    text.append(aims(found))
    return "\n\n".join(text), all(x.measured <= x.limit for x in found)


SIZES = {
    "pilot": 1000,
    "warmup": 400,
    "metropolis": 2000,
    "keys": 8,
    "nuts_warmup": 40,
    "nuts": 100,
}
TINY = {"pilot": 40, "warmup": 20, "metropolis": 40, "keys": 2, "nuts_warmup": 10, "nuts": 10}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rows and draws: does it run?")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--keep", type=Path, help="folder of draws, to go on with")
    options = parser.parse_args()
    y = returns()
    if y is None:
        print(f"skipped: the environment variable FILTERDYN_DATA names no folder with {FILE}")
        return 0
    if options.quick:
        y = y[:60]
    text, fine = study(y, TINY if options.quick else SIZES, options.keep, options.quick)
    text = f"{text}\n\n{surroundings(*PACKAGES)}"
    print(text)
    if options.write and not options.quick:
        write_section("particle-inference", text)
    return 0 if fine or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
