"""Twenty pendulums: do intervals of physical parameters hold the truth, with a network beside them?

The model is that of `examples/pendulum_friction.py`: mass and length, and a network of the velocity for
the friction. Masses and lengths are drawn from their priors, dry and viscous friction from intervals; a
record is simulated for each, and fitted by SVI with a full Gaussian and by NUTS from there. Counted are
90 % intervals that hold the truth; the error of the friction is that of its posterior mean at the
visited states, over its spread there. One compilation serves all records.

    python benchmarks/bayesian_weights.py --write
    python benchmarks/bayesian_weights.py --keep found.json    # what was done is not done again
"""

import argparse
import importlib.util
import json
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from harness import Aim, aims, surroundings, table, write_section

import filterdyn as fd

PATH = Path(__file__).parents[1] / "examples" / "pendulum_friction.py"
spec = importlib.util.spec_from_file_location("pendulum_friction", PATH)
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpy", "numpyro")
METHODS = {"svi": "SVI, full Gaussian", "nuts": "NUTS"}
NETWORK = example.network_of(example.OF_VELOCITY)
DRAWN_FROM = {
    **example.PRIORS,
    "dry": dist.Uniform(0.2, 0.4),
    "viscous": dist.Uniform(0.05, 0.1),
}


def judged(samples, states, truth, rows):
    """What the table needs to know of one record."""
    part = lambda draw, row: (
        -example.friction_of(draw, row[:2], NETWORK) / (draw["mass"] * draw["length"] ** 2)
    )
    names = list(example.PRIORS)
    report = fd.diagnostics.confounding(samples, example.physics, part, rows, names)
    limits = {name: np.quantile(samples[name], [0.05, 0.95]) for name in names}
    return {
        "error": float(example.error_of(samples, states, truth, NETWORK)),
        "inside": {n: bool(limits[n][0] < truth[n] < limits[n][1]) for n in names},
        "sd": {n: float(x) for n, x in zip(report.names, report.sd, strict=True)},
        "correlation": {n: float(x) for n, x in zip(report.names, report.correlation, strict=True)},
        "share": report.share,
    }


def study(sets, warmup, draws, keep):
    """The records that are not in the file `keep` yet, one after the other."""
    done = json.loads(keep.read_text()) if keep and keep.exists() else []
    model = partial(example.identification, network=NETWORK)
    by_svi = jax.jit(partial(example.variational, model=model))
    by_nuts = jax.jit(partial(example.sampled, model=model), static_argnums=(3, 4))
    for i in range(len(done), sets):
        key_truth, key_data, key_svi, key_nuts = jr.split(jr.fold_in(jr.key(10), i), 4)
        keys = jr.split(key_truth, len(DRAWN_FROM))
        truth = {
            name: float(prior.sample(key))
            for (name, prior), key in zip(DRAWN_FROM.items(), keys, strict=True)
        }
        states, y = example.simulate(truth, key_data)
        rows = jnp.concatenate([states, example.TORQUE], 1)
        before = time.process_time()
        samples, first, covariance = jax.block_until_ready(by_svi(key_svi, y))
        took = {"svi": time.process_time() - before}
        found = {"svi": judged(samples, states, truth, rows)}
        before = time.process_time()
        samples, diverged = jax.block_until_ready(
            by_nuts(key_nuts, first, covariance, warmup, draws, y)
        )
        took["nuts"] = time.process_time() - before
        found["nuts"] = judged(samples, states, truth, rows)
        done.append({"truth": truth, "diverged": int(diverged), "took": took, **found})
        print(i, json.dumps(done[-1]), flush=True)
        if keep:
            keep.write_text(json.dumps(done))
    return done


def report(done):
    """The section of RESULTS.md, and whether the aims are met."""
    lines, checks, sets = [], [], len(done)
    for method, title in METHODS.items():
        of = lambda what, method=method: [record[method][what] for record in done]
        errors = np.array(of("error"))
        counts = {n: sum(x[n] for x in of("inside")) for n in example.PRIORS}
        middle = lambda what, name, of=of: np.median([x[name] for x in of(what)])
        lines.append(
            [
                title,
                *(f"{counts[n]} of {sets}" for n in counts),
                f"{np.median(errors):.1%} ({errors.max():.1%})",
                ", ".join(f"{middle('sd', n):.4f}" for n in counts),
                ", ".join(f"{middle('correlation', n):+.2f}" for n in counts),
                f"{np.median([x['took'][method] for x in done]):.1f}",
            ]
        )
        checks += [
            Aim(f"{title}: intervals that hold the {n}", counts[n], 0.75 * sets, True)
            for n in counts
        ]
        checks.append(Aim(f"{title}: error of the friction, largest", float(errors.max()), 0.1))
    head = ["method", "mass inside", "length inside", "error of friction, median (largest)"]
    head += ["sd of mass, length", "correlation with network", "CPU s a record"]
    fine = all(x.measured >= x.limit if x.at_least else x.measured <= x.limit for x in checks)
    diverged = sum(record["diverged"] for record in done)
    return (
        f"{table(head, lines)}\n\n{aims(checks)}\n\n{sets} records, {diverged} divergences.",
        fine,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two records")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--keep", type=Path, help="file of what was found, to go on with")
    options = parser.parse_args()
    done = study(2 if options.quick else 20, 200, 300, options.keep)
    text, fine = report(done)
    text = f"{text}\n\n{surroundings(*PACKAGES)}"
    print(text)
    if options.write:
        write_section("bayesian-weights", text)
    return 0 if fine or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
