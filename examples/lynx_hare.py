"""Snowshoe hare and Canada lynx: identify a predator-prey system, check it, and follow it.

The Hudson's Bay Company counted the pelts it bought each year, 1900 to 1920. The hares breed and the
lynx eat them (Lotka and Volterra's equations); what the two equations leave out, weather and disease
and trappers, is process noise; and the pelts tell the populations only up to a random factor:

    d log hare = (growth - predation lynx) dt + process noise dW_1
    d log lynx = (conversion hare - decline) dt + process noise dW_2
    log pelts  = log population + observation noise

Populations count in thousands of pelts, time in years.

    python examples/lynx_hare.py            # under a minute; figures in examples/output
    python examples/lynx_hare.py --quick    # short chains, to see that it runs
"""

import argparse
import time
from pathlib import Path

import arviz_stats
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.stats import norm
from numpyro.infer import MCMC, NUTS, init_to_median

import filterdyn as fd

numpyro.enable_x64()

OUTPUT = Path(__file__).parent / "output"
FILTER = fd.ExtendedKalmanFilter()

#: Every parameter with its unit, the median of its log-normal prior, and what the median says. The
#: log-scale 0.5 is a factor of 2.3 up or down (90 %).
PARAMETERS = {
    "growth": ("1/year", 0.7, "hares without lynx double in a year"),
    "predation": ("1/year per 1000 lynx", 0.7 / 25, "25 thousand lynx hold the hares at balance"),
    "decline": ("1/year", 0.7, "lynx without hares halve in a year"),
    "conversion": ("1/year per 1000 hares", 0.7 / 25, "25 thousand hares feed the lynx in balance"),
    "process_noise": ("1/sqrt(year)", 0.2, "20 % in a year that the equations do not explain"),
    "observation_noise": ("log pelts", 0.2, "pelts tell the population within 20 %"),
}
PRIOR_LOG_SCALE = 0.5


#: In 1900 either population is 20 thousand, within a factor of 5 (90 %).
START = dist.Normal(jnp.full(2, np.log(20.0)), 1.0).to_event(1)


def predator_and_prey(p, start=START):
    """The state-space model, in log populations (hare, lynx), for parameters `p` by name."""

    def drift(t, x, u):
        hare, lynx = jnp.exp(x)
        return jnp.array(
            [p["growth"] - p["predation"] * lynx, p["conversion"] * hare - p["decline"]]
        )

    return fd.StateSpaceModel(
        initial=start,
        dynamics=fd.SDE(drift, diffusion=p["process_noise"], substeps=4),
        observation=fd.Observation(
            lambda t, x, u: dist.LogNormal(x, p["observation_noise"]).to_event(1)
        ),
    )


def pelts(times, y=None):
    """The NumPyro model: priors of the parameters, likelihood of the series by the filter."""
    p = {
        name: numpyro.sample(name, dist.LogNormal(jnp.log(median), PRIOR_LOG_SCALE))
        for name, (_, median, _) in PARAMETERS.items()
    }
    numpyro.sample("y", fd.ObservedSeries(predator_and_prey(p), times, filter=FILTER), obs=y)


def identify(series, chains, warmup, draws):
    """The posterior by NUTS, as an ArviZ data tree."""
    kernel = NUTS(pelts, dense_mass=True, init_strategy=init_to_median)
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
    )
    mcmc.run(jr.key(1), series.times, series.observations)
    return fd.to_datatree(
        mcmc,
        pelts,
        series.times,
        series.observations,
        observation_names=series.observation_names,
    )


def summarise(tree):
    """Print the posterior; return the worst R-hat, the least effective sample size, divergences."""
    table = arviz_stats.summary(tree, ci_prob=0.9, ci_kind="eti", round_to="none")
    table = table.loc[list(PARAMETERS)]
    print(f"{'parameter':18s}{'unit':23s}{'mean':>8s}{'sd':>9s}{'5 %':>9s}{'95 %':>9s}", end="")
    print(f"{'R-hat':>8s}{'ESS bulk':>10s}{'ESS tail':>10s}")
    for name, row in table.iterrows():
        print(f"{name:18s}{PARAMETERS[name][0]:23s}{row['mean']:8.4f}{row['sd']:9.4f}", end="")
        print(f"{row['eti90_lb']:9.4f}{row['eti90_ub']:9.4f}", end="")
        print(f"{row['r_hat']:8.3f}{row['ess_bulk']:10.0f}{row['ess_tail']:10.0f}")
    divergences = int(tree["sample_stats"]["diverging"].sum())
    print(f"divergent transitions: {divergences}")
    return table["r_hat"].max(), table[["ess_bulk", "ess_tail"]].min(axis=None), divergences


def coverage(levels, probability):
    """The share of measurements inside their central interval. `levels` are their positions, 0 to 1,
    in the distribution of what was expected."""
    return float(np.mean(np.abs(levels - 0.5) <= probability / 2))


def is_honest(levels):
    """Are the 50 % and the 90 % intervals as full as chance allows (three binomial sds)?"""
    allowed = lambda p: 3 * np.sqrt(p * (1 - p) / levels.size)
    return all(abs(coverage(levels, p) - p) < allowed(p) for p in (0.5, 0.9))


def posterior_draws(tree):
    return {name: tree["posterior"][name].values.ravel() for name in PARAMETERS}


def replicate(tree, series):
    """Series that the model makes up: for every posterior draw the populations of 1900 as the whole
    record tells them, and from there on nothing but the equations and their noise."""

    def one(p, key):
        smoothed = fd.smooth(predator_and_prey(p), series, FILTER)
        start = dist.MultivariateNormal(smoothed.mean[0], smoothed.cov[0])
        return fd.simulate(predator_and_prey(p, start), series.times, key=key).observations

    draws = posterior_draws(tree)
    keys = jr.split(jr.key(2), len(draws["growth"]))
    return np.asarray(jax.jit(jax.vmap(one))(draws, keys))


def one_step_levels(tree, series):
    """The position of each measurement in its prediction from the years before it, a mixture over
    the posterior draws."""

    def one(p):
        result = fd.filter(predator_and_prey(p), series, FILTER)
        sd = jnp.sqrt(jnp.diagonal(result.innovation_covs, axis1=1, axis2=2))
        return norm.cdf(result.innovations / sd)

    return np.asarray(jax.jit(jax.vmap(one))(posterior_draws(tree)).mean(0))


def cycle(y):
    """What makes a predator-prey cycle, whatever its phase: the swing of hare and of lynx (sd of log
    pelts), and the correlation of the lynx with the hares of the year before."""
    log = np.log(y)
    z = (log - log.mean(-2, keepdims=True)) / log.std(-2, keepdims=True)
    follows = (z[..., 1:, 1] * z[..., :-1, 0]).mean(-1)
    return {
        "swing of hare": log[..., 0].std(-1),
        "swing of lynx": log[..., 1].std(-1),
        "lynx follow hare": follows,
    }


def check(tree, series, replicated):
    """The posterior predictive check, in numbers. Does what was measured look as predicted?"""
    y = np.asarray(series.observations)
    levels = {
        "one year ahead, given the years before": one_step_levels(tree, series),
        "replicated series, 20 years from 1900": (replicated < y).mean(0),
    }
    print(f"\nshare of the {y.size} measurements in their interval       50 %   90 %")
    for what, found in levels.items():
        print(f"  {what:45s}{coverage(found, 0.5):7.0%}{coverage(found, 0.9):7.0%}")
    print(f"\n{'the cycle':32s}data   replicated, 90 %")
    made_up = cycle(replicated)
    for what, value in cycle(y).items():
        low, high = np.quantile(made_up[what], (0.05, 0.95))
        print(f"  {what:27s}{value:7.2f}   {low:.2f} to {high:.2f}")
    return all(is_honest(found) for found in levels.values())


def follow(model, series):
    """Feed the years one at a time; print each estimate as it comes; forecast three years more."""
    online = fd.OnlineFilter(model, FILTER)
    state = online.init(series.times[0])
    print("\nyear   hare pelts   population (90 %)     lynx pelts   population (90 %)     surprise")
    for year, y in zip(series.times, series.observations, strict=True):
        state, step = online.step(state, year, y)
        sd = jnp.sqrt(jnp.diagonal(step.cov))
        low, middle, high = (np.exp(step.mean + z * sd) for z in (-1.645, 0.0, 1.645))
        print(f"{year:.0f}", end="")
        for i in range(2):
            print(f"{y[i]:11.1f}{middle[i]:9.1f} ({low[i]:5.1f} to {high[i]:5.1f})", end="")
        print(f"{step.nis:11.1f}")
    print("(thousands; surprise is chi-square with 2 degrees of freedom: 5 % are above 6.0)")

    years = series.times[-1] + np.arange(1, 4)
    forecast = online.forecast(state, years, key=jr.key(3), num_samples=4000)
    print(
        "\nforecast of pelts   hare   50 %            90 %              lynx   50 %            90 %"
    )
    quantiles = np.quantile(forecast.samples, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
    for year, q in zip(years, np.moveaxis(quantiles, 1, 0), strict=True):
        print(f"{year:.0f}          ", end="")
        for i in range(2):
            print(f"{q[2, i]:10.1f}   {q[1, i]:5.1f} to {q[3, i]:5.1f}", end="")
            print(f"  {q[0, i]:5.1f} to {q[4, i]:5.1f}", end="")
        print()
    return forecast


def main(quick, output):
    output.mkdir(exist_ok=True)
    series = fd.datasets.lynx_hare()
    chains, warmup, draws = (2, 200, 100) if quick else (4, 500, 1000)

    print("What is assumed before the data are seen (each within a factor of 2.3, 90 %):")
    for name, (unit, median, meaning) in PARAMETERS.items():
        print(f"  {name:18s}{median:6.3f} {unit:22s} {meaning}")
    print(f"\nNUTS, {chains} chains of {warmup} + {draws} steps (it compiles first, for seconds)")
    start = time.perf_counter()
    tree = identify(series, chains, warmup, draws)
    print(f"identified in {time.perf_counter() - start:.0f} s\n")
    r_hat, ess, divergences = summarise(tree)
    replicated = replicate(tree, series)
    honest = check(tree, series, replicated)

    mean = {name: float(tree["posterior"][name].mean()) for name in PARAMETERS}
    model = predator_and_prey(mean)
    result = fd.filter(model, series, FILTER)
    forecast = follow(model, series)

    pictures = {
        "posterior_predictive": fd.plots.posterior_predictive(series, replicated),
        "forecast": fd.plots.forecast(forecast, series=series, result=result),
    }
    for axes in pictures.values():
        for ax, animal in zip(axes, series.observation_names, strict=True):
            ax.set_ylabel(f"thousand pelts of {animal}")
        axes[-1].set_xlabel("year")
    pictures["innovations"] = fd.plots.innovations(result)
    for name, axes in pictures.items():
        axes.ravel()[0].figure.savefig(output / f"lynx_hare_{name}.png", dpi=130)

    converged = r_hat < 1.1 if quick else (r_hat < 1.01 and ess > 400 and divergences == 0)
    print(f"\nfigures: {output}/lynx_hare_*.png")
    print(
        f"{'OK' if converged and honest else 'FAILED'}: "
        f"R-hat at most {r_hat:.3f}, effective sample size at least {ess:.0f}, "
        f"{divergences} divergent transitions; the predictive intervals "
        f"{'hold' if honest else 'do not hold'} as many of the measurements as they should"
    )
    return converged and honest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short chains, to see that it runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figures")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
