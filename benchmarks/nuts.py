"""NUTS on a driven oscillator: effective samples per second with filterdyn's likelihood and with dynamax's.

    python benchmarks/nuts.py [--quick] [--write]

One NumPyro model, two likelihoods, each in a process of its own. dynamax has discrete time only: there
the oscillator is discretised exactly by hand, with matrix exponentials. Before sampling both must give
the same log-likelihood to 1e-6, and afterwards the same posterior; the exit status says whether they did.
Draws are timed without compilation, which is in the time of the first ones.
"""

import argparse
import json
import sys
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from chains import DT, SPREAD, START, TRUTH, alone, apart, compiled_draws, drawn, least
from harness import Aim, aims, number, surroundings, table, write_section
from numpyro.infer import MCMC, NUTS

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpyro", "dynamax")


def record(rows, seed=0):
    """Times, inputs (held from row to row) and positions with noise, by small Euler steps."""
    rng = np.random.default_rng(seed)
    times = DT * np.arange(rows)
    inputs = np.sin(0.7 * times + 0.004 * times**2)[:, None]
    x, positions = np.zeros(2), []
    for u in inputs[:, 0]:
        positions.append(x[0] + TRUTH["noise"] * rng.normal())
        for _ in range(50):
            step = DT / 50
            pull = -TRUTH["stiffness"] * x[0] - TRUTH["damping"] * x[1] + u
            kick = TRUTH["diffusion"] * np.sqrt(step) * rng.normal()
            x = x + np.array([step * x[1], step * pull + kick])
    return times, inputs, np.array(positions)[:, None]


def rates(p):
    return jnp.array([[0.0, 1.0], [-p["stiffness"], -p["damping"]]])


def by_filterdyn(data):
    """`observe(p)` adds the likelihood to a NumPyro model, `log_likelihood(p)` computes it."""
    import filterdyn as fd

    times, inputs, ys = data

    def series(p):
        model = fd.StateSpaceModel(
            dist.MultivariateNormal(START, SPREAD),
            fd.LinearSDE(
                rates(p), jnp.array([[0.0], [1.0]]) * p["diffusion"], B=jnp.array([[0.0], [1.0]])
            ),
            fd.LinearObservation(jnp.array([[1.0, 0.0]]), jnp.square(p["noise"])[None, None]),
        )
        return fd.ObservedSeries(model, times, inputs, filter=fd.KalmanFilter())

    def observe(p):
        numpyro.sample("y", series(p), obs=ys)

    return observe, lambda p: series(p).log_prob(ys)


def by_dynamax(data):
    from dynamax.linear_gaussian_ssm.inference import lgssm_filter, make_lgssm_params
    from jax.scipy.linalg import expm

    _, inputs, ys = data
    # dynamax meets a row with that row's input, ours is the one that held before it.
    inputs = jnp.concatenate([jnp.zeros((1, 1)), jnp.asarray(inputs)[:-1]])

    def log_likelihood(p):
        A, zero = rates(p), jnp.zeros((2, 2))
        held = jnp.block([[A, jnp.array([[0.0], [1.0]])], [jnp.zeros((1, 3))]])
        held = expm(DT * held)
        noise = jnp.diag(jnp.array([0.0, 1.0])) * jnp.square(p["diffusion"])
        pair = expm(DT * jnp.block([[-A, noise], [zero, A.T]]))
        F = pair[2:, 2:].T
        params = make_lgssm_params(
            jnp.asarray(START),
            jnp.asarray(SPREAD),
            F,
            F @ pair[:2, 2:],
            jnp.array([[1.0, 0.0]]),
            jnp.square(p["noise"])[None, None],
            dynamics_input_weights=held[:2, 2:],
        )
        return lgssm_filter(params, jnp.asarray(ys), inputs).marginal_loglik

    return lambda p: numpyro.factor("y", log_likelihood(p)), log_likelihood


LIKELIHOODS = {"filterdyn": by_filterdyn, "dynamax": by_dynamax}


def sample(name, rows, warmup, draws):
    """Sample the posterior; what it cost and what was found."""
    numpyro.enable_x64()
    observe, log_likelihood = LIKELIHOODS[name](record(rows))

    def model():
        prior = dist.LogNormal(0.0, 1.0)
        observe({name: numpyro.sample(name, prior) for name in TRUTH})

    kernel = NUTS(model, dense_mass=True)
    mcmc = MCMC(kernel, num_warmup=warmup, num_samples=draws, progress_bar=False)
    began = time.perf_counter()
    mcmc.warmup(jr.key(0))
    mcmc.run(jr.key(1))
    jax.block_until_ready(mcmc.get_samples())
    first = time.perf_counter() - began

    run = compiled_draws(kernel, mcmc.last_state, draws)
    truth = {name: jnp.asarray(value) for name, value in TRUTH.items()}
    value = float(log_likelihood(truth))
    return {"log_likelihood": value, "first": first} | drawn(run, mcmc.last_state)


def spread_apart(a, b):
    """The largest ratio of standard deviations."""
    ratios = [a["sd"][name] / b["sd"][name] for name in TRUTH]
    return max(max(ratio, 1 / ratio) for ratio in ratios)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a short series and few draws")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.quick and asked.write:
        parser.error("a quick run shows that all runs, its figures are not worth writing down")
    if asked.alone:
        name, *sizes = asked.alone
        print(json.dumps(sample(name, *(int(n) for n in sizes))))
        return 0
    sizes = (50, 100, 100) if asked.quick else (500, 500, 1_000)
    found, absent = {}, []
    for name in LIKELIHOODS:
        print(f"  {name}", file=sys.stderr, flush=True)
        try:
            found[name] = alone(__file__, name, *sizes)
        except RuntimeError as error:
            if "ModuleNotFoundError" not in str(error):
                raise
            absent.append(name)
    head = ["", "effective samples (least)", "per CPU second", "per second", "steps a draw"]
    head += ["divergent", "warm-up, compilation, first draws, s"]
    rows = []
    for name, one in found.items():
        effective = least(one)
        cells = [effective, effective / one["cpu"], effective / one["wall"], one["steps"]]
        cells = [number(x) for x in cells]
        rows.append([name, *cells, str(one["diverging"]), number(one["first"])])
    head_parameters = ["", *TRUTH]
    beliefs = [["truth", *(number(x) for x in TRUTH.values())]] + [
        [name, *(f"{one['mean'][k]:.4f} ({one['sd'][k]:.4f})" for k in TRUTH)]
        for name, one in found.items()
    ]
    length, warmup, draws = sizes
    text = [f"Driven oscillator, {length} rows, one chain, {warmup} + {draws} draws.", ""]
    text += [table(head, rows), "", "Posterior mean (standard deviation):", ""]
    text += [table(head_parameters, beliefs), ""]
    wrong = False
    if len(found) == 2:
        ours, theirs = found["filterdyn"], found["dynamax"]
        gap = abs(ours["log_likelihood"] / theirs["log_likelihood"] - 1)
        # (4 standard errors in 1 of 4,000 runs with four parameters.)
        error, spread = apart(ours, theirs), spread_apart(ours, theirs)
        wrong = not (gap <= 1e-6 and error <= 4.0 and (asked.quick or spread <= 1.2))
        text += [
            f"Log-likelihoods at the truth differ by {gap:.1e} (relative), posterior means by "
            f"{error:.1f} Monte Carlo standard errors at most, standard deviations by a factor of "
            f"{spread:.2f}.",
            "",
        ]
        per_second = lambda one: least(one) / one["cpu"]
        speed = per_second(ours) / per_second(theirs)
        text += [aims([Aim("effective samples per CPU second / dynamax", speed, 5, True)]), ""]
    if absent:
        text += [f"Absent: {', '.join(absent)}.", ""]
    text = "\n".join([*text, surroundings(*PACKAGES)])
    print(text)
    if asked.write:
        write_section("nuts", text)
    if wrong:
        print("the two likelihoods or posteriors differ", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
