"""A universal differential equation: what a network learned of a predator and its prey, as two terms.

Of x' = 1.3 x - 0.9 x y, y' = 0.8 x y - 1.8 y only 1.3 x and -1.8 y are known (Rackauckas et al. 2020,
scenario 1). From 31 noisy points in three units of time a network of 2-5-5-5-2 learns the rest, by the
likelihood of a filter. A sparse regression over the monomials to degree 5 and a sine of each population
then asks what it learned; it knows how sure the network is, point by point together. The equation that it
finds gets its coefficients from the filter's likelihood, by NUTS, and is followed to t = 50.

    python examples/universal_lotka_volterra.py            # about a minute; a figure in examples/output
    python examples/universal_lotka_volterra.py --quick    # a third of the steps
"""

import argparse
import time
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC, NUTS

import filterdyn as fd

numpyro.enable_x64()

OUTPUT = Path(__file__).parent / "output"
FILTER = fd.ExtendedKalmanFilter()
START = np.array([0.44249296, 4.6280594])
SEEN, LATER = 3.0, 50.0
TRUTH = {("x", "x y"): -0.9, ("y", "x y"): 0.8}
LIBRARY = fd.inference.TermLibrary(["x", "y"], degree=5, sines=[1.0])


def known(t, x, u):
    return jnp.array([1.3, -1.8]) * x


def truth(t, x, u):
    return known(t, x, u) + jnp.array([-0.9, 0.8]) * x[0] * x[1]


def path(field, times, start=START):
    """Where a field leads, without any noise."""
    flow = fd.StateSpaceModel(
        dist.Delta(jnp.asarray(start), event_dim=1),
        fd.ODE(field, solver=diffrax.Bosh3(), dt=0.03),
        fd.LinearObservation(jnp.eye(2), 1.0),
    )
    return fd.simulate(flow, times, key=jr.key(0)).states


def measured(seed):
    """31 points with noise of 5e-3 of the mean, and its standard deviations."""
    times = np.linspace(0.0, SEEN, 31)
    exact = np.asarray(path(truth, times))
    noise = 5e-3 * exact.mean(0)
    y = exact + noise * np.random.default_rng(seed).normal(size=exact.shape)
    return fd.Series(times, y, observation_names=("x", "y")), noise


def population(dynamics, series, noise):
    """The start is known as well as the first point."""
    start = dist.Normal(series.observations[0], 3 * jnp.asarray(noise)).to_event(1)
    return fd.StateSpaceModel(start, dynamics, fd.LinearObservation(jnp.eye(2), noise**2))


def weights(network):
    return [*network.weights, *network.biases]


def train(series, noise, seed, steps):
    """First with process noise, which lets one-step predictions lead near, and shrinks; then without. Weights
    are normal, with standard deviation 2 in the end."""
    network = fd.fields.MLP(
        2, key=jr.key(seed), width=5, depth=3, state_center=2.0, state_scale=1.5, output_scale=2.0
    )
    squares = lambda network: sum(jnp.sum(w**2) for w in weights(network))
    options = {"steps": steps, "chunk": steps, "clip": 10.0}
    drift = fd.fields.UniversalField(known, network)
    noisy = fd.SDE(drift, jnp.asarray(0.5), solver=diffrax.Bosh3(), substeps=3)
    near = fd.fit(
        population(noisy, series, noise),
        series,
        FILTER,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        trainable=lambda m: weights(m.dynamics.drift.value.residual),
        positive=lambda m: m.dynamics.diffusion,
        log_prior=lambda m: -0.5 * squares(m.dynamics.drift.value.residual),
        **options,
    )
    flow = fd.ODE(near.model.dynamics.drift.value, solver=diffrax.Bosh3(), substeps=3)
    return fd.fit(
        population(flow, series, noise),
        series,
        FILTER,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.01, steps)),
        trainable=lambda m: weights(m.dynamics.field.value.residual),
        log_prior=lambda m: -0.5 * squares(m.dynamics.field.value.residual) / 2.0**2,
        **options,
    ).model


def learned(model, series, noise):
    """The states along the path, the network's values there, and the covariance (2, n, n) of those values by
    Laplace's approximation: of the weights and the start, with the prior of both, linearised."""
    states = fd.smooth(model, series, FILTER).mean
    network = model.dynamics.field.value.residual
    flat, unravel = ravel_pytree(weights(network))

    def with_weights(v):
        return eqx.tree_at(weights, network, unravel(v))

    def follow(parameters):
        field = fd.fields.UniversalField(known, with_weights(parameters[2:]))
        return (path(field, series.times, parameters[:2]) / noise).ravel()

    def values(v):
        return jax.vmap(lambda x: with_weights(v)(0.0, x, None))(states).T

    by_data = jax.jit(jax.jacfwd(follow))(jnp.concatenate([states[0], flat]))
    prior = jnp.concatenate([1 / (3 * noise) ** 2, jnp.full(flat.shape, 1 / 2.0**2)])
    weight_cov = jnp.linalg.inv(by_data.T @ by_data + jnp.diag(prior))[2:, 2:]
    slopes = jax.jit(jax.jacfwd(values))(flat)
    covariance = jnp.einsum("inp,pq,imq->inm", slopes, weight_cov, slopes)
    # And half a percent for what so small a network cannot say.
    size = jnp.mean(values(flat) ** 2, axis=1)
    covariance += (0.005**2 * size)[:, None, None] * jnp.eye(len(states))
    return np.asarray(states), np.asarray(values(flat).T), np.asarray(covariance)


def refit(field, series, noise, draws):
    """The coefficients of the equation by the filter's likelihood: draws (draws, k)."""
    guess = field.coefficients

    def experiment(y):
        ratio = numpyro.sample("ratio", dist.Normal(jnp.ones(len(guess)), 0.5).to_event(1))
        whole = fd.fields.UniversalField(known, field.with_coefficients(guess * ratio))
        flow = fd.ODE(whole, solver=diffrax.Bosh3(), substeps=3)
        model = population(flow, series, noise)
        numpyro.sample("y", fd.ObservedSeries(model, series.times, filter=FILTER), obs=y)

    kernel = NUTS(experiment, init_strategy=numpyro.infer.init_to_median)
    mcmc = MCMC(kernel, num_warmup=draws, num_samples=draws, progress_bar=False)
    mcmc.run(jr.key(2), series.observations)
    return np.asarray(guess * mcmc.get_samples()["ratio"])


def draw(series, states, values, found, paths, figure_path):
    figure, axes = plt.subplots(
        1, 3, figsize=(14, 4.2), layout="constrained", width_ratios=[1, 1, 2]
    )
    colors = ("#0072B2", "#D55E00")
    grid, exact, network, band = paths
    terms = np.asarray(jax.vmap(lambda x: found.field(0.0, x))(jnp.asarray(states)))
    for i, (color, name) in enumerate(zip(colors, ("x", "y"), strict=True)):
        inside = grid <= SEEN
        axes[0].plot(grid[inside], exact[inside, i], color=color, label=f"{name}, truth")
        axes[0].plot(
            series.times, series.observations[:, i], "o", color=color, ms=3, label="measured"
        )
        product = list(TRUTH.values())[i] * states[:, 0] * states[:, 1]
        label = f"{'-0.9' if i == 0 else '0.8'} x y"
        axes[1].plot(series.times, product, "--", color=color, label=label)
        axes[1].plot(series.times, values[:, i], color=color, alpha=0.5, lw=3, label="network")
        axes[1].plot(series.times, terms[:, i], ".", color=color, label="terms found")
        axes[2].plot(grid, exact[:, i], "--", color=color, lw=1, label=f"{name}, truth")
        low, high = np.quantile(band[..., i], [0.05, 0.95], axis=0)
        axes[2].fill_between(grid, low, high, color=color, alpha=0.4, label="terms found, 90 %")
        axes[2].plot(
            grid, network[:, i], ":", color="#555555", lw=1, label="network" if i else None
        )
    axes[2].axvspan(0, SEEN, color="#999999", alpha=0.25, lw=0)
    axes[0].set(xlabel="time", title="31 points")
    axes[1].set(xlabel="time", title="what is not known of x' and y'")
    axes[2].set(xlabel="time", title="and after that", ylim=(-0.2, 1.25 * exact.max()))
    for ax, columns in zip(axes, (1, 1, 3), strict=True):
        ax.legend(fontsize=7, ncols=columns)
    figure.savefig(figure_path, dpi=130)


def main(quick, output, seed):
    output.mkdir(exist_ok=True)
    began = time.process_time()
    series, noise = measured(seed)
    model = train(series, noise, seed, 500 if quick else 1500)
    states, values, covariance = learned(model, series, noise)
    regression = fd.inference.pointwise_regression(LIBRARY, states, values, covariance=covariance)
    found = fd.inference.thresholded_least_squares(regression)
    print(f"of {len(LIBRARY)} terms, for what is not known of the rates (90 % intervals):")
    print(found, flush=True)

    draws = refit(found.field, series, noise, 100 if quick else 300)
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    print("the same terms, by the filter's likelihood:")
    errors = [np.inf]
    for k, term in enumerate(found.terms):
        at = LIBRARY.state_names.index(term[0]), LIBRARY.names.index(term[1])
        regressed, mean = found.coefficients[at], draws[:, k].mean()
        print(f"  {term[1]} in d{term[0]}/dt: {mean:.4f} [{low[k]:.4f}, {high[k]:.4f}]")
        if term in TRUTH:
            errors += [abs(regressed / TRUTH[term] - 1), abs(mean / TRUTH[term] - 1)]
    worst = max(errors[1:], default=np.inf)

    grid = np.linspace(0.0, LATER, 1001)
    every = draws[:: max(len(draws) // 50, 1)]
    start = np.asarray(fd.smooth(model, series, FILTER).mean[0])
    whole = lambda c: fd.fields.UniversalField(known, found.field.with_coefficients(c))
    band = np.asarray(jax.jit(jax.vmap(lambda c: path(whole(c), grid, start)))(jnp.asarray(every)))
    exact = np.asarray(path(truth, grid))
    network = np.asarray(path(model.dynamics.field.value, grid, start))
    rmse = [np.sqrt(np.mean((p - exact)[grid > SEEN] ** 2)) for p in (band.mean(0), network)]
    print(f"root mean squared error from t = 3 to 50: terms {rmse[0]:.2f}, network {rmse[1]:.0e}")
    print(f"{time.process_time() - began:.0f} s of processor time")
    draw(
        series,
        states,
        values,
        found,
        (grid, exact, network, band),
        output / "universal_lotka_volterra.png",
    )

    fine = set(found.terms) == set(TRUTH) and worst < 0.02
    told = ", ".join(f"{term} in d{state}/dt" for state, term in found.terms)
    print(f"{'OK' if fine else 'FAILED'}: found {told}; off by at most {100 * worst:.1f} %")
    return bool(fine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a third of the steps")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figure")
    parser.add_argument("--seed", type=int, default=0, help="of the noise and of the weights")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output, arguments.seed))
