"""Measles in London, 1950 to 1963: the log-likelihood that is published for the best known parameters.

    python benchmarks/measles.py [--quick] [--write]

The model of He, Ionides and King (2010): susceptible, exposed, infectious and recovered people, who are born
(children go to school all on one day), fall ill by contacts that are more frequent in school terms and vary
by gamma noise, recover or die, in steps of a day, all in whole numbers; a share of those who recover in a
week is reported. Data and parameters are those that pypomp ships (`UKMeasles`, `AK_mles.csv`), with the
log-likelihood that was found with them. The transition is a NumPyro distribution that can be sampled and has
no density: what the bootstrap filter needs, and no other.

Several filters, combined by the logarithm of the mean likelihood. The exit status says whether it is
within 2.5 of what is published.
"""

from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.scipy.stats import norm
from numpyro.distributions import constraints
from published import Published, compare

import filterdyn as fd

DAY = 1 / 365.25
DAYS = 7
#: A week of August 1955 has 0 cases between 82 and 58 in the record; those who published had this.
MISSING = 76.0
TINY = 1e-18


def london():
    """Times, weekly cases, what a week of days needs to know of each, and the published row."""
    import pandas as pd
    from pypomp import PompParameters
    from pypomp.models.measles.uk_measles import UKMeasles

    best = pd.read_csv(Path(UKMeasles._data_dir) / "AK_mles.csv", index_col="town").loc["London"]
    names = "R0 sigma gamma iota rho sigmaSE psi cohort amplitude mu alpha S_0 E_0 I_0 R_0".split()
    parameters = PompParameters({n: float(best[n]) for n in names})
    theirs = UKMeasles.pomp("London", parameters, "001", clean=True)
    times, cases = theirs.ys.index.to_numpy(), theirs.ys["cases"].to_numpy(float)
    cases = np.where(np.isnan(cases), MISSING, cases)
    return times, cases, theirs.covars, best


def calendar(start, covariates, best):
    """Of each day from `start`: expected births, contacts, people."""
    t = start + DAY * np.arange(DAYS)
    people, births = (np.interp(t, covariates.index, covariates[c]) for c in ("pop", "birthrate"))
    # (In quarters of a day, whole numbers: terms begin and end on days of the grid, and rounding of years
    # would move one of seven ends by a day.)
    day = np.rint(4 * (t - 1950) / DAY) % 1461 / 4
    school = np.abs(day - 251 / 365 / DAY) < 0.5
    births = births * ((1 - best.cohort) * DAY + np.where(school, best.cohort, 0.0))
    terms = ((7, 100), (115, 199), (252, 300), (308, 356))
    term = np.any([(day >= a) & (day <= b) for a, b in terms], axis=0)
    contacts = np.where(term, 1 + best.amplitude * 0.2411 / 0.7589, 1 - best.amplitude)
    return np.concatenate([births, contacts, people])


class Week(dist.Distribution):
    """Susceptible, exposed and infectious people, and those who recovered, a week later."""

    arg_constraints: ClassVar = {}
    support = constraints.real_vector

    def __init__(self, state, days, best):
        self.state, self.days, self.best = state, days.reshape(3, DAYS), best
        super().__init__((), (4,), validate_args=False)

    def sample(self, key, sample_shape=()):
        assert sample_shape == ()
        b = self.best
        beta = b.R0 * (1 - np.exp(-(b.gamma + b.mu) * DAY)) / DAY

        def leave(key, count, rate):
            """How many go on and how many die, of `count`."""
            total = rate + b.mu
            gone = -jnp.expm1(-total * DAY)
            on, dead = rate / total * gone, b.mu / total * gone
            key_on, key_dead = jr.split(key)
            first = jr.binomial(key_on, count, on, dtype=count.dtype)
            return first, jr.binomial(key_dead, count - first, dead / (1 - on), dtype=count.dtype)

        def day(carry, at):
            s, e, i, recovered = carry
            (births, contacts, people), key = at
            keys = jr.split(key, 5)
            noise = jr.gamma(keys[0], DAY / b.sigmaSE**2, dtype=s.dtype) * b.sigmaSE**2 / DAY
            force = beta * contacts * (i + b.iota) ** b.alpha / people * noise
            ill, s_dead = leave(keys[1], s, force)
            infectious, e_dead = leave(keys[2], e, b.sigma)
            well, i_dead = leave(keys[3], i, b.gamma)
            born = jr.poisson(keys[4], births).astype(s.dtype)
            new = (
                s + born - ill - s_dead,
                e + ill - infectious - e_dead,
                i + infectious - well - i_dead,
                recovered + well,
            )
            return new, None

        start = (*self.state[:3], jnp.zeros_like(self.state[0]))
        return jnp.stack(jax.lax.scan(day, start, (self.days.T, jr.split(key, DAYS)))[0])


class Reported(dist.Distribution):
    """Rounded normal counts of mean rho c, with more variance than binomial ones."""

    arg_constraints: ClassVar = {}
    support = constraints.real

    def __init__(self, recovered, best):
        self.mean_ = best.rho * recovered
        variance = self.mean_ * (1 - best.rho + best.psi**2 * self.mean_)
        self.deviation = jnp.sqrt(variance) + TINY
        super().__init__(jnp.shape(recovered), (), validate_args=False)

    def log_prob(self, value):
        upper, lower = (norm.cdf(value + h, self.mean_, self.deviation) for h in (0.5, -0.5))
        return jnp.log(jnp.where(value > 0, upper - lower, upper) + TINY)


def likelihoods(size, seeds, rows=None):
    times, cases, covariates, best = london()
    times, cases = times[:rows], cases[:rows]
    start = 2 * times[0] - times[1]
    days = np.array([calendar(t, covariates, best) for t in times])
    shares = best[["S_0", "E_0", "I_0"]].to_numpy(float)
    people = np.interp(start, covariates.index, covariates["pop"])
    counts = np.round(people * shares / best[["S_0", "E_0", "I_0", "R_0"]].sum())
    model = fd.StateSpaceModel(
        dist.Delta(jnp.asarray(np.append(counts, 0.0), jnp.float32), event_dim=1),
        fd.Transition(lambda t, x, u: Week(x, u, best)),
        fd.Observation(lambda t, x, u: Reported(x[3:], best).to_event(1)),
    )
    series = fd.Series(times, jnp.asarray(cases, jnp.float32), jnp.asarray(days, jnp.float32))
    first = jnp.asarray(calendar(start, covariates, best), jnp.float32)
    filter = fd.ParticleFilter(size, gradient="none")
    run = jax.jit(lambda key: fd.log_likelihood(model, series, filter, key=key, t0=start, u0=first))
    return np.array([run(jr.key(seed)) for seed in range(seeds)], float)


if __name__ == "__main__":
    best = london()[3]
    published = Published(best.loglik, f"± {best['loglik.sd']:.2f}")
    compare("measles", "London, 730 weeks", __doc__, likelihoods, published, 10_000, 6)
