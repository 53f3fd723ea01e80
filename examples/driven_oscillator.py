"""A mass on a spring, pushed by a known force: find its stiffness, its damping and both noises.

    mass x'' = -stiffness x - damping x' + force + force_noise dW/dt

The force (a motor that switches between two values each second) is known and held between switches.
A position sensor reports at irregular times, with noise; the velocity is never measured. A row of the
series is a switch of the force (nothing measured: NaN) or a measurement (the force goes on). The data
are simulated, so the truth is known: it should lie in the posterior, and the measurements of the last
ten seconds, which the identification never sees, should lie in their forecast.

    python examples/driven_oscillator.py            # under a minute; figures in examples/output
    python examples/driven_oscillator.py --quick    # short chains, to see that it runs
"""

import argparse
from pathlib import Path

import arviz_stats
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, init_to_median

import filterdyn as fd

numpyro.enable_x64()

OUTPUT = Path(__file__).parent / "output"
FILTER = fd.KalmanFilter()
MASS = 2.0  # kg

#: Unit, truth, and the median of the log-normal prior. The log-scale 1 is a factor of 5 (90 %).
PARAMETERS = {
    "stiffness": ("N/m", 40.0, 20.0),
    "damping": ("N s/m", 1.5, 1.0),
    "force_noise": ("N sqrt(s)", 0.5, 1.0),
    "sensor_noise": ("m", 0.01, 0.02),
}
TRUTH = {name: truth for name, (_, truth, _) in PARAMETERS.items()}


def oscillator(p):
    """The state-space model: states are position (m) and velocity (m/s), the input is a force (N)."""
    return fd.StateSpaceModel(
        initial=dist.Normal(jnp.zeros(2), jnp.array([0.5, 1.0])).to_event(1),
        dynamics=fd.LinearSDE(
            A=jnp.array([[0.0, 1.0], [-p["stiffness"] / MASS, -p["damping"] / MASS]]),
            L=jnp.array([[0.0], [1.0]]) * p["force_noise"] / MASS,
            B=jnp.array([[0.0], [1.0 / MASS]]),
        ),
        observation=fd.LinearObservation(jnp.array([[1.0, 0.0]]), p["sensor_noise"] ** 2),
    )


def positions(times, force, y=None):
    """The NumPyro model."""
    p = {
        name: numpyro.sample(name, dist.LogNormal(jnp.log(median), 1.0))
        for name, (_, _, median) in PARAMETERS.items()
    }
    series = fd.ObservedSeries(oscillator(p), times, force, filter=FILTER)
    numpyro.sample("y", series, obs=y)


def experiment(seconds=30, measurements=150):
    """The truth, and what the sensor reported of it: at every switch and every measurement, and on
    a grid of times between them for the pictures. Returns the record and the true states."""
    rng = np.random.default_rng(5)
    forces = rng.choice([-4.0, 4.0], size=seconds)
    grid = np.arange(20 * seconds) / 20
    times = np.concatenate([grid, rng.uniform(0, seconds, measurements)])
    order = np.argsort(times, kind="stable")
    times, is_measured = times[order], order >= len(grid)
    force = forces[times.astype(int)]
    truth = fd.simulate(oscillator(TRUTH), times, force[:, None], key=jr.key(6))
    y = np.where(is_measured[:, None], truth.observations, np.nan)
    return as_series(times, y, force), truth.states


def as_series(times, y, force):
    return fd.Series(times, y, force, observation_names=("position",), input_names=("force",))


def events(record):
    """The rows that say something: a measurement, or a second at which the force may switch."""
    keep = np.isfinite(np.asarray(record.observations[:, 0])) | (record.times % 1 == 0)
    return as_series(record.times[keep], record.observations[keep], record.inputs[keep])


def identify(series, chains, warmup, draws):
    """The posterior by NUTS: a table beside the truth, and the worst of its numbers."""
    mcmc = MCMC(
        NUTS(positions, init_strategy=init_to_median),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
    )
    args = (series.times, series.inputs, series.observations)
    mcmc.run(jr.key(1), *args)
    tree = fd.to_datatree(mcmc, positions, *args)
    table = arviz_stats.summary(tree, ci_prob=0.9, ci_kind="eti", round_to="none")
    print(
        f"{'parameter':14s}{'unit':12s}{'truth':>8s}{'mean':>9s}{'sd':>9s}{'5 %':>9s}{'95 %':>9s}",
        end="",
    )
    print(f"{'R-hat':>8s}{'ESS bulk':>10s}{'ESS tail':>10s}   truth inside")
    inside = {}
    for name, (unit, truth, _) in PARAMETERS.items():
        row = table.loc[name]
        low, high = row["eti90_lb"], row["eti90_ub"]
        inside[name] = low <= truth <= high
        print(f"{name:14s}{unit:12s}{truth:8.3f}{row['mean']:9.4f}{row['sd']:9.4f}", end="")
        print(f"{low:9.4f}{high:9.4f}{row['r_hat']:8.3f}{row['ess_bulk']:10.0f}", end="")
        print(f"{row['ess_tail']:10.0f}   {'yes' if inside[name] else 'no'}")
    divergences = int(tree["sample_stats"]["diverging"].sum())
    print(f"divergent transitions: {divergences}")
    return tree, table, sum(inside.values()), divergences


def draw_states(record, truth, smoothed):
    """The force, and the states that it made: as they were, and as the position tells them."""
    figure, axes = plt.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
    axes[0].step(record.times, record.inputs[:, 0], where="post", color="black")
    for i, ax in enumerate(axes[1:]):
        ax.plot(
            record.times, truth[:, i], "--", color="#D55E00", linewidth=1, label="truth", zorder=4
        )
    fd.plots.states(smoothed, names=("position", "velocity"), series=record, axes=axes[1:])
    axes[1].set_ylim(-0.5, 0.75)  # room for the legend
    for ax, label in zip(axes, ("force (N)", "position (m)", "velocity (m/s)"), strict=True):
        ax.set(ylabel=label, xlabel="")
    axes[-1].set_xlabel("time (s)")
    return figure


def draw_posterior(tree):
    figure, axes = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
    for ax, (name, (unit, truth, _)) in zip(axes, PARAMETERS.items(), strict=True):
        draws = tree["posterior"][name].values.ravel()
        ax.hist(draws, 30, density=True, color="#0072B2", alpha=0.5)
        ax.axvline(truth, color="#D55E00", linestyle="--", linewidth=2, label="truth")
        ax.set(xlabel=f"{name} ({unit})", yticks=[])
    axes[0].set_ylabel("posterior density")
    axes[0].legend()
    return figure


def draw_forecast(forecast, record, later):
    figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    y = np.asarray(later.observations)
    ax.plot(later.times, y, "o", color="#009E73", markersize=4, label="measured later", zorder=3)
    fd.plots.forecast(forecast, series=record[len(record) // 2 :], axes=ax)
    ax.set(xlabel="time (s)", ylabel="position (m)", ylim=(-0.5, 0.75))
    return figure


def main(quick, output):
    output.mkdir(exist_ok=True)
    whole, truth = experiment()
    split = int(np.searchsorted(whole.times, 20.0))
    record, later = whole[:split], whole[split:]
    series = events(record)
    measured = int(np.isfinite(np.asarray(series.observations)).sum())
    print(
        f"{measured} measurements in 20 s, at irregular times; the force may switch every second\n"
    )
    tree, table, inside, divergences = identify(
        series, *((2, 150, 100) if quick else (4, 400, 400))
    )

    model = oscillator({name: float(table.loc[name, "mean"]) for name in PARAMETERS})
    result = fd.filter(model, record, FILTER)
    forecast = fd.forecast(model, result, later.times, later.inputs)
    y = np.asarray(later.observations)
    is_measured = np.isfinite(y)
    print(
        f"\nshare of the {is_measured.sum()} measurements of the next 10 s in their forecast interval:"
    )
    for probability in (0.5, 0.9):
        low, high = (np.asarray(end) for end in forecast.observation_interval(probability))
        share = np.mean(((low <= y) & (y <= high))[is_measured])
        print(f"  {probability:.0%} interval: {share:.0%}")
    print(
        "(an oscillator errs for seconds in a row, so these shares scatter more than independent ones)"
    )

    figures = {
        "states": draw_states(record, truth[:split], fd.smooth(model, record, FILTER)),
        "posterior": draw_posterior(tree),
        "forecast": draw_forecast(forecast, record, later),
    }
    for name, figure in figures.items():
        figure.savefig(output / f"driven_oscillator_{name}.png", dpi=130)
    print(f"\nfigures: {output}/driven_oscillator_*.png")

    r_hat, ess = table["r_hat"].max(), table[["ess_bulk", "ess_tail"]].min(axis=None)
    distance = max(abs(table.loc[n, "mean"] - TRUTH[n]) / table.loc[n, "sd"] for n in PARAMETERS)
    converged = r_hat < 1.1 if quick else (r_hat < 1.01 and ess > 400 and divergences == 0)
    fine = bool(converged and distance < 3)
    print(
        f"{'OK' if fine else 'FAILED'}: {inside} of {len(PARAMETERS)} true values lie in their 90 % "
        f"interval, the furthest {distance:.1f} sd from the mean; R-hat at most {r_hat:.3f}, "
        f"effective sample size at least {ess:.0f}, {divergences} divergent transitions"
    )
    return fine


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short chains, to see that it runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figures")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
