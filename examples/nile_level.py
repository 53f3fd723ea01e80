"""The Nile in 1899: did the river change step by step, or all at once?

A hundred annual flows at Aswan, 1871 to 1970, in 1e8 cubic metres. Two models of them:

    a level that wanders      level' = level + N(0, sigma_level^2),      flow = level + N(0, sigma_flow^2)
    ... and one sudden step   level' = level + step [one year] + N(0, sigma_level^2)

The step is a second state that never changes: the Kalman filter integrates it out exactly. So the
evidence of a step in every year comes from the same likelihood that NUTS walks on.

    python examples/nile_level.py            # under a minute; figures in examples/output
    python examples/nile_level.py --quick    # short chains and a coarse grid, to see that it runs
"""

import argparse
from pathlib import Path

import arviz_stats
import jax
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
#: Scales of the half-normal priors, in 1e8 cubic metres (a year, for the level).
PRIOR_SCALES = {"sigma_level": 100.0, "sigma_flow": 200.0}
STEP = 1899


def wandering(p):
    """The local level model."""
    return fd.StateSpaceModel(
        initial=dist.Normal(jnp.full(1, 1000.0), 1000.0).to_event(1),
        dynamics=fd.LinearTransition(jnp.eye(1), jnp.reshape(p["sigma_level"] ** 2, (1, 1))),
        observation=fd.LinearObservation(jnp.eye(1), p["sigma_flow"] ** 2),
    )


def stepping(p, year):
    """The same with a step of unknown size, up or down, that `year` is the first to see. States: the
    level, and the size of the step."""
    return fd.StateSpaceModel(
        initial=dist.Normal(jnp.array([1000.0, 0.0]), jnp.array([1000.0, 300.0])).to_event(1),
        dynamics=fd.LinearTransition(
            lambda t: jnp.array([[1.0, t == year - 1], [0.0, 1.0]]),
            jnp.diag(jnp.array([1.0, 0.0])) * p["sigma_level"] ** 2,
        ),
        observation=fd.LinearObservation(jnp.array([[1.0, 0.0]]), p["sigma_flow"] ** 2),
    )


def identify(model, series, warmup, draws):
    """Posterior of the two standard deviations by NUTS."""

    def flows(times, y=None):
        p = {name: numpyro.sample(name, dist.HalfNormal(s)) for name, s in PRIOR_SCALES.items()}
        numpyro.sample("y", fd.ObservedSeries(model(p), times, filter=FILTER), obs=y)

    mcmc = MCMC(
        NUTS(flows, init_strategy=init_to_median, target_accept_prob=0.9),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=4,
        chain_method="vectorized",
    )
    mcmc.run(jr.key(1), series.times, series.observations)
    tree = fd.to_datatree(mcmc, flows, series.times, series.observations)
    table = arviz_stats.summary(tree, ci_prob=0.9, ci_kind="eti", round_to="none")
    columns = ["mean", "sd", "eti90_lb", "eti90_ub", "r_hat", "ess_bulk", "ess_tail"]
    shown = table[columns].rename(columns={"eti90_lb": "5 %", "eti90_ub": "95 %"})
    print(shown.to_string(float_format=lambda x: f"{x:.1f}" if x > 2 else f"{x:.3f}"))
    print(f"divergent transitions: {int(tree['sample_stats']['diverging'].sum())}\n")
    return dict(table["mean"]), float(table["r_hat"].max())


def log_evidence(model, series, cells):
    """log p(y) with the standard deviations integrated out: the mean likelihood over cells of equal
    prior probability."""
    middle = (jnp.arange(cells) + 0.5) / cells
    axes = [scale * dist.HalfNormal(1.0).icdf(middle) for scale in PRIOR_SCALES.values()]
    grid = [x.ravel() for x in jnp.meshgrid(*axes)]
    one = lambda p: fd.log_likelihood(model(p), series, FILTER)
    each = jax.vmap(one)(dict(zip(PRIOR_SCALES, grid, strict=True)))
    return jax.nn.logsumexp(each) - jnp.log(each.size)


def compare(series, cells):
    """Evidence without a step, and with one in each year. Every year is as likely beforehand."""
    years = jnp.asarray(series.times[1:])
    in_year = lambda year: log_evidence(lambda p: stepping(p, year), series, cells)
    without = float(jax.jit(lambda: log_evidence(wandering, series, cells))())
    within = np.asarray(jax.jit(lambda years: jax.lax.map(in_year, years))(years))
    probability = np.exp(within - within.max())
    return np.asarray(years), without, within, probability / probability.sum()


def draw_levels(series, wander, step, years, probability):
    """The level with and without a step, the years it may have happened in, and its size."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 7.5), sharex=True, layout="constrained")
    fd.plots.states(wander, series=series, axes=axes[0, 0])
    fd.plots.states(step, names=("flow", "step"), series=series, axes=axes[1])
    axes[0, 1].bar(years, probability, width=0.9, color="#009E73")
    axes[0, 0].set(title="a level that wanders", ylabel="flow (1e8 m³ a year)", xlabel="")
    axes[1, 0].set(title=f"the same, with a step in {STEP}", ylabel="flow (1e8 m³ a year)")
    axes[0, 1].set(title="when was the step?", ylabel="probability of the year")
    axes[1, 1].set(title="how large was it?", ylabel="step (1e8 m³ a year)")
    for ax in axes[1]:
        ax.set_xlabel("year")
    return figure


def draw_forecasts(series, forecasts):
    """What either model expects of the ten years after the record."""
    figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    for ax, forecast in zip(axes, forecasts, strict=True):
        fd.plots.forecast(forecast, series=series[50:], axes=ax)
        ax.set(ylabel="flow (1e8 m³ a year)", ylim=(400, 1350))
    axes[0].set(title="a level that wanders", xlabel="")
    axes[1].set(title=f"the same, with a step in {STEP}", xlabel="year")
    axes[1].get_legend().remove()
    return figure


def main(quick, output):
    output.mkdir(exist_ok=True)
    series = fd.datasets.nile()
    warmup, draws, cells = (150, 100, 12) if quick else (500, 1000, 32)

    years, without, within, probability = compare(series, cells)
    best = int(years[probability.argmax()])
    at_step = float(within[years == STEP][0])
    anywhere = float(np.logaddexp.reduce(within) - np.log(len(within)))
    print("log evidence, sigma_level and sigma_flow integrated out")
    print(f"  a level that wanders        {without:9.2f}")
    print(
        f"  with a step in {STEP}         {at_step:9.2f}   Bayes factor {bayes(at_step, without)}"
    )
    print(
        f"  with a step in some year    {anywhere:9.2f}   Bayes factor {bayes(anywhere, without)}"
    )
    print("most probable years of the step: ", end="")
    order = np.argsort(-probability)[:4]
    print(", ".join(f"{years[i]:.0f} ({probability[i]:.0%})" for i in order))

    print("\nA level that wanders (1e8 cubic metres a year):")
    p, r_hat = identify(wandering, series, warmup, draws)
    wander_model = wandering(p)
    print(f"With a step in {STEP}:")
    p, r_hat_step = identify(lambda p: stepping(p, STEP), series, warmup, draws)
    step_model = stepping(p, STEP)

    wander = fd.smooth(wander_model, series, FILTER)
    step = fd.smooth(step_model, series, FILTER)
    size, sd = float(step.mean[-1, 1]), float(jnp.sqrt(step.cov[-1, 1, 1]))
    low, high = size - 1.645 * sd, size + 1.645 * sd
    print(f"the step of {STEP}: {size:.0f}, 90 % between {low:.0f} and {high:.0f}")

    print("\nforecast at the posterior mean, 90 %   a level that wanders   with the step")
    forecasts = []
    for model in (wander_model, step_model):
        result = fd.filter(model, series, FILTER)
        forecasts.append(fd.forecast(model, result, series.times[-1] + np.arange(1, 11)))
    ends = [forecast.observation_interval(0.9) for forecast in forecasts]
    for k in (0, 4, 9):
        print(f"{forecasts[0].times[k]:.0f}                             ", end="")
        for forecast, (lower, upper) in zip(forecasts, ends, strict=True):
            mean = forecast.observation_mean[k, 0]
            print(f"{mean:8.0f} ({lower[k, 0]:.0f} to {upper[k, 0]:.0f})", end="")
        print()

    both = {"filtered": result, "smoothed": step}
    levels = draw_levels(series, wander, both, years, probability)
    levels.savefig(output / "nile_level.png", dpi=130)
    draw_forecasts(series, forecasts).savefig(output / "nile_forecast.png", dpi=130)

    print(f"\nfigures: {output}/nile_*.png")
    converged = max(r_hat, r_hat_step) < (1.1 if quick else 1.01)
    found = best == STEP and at_step > without and high < 0
    print(
        f"{'OK' if converged and found else 'FAILED'}: the data put the step in {best} "
        f"(probability {probability.max():.2f}) and its size at {size:.0f} +- {sd:.0f}; "
        f"R-hat at most {max(r_hat, r_hat_step):.3f}"
    )
    return converged and found


def bayes(log_one, log_other):
    return f"{np.exp(log_one - log_other):.3g}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short chains, to see that it runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figures")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
