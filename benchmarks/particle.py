# ruff: noqa: NPY002  (numba and particles draw from NumPy's global generator)
"""The bootstrap filter against other libraries and against a serial numba floor.

    python benchmarks/particle.py [--quick] [--only volatility tracking] [--write]

Two models, T = 1000 rows: stochastic volatility, and a target that moves in the plane with its position
measured. Systematic resampling below half of the effective sample size, N = 1e3, 1e4, 1e5 particles. All in
this process, in turn, in rounds; CPU time over all threads, medians. Everyone's mean log-likelihood over a
few seeds must first agree with the exact one (or, for volatility, with the floor's at the largest N); the
exit status says whether filterdyn's does.

`particles` asks for an older NumPy than JAX does but runs with a newer one: pip install --no-deps particles.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
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

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpy", "numba", "particles", "cuthbert", "pypomp")
F32 = np.float32
OURS, ALWAYS = "filterdyn", "filterdyn, resampling in every row"
FLOOR = "numba, serial"
HALF_LOG_2PI = 0.5 * np.log(2 * np.pi)


class Problem(NamedTuple):
    """x' = F (x - c) + c + diag(s) noise from N(c, diag(start^2)) at the first row; `log_g` sees it."""

    name: str
    transition: np.ndarray
    centre: np.ndarray
    noise: np.ndarray
    start: np.ndarray
    ys: np.ndarray

    @property
    def dx(self):
        return len(self.centre)


MU, PHI, SIGMA = -0.5, 0.97, 0.2
POSITION_NOISE = 0.5


def volatility(rows):
    rng = np.random.default_rng(1)
    start = SIGMA / np.sqrt(1 - PHI**2)
    x, ys = MU + start * rng.normal(), []
    for _ in range(rows):
        ys.append([np.exp(x / 2) * rng.normal()])
        x = MU + PHI * (x - MU) + SIGMA * rng.normal()
    one = lambda v: np.array([v])
    return Problem("volatility", one([PHI]), one(MU), one(SIGMA), one(start), np.array(ys))


def tracking(rows):
    """Positions and velocities in the plane, pulled back slowly, so that the state stays bounded."""
    rng = np.random.default_rng(2)
    dt = 0.1
    block = np.array([[1.0, dt], [-0.1 * dt, 1 - 0.1 * dt]])
    transition = np.kron(np.eye(2), block)
    noise, start = np.array([0.05, 0.3, 0.05, 0.3]), np.ones(4)
    x, ys = start * rng.normal(size=4), []
    for _ in range(rows):
        ys.append(x[[0, 2]] + POSITION_NOISE * rng.normal(size=2))
        x = transition @ x + noise * rng.normal(size=4)
    return Problem("tracking", transition, np.zeros(4), noise, start, np.array(ys))


def log_density(problem, xp, x, y):
    """log p(y | x), the last axis of `x` being the state's."""
    if problem.name == "volatility":
        v = x[..., 0]
        return -0.5 * y[0] ** 2 * xp.exp(-v) - 0.5 * v - HALF_LOG_2PI
    residual = (x[..., ::2] - y) / POSITION_NOISE
    return -0.5 * (residual**2).sum(-1) - 2 * (np.log(POSITION_NOISE) + HALF_LOG_2PI)


def ours(problem, size, dtype, threshold=0.5):
    """(seed) -> log-likelihood, and the function that is differentiated."""
    cast = lambda x: jnp.asarray(x, dtype)

    def model(theta):
        scale, log_noise = theta
        f, c, s = cast(problem.transition) * scale, cast(problem.centre), cast(problem.noise)
        initial = dist.Normal(c, cast(problem.start)).to_event(1)
        if problem.name == "volatility":
            move = fd.Transition(
                lambda t, x, u: dist.Normal(c + f[0] * (x - c), s * jnp.exp(log_noise)).to_event(1)
            )
            see = fd.Observation(lambda t, x, u: dist.Normal(0.0, jnp.exp(x / 2)).to_event(1))
        else:
            move = fd.LinearTransition(f, jnp.diag((s * jnp.exp(log_noise)) ** 2))
            h = cast(np.eye(4)[[0, 2]])
            see = fd.LinearObservation(h, cast(np.full(2, POSITION_NOISE**2)))
        return fd.StateSpaceModel(initial, move, see)

    series = fd.Series(np.arange(float(len(problem.ys))), cast(problem.ys))
    filter = fd.ParticleFilter(size, ess_threshold=threshold)
    theta = cast([1.0, 0.0])
    value = lambda theta, key: fd.log_likelihood(model(theta), series, filter, key=key)
    compiled = jax.jit(value)
    gradient = jax.jit(jax.grad(value))

    def size_of_gradient():
        analysis = gradient.lower(theta, jr.key(0)).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    return (
        lambda seed: float(compiled(theta, jr.key(seed))),
        lambda seed: jax.block_until_ready(gradient(theta, jr.key(seed))),
        size_of_gradient,
    )


def numba_floor(problem, size):
    from numba import njit

    dx, is_volatility = problem.dx, problem.name == "volatility"
    f, c, s, start = problem.transition, problem.centre, problem.noise, problem.start
    r = POSITION_NOISE

    @njit(fastmath=True)
    def run(ys, n, seed):
        np.random.seed(seed)
        x, new = np.empty((n, dx)), np.empty((n, dx))
        w, log_w = np.full(n, 1.0 / n), np.full(n, -np.log(n))
        for i in range(n):
            for d in range(dx):
                x[i, d] = c[d] + start[d] * np.random.normal()
        total = 0.0
        for t in range(len(ys)):
            if t > 0:
                squares = 0.0
                for i in range(n):
                    squares += w[i] * w[i]
                if 1.0 / squares < 0.5 * n:
                    u, j, end = np.random.random(), 0, w[0]
                    for i in range(n):
                        while end < (i + u) / n and j < n - 1:
                            j += 1
                            end += w[j]
                        for d in range(dx):
                            new[i, d] = x[j, d]
                    x, new = new, x
                    for i in range(n):
                        log_w[i] = -np.log(n)
                for i in range(n):
                    for d in range(dx):
                        new[i, d] = c[d] + s[d] * np.random.normal()
                        for e in range(dx):
                            new[i, d] += f[d, e] * (x[i, e] - c[e])
                x, new = new, x
            top = -np.inf
            for i in range(n):
                if is_volatility:
                    g = -0.5 * ys[t, 0] ** 2 * np.exp(-x[i, 0]) - 0.5 * x[i, 0] - HALF_LOG_2PI
                else:
                    a, b = (x[i, 0] - ys[t, 0]) / r, (x[i, 2] - ys[t, 1]) / r
                    g = -0.5 * (a * a + b * b) - 2 * (np.log(r) + HALF_LOG_2PI)
                log_w[i] += g
                top = max(top, log_w[i])
            mass = 0.0
            for i in range(n):
                w[i] = np.exp(log_w[i] - top)
                mass += w[i]
            log_mass = top + np.log(mass)
            for i in range(n):
                w[i] /= mass
                log_w[i] -= log_mass
            total += log_mass
        return total

    return lambda seed: run(problem.ys, size, seed)


def by_particles(problem, size):
    import particles
    from particles import distributions as d
    from particles.state_space_models import Bootstrap, StateSpaceModel

    f, c, s, start = problem.transition, problem.centre, problem.noise, problem.start

    class Univariate(StateSpaceModel):
        def PX0(self):
            return d.Normal(c[0], start[0])

        def PX(self, t, xp):
            return d.Normal(c[0] + f[0, 0] * (xp - c[0]), s[0])

        def PY(self, t, xp, x):
            return d.Normal(0.0, np.exp(x / 2))

    class Plane(StateSpaceModel):
        def PX0(self):
            return d.IndepProd(*(d.Normal(0.0, b) for b in start))

        def PX(self, t, xp):
            mean = xp @ f.T
            return d.IndepProd(*(d.Normal(mean[:, k], s[k]) for k in range(4)))

        def PY(self, t, xp, x):
            return d.IndepProd(*(d.Normal(x[:, k], POSITION_NOISE) for k in (0, 2)))

    univariate = problem.name == "volatility"
    data = problem.ys[:, 0] if univariate else [y[None] for y in problem.ys]

    def run(seed):
        np.random.seed(seed)
        model = Bootstrap(ssm=(Univariate if univariate else Plane)(), data=data)
        smc = particles.SMC(fk=model, N=size, resampling="systematic", ESSrmin=0.5)
        smc.run()
        return smc.logLt

    return run


def by_cuthbert(problem, size):
    """It moves before it sees: the first row is weighed by hand through a move that does nothing."""
    from cuthbert import filtering
    from cuthbert.smc import particle_filter
    from cuthbertlib.resampling import adaptive, systematic

    f, c, s, start = (jnp.asarray(a, F32) for a in problem[1:5])
    resample = adaptive.ess_decorator(systematic.resampling, 0.5)

    def move(key, x, inputs):
        _, first = inputs
        e = jr.normal(key, x.shape, x.dtype)
        return jnp.where(first, x, c + f @ (x - c) + s * e)

    filter = particle_filter.build_filter(
        lambda key: c + start * jr.normal(key, c.shape, F32),
        move,
        lambda before, x, inputs: log_density(problem, jnp, x, inputs[0]),
        size,
        resample,
    )
    ys = jnp.asarray(problem.ys, F32)
    inputs = (ys, jnp.arange(len(ys)) == 0)

    @jax.jit
    def run(key):
        key_start, key = jr.split(key)
        begin = filter.init_prepare(key=key_start)
        states = filtering.filter(filter, inputs, begin, key=key)
        return states.log_normalizing_constant[-1]

    return lambda seed: float(run(jr.key(seed)))


def by_pypomp(problem, size):
    """It moves before it sees: the first move does nothing."""
    import pandas as pd
    import pypomp

    f, c, s, start = (jnp.asarray(a, F32) for a in problem[1:5])
    names = [f"x{k}" for k in range(problem.dx)]
    seen = [f"y{k}" for k in range(problem.ys.shape[1])]
    stack = lambda state: jnp.stack([state[k] for k in names])
    unstack = lambda x: {name: x[k] for k, name in enumerate(names)}

    def rinit(theta_, key, covars, t0):
        return unstack(c + start * jr.normal(key, c.shape))

    def rproc(X_, theta_, key, covars, t, dt):
        x = stack(X_)
        moved = c + f @ (x - c) + s * jr.normal(key, x.shape)
        return unstack(jnp.where(t < 0.5, x, moved))

    def dmeas(Y_, X_, theta_, covars, t):
        return log_density(problem, jnp, stack(X_), jnp.stack([Y_[k] for k in seen]))

    times = np.arange(1.0, len(problem.ys) + 1)
    model = pypomp.Pomp(
        ys=pd.DataFrame(problem.ys, index=times, columns=seen),
        theta=pypomp.PompParameters({"unused": 1.0}),
        statenames=names,
        t0=0.0,
        nstep=1,
        rinit=rinit,
        rproc=rproc,
        dmeas=dmeas,
    )

    def run(seed):
        model.pfilter(J=size, key=jr.key(seed), thresh=0.5)
        return float(np.asarray(model.results_history[-1].logLiks).ravel()[0])

    return run


PEERS: dict[str, Callable[..., Any]] = {
    FLOOR: numba_floor,
    "particles": by_particles,
    "cuthbert": by_cuthbert,
    "pypomp": by_pypomp,
}


def contestants(problem, size):
    runs = {
        OURS: ours(problem, size, F32)[0],
        ALWAYS: ours(problem, size, F32, threshold=1.0)[0],
    }
    for name, make in PEERS.items():
        # cuthbert keeps the particles of every row: gigabytes at the largest size.
        if name == "cuthbert" and size * len(problem.ys) * problem.dx > 2e8:
            continue
        try:
            runs[name] = make(problem, size)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return runs


def exact(problem):
    model = fd.StateSpaceModel(
        dist.MultivariateNormal(problem.centre, jnp.diag(problem.start**2)),
        fd.LinearTransition(problem.transition, np.diag(problem.noise**2)),
        fd.LinearObservation(np.eye(4)[[0, 2]], np.full(2, POSITION_NOISE**2)),
    )
    series = fd.Series(np.arange(float(len(problem.ys))), problem.ys)
    return float(fd.log_likelihood(model, series, fd.KalmanFilter()))


def answers(runs, seeds):
    """Mean log-likelihood, its standard error and half the variance, which is the bias to first order."""
    found = {}
    for name, run in runs.items():
        try:
            values = np.array([run(seed) for seed in range(1, seeds + 1)])
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}: {error}")
            continue
        found[name] = values.mean(), values.std(ddof=1) / np.sqrt(seeds), 0.5 * values.var(ddof=1)
    return found


def solve(make, sizes, rows, seeds, rounds, budget):
    problem = make(rows)
    reference = exact(problem) if problem.name == "tracking" else None
    times, lines, right = {}, [], True
    for size in sizes:
        runs = contestants(problem, size)
        found = answers(runs, seeds)
        at = reference if reference is not None else found[FLOOR][0] + found[FLOOR][2]
        extra = 0.0 if reference is not None else found[FLOOR][1]
        for name, (mean, error, half) in found.items():
            gap = mean + half - at
            # (Half the variance is the bias only where the variance is small.)
            off = half < 1 and abs(gap) > 5 * np.hypot(error, extra) + half
            right &= not (off and name in (OURS, ALWAYS))
            if off:
                print(f"{problem.name}, N = {size}: {name} is off by {gap:.3f} (s.e. {error:.3f})")
        timers = {
            name: lambda repeats, run=runs[name]: measured(lambda: run(1), repeats)
            for name in found
        }
        times[size] = interleave(timers, rounds, budget)
        for name, cost in times[size].items():
            per = 1e9 / (size * rows)
            floor = times[size].get(FLOOR)
            times_floor = ratio(cost.cpu, floor.cpu) if floor else None
            lines.append(
                [
                    name,
                    f"{size:,}",
                    f"{number(cost.cpu * per)} ({number(cost.wall * per)})",
                    number(times_floor),
                    f"{found[name][0]:.2f} ± {found[name][1]:.2f}",
                ]
            )
    head = ["", "N", "ns per particle and row (wall)", "times the floor", "log-likelihood"]
    text = table(head, lines)
    if reference is not None:
        text += f"\n\nExact: {reference:.2f}."
    return text, times, right


def gradients(rows, size):
    """Time of a gradient in units of the value's, and the memory that XLA sets aside for it."""
    lines, memory = [], 0.0
    for make in (volatility, tracking):
        problem = make(rows)
        value, gradient, bytes_of = ours(problem, size, F32)
        used = bytes_of()
        value(1), gradient(1)
        costs = interleave(
            {
                "value": lambda repeats, run=value: measured(lambda: run(1), repeats),
                "gradient": lambda repeats, run=gradient: measured(lambda: run(1), repeats),
            },
            3,
            30.0,
        )
        memory = max(memory, used)
        lines.append(
            [
                problem.name,
                number(costs["value"].cpu),
                number(costs["gradient"].cpu),
                number(ratio(costs["gradient"].cpu, costs["value"].cpu)),
                number(used / 1e9),
            ]
        )
    head = [f"N = {size:,}, T = {rows:,}", "value, CPU s", "gradient, CPU s", "ratio", "GB"]
    return table(head, lines), memory


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--only", nargs="*", default=["volatility", "tracking"])
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    options = parser.parse_args()
    quick = options.quick
    sizes, rows = ((200,), 40) if quick else ((1_000, 10_000, 100_000), 1_000)
    right = True
    found = []
    for make in (volatility, tracking):
        if make.__name__ not in options.only:
            continue
        text, times, fine = solve(
            make, sizes, rows, 3 if quick else 4, 1 if quick else 3, 2.0 if quick else 15.0
        )
        right &= fine
        for size in sizes[1:] or sizes:
            what = f"{make.__name__}, N = {size:,}"
            cost = {name: c.cpu for name, c in times[size].items()}
            peers = [cost[n] for n in PEERS if n in cost and n != FLOOR]
            best = min(peers) if peers else None
            found += [
                Aim(f"{what}: of the floor", ratio(cost[OURS], cost.get(FLOOR)), 1.0),
                Aim(f"{what}: faster than the best peer", ratio(best, cost[OURS]), 4.0, True),
            ]
        text = f"{text}\n\n{surroundings(*PACKAGES)}"
        print(text, flush=True)
        if options.write:
            write_section(f"particle-{make.__name__}", text)
    text, memory = gradients(rows if quick else 1_000, 200 if quick else 10_000)
    found.append(Aim("memory of a gradient, GB", memory / 1e9, 4.0))
    text = f"{text}\n\n{aims(found)}"
    print(text)
    if options.write:
        write_section("particle-gradient", text)
    sys.exit(not right)


if __name__ == "__main__":
    main()
