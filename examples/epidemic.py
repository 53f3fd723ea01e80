"""An epidemic whose reproduction number changes, from counts: R today, with its interval, day by day.

A disease spreads through a town of 200,000. Every morning a part of yesterday's new infections is
reported, as a count. People change what they do: contacts fall when the town locks down, and rise again.
A filter follows the susceptible and the infectious and, with them, the rate of transmission, which is
taken for a random walk; the reproduction number is that rate times the time that people are infectious,
times the share that is still susceptible. Counts enter as what they are, Poisson numbers. The same
stream goes through an unscented Kalman filter, which takes them by their mean and variance, and through a
particle filter, which does not.

    python examples/epidemic.py            # half a minute; a figure in examples/output
    python examples/epidemic.py --quick    # fewer particles
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import filterdyn as fd

numpyro.enable_x64()

OUTPUT = Path(__file__).parent / "output"
PEOPLE = 200_000
RECOVERY = 1 / 6  # 1 / day
REPORTED = 0.3  # of the infections
CROWDING = 0.05  # of the daily infections, the sd of what is not explained by the rate
#: Of the logarithm of the rate, per square root of a day.
CHANGE = 0.06


def spread(x, rate):
    """A day of the epidemic: shares of the town that are susceptible, infectious, and newly infected."""
    susceptible, infectious = jnp.exp(x[0]), jnp.exp(x[1])
    infected = susceptible * -jnp.expm1(-rate * infectious)
    infectious = infectious * jnp.exp(-RECOVERY) + infected
    return jnp.log(jnp.stack([susceptible - infected, infectious, infected]))


def town(p):
    """The state is in logarithms, so that no share is negative."""
    noise = CROWDING * jnp.array([1e-3, 0.5, 1.0])
    return fd.StateSpaceModel(
        dist.Normal(jnp.log(jnp.array([0.98, 2e-4, 5e-5])), jnp.array([0.01, 0.5, 0.5])).to_event(
            1
        ),
        fd.Transition(lambda t, x, u: dist.Normal(spread(x, p["rate"]), noise).to_event(1)),
        fd.Observation(
            lambda t, x, u: dist.Poisson(REPORTED * PEOPLE * jnp.exp(x[2:])).to_event(1)
        ),
    )


def reproduction(rate, susceptible):
    """How many others one infectious person infects."""
    return rate / RECOVERY * susceptible


def record(days, key):
    """Days, the true reproduction number, and the reports of every day; none on Sundays."""
    at = np.arange(days, dtype=float)
    contacts = np.where(at < 27, 2.2, np.where(at < 65, 0.75, 1.9))
    contacts = np.convolve(np.pad(contacts, 3, mode="edge"), np.ones(7) / 7, mode="valid")
    noise = CROWDING * jnp.array([1e-3, 0.5, 1.0])
    world = fd.StateSpaceModel(
        dist.Delta(jnp.log(jnp.array([0.98, 2e-4, 5e-5])), event_dim=1),
        fd.Transition(lambda t, x, u: dist.Normal(spread(x, u[0]), noise).to_event(1)),
        town(dict(rate=0.3)).observation,
    )
    found = fd.simulate(world, at, contacts * RECOVERY, key=key)
    counts = np.array(found.observations)
    counts[6::7] = np.nan
    truth = reproduction(contacts * RECOVERY, np.exp(np.asarray(found.states)[:, 0]))
    return at, truth, counts


def follow(filter, days, counts, key=None):
    """Median and 90 % interval of the reproduction number after every report."""
    model = fd.ParametricModel(
        town,
        prior=dict(rate=dist.LogNormal(np.log(2 * RECOVERY), 0.4)),
        evolution=fd.RandomWalk(dict(rate=CHANGE)),
    )
    online = fd.OnlineFilter(model, fd.AugmentedFilter(filter))
    state, found = online.init(days[0], key=key), []
    for t, y in zip(days, counts, strict=True):
        state, step = online.step(state, t, y)
        rate, susceptible = step.parameters, np.exp(step.mean[0])
        low, high = rate.interval(0.9)["rate"]
        found.append(
            [reproduction(float(x), susceptible) for x in (rate.median["rate"], low, high)]
        )
    return np.array(found).T, float(state.log_likelihood)


def draw(days, truth, counts, runs, path):
    figure, axes = plt.subplots(1 + len(runs), 1, figsize=(9, 8), sharex=True, layout="constrained")
    axes[0].bar(days, counts[:, 0], color="#555555")
    axes[0].set(ylabel="reported", title="new infections that were reported (none on Sundays)")
    for ax, (name, ((centre, low, high), _)) in zip(axes[1:], runs.items(), strict=True):
        ax.fill_between(days, low, high, color="#0072B2", alpha=0.25, label="90 % interval")
        ax.plot(days, centre, color="#0072B2", label="estimate on the day")
        ax.plot(days, truth, color="#D55E00", label="truth")
        ax.axhline(1.0, color="black", linewidth=0.7)
        ax.set(ylabel="reproduction number", title=name, ylim=(0, 3.5))
    axes[1].legend(ncols=3, loc="upper right")
    axes[-1].set_xlabel("day")
    figure.savefig(path, dpi=130)


def main(quick, output):
    output.mkdir(exist_ok=True)
    days, truth, counts = record(140, jax.random.key(5))
    filters = {
        "unscented Kalman filter": (fd.UnscentedKalmanFilter(), None),
        "particle filter": (
            fd.ParticleFilter(5000 if quick else 20_000),
            jax.random.key(0),
        ),
    }
    runs, fine = {}, True
    for name, (filter, key) in filters.items():
        runs[name] = (centre, low, high), log_likelihood = follow(filter, days, counts, key)
        # (Three weeks to get to know the epidemic.)
        later = slice(21, None)
        inside = np.mean(((low < truth) & (truth < high))[later])
        error = np.sqrt(np.mean((centre - truth)[later] ** 2))
        turned = np.flatnonzero((high < 1) & (days > 27))
        when = f"sure that it shrinks on day {turned[0]}" if len(turned) else "never sure"
        print(
            f"{name}: error of R {error:.2f}, truth in the 90 % interval on {inside:.0%} of the days, "
            f"{when}; log-likelihood {log_likelihood:.1f}"
        )
        fine = fine and error < 0.35 and inside > 0.6 and len(turned)
    shrinks = np.flatnonzero(truth < 1)[0]
    print(f"the true reproduction number falls below 1 on day {shrinks}")
    draw(days, truth, counts, runs, output / "epidemic.png")
    print(f"{'OK' if fine else 'FAILED'}: R is followed through the lockdown of day 27")
    return bool(fine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer particles")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figure")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
