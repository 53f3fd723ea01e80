"""A pendulum with an unknown mass, an unknown length, and a friction that nobody can write down.

A motor drives a pendulum by a known torque, and a sensor reports its angle. The law is known but for two
numbers, mass and length, and a function, the friction, for which there is a network; NUTS infers all of
them together. The network may depend on the angle as well, and so it can imitate gravity: how far the
posterior trades the one for the other is reported, without and with a prior under which the network is
orthogonal to gravity on the angles that were visited. The data are simulated, so the truth is known.

    python examples/pendulum_friction.py            # some minutes, most of it compilation; two figures
    python examples/pendulum_friction.py --quick    # short chains, to see that it runs
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.diagnostics import split_gelman_rubin
from numpyro.infer import NUTS, SVI, Trace_ELBO, init_to_median, init_to_value
from numpyro.infer.autoguide import AutoDelta, AutoMultivariateNormal

import filterdyn as fd

numpyro.enable_x64()

OUTPUT = Path(__file__).parent / "output"
GRAVITY = 9.81  # m/s^2
STEP = 0.1  # s
TIMES = STEP * np.arange(300)
#: The torque has six frequencies (Hz), with which angles and velocities of many sizes come about.
FREQUENCIES = np.array([0.15, 0.31, 0.45, 0.62, 0.9, 1.3])
PHASES = np.random.default_rng(0).uniform(0, 2 * np.pi, 6)
TORQUE = 1.2 * np.sin(2 * np.pi * TIMES[:, None] * FREQUENCIES + PHASES).sum(1)[:, None]  # N m
PRIORS = {"mass": dist.LogNormal(0.0, 0.2), "length": dist.LogNormal(jnp.log(0.8), 0.15)}
TRUTH = {"mass": 1.2, "length": 0.7, "dry": 0.3, "viscous": 0.08}  # kg, m, N m, N m s
#: Rows of the first layer: what each unit takes of angle and velocity.
OF_VELOCITY = [[0.0, slope] for slope in np.geomspace(0.2, 4.0, 6)]
OF_BOTH = [*OF_VELOCITY, [0.5, 0.0], [1.0, 0.0], [2.0, 0.0]]


def network_of(rows):
    """A network with a given first layer; without biases it is odd, as friction is."""
    made = fd.fields.MLP(2, key=jr.key(0), out=1, width=len(rows), depth=1, output_scale=0.5)
    return eqx.tree_at(lambda net: net.weights[0], made, jnp.array(rows))


NETWORK = network_of(OF_BOTH)


def true_friction(truth, velocity):
    """N m: dry and viscous friction."""
    return truth["dry"] * jnp.tanh(3 * velocity) + truth["viscous"] * velocity


def physics(parameters, row):
    """The acceleration without friction, (1,); a row is angle, velocity and torque."""
    mass, length = parameters["mass"], parameters["length"]
    return -GRAVITY / length * jnp.sin(row[:1]) + row[2:3] / (mass * length**2)


def pendulum(parameters, friction):
    """Runge-Kutta steps, shaken a little; `friction(x) -> (1,)` in N m."""
    inertia = parameters["mass"] * parameters["length"] ** 2
    # An acceleration of white noise, 0.02 rad/s/sqrt(s), over a step.
    shaken = 0.02 * jnp.array([[(STEP**3 / 3) ** 0.5, 0.0], [(3 * STEP) ** 0.5 / 2, STEP**0.5 / 2]])

    def field(x, u):
        acceleration = physics(parameters, jnp.concatenate([x, u])) - friction(x) / inertia
        return jnp.concatenate([x[1:], acceleration])

    def move(t, x, u):
        k1 = field(x, u)
        k2 = field(x + STEP / 2 * k1, u)
        k3 = field(x + STEP / 2 * k2, u)
        k4 = field(x + STEP * k3, u)
        mean = x + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return dist.MultivariateNormal(mean, scale_tril=shaken)

    at_rest = dist.Normal(jnp.zeros(2), 0.01).to_event(1)
    sensor = fd.LinearObservation([[1.0, 0.0]], R=[[0.01**2]])
    return fd.StateSpaceModel(at_rest, fd.Transition(move), sensor)


def simulate(truth, key):
    """States and measured angles of a pendulum with the true friction."""
    made = fd.simulate(
        pendulum(truth, lambda x: true_friction(truth, x[1:])), TIMES, TORQUE, key=key
    )
    return made.states, made.observations


def last_layer(network):
    return network.weights[-1]


def identification(y=None, first=None, rows=None, scale=None, *, network=NETWORK):
    """The NumPyro model. With `rows`, states and torques that were visited, the network is orthogonal to
    gravity there up to a `scale` (m), as a first fit has gravity and inertia."""
    parameters = {name: numpyro.sample(name, prior) for name, prior in PRIORS.items()}
    friction = fd.inference.random_weights("friction", network, where=last_layer)
    if rows is not None:
        gravity = lambda length, row: -GRAVITY / length * jnp.sin(row[:1])
        inertia = first["mass"] * first["length"] ** 2
        part = lambda row: -friction(0.0, row[:2]) / inertia
        fd.inference.orthogonality("orthogonal", gravity, first["length"], part, rows, scale)
    model = pendulum(parameters, lambda x: friction(0.0, x))
    series = fd.ObservedSeries(model, TIMES, TORQUE, filter=fd.ExtendedKalmanFilter())
    numpyro.sample("y", series, obs=y)


def friction_of(draw, x, network=NETWORK):
    """The network of one draw, at one state, in N m."""
    return fd.inference.with_weights("friction", network, draw)(0.0, x)


def trained(key, guide, rate, steps, *args):
    """Parameters of a guide after so many steps of SVI, which `jax.jit` takes."""
    adam = optax.chain(optax.clip_by_global_norm(30.0), optax.adam(rate))
    svi = SVI(guide.model, guide, numpyro.optim.optax_to_numpyro(adam), Trace_ELBO())
    state = svi.init(key, *args)
    state = jax.lax.fori_loop(0, steps, lambda _, at: svi.update(at, *args)[0], state)
    return svi.get_params(state)


def variational(key, y, model=identification, steps=(600, 4000), draws=400):
    """The mode, then a Gaussian about it: its draws, its median, and the covariance where parameters have
    no limits."""
    key_mode, key_gaussian, key_draws = jr.split(key, 3)
    mode = AutoDelta(model, init_loc_fn=init_to_median)
    found = trained(key_mode, mode, optax.cosine_decay_schedule(0.05, steps[0]), steps[0], y)
    at_mode = init_to_value(values=mode.median(found))
    guide = AutoMultivariateNormal(model, init_loc_fn=at_mode, init_scale=0.003)
    rate = optax.cosine_decay_schedule(0.02, steps[1])
    found = trained(key_gaussian, guide, rate, steps[1], y)
    samples = guide.sample_posterior(key_draws, found, sample_shape=(draws,))
    factor = guide.get_posterior(found).scale_tril
    return samples, guide.median(found), factor @ factor.T


def visited(first, y, network=NETWORK):
    """Smoothed states and torques (T, 3), given a first fit."""
    model = pendulum(first, lambda x: friction_of(first, x, network))
    smoothed = fd.smooth(model, fd.Series(TIMES, y, TORQUE), fd.ExtendedKalmanFilter())
    return jnp.concatenate([smoothed.mean, TORQUE], 1)


def error_of(samples, states, truth, network=NETWORK):
    """RMS error of the posterior mean of the friction at the visited states, over the truth's spread."""
    found = jax.vmap(lambda draw: jax.vmap(lambda x: friction_of(draw, x, network)[0])(states))
    right = true_friction(truth, states[:, 1])
    return jnp.sqrt(jnp.mean((found(samples).mean(0) - right) ** 2)) / right.std()


def sampled(key, start, covariance, warmup, draws, *args, model=identification):
    """A chain of NUTS as a function that `jax.jit` takes, so that other data and another `scale` cost no
    compilation: draws, and how many of them diverged."""
    kernel = NUTS(
        model,
        dense_mass=True,
        inverse_mass_matrix=covariance,
        step_size=0.5,
        max_tree_depth=6,
        init_strategy=init_to_value(values=start),
    )
    state = kernel.init(key, warmup, None, args, {})

    def step(state, _):
        state = kernel.sample(state, args, {})
        return state, (state.z, state.diverging)

    _, (found, diverged) = jax.lax.scan(step, state, length=warmup + draws)
    found = jax.tree.map(lambda x: x[warmup:], found)
    return jax.vmap(kernel.postprocess_fn(args, {}))(found), diverged[warmup:].sum()


def acceleration_by_network(draw, row):
    """The network's part of the acceleration, in one draw."""
    return -friction_of(draw, row[:2]) / (draw["mass"] * draw["length"] ** 2)


def draw_parameters(found, axes):
    for axis, name in zip(axes[:2], PRIORS, strict=True):
        for (title, samples), color in zip(found.items(), ("#999999", "#0072B2"), strict=True):
            axis.hist(samples[name], 30, density=True, alpha=0.7, color=color, label=title)
        axis.axvline(TRUTH[name], color="#D55E00", linestyle="--", linewidth=2, label="truth")
        axis.set(xlabel=f"{name} ({'kg' if name == 'mass' else 'm'})", yticks=[])
    axes[0].legend(fontsize=8)


def draw_friction(samples, velocities, axis):
    grid = np.linspace(float(velocities.min()), float(velocities.max()), 80)
    at = np.column_stack([np.zeros(80), grid])
    curves = jax.vmap(lambda draw: jax.vmap(lambda x: friction_of(draw, x)[0])(at))(samples)
    low, middle, high = np.quantile(curves, [0.05, 0.5, 0.95], axis=0)
    axis.fill_between(grid, low, high, color="#0072B2", alpha=0.3, label="90 % band")
    axis.plot(grid, middle, color="#0072B2", label="network")
    axis.plot(grid, true_friction(TRUTH, grid), "--", color="#D55E00", label="truth")
    axis.plot(velocities, np.full(len(velocities), axis.get_ylim()[0]), "|", color="black", ms=4)
    axis.set(xlabel="velocity at angle 0 (rad/s)", ylabel="friction (N m)")
    axis.legend(fontsize=8)


def main(quick, output):
    output.mkdir(exist_ok=True)
    states, y = simulate(TRUTH, jr.key(1))
    _, first, covariance = jax.jit(variational)(jr.key(2), y)
    print("first fit, by SVI:", ", ".join(f"{name} {float(first[name]):.4f}" for name in PRIORS))
    rows = visited(first, y)

    warmup, draws, chains = (200, 150, 2) if quick else (300, 300, 2)
    chain = jax.jit(sampled, static_argnums=(3, 4))
    found, errors, reports, inside = {}, {}, {}, {}
    # Ten metres are no constraint; two millimetres are.
    for title, scale in (("free network", 10.0), ("orthogonal to gravity", 0.002)):
        args = y, first, rows, scale
        runs = [
            chain(key, first, covariance, warmup, draws, *args)
            for key in jr.split(jr.key(3), chains)
        ]
        grouped = jax.tree.map(lambda *x: jnp.stack(x), *[samples for samples, _ in runs])
        print(f"\n{title}: {sum(int(n) for _, n in runs)} of {chains * draws} draws diverged")
        found[title] = samples = jax.tree.map(jnp.concatenate, grouped)
        for name in PRIORS:
            low, high = np.quantile(samples[name], [0.05, 0.95])
            inside[title, name] = bool(low < TRUTH[name] < high)
            r_hat = split_gelman_rubin(np.asarray(grouped[name]))
            print(
                f"  {name}: 90 % interval {low:.4f} to {high:.4f}, truth {TRUTH[name]}; R-hat {r_hat:.2f}"
            )
        errors[title] = float(error_of(samples, states, TRUTH))
        print(f"  error of the friction: {errors[title]:.1%} of its spread")
        reports[title] = fd.diagnostics.confounding(
            samples, physics, acceleration_by_network, rows, list(PRIORS)
        )
        print(f"  confounding: {reports[title]}", flush=True)

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    draw_parameters(found, axes)
    draw_friction(samples, states[:, 1], axes[2])
    figure.savefig(output / "pendulum_friction_posterior.png", dpi=130)

    thinned = {name: x[:: 2 if quick else 4] for name, x in samples.items()}
    tree = fd.inference.posterior_predictive(thinned, identification, *args, kind="replicated")
    low, high = tree["posterior_predictive"]["y"].quantile([0.05, 0.95], ("chain", "draw")).values
    angles = np.asarray(y)
    share = float(((low <= angles) & (angles <= high)).mean())
    print(f"\nmeasured angles inside the 90 % band of replicated records: {share:.0%}")
    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    axis.fill_between(TIMES, low[:, 0], high[:, 0], alpha=0.4, label="replicated, 90 %")
    axis.plot(TIMES, angles[:, 0], ".", ms=3, color="black", label="measured")
    axis.set(xlabel="time (s)", ylabel="angle (rad)")
    axis.legend()
    figure.savefig(output / "pendulum_friction_predictive.png", dpi=130)
    print(f"figures: {output}/pendulum_friction_*.png")

    before, after = reports.values()
    narrower = before.sd / after.sd
    fine = all(inside.values()) and errors[title] < 0.1 and 0.75 < share
    print(
        f"{'OK' if fine else 'FAILED'}: {sum(inside.values())} of 4 intervals hold the truth, the friction "
        f"is off by {errors[title]:.1%} of its spread, and with the prior the length is known "
        f"{narrower[0]:.1f} times better, the mass {narrower[1]:.1f} times"
    )
    return fine


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short chains, to see that it runs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the figures")
    arguments = parser.parse_args()
    raise SystemExit(not main(arguments.quick, arguments.output))
