"""SMC^2: the posterior of the parameters after every row, and the evidence."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.nn import logsumexp
from jaxtyping import Array, Float, Int

from filterdyn._checks import check_between, check_count, check_key
from filterdyn.filters.particle_weights import effective_sample_size
from filterdyn.filters.sampling_scan import SamplingState
from filterdyn.filters.scan import select
from filterdyn.inference.one_series import OneSeries, one_series
from filterdyn.inference.random_walk import BEST, factor
from filterdyn.inference.unconstrained import Call, constrained, start_point
from filterdyn.resampling import Systematic

_NAME = "sequential_posterior"
#: Moves end where so few parameters have not moved at all.
_UNMOVED = 0.1


class SequentialPosterior(eqx.Module):
    """What `sequential_posterior` returns: weighted draws after the last row, and after every row.

    - `samples`: by name, (N, ...), with `log_weights` (N,) that sum to one;
    - `states` (N, dx): a state at the last row for each;
    - `history`: by name, (T, N, ...), with `history_log_weights` (T, N): the posterior given the rows
      so far;
    - `log_evidences` (T,): log p(y_t | y_1:t-1), parameters and states integrated out; `log_evidence`
      is their sum and `log_evidence_se` its standard error, as if moves made parameters independent;
    - `effective_sample_sizes` (T,) of the parameters; `particles` (T,) that each of them had;
    - `moved_at` and `acceptances`: after which rows parameters were moved, and how many proposals were
      accepted.
    """

    samples: dict[str, Array]
    log_weights: Float[Array, " N"]
    states: Float[Array, "N dx"]
    history: dict[str, Array]
    history_log_weights: Float[Array, "T N"]
    log_evidences: Float[Array, " T"]
    log_evidence_se: Float[Array, ""]
    effective_sample_sizes: Float[Array, " T"]
    particles: Int[Any, " T"]
    moved_at: Int[Any, " M"]
    acceptances: Float[Any, " M"]

    @property
    def log_evidence(self) -> Float[Array, ""]:
        return self.log_evidences.sum()

    @property
    def means(self) -> dict[str, Array]:
        """By name, (T, ...): the posterior mean given the rows so far."""
        w = jnp.exp(self.history_log_weights)
        return {n: jnp.einsum("tn,tn...->t...", w, x) for n, x in self.history.items()}

    @property
    def sds(self) -> dict[str, Array]:
        """By name, (T, ...): the posterior standard deviation given the rows so far."""
        w, means = jnp.exp(self.history_log_weights), self.means
        off = {n: x - means[n][:, None] for n, x in self.history.items()}
        return {n: jnp.sqrt(jnp.einsum("tn,tn...->t...", w, x**2)) for n, x in off.items()}

    def draws(self, key: Array, count: int | None = None) -> dict[str, Array]:
        """Draws of equal weight, (count, ...), by default as many as there are samples: what
        `fd.to_datatree` takes."""
        count = len(self.log_weights) if count is None else check_count(_NAME, "count", count)
        index = jax.random.choice(key, len(self.log_weights), (count,), p=jnp.exp(self.log_weights))
        return {name: x[index] for name, x in self.samples.items()}


class _Swarm(NamedTuple):
    """Parameters, each with particles of its own and the likelihood of the rows so far."""

    z: Float[Array, "N d"]
    log_prior: Float[Array, " N"]
    log_likelihood: Float[Array, " N"]
    log_weights: Float[Array, " N"]
    states: SamplingState


class _Records(NamedTuple):
    log_weights: Float[Array, "T N"]
    log_evidences: Float[Array, " T"]
    sizes: Float[Array, " T"]


def sequential_posterior(
    model: Callable[..., Any],
    *args: Any,
    key: Array,
    size: int = 256,
    ess_threshold: float = 0.5,
    moves: int = 10,
    min_acceptance: float = 0.15,
    max_particles: int = 4096,
    **kwargs: Any,
) -> SequentialPosterior:
    """The posterior of the parameters after every row, and the evidence, by SMC^2 (Chopin, Jacob,
    Papaspiliopoulos 2013): draws of the parameters, each with a particle filter of its own, are weighted
    by what that says about the next row.

    Where their effective sample size falls below `ess_threshold`, they are resampled and moved by
    particle Metropolis steps with the covariance of the swarm, each of which filters all rows so far.
    Where few steps are accepted the particles are too few: their number is doubled, and parameters are
    weighted by the ratio of the new likelihood to the old (the exchange step). The posterior and the
    evidence are exact in the limit of many draws, for any number of particles.

        result = fd.inference.sequential_posterior(model, times, y, key=jax.random.key(0))

    **Arguments:**

    - `model`, `*args`, `**kwargs`: a NumPyro model as for `ParticleMetropolis`, whose only observed site
      is one `fd.ObservedSeries`, with the data; its filter has the particles to begin with;
    - `key`: a JAX random key; `size`: N, how many draws of the parameters;
    - `ess_threshold`: a share of N;
    - `moves`: most steps per move; they end where nine draws in ten have moved;
    - `min_acceptance`: the rate below which particles are doubled, up to `max_particles`. It should be
      below what the walk reaches without noise, about 0.2 to 0.4.

    **Returns:** a `SequentialPosterior`.

    **Raises:** what `ParticleMetropolis` raises, and `ValueError` for a model that observes anything else
    and numbers out of range; `RuntimeError` where the likelihood of all draws is 0.
    """
    size, moves = check_count(_NAME, "size", size), check_count(_NAME, "moves", moves)
    max_particles = check_count(_NAME, "max_particles", max_particles)
    ess_threshold = check_between(_NAME, "ess_threshold", ess_threshold, 0, 1)
    min_acceptance = check_between(_NAME, "min_acceptance", min_acceptance, 0, 1)
    check_key(_NAME, key)
    call = Call(model, args, kwargs)
    prior = lambda key: start_point(_NAME, call, key, lambda site: None)
    example = prior(jax.random.key(0))
    problem, rows, particles = one_series(_NAME, call, example)
    unravel = ravel_pytree(example)[1]
    key_prior, key_start, key_loop, key_end = jax.random.split(key, 4)

    z = jax.jit(jax.vmap(lambda k: ravel_pytree(prior(k))[0]))(jax.random.split(key_prior, size))
    run = _Runner(problem._replace(size=particles), unravel, rows, ess_threshold)
    swarm = run.begin(z, key_start)
    blank = jnp.zeros((rows, size), z.dtype)
    records = _Records(blank, blank[:, 0], blank[:, 0])
    inside = jax.jit(jax.vmap(lambda z: constrained(call, unravel(z))))
    history, counts = [], np.zeros(rows, int)
    moved_at: list[int] = []
    acceptances: list[float] = []
    variance, k = 0.0, 0
    while True:
        before = k
        at, swarm, records = run.advance(swarm, records, jnp.int32(k))
        k = int(at)
        if not jnp.isfinite(records.log_evidences[max(k - 1, 0)]):
            raise RuntimeError(
                f"{_NAME}: the likelihood of row {k - 1} is 0 for all {size} draws of the parameters; "
                "take more particles, more draws or a prior that allows the data"
            )
        history.append((k - before, inside(swarm.z)))
        counts[before:k] = particles
        ess = effective_sample_size(swarm.log_weights)
        variance += float(1 / ess - 1 / size)
        if k == rows:
            break
        key_loop, key_resample, key_exchange = jax.random.split(key_loop, 3)
        before_that = swarm.z
        swarm = run.resample(swarm, key_resample)
        rate, swarm, key_loop = _move(run, swarm, before_that, k, moves, key_loop)
        moved_at.append(k - 1)
        acceptances.append(rate)
        if rate < min_acceptance and 2 * particles <= max_particles:
            particles = 2 * particles
            run = _Runner(problem._replace(size=particles), unravel, rows, ess_threshold)
            swarm = run.exchange(swarm, jnp.int32(k), key_exchange)
            if not jnp.isfinite(swarm.log_weights).any():
                raise RuntimeError(
                    f"{_NAME}: with {particles} particles the likelihood of the first {k} rows is 0 for all "
                    f"{size} draws of the parameters; take more draws or a prior that allows the data"
                )
    joined = {
        name: jnp.concatenate([jnp.repeat(x[name][None], n, 0) for n, x in history])
        for name in history[0][1]
    }
    drawn = jax.vmap(lambda belief, key: belief.sample(key))
    states = jax.jit(drawn)(swarm.states.belief, jax.random.split(key_end, size))
    return SequentialPosterior(
        history[-1][1],
        swarm.log_weights,
        states,
        joined,
        records.log_weights,
        records.log_evidences,
        jnp.sqrt(jnp.asarray(variance)),
        records.sizes,
        counts,
        np.array(moved_at, int),
        np.array(acceptances),
    )


def _move(
    run: "_Runner", swarm: _Swarm, before: Float[Array, "N d"], k: int, moves: int, key: Array
) -> tuple[float, _Swarm, Array]:
    """The swarm after up to `moves` steps, and how many proposals were accepted. Where so few draws have
    survived that they span no space, the steps are as wide as the draws were `before` resampling."""
    survivors = len(np.unique(np.asarray(swarm.z), axis=0))
    spread = swarm.z if survivors > 2 * swarm.z.shape[1] else before
    root = BEST / swarm.z.shape[1] ** 0.5 * factor(jnp.atleast_2d(jnp.cov(spread.T)))
    moved = jnp.zeros(len(swarm.z), bool)
    rates: list[float] = []
    while len(rates) < moves and (~moved).mean() >= _UNMOVED:
        key, key_step = jax.random.split(key)
        swarm, accepted = run.step(swarm, root, jnp.int32(k), key_step)
        moved = moved | accepted
        rates.append(float(accepted.mean()))
    return float(np.mean(rates)), swarm, key


class _Runner:
    """The compiled parts, for one number of particles."""

    def __init__(
        self, problem: OneSeries, unravel: Callable[[Array], Any], rows: int, threshold: float
    ):
        self.problem, self.unravel, self.rows, self.threshold = problem, unravel, rows, threshold
        self.begin = jax.jit(self._begin)
        self.advance = jax.jit(self._advance)
        self.step = jax.jit(self._step)
        self.exchange = jax.jit(self._exchange)
        self.resample = jax.jit(self._resample)

    def _begin(self, z: Float[Array, "N d"], key: Array) -> _Swarm:
        log_prior, states = self._fresh(z, key)
        zero = jnp.zeros(len(z), z.dtype)
        return _Swarm(z, log_prior, zero, zero - jnp.log(len(z)), states)

    def _fresh(self, z: Float[Array, "N d"], key: Array) -> tuple[Array, SamplingState]:
        def one(z: Array, key: Array) -> tuple[Array, SamplingState]:
            point = self.unravel(z)
            return self.problem.at(point).log_prior, self.problem.start(point, key)

        return jax.vmap(one)(z, jax.random.split(key, len(z)))

    def _row(
        self, z: Float[Array, "N d"], states: SamplingState, k: Array
    ) -> tuple[SamplingState, Float[Array, " N"]]:
        one = lambda z, state: self.problem.step(self.unravel(z), state, k)
        states, seen = jax.vmap(one)(z, states)
        return states, seen.astype(z.dtype)

    def _filtered(
        self, z: Float[Array, "N d"], k: Array, key: Array
    ) -> tuple[Array, Array, SamplingState]:
        """Priors, likelihoods and particles after the first `k` rows."""
        log_prior, states = self._fresh(z, key)

        def one(i: Array, carry: tuple[Array, SamplingState]) -> tuple[Array, SamplingState]:
            total, states = carry
            states, seen = self._row(z, states, i)
            return total + seen, states

        total, states = jax.lax.fori_loop(0, k, one, (jnp.zeros(len(z), z.dtype), states))
        return log_prior, total, states

    def _advance(
        self, swarm: _Swarm, records: _Records, k: Array
    ) -> tuple[Array, _Swarm, _Records]:
        """Rows from `k` on, to the last or to where the swarm is to be moved."""
        least = self.threshold * len(swarm.z)

        def going(carry: tuple[Array, _Swarm, _Records]) -> Array:
            k, swarm, _ = carry
            return (k < self.rows) & (effective_sample_size(swarm.log_weights) >= least)

        def one(carry: tuple[Array, _Swarm, _Records]) -> tuple[Array, _Swarm, _Records]:
            k, swarm, records = carry
            states, seen = self._row(swarm.z, swarm.states, k)
            log_weights = swarm.log_weights + seen
            evidence = logsumexp(log_weights)
            log_weights = log_weights - jnp.where(jnp.isfinite(evidence), evidence, 0.0)
            log_likelihood = swarm.log_likelihood + seen
            swarm = _Swarm(swarm.z, swarm.log_prior, log_likelihood, log_weights, states)
            put = lambda x, new: x.at[k].set(new)
            new = _Records(log_weights, evidence, effective_sample_size(log_weights))
            return k + 1, swarm, jax.tree.map(put, records, new)

        return jax.lax.while_loop(going, one, (k, swarm, records))

    def _resample(self, swarm: _Swarm, key: Array) -> _Swarm:
        key_draw, key_states = jax.random.split(key)
        index = Systematic().ancestors(key_draw, swarm.log_weights)
        swarm = jax.tree.map(lambda x: x[index], swarm)
        equal = jnp.full_like(swarm.log_weights, -jnp.log(len(index)))
        # Two copies of one draw go on with random numbers of their own.
        states = swarm.states._replace(key=jax.random.split(key_states, len(index)))
        return swarm._replace(log_weights=equal, states=states)

    def _step(
        self, swarm: _Swarm, root: Float[Array, "d d"], k: Array, key: Array
    ) -> tuple[_Swarm, Array]:
        """A particle Metropolis step of every draw, and which were accepted."""
        key_walk, key_filter, key_accept = jax.random.split(key, 3)
        z = swarm.z + jax.random.normal(key_walk, swarm.z.shape, swarm.z.dtype) @ root.T
        log_prior, log_likelihood, states = self._filtered(z, k, key_filter)
        ratio = log_prior + log_likelihood - swarm.log_prior - swarm.log_likelihood
        u = jax.random.uniform(key_accept, ratio.shape, ratio.dtype)
        accepted = jnp.log(u) < jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)
        new = _Swarm(z, log_prior, log_likelihood, swarm.log_weights, states)
        return jax.vmap(select)(accepted, new, swarm), accepted

    def _exchange(self, swarm: _Swarm, k: Array, key: Array) -> _Swarm:
        """The same parameters with this number of particles, weighted for the change."""
        log_prior, log_likelihood, states = self._filtered(swarm.z, k, key)
        log_weights = swarm.log_weights + log_likelihood - swarm.log_likelihood
        total = logsumexp(log_weights)
        log_weights = log_weights - jnp.where(jnp.isfinite(total), total, 0.0)
        return _Swarm(swarm.z, log_prior, log_likelihood, log_weights, states)
