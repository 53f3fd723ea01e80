"""Are the intervals of filters that learn as wide as they should be?

    python benchmarks/learning_coverage.py [--quick] [--write] [--only gain]

One simulation study for every filter that claims a posterior of the parameters: in each run the parameter
is drawn from its prior and moves by its random walk, data are simulated, and after the last row the 90 %
interval either holds the parameter or not. Over 1,000 runs 0.90 +- 0.02 are expected of a filter that is
right (two standard errors). A learner is added by one line in `learners`, a problem by one in `PROBLEMS`.
The exit status is 1 if a filter whose model is right covers less than 0.87 or more than 0.93.
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

import filterdyn as fd
from filterdyn.dynamics import Interval
from filterdyn.filters.results import parameters_of

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpy")
ROWS, RUNS, BATCH = 100, 1_000, 50
LOW, HIGH = 0.87, 0.93


class Problem(NamedTuple):
    """One parameter, of the given name, that moves by a random walk of the given standard deviation."""

    what: str
    name: str
    make: Callable[[Any], fd.StateSpaceModel]
    prior: dist.Distribution
    sd: float
    #: What a particle's path says of it, and how much in a row: the expected information, in the space
    #: where the parameter has no limits.
    statistics: fd.AbstractStatistics
    information: float

    def model(self, evolution: Any) -> fd.ParametricModel:
        return fd.ParametricModel(self.make, {self.name: self.prior}, evolution=evolution)


def state_space(a: Any, b: Any, r: Any) -> fd.StateSpaceModel:
    """x' = a x + b u + N(0, 0.1), y = x + N(0, r)."""
    one = jnp.eye(1)
    return fd.StateSpaceModel(
        dist.Normal(jnp.zeros(1), 1.0).to_event(1),
        fd.LinearTransition(a * one, 0.1 * one, B=b * one),
        fd.LinearObservation(one, r * one),
    )


PROBLEMS = {
    "gain": Problem(
        "the gain of a known input (linear and Gaussian)",
        "b",
        lambda p: state_space(0.9, p["b"], 0.2),
        dist.Normal(1.0, 0.3),
        0.02,
        fd.NormalStatistics("b", lambda p: p.x_to - 0.9 * p.x_from, lambda p: p.input_from, 0.1),
        1 / 0.1,
    ),
    "persistence": Problem(
        "the persistence of an autoregression in noise",
        "a",
        lambda p: state_space(p["a"], 0.0, 0.2),
        dist.Normal(0.6, 0.15),
        0.01,
        fd.NormalStatistics("a", lambda p: p.x_to, lambda p: p.x_from, 0.1),
        1 / (1 - 0.6**2),
    ),
    "noise": Problem(
        "the variance of a sensor's noise",
        "r",
        lambda p: state_space(0.9, 0.0, p["r"]),
        dist.InverseGamma(4.0, 1.0),
        0.05,
        fd.InverseGammaStatistics("r", lambda p: p.y - p.x_to),
        0.5,
    ),
}


class Learner(NamedTuple):
    """A filter, and how its model lets the parameter move: as it does, or by forgetting, with the factor
    f that a random walk of variance q has in the steady state of a regression with information i in a
    row: (1 - f)^2 / f = q i."""

    filter: Any
    evolution: str = "walk"
    #: Is the model it is given that of the data?
    right: bool = True


def learners(problem: Problem) -> dict[str, Learner]:
    kalman = fd.KalmanFilter(square_root=False)
    found = {
        "NestedParticleFilter(200, KalmanFilter)": Learner(fd.NestedParticleFilter(200, kalman)),
        "AugmentedFilter(ParticleFilter(500))": Learner(fd.AugmentedFilter(fd.ParticleFilter(500))),
        "RecursiveMaximumLikelihood(KalmanFilter)": Learner(fd.RecursiveMaximumLikelihood(kalman)),
    }
    if problem.name != "r":  # (no Gaussian filter learns the size of noise from a mean)
        found |= {
            "RecursivePredictionError(KalmanFilter)": Learner(fd.RecursivePredictionError(kalman)),
            "AugmentedFilter(ExtendedKalmanFilter)": Learner(
                fd.AugmentedFilter(fd.ExtendedKalmanFilter(square_root=False))
            ),
            "AugmentedFilter(UnscentedKalmanFilter)": Learner(
                fd.AugmentedFilter(fd.UnscentedKalmanFilter())
            ),
            "AugmentedFilter(EnsembleKalmanFilter(500))": Learner(
                fd.AugmentedFilter(fd.EnsembleKalmanFilter(500))
            ),
        }
    return found


def simulated(
    problem: Problem, model: fd.ParametricModel, inputs: np.ndarray, key: Any
) -> tuple[Any, Any]:
    """The parameter after the last row, in its own units, and measurements."""
    of_theta, of_start, of_rows = jax.random.split(key, 3)
    theta = model.sample_prior(of_theta, 1)[0]
    x = model.at(theta).initial.sample(of_start)

    def row(carry: Any, at: Any) -> Any:
        (x, theta), (key, t, before, u) = carry, at
        of_walk, of_state, of_y = jax.random.split(key, 3)
        moves = t > 0
        interval = Interval(t - 1.0, jnp.where(moves, 1.0, 0.0), before)
        x = jnp.where(moves, model.at(theta).dynamics.sample(of_state, x, interval), x)
        walked = theta + problem.sd * jax.random.normal(of_walk, theta.shape)
        theta = jnp.where(moves, walked, theta)
        y = model.at(theta).observation.distribution(t, x, u).sample(of_y)
        return (x, theta), y

    times = jnp.arange(float(len(inputs)))
    before = jnp.concatenate([inputs[:1], inputs[:-1]])
    rows = (jax.random.split(of_rows, len(inputs)), times, before, jnp.asarray(inputs))
    (_, theta), ys = jax.lax.scan(row, (x, theta), rows)
    return model.space.named(theta)[problem.name], ys


class Study(NamedTuple):
    coverage: float
    #: Of the interval, in the space where the parameter has no limits, over that of the prior's.
    width: float
    seconds: float
    failed: int


def study(problem: Problem, learner: Learner, rows: int, runs: int) -> Study:
    walk = fd.RandomWalk(problem.sd)
    c = problem.sd**2 * problem.information
    factor = 1 + c / 2 - (c + c * c / 4) ** 0.5
    model = problem.model(walk if learner.evolution == "walk" else fd.Forgetting(factor))
    inputs = np.random.default_rng(0).choice([-1.0, 1.0], (rows, 1))
    times = np.arange(rows)

    def one(key: Any) -> tuple[Any, ...]:
        of_data, of_filter = jax.random.split(key)
        truth, ys = simulated(problem, model, inputs, of_data)
        series = fd.Series(times, ys, inputs)
        sampled = isinstance(learner.filter, fd.filters.AbstractSamplingFilter)
        result = fd.filter(model, series, learner.filter, key=of_filter if sampled else None)
        known = parameters_of(result.last)
        low, high = known.interval(0.9)[problem.name]
        inside = (low <= truth) & (truth <= high)
        return inside, known.unconstrained_cov[0, 0], result.status

    batches = jax.random.split(jax.random.key(1), runs).reshape(-1, min(BATCH, runs))
    call = jax.jit(lambda keys: jax.lax.map(jax.vmap(one), keys)).lower(batches).compile()
    began = time.process_time()
    inside, variances, status = (np.asarray(x).ravel() for x in call(batches))
    seconds = time.process_time() - began
    prior = float(model.prior_cov[0, 0])
    width = float(np.sqrt(variances).mean() / np.sqrt(prior))
    failed = int((status != fd.Status.OK).sum())
    return Study(float(inside.mean()), width, seconds, failed)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rows and runs")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--only", choices=list(PROBLEMS), help="one problem")
    parser.add_argument("--learner", default="", help="those with this in their name")
    asked = parser.parse_args()
    if asked.write and (asked.quick or asked.only or asked.learner):
        parser.error("only a whole run is worth writing down")
    numpyro.enable_x64()
    rows, runs = (20, 50) if asked.quick else (ROWS, RUNS)
    lines, wrong = [], []
    for name, problem in PROBLEMS.items():
        if asked.only not in (None, name):
            continue
        lines.append([f"**{problem.what}**", *[""] * 3])
        for title, learner in learners(problem).items():
            if asked.learner not in title:
                continue
            print(f"  {name}: {title}", file=sys.stderr, flush=True)
            found = study(problem, learner, rows, runs)
            covered = f"{found.coverage:.3f}" + (
                f" ({found.failed} failed)" if found.failed else ""
            )
            cost = number(1e6 * found.seconds / (rows * runs))
            lines.append([title, covered, f"{found.width:.2f}", cost])
            print(f"    {lines[-1][1:]}", file=sys.stderr, flush=True)
            if learner.right and not LOW <= found.coverage <= HIGH:
                wrong.append(f"{name}: {title} covers {found.coverage:.3f}")
    head = ["90 % intervals after the last row", "cover", "sd over the prior's", "CPU us a row"]
    text = (
        f"{table(head, lines)}\n\n{runs:,} runs of {rows} rows; two standard errors of a coverage of 0.90 "
        f"are {2 * (0.09 / runs) ** 0.5:.3f}.\n\n{surroundings(*PACKAGES)}"
    )
    print(text)
    if asked.write:
        write_section("learning-coverage", text)
    for what in wrong:
        print(f"outside {LOW} to {HIGH}: {what}", file=sys.stderr)
    return 1 if wrong and not asked.quick else 0


if __name__ == "__main__":
    sys.exit(main())
