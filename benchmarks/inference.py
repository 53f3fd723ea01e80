"""NUTS through a filter: effective samples per second and time to the first gradient, beside dynestyx.

    python benchmarks/inference.py [--quick] [--write]

Two models, each written for both libraries in one NumPyro program: a damped oscillator (a linear SDE, four
parameters, 1,000 rows, Kalman filter) and a pendulum (a nonlinear SDE, 300 rows, extended Kalman filter).
Everyone runs in a process of its own without flags for XLA. What both import is timed apart, and a program
with the same priors and no filter shows the least that a first gradient takes. dynestyx takes its
continuous-time filters, with nothing recorded: for the linear SDE a gradient of these is cheaper than one
of its exact discretisation. Both must give the same log-likelihood and the same posterior; the exit status
says whether they did.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from chains import DT, SPREAD, START, TRUTH, alone, apart, compiled_draws, drawn, least
from harness import Aim, aims, number, surroundings, table, write_section

PACKAGES = ("filterdyn", "dynestyx", "cuthbert", "cd-dynamax", "jax", "jaxlib", "numpyro")
#: Rows, draws, and by how much log-likelihoods may differ: solvers of the moment equations differ in
#: their steps.
MODELS = {"oscillator": (1_000, 300, 1e-5), "pendulum": (300, 500, 1e-3)}


def record(model, rows, seed=0):
    """Times and positions with noise, by small Euler steps."""
    rng = np.random.default_rng(seed)
    x, positions = np.array([1.0, 0.0]), []
    for _ in range(rows):
        positions.append(x[0] + TRUTH["noise"] * rng.normal())
        for _ in range(50):
            step = DT / 50
            turned = np.sin(x[0]) if model == "pendulum" else x[0]
            pull = -TRUTH["stiffness"] * turned - TRUTH["damping"] * x[1]
            kick = TRUTH["diffusion"] * np.sqrt(step) * rng.normal()
            x = x + np.array([step * x[1], step * pull + kick])
    return DT * np.arange(rows), np.array(positions)[:, None]


def by_filterdyn(model, times, ys):
    """A function that adds the likelihood at parameters `p` to a NumPyro model."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    import filterdyn as fd

    def observe(p):
        kick = jnp.array([[0.0], [1.0]]) * p["diffusion"]
        if model == "oscillator":
            rates = jnp.array([[0.0, 1.0], [-p["stiffness"], -p["damping"]]])
            motion, filter = fd.LinearSDE(rates, kick), fd.KalmanFilter()
        else:
            turn = lambda t, x, u: jnp.array(
                [x[1], -p["stiffness"] * jnp.sin(x[0]) - p["damping"] * x[1]]
            )
            motion, filter = fd.SDE(turn, kick, substeps=4), fd.ExtendedKalmanFilter()
        start = dist.MultivariateNormal(START, SPREAD)
        seen = fd.LinearObservation(jnp.array([[1.0, 0.0]]), jnp.square(p["noise"])[None, None])
        whole = fd.StateSpaceModel(start, motion, seen)
        numpyro.sample("y", fd.ObservedSeries(whole, times, filter=filter), obs=ys)

    return observe


def by_dynestyx(model, times, ys):
    import dynestyx as dsx
    import jax.numpy as jnp
    import numpyro.distributions as dist
    from dynestyx.inference.configs.filter import ContinuousTimeEKFConfig, ContinuousTimeKFConfig

    # Nothing is recorded beside the likelihood.
    names = ["filtered_states_mean", "filtered_states_cov", "filtered_states_cov_diag"]
    names += ["filtered_states_chol_cov", "predicted_observations_mean"]
    names += ["predicted_observations_cov", "predicted_observations_ensemble"]
    quiet = {f"record_{name}": False for name in names} | {"include_predicted_observations": False}
    times, ys = jnp.asarray(times), jnp.asarray(ys)

    def observe(p):
        seen = jnp.array([[1.0, 0.0]]), jnp.square(p["noise"])[None, None]
        if model == "oscillator":
            rates = jnp.array([[0.0, 1.0], [-p["stiffness"], -p["damping"]]])
            # (cd-dynamax's Kalman filter takes a square L only.)
            kick = jnp.diag(jnp.array([0.0, 1.0]))
            whole = dsx.LTI_continuous(
                rates, kick * p["diffusion"], *seen, initial_mean=START, initial_cov=SPREAD
            )
        else:
            turn = lambda x, u, t: jnp.array(
                [x[1], -p["stiffness"] * jnp.sin(x[0]) - p["damping"] * x[1]]
            )
            kick = dsx.FullDiffusion(jnp.array([[0.0], [1.0]]) * p["diffusion"])
            whole = dsx.DynamicalModel(
                initial_condition=dist.MultivariateNormal(START, SPREAD),
                state_evolution=dsx.StochasticContinuousTimeStateEvolution(
                    drift=turn, diffusion=kick
                ),
                observation_model=dsx.LinearGaussianObservation(*seen),
            )
        kind = ContinuousTimeKFConfig if model == "oscillator" else ContinuousTimeEKFConfig
        with dsx.Filter(kind(**quiet)):
            dsx.sample("y", whole, obs_times=times, obs_values=ys)

    return observe


def by_nothing(model, times, ys):
    """No filter: what is left is imports, priors and a compilation."""
    import numpyro

    return lambda p: numpyro.factor("y", -sum(x * x for x in p.values()))


CONTESTANTS = {"filterdyn": by_filterdyn, "dynestyx": by_dynestyx}
FLOOR = "no filter"


def sample(name, model, rows, draws):
    """Import, first gradient, posterior: what each cost and what was found."""
    times, ys = record(model, rows)
    clocks = lambda: np.array([time.perf_counter(), time.process_time()])
    began = clocks()
    import equinox  # noqa: F401  (which both build on)
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import NUTS
    from numpyro.infer.util import log_density

    imported = clocks()
    numpyro.enable_x64()
    make = by_nothing if name == FLOOR else CONTESTANTS[name]
    observe = make(model, times, ys)  # imports the library

    def program():
        prior = dist.LogNormal(0.0, 1.0)
        observe({name: numpyro.sample(name, prior) for name in TRUTH})

    at = {name: jnp.asarray(value) for name, value in TRUTH.items()}
    gradient = jax.jit(jax.value_and_grad(lambda p: log_density(program, (), {}, p)[0]))
    value, _ = jax.block_until_ready(gradient(at))
    first = clocks()
    for _ in range(10):
        jax.block_until_ready(gradient(at))
    logs = np.log(list(TRUTH.values()))
    prior = float((-logs - 0.5 * logs**2 - 0.5 * np.log(2 * np.pi)).sum())
    cost = {
        "log_likelihood": float(value) - prior,
        "first_wall": (first - began)[0],
        "first_cpu": (first - began)[1],
        "own_cpu": (first - imported)[1],
        "gradient": (clocks() - first)[1] / 10,
    }
    if not draws:
        return cost

    began = time.process_time()
    start = lambda site=None: numpyro.infer.init_to_value(site=site, values=at)
    kernel = NUTS(program, dense_mass=True, init_strategy=start)
    state = kernel.init(jr.key(0), draws, None, (), {})
    # As many steps of warm-up as draws: one compilation serves both.
    run = compiled_draws(kernel, state, draws)
    compiled = time.process_time()
    state, _ = jax.block_until_ready(run(state))
    warmed = time.process_time()
    return cost | drawn(run, state) | {"compiled": compiled - began, "warmed": warmed - began}


def kept(folder, *arguments):
    """`alone`, or what it found before."""
    if folder is None:
        return alone(__file__, *arguments)
    path = Path(folder) / ("-".join(map(str, arguments)).replace(" ", "-") + ".json")
    if not path.exists():
        path.write_text(json.dumps(alone(__file__, *arguments)))
    return json.loads(path.read_text())


def per_second(one, all_in=False):
    """Effective samples per CPU second; `all_in`: warm-up and compilation in the time."""
    return least(one) / (one["cpu"] + all_in * one["warmed"])


def section(model, rows, tolerance, found, draws):
    """Tables and aims of one model, and whether the answers agree."""
    floor = found[FLOOR]
    found = {name: one for name, one in found.items() if name != FLOOR}
    head = [model, "gradient, CPU ms", "first gradient, s", "its CPU s", "without common imports"]
    costs = ("first_wall", "first_cpu", "own_cpu")
    body = [
        [name, number(1e3 * one["gradient"]), *(number(one[cost]) for cost in costs)]
        for name, one in found.items()
    ]
    body.append([FLOOR, "", *(number(floor[cost]) for cost in costs)])
    sampled = f"{draws} steps of warm-up and {draws} draws" if draws else "gradients only"
    text = [f"**{model.capitalize()}**, {rows} rows, {sampled}.", "", table(head, body), ""]
    if draws:
        head = ["NUTS", "effective", "CPU s of draws", "effective per CPU s", "all in"]
        head += ["CPU s to compile", "steps a draw", "divergent"]
        body = []
        for name, one in found.items():
            cells = [least(one), one["cpu"], per_second(one), per_second(one, True)]
            cells = [number(x) for x in (*cells, one["compiled"], one["steps"])]
            body.append([name, *cells, str(one["diverging"])])
        text += [table(head, body), ""]
    if len(found) < 2:
        return text, True
    ours, theirs = found["filterdyn"], found["dynestyx"]
    gap = abs(ours["log_likelihood"] / theirs["log_likelihood"] - 1)
    errors = apart(ours, theirs) if draws else 0.0
    words = (
        f", posterior means by {errors:.1f} Monte Carlo standard errors at most" if draws else ""
    )
    text += [
        f"Log-likelihoods at the truth differ by {gap:.1e} (relative){words}. A first gradient as cheap "
        f"as that of the program without a filter would come "
        f"{theirs['first_cpu'] / floor['first_cpu']:.3g} times sooner than dynestyx's.",
        "",
    ]
    over = lambda cost: theirs[cost] / ours[cost]
    ratios = {
        "CPU time of a gradient, dynestyx / ours": over("gradient"),
        "CPU time from import to first gradient, dynestyx / ours": over("first_cpu"),
        "the same, without the imports that both have": over("own_cpu"),
    }
    if draws:
        ratios["effective samples per CPU second / dynestyx"] = per_second(ours) / per_second(
            theirs
        )
        ratios["the same, warm-up and compilation included"] = per_second(ours, True) / per_second(
            theirs, True
        )
    text += [aims([Aim(f"{model}: {n}", ratio, 5, True) for n, ratio in ratios.items()]), ""]
    return text, gap <= tolerance and errors <= 4.5


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short series and few draws")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--draws", nargs="*", default=[], help="MODEL=N, with 0 for gradients only")
    parser.add_argument("--keep", help="a folder: what was measured before is not measured again")
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.quick and asked.write:
        parser.error("a quick run shows that all runs, its figures are not worth writing down")
    if asked.alone:
        name, model, *sizes = asked.alone
        print(json.dumps(sample(name, model, *(int(n) for n in sizes))))
        return 0
    text, right, absent = [], True, []
    for model, (rows, draws, tolerance) in MODELS.items():
        draws = int(dict(pair.split("=") for pair in asked.draws).get(model, draws))
        if asked.quick:
            rows, draws = 50, 20
        found = {}
        for name in (FLOOR, *CONTESTANTS):
            print(f"  {model}: {name}", file=sys.stderr, flush=True)
            try:
                found[name] = kept(asked.keep, name, model, rows, 0 if name == FLOOR else draws)
            except RuntimeError as error:
                if "ModuleNotFoundError" not in str(error):
                    raise
                absent.append(name)
        part, fine = section(model, rows, tolerance, found, draws)
        text += part
        right = right and (fine or asked.quick)
    if absent:
        text += [f"Absent: {', '.join(absent)}.", ""]
    text = "\n".join([*text, surroundings(*PACKAGES)])
    print(text)
    if asked.write:
        write_section("inference", text)
    if not right:
        print("the log-likelihoods or posteriors differ", file=sys.stderr)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
