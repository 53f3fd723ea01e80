"""Cholera in Dacca, 1891 to 1940: the log-likelihood that is known for the best known parameters.

    python benchmarks/cholera.py [--quick] [--write]

The model of King, Ionides, Pascual and Bouma (2008) in the form with a seasonal reservoir and without
inapparent infections: susceptible and infected people, and three stages of immunity that wanes. Infection
comes from a reservoir and from people, both seasonal, the latter with a trend and white noise; Euler steps,
20 a month. The deaths of a month are measured with a relative error. Data, splines and parameters are those
that pypomp ships (`dhaka`), the best of those who published. Their log-likelihood is taken to be -3748.6, to
which pypomp's tests hold its own filter (https://github.com/pypomp/pypomp, tests of dacca); that gave -3748.0
with standard error 0.07, in 300 filters of 5,000 (issue 32 there).

Several filters, combined by the logarithm of the mean likelihood. The exit status says whether it is
within 2.5 of what is published.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.scipy.stats import norm
from numpyro.distributions import constraints
from published import Published, compare

import filterdyn as fd

STEPS = 20
STEP = 1 / 12 / STEPS
LOG_TINY = np.log(1e-18)
STAGES = 3


class Rates(NamedTuple):
    """Per year and person, but for `noise`, the intensity of the white noise, and `error`, the relative one
    of a count of deaths."""

    recovery: float
    waning: float
    death: float
    cholera_death: float
    noise: float
    error: float


def dacca():
    """Times, deaths, what each month knows of its steps, the start, and the rates."""
    from pypomp.models.dacca import dhaka

    theirs = dhaka()
    found = theirs.theta.params()[0]
    best = lambda *names: found.sel(parameter=list(names)).to_numpy()[0]
    covariates = theirs.covars
    splines = [f"seas{k}" for k in range(1, 7)]
    times = theirs.t0 + np.arange(len(theirs.ys)) / 12
    t = times[:, None] + STEP * np.arange(STEPS)
    at = lambda name: np.interp(t, covariates.index.to_numpy(float), covariates[name])
    season = lambda name: sum(
        b * at(s) for b, s in zip(best(*(f"{name}{k}" for k in range(1, 7))), splines, strict=True)
    )
    from_people = np.exp(best("beta_trend") * at("trend") + season("bs"))
    from_reservoir = np.exp(season("omegas"))
    rates = Rates(*best("gamma", "epsilon", "delta", "m", "sigma", "tau"))
    births = at("dpopdt") + rates.death * at("pop")
    months = np.stack([from_people, at("pop"), from_reservoir, births], 1).reshape(len(times), -1)
    shares = best("S_0", "I_0", "R1_0", "R2_0", "R3_0")
    people = np.interp(theirs.t0, covariates.index.to_numpy(float), covariates["pop"])
    return times, theirs.ys["deaths"].to_numpy(float), months, people * shares / shares.sum(), rates


class Month(dist.Distribution):
    """Susceptible, infected and immune people, who died of cholera within the month, and whether a number
    became negative in a step, which is then 0."""

    arg_constraints: ClassVar = {}
    support = constraints.real_vector

    def __init__(self, state, steps, rates):
        self.state, self.steps, self.rates = state, steps.reshape(4, STEPS), rates
        super().__init__((), (STAGES + 4,), validate_args=False)

    def sample(self, key, sample_shape=()):
        assert sample_shape == ()
        r = self.rates
        on = STAGES * r.waning

        def step(carry, at):
            x, dead, broken = carry
            (contacts, people, reservoir, births), z = at
            s, i, immune = x[0], x[1], x[2:]
            ill = (reservoir + (contacts + r.noise * z / STEP**0.5) * i / people) * s
            well, on_and_out = r.recovery * i, on * immune
            came = jnp.stack([births + on_and_out[-1], ill, well, *on_and_out[:-1]])
            left = jnp.stack([ill, well + r.cholera_death * i, *on_and_out])
            change = came - left
            new = x + STEP * (change - r.death * x)
            dead = dead + STEP * r.cholera_death * i
            broken = jnp.where((new < 0).any(), 1.0, broken)
            return (jnp.maximum(new, 0.0), dead, broken), None

        zero = jnp.zeros_like(self.state[0])
        normals = jr.normal(key, (STEPS,), self.state.dtype)
        start = (self.state[: STAGES + 2], zero, self.state[-1])
        x, dead, broken = jax.lax.scan(step, start, (self.steps.T, normals))[0]
        return jnp.concatenate([x, dead[None], broken[None]])


class Died(dist.Distribution):
    """Deaths with a relative error. Where the steps failed almost nothing is possible."""

    arg_constraints: ClassVar = {}
    support = constraints.real

    def __init__(self, dead, broken, error):
        self.dead, self.broken, self.error = dead, broken, error
        super().__init__(jnp.shape(dead), (), validate_args=False)

    def log_prob(self, value):
        scale = jnp.maximum(self.error * self.dead, 1e-18)
        likely = jnp.logaddexp(norm.logpdf(value, self.dead, scale), LOG_TINY)
        return jnp.where(self.broken > 0, LOG_TINY, likely)


def likelihoods(size, seeds, rows=None):
    starts, deaths, months, people, rates = dacca()
    times = starts[:rows] + 1 / 12
    model = fd.StateSpaceModel(
        dist.Delta(jnp.asarray(np.append(people, [0.0, 0.0]), jnp.float32), event_dim=1),
        fd.Transition(lambda t, x, u: Month(x, u, rates)),
        fd.Observation(lambda t, x, u: Died(x[-2:-1], x[-1:], rates.error).to_event(1)),
    )
    # A row knows the month that follows it.
    after = jnp.asarray(np.roll(months, -1, 0)[:rows], jnp.float32)
    series = fd.Series(times, jnp.asarray(deaths[:rows], jnp.float32), after)
    filter = fd.ParticleFilter(size, gradient="none")
    first = jnp.asarray(months[0], jnp.float32)
    run = jax.jit(
        lambda key: fd.log_likelihood(model, series, filter, key=key, t0=starts[0], u0=first)
    )
    return np.array([run(jr.key(seed)) for seed in range(seeds)], float)


if __name__ == "__main__":
    published = Published(-3748.6, "")
    compare("cholera", "Dacca, 600 months", __doc__, likelihoods, published, 5_000, 10)
