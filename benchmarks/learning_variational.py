"""The online variational filter against exact answers.

    python benchmarks/learning_variational.py [--quick] [--write] [--only learning]

**Filtering** (`filtering`): a stochastic volatility, Poisson counts, and a nonlinear transition seen by a
cubic sensor, one state each, so that sums over a grid are exact: errors of the posterior mean and of the
variance beside those of extended and unscented Kalman filters and of particles.

**Learning** (`learning`): the setting of Campbell, Shi, Rainforth, Doucet (2021, section 5.1), ten states
and ten sensors, of which the diagonals of transition and observation matrix are learnt, here with known
neighbours beside the diagonal, over 50,000 rows. The maximum of the likelihood of all rows is found by
L-BFGS; the error of an online estimate after the last row is its distance from that. The floor is recursive
maximum likelihood by a Kalman filter and its tangents, written out below. The exit status is 1 if the
variational filter's error is more than 1.1 times that.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from harness import number, surroundings, table, write_section
from scipy.optimize import minimize
from scipy.special import gammaln
from scipy.stats import norm

import filterdyn as fd

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpy", "scipy")
MOST = 1.1
GRID = np.linspace(-8.0, 8.0, 2001)
KEY = jax.random.key(0)


class Scalar(NamedTuple):
    """A model of one state, by densities on a grid and by draws, and as filterdyn takes it."""

    what: str
    model: fd.StateSpaceModel
    move: Callable[[Any], Any]
    sd: float
    start_sd: float
    density: Callable[[float, np.ndarray], np.ndarray]
    draw: Callable[[np.random.Generator, np.ndarray], np.ndarray]


def scalars() -> dict[str, Scalar]:
    at_rest = 0.3 / np.sqrt(1 - 0.95**2)
    initial = lambda sd: dist.Normal(0.0, sd).expand([1]).to_event(1)
    walk = fd.LinearTransition([[0.95]], [[0.09]])
    bend = lambda x, xp: 0.9 * x + 0.5 * xp.sin(2 * x)
    cubic = lambda x: x + 0.3 * x**3
    see = lambda of: fd.Observation(lambda t, x, u: of(x).to_event(1))
    return {
        "volatility": Scalar(
            "stochastic volatility: x' = 0.95 x + N(0, 0.3^2), y ~ N(0, 0.7^2 exp(x))",
            fd.StateSpaceModel(
                initial(at_rest), walk, see(lambda x: dist.Normal(0.0, 0.7 * jnp.exp(x / 2)))
            ),
            lambda x: 0.95 * x,
            0.3,
            at_rest,
            lambda y, x: norm.pdf(y, 0, 0.7 * np.exp(x / 2)),
            lambda rng, x: 0.7 * np.exp(x / 2) * rng.normal(size=len(x)),
        ),
        "counts": Scalar(
            "counts: the same x, y ~ Poisson(exp(x + 1))",
            fd.StateSpaceModel(initial(at_rest), walk, see(lambda x: dist.Poisson(jnp.exp(x + 1)))),
            lambda x: 0.95 * x,
            0.3,
            at_rest,
            lambda y, x: np.exp(y * (x + 1) - np.exp(x + 1) - gammaln(y + 1)),
            lambda rng, x: rng.poisson(np.exp(x + 1)).astype(float),
        ),
        "cubic": Scalar(
            "cubic sensor: x' = 0.9 x + sin(2 x) / 2 + N(0, 0.4^2), y = x + 0.3 x^3 + N(0, 0.7^2)",
            fd.StateSpaceModel(
                initial(1.0),
                fd.Transition(lambda t, x, u: dist.Normal(bend(x, jnp), 0.4).to_event(1)),
                see(lambda x: dist.Normal(cubic(x), 0.7)),
            ),
            lambda x: bend(x, np),
            0.4,
            1.0,
            lambda y, x: norm.pdf(y, cubic(x), 0.7),
            lambda rng, x: cubic(x) + 0.7 * rng.normal(size=len(x)),
        ),
    }


def on_grid(problem: Scalar, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Means, variances and the log-likelihood."""
    step = GRID[1] - GRID[0]
    kernel = norm.pdf(GRID[:, None], problem.move(GRID)[None, :], problem.sd) * step
    weights = norm.pdf(GRID, 0, problem.start_sd)
    means, variances, total = [], [], 0.0
    for row, y in enumerate(ys):
        weights = kernel @ weights if row else weights
        seen = weights / weights.sum() * problem.density(y, GRID)
        total += np.log(seen.sum())
        weights = seen / seen.sum()
        means.append(weights @ GRID)
        variances.append(weights @ (GRID - means[-1]) ** 2)
    return np.array(means), np.array(variances), total


def filtering(quick: bool) -> str:
    rows, found = 100 if quick else 1_000, []
    filters = {
        "`OnlineVariationalFilter()`": fd.OnlineVariationalFilter(),
        "`ExtendedKalmanFilter()`": fd.ExtendedKalmanFilter(),
        "`UnscentedKalmanFilter()`": fd.UnscentedKalmanFilter(),
        "`ParticleFilter(1000)`": fd.ParticleFilter(1000),
    }
    for problem in scalars().values():
        rng, x = np.random.default_rng(0), np.zeros(rows)
        x[0] = problem.start_sd * rng.normal()
        for row in range(1, rows):
            x[row] = problem.move(x[row - 1]) + problem.sd * rng.normal()
        ys = problem.draw(rng, x)
        means, variances, total = on_grid(problem, ys)
        series = fd.Series(np.arange(float(rows)), ys)
        for name, filter in filters.items():
            key = KEY if isinstance(filter, fd.filters.AbstractSamplingFilter) else None
            arguments = (problem.model, series, filter)
            result = fd.filter(*arguments, key=key)
            began = time.process_time()
            jax.block_until_ready(fd.filter(*arguments, key=key).mean)
            spent = time.process_time() - began
            error = np.sqrt(np.mean((result.mean[:, 0] - means) ** 2) / np.mean(variances))
            spread = np.mean(abs(np.asarray(result.cov[:, 0, 0]) / variances - 1))
            found.append(
                [
                    problem.what,
                    name,
                    number(float(error)),
                    f"{spread:.0%}",
                    f"{float(result.log_likelihood) - total:+.1f}",
                    number(1e6 * spent / rows),
                ]
            )
    head = [
        "model",
        "filter",
        "error of mean",
        "of variance",
        "log-likelihood less exact",
        "us / row",
    ]
    return (
        f"One series of {rows:,} rows each. Error of the mean: RMS distance from that of the grid, in units "
        "of the posterior's standard deviation; of the variance: mean relative distance. The log-likelihood "
        "of the variational filter is its bound, that of the Gaussian filters the one of their moments.\n\n"
        + table(head, found)
    )


DX = 10


def parts(theta: Any) -> tuple[Any, Any, Any, Any]:
    """F, Q, G and R."""
    band = jnp.eye(DX, k=1) - jnp.eye(DX, k=-1)
    F = jnp.diag(theta[:DX]) + 0.1 * band
    G = jnp.diag(theta[DX:]) + 0.2 * (jnp.eye(DX, k=1) + jnp.eye(DX, k=-1))
    return F, 0.1 * jnp.eye(DX), G, 0.25 * jnp.eye(DX)


def linear(theta: Any) -> fd.StateSpaceModel:
    F, Q, G, R = parts(theta)
    initial = dist.MultivariateNormal(jnp.zeros(DX), jnp.eye(DX))
    return fd.StateSpaceModel(initial, fd.LinearTransition(F, Q), fd.LinearObservation(G, R))


def tangent_filter(theta: Any, cov: Any, ys: Any) -> tuple[Any, Any]:
    """Recursive maximum likelihood, written out: the Kalman filter, its derivatives by the parameters, and
    steps along the score over the Fisher information so far. Every estimate."""
    k = len(theta)

    def kalman(theta: Any, m: Any, P: Any, y: Any, first: Any) -> tuple[Any, ...]:
        F, Q, G, R = parts(theta)
        m, P = jnp.where(first, m, F @ m), jnp.where(first, P, F @ P @ F.T + Q)
        S, e = G @ P @ G.T + R, y - G @ m
        inverse = jnp.linalg.inv(S)
        K = P @ G.T @ inverse
        I_KG = jnp.eye(DX) - K @ G
        # (Of log det S only the derivative is of interest.)
        log_p = -0.5 * (e @ inverse @ e + jnp.trace(jax.lax.stop_gradient(inverse) @ S))
        return m + K @ e, I_KG @ P @ I_KG.T + K @ R @ K.T, G @ m, S, log_p

    def row(carry: Any, at: Any) -> Any:
        theta, information, m, P, dm, dP = carry
        y, first = at
        f = lambda theta, m, P: kalman(theta, m, P, y, first)
        (m, P, _, S, _), slopes = jax.linearize(f, theta, m, P)
        dm, dP, psi, dS, score = jax.vmap(slopes)(jnp.eye(k), dm, dP)
        inverse = jnp.linalg.inv(S)
        whitened = inverse @ dS
        fisher = psi @ inverse @ psi.T + 0.5 * jnp.einsum("iab,jba->ij", whitened, whitened)
        information = information + fisher
        theta = theta + jnp.linalg.solve(information, score)
        return (theta, information, m, P, dm, dP), theta

    known = jnp.linalg.inv(cov)
    begin = (theta, known, jnp.zeros(DX), jnp.eye(DX), jnp.zeros((k, DX)), jnp.zeros((k, DX, DX)))
    return jax.lax.scan(row, begin, (ys, jnp.arange(len(ys)) == 0))[1]


def most_likely(series: fd.Series, start: np.ndarray) -> np.ndarray:
    """The maximum of the likelihood of all rows."""
    of = lambda theta: -fd.log_likelihood(linear(theta), series, fd.KalmanFilter()) / len(series)
    slope = jax.jit(jax.value_and_grad(of))
    both = lambda theta: tuple(np.asarray(v, float) for v in slope(jnp.asarray(theta)))
    found = minimize(both, start, jac=True, method="L-BFGS-B", options=dict(ftol=1e-13, gtol=1e-6))
    if np.abs(found.jac).max() > 1e-5:
        raise RuntimeError(f"no maximum found: {found.message}")
    return found.x


def learning(quick: bool) -> tuple[str, float]:
    rows = 500 if quick else 50_000
    rng = np.random.default_rng(0)
    truth = np.concatenate([rng.uniform(0.5, 0.9, DX), rng.uniform(0.5, 1.5, DX)])
    F, Q, G, R = (np.asarray(a) for a in parts(jnp.asarray(truth)))
    x, ys = rng.normal(size=DX), np.empty((rows, DX))
    for row in range(rows):
        ys[row] = G @ x + np.sqrt(R[0, 0]) * rng.normal(size=DX)
        x = F @ x + np.sqrt(Q[0, 0]) * rng.normal(size=DX)
    series = fd.Series(np.arange(float(rows)), ys)
    best = most_likely(series, truth)
    print("maximum found", time.process_time(), file=sys.stderr, flush=True)
    loc = jnp.concatenate([jnp.full(DX, 0.7), jnp.ones(DX)])
    prior = dict(theta=dist.Normal(loc, jnp.array([0.15] * DX + [0.3] * DX)).to_event(1))
    start_cov = jnp.diag(jnp.array([0.15**2] * DX + [0.3**2] * DX))
    model = fd.ParametricModel(lambda p: linear(p["theta"]), prior)
    learner = fd.OnlineVariationalFilter()
    runs: dict[str, Callable[[], Any]] = {
        "recursive maximum likelihood, written out": lambda: jax.jit(tangent_filter)(
            loc, start_cov, jnp.asarray(ys)
        ),
        "`OnlineVariationalFilter()`": lambda: (
            fd.filter(model, series, learner, key=KEY).parameters.unconstrained_mean
        ),
    }
    rms = lambda a: float(np.sqrt(np.mean(np.asarray(a) ** 2)))
    found, floor, worst = [], None, 0.0
    marks = [row for row in (1_000, 5_000, rows) if row <= rows]
    for name, run in runs.items():
        began = time.process_time()
        path = np.asarray(run())
        spent = time.process_time() - began
        error = rms(path[-1] - best)
        floor = error if floor is None else floor
        worst = max(worst, error / floor)
        found.append(
            [name]
            + [number(rms(path[mark - 1] - truth)) for mark in marks]
            + [number(error), f"{error / floor:.2f}", number(1e6 * spent / rows)]
        )
        print(*found[-1], file=sys.stderr, flush=True)
    found.append(
        ["all rows at once"] + [""] * (len(marks) - 1) + [number(rms(best - truth)), "", "", ""]
    )
    head = (
        ["estimate"]
        + [f"from the truth, {mark:,} rows" for mark in marks]
        + ["from the maximum", "ratio", "us / row"]
    )
    text = (
        f"Ten states, ten sensors, twenty parameters (the diagonals of both matrices), {rows:,} rows. RMS "
        "distances over the parameters: from the truth after so many rows, and after the last from the "
        "maximum of the likelihood of all rows. Compilation is included in the time.\n\n"
        + table(head, found)
    )
    return text, worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows: does it run?")
    parser.add_argument("--write", action="store_true", help="write into RESULTS.md")
    parser.add_argument("--only", choices=["filtering", "learning"])
    options = parser.parse_args()
    numpyro.enable_x64()
    worst, texts = 0.0, {}
    if options.only != "learning":
        texts["Online variational filtering"] = filtering(options.quick)
    if options.only != "filtering":
        texts["Online variational learning"], worst = learning(options.quick)
    for name, text in texts.items():
        text = surroundings(*PACKAGES) + "\n\n" + text
        print(f"## {name}\n\n{text}\n")
        if options.write:
            write_section(name.lower().replace(" ", "-"), text)
    return 0 if options.quick or worst <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
