"""Ensemble filters on Lorenz-96: errors of the analysis, time, and the recovery of its equation.

    python benchmarks/lorenz96.py [--quick] [--only errors time recovery] [--write]

**Errors** (Sakov, Oke 2008b): 40 states, F = 8, a Runge-Kutta step of 0.05 and a measurement of every state
with R = I in each row, no process noise; the root mean square error of the filtered mean over states,
averaged over 2,000 rows without the first 100. Mean and standard error over six seeds; a filter whose error
exceeds 1, the size of a measurement error, has diverged.

**Time** of the stochastic filter with 64 members against DAPPER and cuthbert, on the same problem, in turn,
in rounds; CPU time over all threads, medians. DAPPER needs `pip install dapper`.

**Recovery** (Chen, Sanz-Alonso, Willett 2022): the 18 coefficients of a dictionary, from four sequences of
150 rows, by gradients of the likelihood through the filter (50 members, deterministic, localised), first
on stretches of 25 rows, truncated to 20 rows, then on whole sequences. States start with the mean and
variance of all measurements.

The exit status says whether all three reach what is wanted of answers; it is not about speed.
"""

import argparse
import functools
import sys
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import optax
from harness import (
    Aim,
    aims,
    interleave,
    measured,
    number,
    ratio,
    surroundings,
    table,
    write_section,
)

import filterdyn as fd

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpy", "dapper", "cuthbert")
CELLS, BURN_IN = 40, 100
SPREAD = 0.001**0.5
RING = np.arange(float(CELLS))


def wind(x, force=8.0):
    return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + force


def runge_kutta(rate, x, h):
    k1 = rate(x)
    k2 = rate(x + 0.5 * h * k1)
    k3 = rate(x + 0.5 * h * k2)
    k4 = rate(x + h * k3)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def step(x):
    return runge_kutta(wind, x, 0.05)


# --- errors -------------------------------------------------------------------------------------------


def record(seed, rows):
    """A point on the attractor, a truth that starts near it, and measurements of that."""
    calm = jnp.full(CELLS, 8.0).at[0].add(0.01)
    centre = jax.lax.fori_loop(0, 1000, lambda _, x: step(x), calm)
    key_start, key_noise = jr.split(jr.key(seed))
    start = centre + SPREAD * jr.normal(key_start, (CELLS,))
    _, states = jax.lax.scan(lambda x, _: (step(x),) * 2, start, None, length=rows)
    return centre, states, states + jr.normal(key_noise, states.shape)


def storm(centre):
    return fd.StateSpaceModel(
        dist.Normal(centre, SPREAD).to_event(1),
        fd.Transition(lambda t, x, u: dist.Delta(step(x), event_dim=1)),
        fd.GaussianObservation(lambda t, x, u: x, 1.0),
    )


def contestants():
    """What is filtered with, and the error that is wanted of it."""
    taper = fd.GaspariCohn(4.0, RING, period=float(CELLS))
    ensemble = fd.EnsembleKalmanFilter
    return {
        "stochastic, N = 40, inflation 1.06": (ensemble(40, inflation=1.06), 0.22),
        "deterministic, N = 40, inflation 1.02": (
            ensemble(40, "deterministic", inflation=1.02),
            None,
        ),
        "transform, N = 28, inflation 1.02": (ensemble(28, "transform", inflation=1.02), 0.19),
        "transform, N = 24, inflation 1.013": (ensemble(24, "transform", inflation=1.013), None),
        "transform, N = 28, adaptive inflation": (
            ensemble(28, "transform", inflation=fd.AdaptiveInflation(1.02)),
            None,
        ),
        "serial, rotated, N = 28, inflation 1.02": (
            ensemble(28, "serial", inflation=1.02, rotate=True),
            None,
        ),
        "local, N = 7, inflation 1.04, radius 4": (
            ensemble(7, "local", inflation=1.04, localization=taper),
            0.23,
        ),
        "stochastic, localised, N = 20, inflation 1.04, radius 4": (
            ensemble(20, inflation=1.04, localization=taper),
            None,
        ),
    }


def errors(seeds, rows, burn_in):
    lines, found, right = [], [], True
    times = 0.05 * np.arange(1, rows + 1)
    for name, (filter, wanted) in contestants().items():

        @jax.jit
        def run(seed, filter=filter):
            centre, states, ys = record(seed, rows)
            series = fd.Series(times, ys)
            result = fd.filter(storm(centre), series, filter, key=jr.key(seed + 1000), t0=0.0)
            error = jnp.sqrt(((result.mean - states) ** 2).mean(1))[burn_in:].mean()
            spread = jnp.sqrt(result.variances.mean(1))[burn_in:].mean()
            return error, spread

        each = np.array([run(seed) for seed in range(seeds)])
        fine = each[:, 0] < 1.0
        mean = each[fine, 0].mean() if fine.any() else np.nan
        deviation = each[fine, 0].std(ddof=1) / np.sqrt(fine.sum()) if fine.sum() > 1 else np.nan
        lines.append(
            [
                name,
                f"{mean:.3f} ± {deviation:.3f}",
                f"{each[fine, 1].mean():.3f}",
                f"{(~fine).sum()} of {seeds}",
            ]
        )
        if wanted is not None:
            found.append(Aim(f"error, {name}", float(mean), wanted))
            right &= bool(mean <= wanted and fine.all())
    text = table(["filter", "error", "spread", "diverged"], lines)
    return f"{text}\n\n{aims(found)}", right


# --- time ---------------------------------------------------------------------------------------------


def ours(ys, centre, size, kind, dtype):
    filter = fd.EnsembleKalmanFilter(size, kind, inflation=1.02)
    times = 0.05 * np.arange(1, len(ys) + 1)
    centre, ys = centre.astype(dtype), jnp.asarray(ys, dtype)

    @jax.jit
    def run(ys, key):
        result = fd.filter(storm(centre), fd.Series(times, ys), filter, key=key, t0=0.0)
        return result.mean, result.log_likelihood

    return lambda: run(ys, jr.key(0))[0].block_until_ready()


def theirs_cuthbert(ys, centre, size):
    from cuthbert import filtering
    from cuthbert.ensemble_kalman import ensemble_kalman_filter

    filter = ensemble_kalman_filter.build_filter(
        lambda key: centre + SPREAD * jr.normal(key, centre.shape),
        lambda y: lambda x, key: step(x),
        lambda y: (lambda x: x, jnp.eye(CELLS), y),
        size,
        inflation=0.02,
    )

    @jax.jit
    def run(ys, key):
        states = filtering.filter(filter, ys, filter.init_prepare(key=key), key=key)
        return states.mean

    return lambda: run(jnp.asarray(ys), jr.key(0)).block_until_ready()


def theirs_dapper(rows, size):
    import dapper as dpr
    import dapper.da_methods as da
    from dapper.mods.Lorenz96.sakov2008 import HMM

    dpr.set_seed(1)
    HMM.tseq.Ko = rows - 1
    truth, ys = HMM.simulate()

    def run():
        filter = da.EnKF("PertObs", N=size, infl=1.02)
        filter.assimilate(HMM, truth, ys, liveplots=False)

    return run


def timing(rows, size, rounds, budget):
    centre, _, ys = record(0, rows)
    runs, missing = {}, []
    makers = {
        "filterdyn, stochastic": lambda: ours(ys, centre, size, "stochastic", jnp.float64),
        "filterdyn, stochastic, float32": lambda: ours(ys, centre, size, "stochastic", jnp.float32),
        "filterdyn, deterministic": lambda: ours(ys, centre, size, "deterministic", jnp.float64),
        "filterdyn, transform": lambda: ours(ys, centre, size, "transform", jnp.float64),
        "cuthbert, stochastic": lambda: theirs_cuthbert(ys, centre, size),
        "DAPPER, stochastic (with its statistics)": lambda: theirs_dapper(rows, size),
    }
    lines = []
    for name, make in makers.items():
        try:
            run = make()
            run()
        except ImportError as reason:
            missing.append(f"{name}: {reason}")
            continue
        runs[name] = lambda repeats, run=run: measured(run, repeats)
    costs = interleave(runs, rounds, budget)
    mine = costs["filterdyn, stochastic"].cpu
    for name, cost in costs.items():
        lines.append(
            [
                name,
                f"{number(cost.cpu * 1e6 / rows)} ({number(cost.wall * 1e6 / rows)})",
                number(cost.cpu / mine),
            ]
        )
    head = [f"N = {size}, T = {rows}", "µs per row (wall)", "times filterdyn"]
    found = []
    for name, least in (
        ("DAPPER, stochastic (with its statistics)", 3.0),
        ("cuthbert, stochastic", 1.0),
    ):
        if name in costs:
            what = f"faster than {name.split(',')[0]}"
            found.append(Aim(what, ratio(costs[name].cpu, mine), least, True))
    text = "\n".join([table(head, lines), "", aims(found)])
    return text + ("\n\nMissing: " + "; ".join(missing) if missing else "")


# --- recovery -----------------------------------------------------------------------------------------

TERMS = (
    "1 x-2 x-1 x x+1 x+2 x-2² x-1² x² x+1² x+2² x-2·x-1 x-1·x x·x+1 x+1·x+2 x-2·x x-1·x+1 x·x+2"
).split()
TRUTH = np.zeros(len(TERMS))
TRUTH[[0, 3, 11, 16]] = 8.0, -1.0, -1.0, 1.0


def dictionary(x):
    a, b, c, d, e = (jnp.roll(x, k) for k in (2, 1, 0, -1, -2))
    ones = jnp.ones_like(x)
    squares = (a * a, b * b, c * c, d * d, e * e)
    neighbours = (a * b, b * c, c * d, d * e, a * c, b * d, c * e)
    return jnp.stack([ones, a, b, c, d, e, *squares, *neighbours], axis=-1)


def sequences(seed, count, rows):
    """Sequences made with a fifth of the filter's step."""
    key_start, key_noise = jr.split(jr.key(seed))
    fine = jax.vmap(lambda x: runge_kutta(wind, x, 0.01))
    ahead = lambda x, steps: jax.lax.fori_loop(0, steps, lambda _, x: fine(x), x)
    x = ahead(8.0 + jr.normal(key_start, (count, CELLS)), 2000)
    _, states = jax.lax.scan(lambda x, _: (ahead(x, 5),) * 2, x, None, length=rows)
    states = states.swapaxes(0, 1)
    return states + jr.normal(key_noise, states.shape)


def learner(coefficients, log_q, mean, deviation):
    move = lambda x: runge_kutta(lambda x: dictionary(x) @ coefficients, x, 0.05)
    noise = jnp.exp(0.5 * log_q)
    return fd.StateSpaceModel(
        dist.Normal(mean, deviation).expand([CELLS]).to_event(1),
        fd.Transition(lambda t, x, u: dist.Normal(move(x), noise).to_event(1)),
        fd.LinearObservation(jnp.eye(CELLS, dtype=mean.dtype), jnp.ones(CELLS, mean.dtype)),
    )


def recover(seed, count, rows, short, long, size=50):
    """The coefficients, from zero by `short` updates on stretches of 25 rows and `long` ones on whole
    sequences; the variance of the process noise and the seconds it took."""
    began = time.perf_counter()
    ys = sequences(seed, count, rows).astype(jnp.float32)
    taper = fd.GaspariCohn(5.0 / np.sqrt(10 / 3), RING, period=float(CELLS))
    ensemble = functools.partial(fd.EnsembleKalmanFilter, size, "deterministic", localization=taper)
    mean, deviation = ys.mean(), ys.std()
    # Coefficients of features that are made uncorrelated by what was measured: Adam's steps are then
    # as long in every direction as they should be.
    features = dictionary(ys.reshape(-1, CELLS)).reshape(-1, len(TERMS))
    factor = jnp.linalg.cholesky(features.T @ features / len(features))
    white = jax.scipy.linalg.solve_triangular(
        factor, jnp.eye(len(TERMS), dtype=ys.dtype), lower=True
    ).T

    def loss(p, ys, key, filter):
        times = 0.05 * np.arange(ys.shape[1])

        def one(y, key):
            model = learner(white @ p["coefficients"], 4.0 * p["log_q"], mean, deviation)
            return fd.log_likelihood(model, fd.Series(times, y), filter, key=key)

        return -jax.vmap(one)(ys, jr.split(key, count)).mean() / ys.shape[1]

    def train(p, updates, window, filter, first, last, key):
        """Adam on a stretch of every sequence, another one in every update, with falling steps; the mean
        of the last third of the updates."""
        falling = optax.exponential_decay(first, updates, last / first)
        optimizer = optax.chain(optax.clip(2.0), optax.adam(falling, b2=0.98))

        @jax.jit
        def update(p, state, key):
            key_start, key_filter = jr.split(key)
            starts = jr.randint(key_start, (count,), 0, rows - window + 1)
            cut = lambda y, start: jax.lax.dynamic_slice_in_dim(y, start, window)
            slope = jax.grad(loss)(p, jax.vmap(cut)(ys, starts), key_filter, filter)
            change, state = optimizer.update(slope, state, p)
            return optax.apply_updates(p, change), state

        state, late = optimizer.init(p), []
        for k, key_update in enumerate(jr.split(key, updates)):
            p, state = update(p, state, key_update)
            if 3 * k >= 2 * updates:
                late.append(p)
        return jax.tree.map(lambda *x: jnp.stack(x).mean(0), *late)

    p = {
        "coefficients": jnp.zeros(len(TERMS), ys.dtype),
        "log_q": jnp.asarray(np.log(2.0) / 4, ys.dtype),
    }
    key_short, key_long = jr.split(jr.key(seed + 1))
    p = train(p, short, min(25, rows), ensemble(truncation=20), 0.2, 0.02, key_short)
    p = train(p, long, rows, ensemble(), 0.06, 0.004, key_long)
    found = np.asarray(white @ p["coefficients"])
    return found, float(jnp.exp(4.0 * p["log_q"])), time.perf_counter() - began


def recovery(quick):
    sizes = (2, 20, 4, 4) if quick else (4, 150, 500, 100)
    found, q, seconds = recover(0, *sizes)
    worst = float(np.abs(found - TRUTH).max())
    lines = [
        [term.replace("x", "x "), number(truth), f"{value:.3f}"]
        for term, truth, value in zip(TERMS, TRUTH, found, strict=True)
    ]
    text = table(["term", "truth", "found"], lines)
    text += (
        f"\n\nVariance of the process noise: {q:.4f}. Seconds: {seconds:.0f}, compilation included."
    )
    text += "\n\n" + aims(
        [
            Aim("largest error of a coefficient", worst, 0.1),
            Aim("minutes", seconds / 60, 10.0),
        ]
    )
    return text, worst <= 0.1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--only", nargs="*", default=["errors", "time", "recovery"])
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    options = parser.parse_args()
    quick, right = options.quick, True
    jax.config.update("jax_enable_x64", True)
    sections = {}
    if "errors" in options.only:
        sections["errors"], fine = errors(*((2, 40, 10) if quick else (6, 2_000, BURN_IN)))
        right &= fine or quick
    if "time" in options.only:
        sections["time"] = timing(*((30, 16, 1, 2.0) if quick else (500, 64, 5, 60.0)))
    if "recovery" in options.only:
        sections["recovery"], fine = recovery(quick)
        right &= fine or quick
    for name, text in sections.items():
        text = f"{text}\n\n{surroundings(*PACKAGES)}"
        print(f"\n{name}\n\n{text}", flush=True)
        if options.write:
            write_section(f"lorenz96-{name}", text)
    sys.exit(not right)


if __name__ == "__main__":
    main()
