"""Particle marginal Metropolis-Hastings: posteriors from a likelihood that is only estimated."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int
from numpyro.infer import init_to_median
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from filterdyn._checks import is_traced
from filterdyn.filters.scan import select
from filterdyn.inference.particle_likelihood import Estimate, check_estimates, estimate
from filterdyn.inference.random_walk import RandomWalk, learn, start_walk, step
from filterdyn.inference.unconstrained import Call, constrained, start_point

_NAME = "ParticleMetropolis"
_TRIES = 20
#: In the second half of a warm-up an estimate is made anew after so many steps without a move.
_PATIENCE = 10


class ParticleMetropolisState(NamedTuple):
    """Where a chain is.

    - `i`: steps so far; `z`: unconstrained parameters by name;
    - `log_prior`, `log_likelihood`: at `z`, the latter the estimate that was accepted with it;
    - `potential_energy`: less their sum; `paths`: by site, a path of the state (T, dx) from the run of
      the filter that gave that estimate;
    - `accept_prob` of the last step, and `mean_accept_prob` since the warm-up;
    - `likelihood_sd`: the standard deviation of the estimate, as seen in the warm-up (NaN without one);
    - `walk`: what the proposal has learned; `rng_key`.
    """

    i: Int[Array, ""]
    z: dict[str, Array]
    log_prior: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    potential_energy: Float[Array, ""]
    paths: dict[str, Array]
    accept_prob: Float[Array, ""]
    mean_accept_prob: Float[Array, ""]
    likelihood_sd: Float[Array, ""]
    walk: RandomWalk
    rng_key: Array


class ParticleMetropolis(MCMCKernel):
    """A kernel for `numpyro.infer.MCMC` that draws parameters, and paths of the state, from their exact
    posterior, though a particle filter only estimates the likelihood (particle marginal
    Metropolis-Hastings; Andrieu, Doucet, Holenstein 2010).

        def model(times, y=None):
            sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
            numpyro.sample("y", fd.ObservedSeries(
                make(sigma), times, filter=fd.ParticleFilter(200), key=numpyro.prng_key()), obs=y)

        mcmc = MCMC(fd.inference.ParticleMetropolis(model), num_warmup=1000, num_samples=4000)
        mcmc.run(jax.random.key(0), times, y, extra_fields=("paths",))

    A step proposes parameters by a random walk, estimates their likelihood with random numbers of its
    own, and accepts both or neither: the estimate of the parameters that are kept is kept too and never
    made again, which is what makes the posterior exact. Any unbiased estimate will do, a noisy one in
    more steps: a standard deviation of the log-likelihood of 1 to 1.7 costs least (Doucet et al. 2015;
    Sherlock et al. 2015), and above 3 chains stick. It falls with the square root of the number of
    particles.

    The warm-up learns the covariance and the size of the walk. Its steps make a second estimate, at the
    parameters where they begin, to see how much estimates vary and which rate of acceptance to aim at;
    in the first half it takes the place of the first, so that no lucky estimate far from the mode holds
    the chain up. After the warm-up nothing is learned and nothing made twice.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        proposal_cov: Any = 0.1,
        init_strategy: Callable[..., Any] = init_to_median(num_samples=5),
        paths: bool = True,
    ):
        """**Arguments:**

        - `model`: a NumPyro model with one or more `fd.ObservedSeries(..., filter=fd.ParticleFilter(N),
          key=numpyro.prng_key())`, or with an `fd.RaoBlackwellizedParticleFilter`;
        - `proposal_cov`: the covariance of the posterior in the unconstrained space, as first guessed: a
          variance, variances (d,) or a covariance (d, d), in the order of the names of the parameters.
          Without a warm-up it stays;
        - `init_strategy`: how `MCMC.run` finds parameters to start from, if it is given none;
        - `paths`: draw a path with every estimate, which takes memory for all particles of a run.
          `extra_fields=("paths",)` collects those of the steps kept.

        **Raises:** `TypeError` for a `model` that is not callable; when it is run, `TypeError` for a
        filter whose likelihood is biased (one of Gaussians, of an ensemble, with resampling by
        transport), `ValueError` for one with a fixed key, and for parameters that are discrete.
        """
        if not callable(model):
            raise TypeError(
                f"{_NAME}: `model` is {type(model).__name__}; expected a NumPyro model, a function"
            )
        self._model = model
        self._proposal_cov = proposal_cov
        self._init_strategy = init_strategy
        self._paths = bool(paths)
        self._num_warmup = 0
        #: (`MCMC` takes a kernel without it for one that has not been started.)
        self._sample_fn: Callable[..., Any] | None = None

    @property
    def model(self) -> Callable[..., Any]:
        return self._model

    @property
    def sample_field(self) -> str:
        return "z"

    @property
    def default_fields(self) -> tuple[str, ...]:
        return ("z", "potential_energy", "accept_prob", "log_likelihood", "likelihood_sd")

    def get_diagnostics_str(self, state: ParticleMetropolisState) -> str:
        return f"acc. prob={state.mean_accept_prob:.2f}, sd of log-likelihood={state.likelihood_sd:.2f}"

    def postprocess_fn(self, model_args: Any, model_kwargs: Any) -> Callable[..., Any]:
        call = Call(self._model, model_args, model_kwargs)
        return lambda z: constrained(call, z)

    def init(
        self,
        rng_key: Array,
        num_warmup: int,
        init_params: Any,
        model_args: Any,
        model_kwargs: Any,
    ) -> ParticleMetropolisState:
        """The state that chains start from, one for each key.

        `init_params` are unconstrained, as for NumPyro's own kernels.

        **Raises:** as the constructor says; `KeyError`, `TypeError` and `ValueError` for `init_params` that
        are not those of the model, and `RuntimeError` where no parameters with a finite likelihood were
        found."""
        call = Call(self._model, model_args, model_kwargs)
        self._num_warmup = num_warmup
        self._sample_fn = self._step
        one = jax.jit(lambda key, z: self._start(call, key, z))
        start = lambda key, z: self._try(one, call, key, z)
        if is_prng_key(rng_key):
            z = start_point(_NAME, call, rng_key, self._init_strategy)
            check_estimates(_NAME, call, z)
            return start(rng_key, init_params)
        z = start_point(_NAME, call, rng_key[0], self._init_strategy)
        check_estimates(_NAME, call, z)
        chains = range(len(rng_key))
        given = [jax.tree.map(lambda x, c=c: x[c], init_params) for c in chains]
        states = [start(rng_key[c], given[c]) for c in chains]
        return jax.tree.map(lambda *each: jnp.stack(each), *states)

    def _try(
        self, one: Callable[..., ParticleMetropolisState], call: Call, key: Array, z: Any
    ) -> ParticleMetropolisState:
        """A start of a positive posterior density."""
        for k in jax.random.split(key, _TRIES):
            state = one(k, z)
            if is_traced(state) or jnp.isfinite(state.potential_energy):
                return state
        raise RuntimeError(
            f"{_NAME}: the likelihood is 0 at {_TRIES} "
            f"{'runs at the given `init_params`' if z is not None else 'starts from `init_strategy`'} "
            "(all particles died); give `init_params`, another `init_strategy` or more particles"
        )

    def _start(self, call: Call, key: Array, z: Any) -> ParticleMetropolisState:
        key_start, key_estimate, key = jax.random.split(key, 3)
        first = start_point(_NAME, call, key_start, self._init_strategy)
        z = first if z is None else _given(z, first)
        found = estimate(call, z, key_estimate, self._paths)
        flat = ravel_pytree(z)[0]
        cov = jnp.asarray(self._proposal_cov, flat.dtype)
        if cov.shape not in ((), flat.shape, (len(flat), len(flat))):
            raise ValueError(
                f"{_NAME}: `proposal_cov` has shape {cov.shape}; expected (), ({len(flat)},) or "
                f"({len(flat)}, {len(flat)})"
            )
        if cov.ndim < 2:
            cov = jnp.diag(jnp.broadcast_to(cov, flat.shape))
        if not is_traced(cov) and not (np.linalg.eigvalsh((cov + cov.T) / 2) > 0).all():
            raise ValueError(
                f"{_NAME}: `proposal_cov` is {self._proposal_cov!r}; expected positive variances or a "
                "positive definite covariance"
            )
        zero = jnp.zeros((), flat.dtype)
        return ParticleMetropolisState(
            jnp.zeros((), jnp.int32),
            z,
            found.log_prior,
            found.log_likelihood,
            -(found.log_prior + found.log_likelihood),
            found.paths,
            zero,
            zero,
            zero,
            start_walk(flat, cov),
            key,
        )

    def sample(
        self, state: ParticleMetropolisState, model_args: Any, model_kwargs: Any
    ) -> ParticleMetropolisState:
        """The state after a step, of one chain or of several."""
        call = Call(self._model, model_args, model_kwargs)
        # (The same for all chains, so that chains under `vmap` have one number of estimates too.)
        warm = state.i.reshape(-1)[0] < self._num_warmup
        one = lambda state: self._step(call, state, warm)
        return one(state) if is_prng_key(state.rng_key) else jax.vmap(one)(state)

    def _step(
        self, call: Call, state: ParticleMetropolisState, warm: Bool[Array, ""]
    ) -> ParticleMetropolisState:
        key, key_step, key_accept, key_new, key_now = jax.random.split(state.rng_key, 5)
        flat, unravel = ravel_pytree(state.z)
        proposed = step(state.walk, flat, key_step)

        # The proposal; in the warm-up the current parameters too, to see how estimates vary.
        points, keys = jnp.stack([proposed, flat]), jnp.stack([key_new, key_now])
        now = Estimate(state.log_prior, state.log_likelihood, state.paths)

        def put(k: Array, found: tuple[Estimate, Estimate]) -> tuple[Estimate, Estimate]:
            made = estimate(call, unravel(points[k]), keys[k], self._paths)
            return select(k == 0, made, found[0]), made

        new, spare = jax.lax.fori_loop(0, jnp.where(warm, 2, 1), put, (now, now))
        # A lucky estimate far from the mode would hold a warm-up up for long.
        half = self._num_warmup // 2
        early = state.i < half
        anew = warm & (early | (state.walk.still >= _PATIENCE))
        now = select(anew, spare, now)

        ratio = new.log_prior + new.log_likelihood - now.log_prior - now.log_likelihood
        ratio = jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)
        accept_prob = jnp.exp(jnp.minimum(ratio, 0.0))
        accepted = jax.random.uniform(key_accept, (), accept_prob.dtype) < accept_prob
        last = select(accepted, new, now)
        flat = jnp.where(accepted, proposed, flat)

        i = state.i + 1
        stage = jnp.where(early, state.i, state.i - half)
        learned = learn(
            state.walk,
            state.i,
            flat,
            accept_prob,
            accepted,
            spare.log_likelihood,
            early,
            stage,
        )
        walk = select(warm, learned, state.walk)
        count = jnp.where(warm, i, i - self._num_warmup)
        mean = state.mean_accept_prob
        mean = mean + (accept_prob - mean) / jnp.maximum(count, 1)
        return ParticleMetropolisState(
            i,
            unravel(flat),
            last.log_prior,
            last.log_likelihood,
            -(last.log_prior + last.log_likelihood),
            last.paths,
            accept_prob,
            mean,
            walk.noise if self._num_warmup else jnp.full_like(walk.noise, jnp.nan),
            walk,
            key,
        )


def _given(z: Any, like: dict[str, Array]) -> dict[str, Array]:
    """**Raises:** `TypeError`, `KeyError`, `ValueError` for `init_params` that are not those of the model."""
    if not isinstance(z, Mapping):
        raise TypeError(
            f"{_NAME}: `init_params` is {type(z).__name__}; expected unconstrained parameters by name"
        )
    if set(z) != set(like):
        raise KeyError(f"{_NAME}: `init_params` has {sorted(z)}; the parameters are {sorted(like)}")
    for name, x in like.items():
        if jnp.shape(z[name]) != x.shape:
            raise ValueError(
                f"{_NAME}: `init_params` of {name!r} has shape {jnp.shape(z[name])}; expected {x.shape} "
                "(with several chains, after an axis of chains)"
            )
    return {name: jnp.asarray(z[name], x.dtype) for name, x in like.items()}
