"""The particle filter."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from filterdyn._callables import Held, hold_function
from filterdyn._checks import check_count, check_fraction
from filterdyn.beliefs import Particles
from filterdyn.dynamics import Interval
from filterdyn.filters.base import AbstractFilter
from filterdyn.filters.particle_weights import (
    effective_sample_size,
    innovation_of,
    measurement_log_weights,
    normalize,
)
from filterdyn.filters.path_methods import AbstractPathMethod, BackwardSmoothing
from filterdyn.filters.proposals import (
    AbstractProposal,
    as_proposal,
    check_gaussian,
    each,
    finite_derivative,
    look_ahead,
)
from filterdyn.filters.sampling import (
    AbstractSamplingFilter,
    Measurement,
    SamplingStep,
    propagate,
)
from filterdyn.filters.scan import first_failure
from filterdyn.initial import Diffuse
from filterdyn.linalg.gate import only_if
from filterdyn.model import StateSpaceModel
from filterdyn.moments import bare
from filterdyn.resampling import (
    COPIERS,
    GRADIENTS,
    AbstractCopying,
    AbstractResampling,
    AbstractTransport,
    OptimalTransport,
    SortedTransport,
    Systematic,
    softened,
)
from filterdyn.status import Status

_NAME = "ParticleFilter"
#: The derivative that a transport has by itself.
_OF_TRANSPORT: dict[type, str] = {OptimalTransport: "entropic", SortedTransport: "sorted"}


class ParticleFilter(AbstractSamplingFilter):
    """Weighted draws of the state (Gordon, Salmond, Smith 1993), for any model that can be simulated and
    any observation with a density.

    Before each move particles are resampled if their effective sample size has fallen below
    `ess_threshold` times their number; then they are drawn from the proposal and weighted by
    p(y | x') p(x' | x) / q(x' | x, y). exp(log-likelihood) is unbiased for every resampling scheme that
    copies, every threshold, every proposal (as wide as p) and every gradient mode; the log-likelihood
    itself is low by about half its variance.
    """

    size: int = eqx.field(static=True)
    resampling: AbstractResampling
    ess_threshold: float = eqx.field(static=True)
    proposal: AbstractProposal
    auxiliary: AbstractFilter | Held | None
    #: `None`: "affine", or "score" where draws of the next state are not differentiable.
    gradient: str | None = eqx.field(static=True)
    discount: float = eqx.field(static=True)
    truncation: int | None = eqx.field(static=True)
    paths: AbstractPathMethod

    def __init__(
        self,
        size: int,
        resampling: AbstractResampling = Systematic(),
        ess_threshold: float = 0.5,
        proposal: Any = None,
        gradient: str | None = None,
        *,
        auxiliary: Any = None,
        discount: float = 1.0,
        truncation: int | None = None,
        paths: AbstractPathMethod = BackwardSmoothing(),
    ):
        """**Arguments:**

        - `size`: N, how many particles;
        - `resampling`: `Systematic`, `Stratified`, `Multinomial`, `Residual` or `Killing`, or a transport:
          `OptimalTransport`, `SortedTransport`;
        - `ess_threshold`: 0 never resamples, 1 in every row, without a branch (which is as fast, and
          under `jax.vmap` faster than a threshold in between, of which it computes both branches);
        - `proposal`: `None` for the dynamics themselves (the bootstrap filter); a Gaussian filter, such as
          `fd.ExtendedKalmanFilter()`, started at every particle; or a function `(t, x, u, y)` that
          returns a distribution of the next state, with `t` and `u` those of the row that is left and `y`
          the measurement of the row that is reached (NaN = missing). The latter two need dynamics with a
          transition density;
        - `gradient`: the derivative that resampled particles carry. By default `"affine"`, and `"score"`
          where draws are not differentiable (counts, regimes). `"affine"`: that of the
          flow of their mean and covariance; `"sorted"`: of their quantiles (one state); `"entropic"`: of
          entropic optimal transport (N up to a few hundred); `"stop"`: the weights' (Scibior, Wood 2021);
          `"score"`: Fisher's identity, with particles fixed and transition densities differentiated;
          `"soft"`: resampling from a mixture with equal weights; `"none"`: none, which is biased. Values
          are the same but for `"soft"`. A transport has its own;
        - `auxiliary`: particles are resampled by weight times an estimate of p(y | x) (Pitt, Shephard
          1999): a Gaussian filter, or a function `(t, x, u, y)` that returns its logarithm;
        - `discount`: of the derivative of old weights, for `gradient="score"`: below 1 there is less
          noise and some bias (the MOP-alpha of Tan, Hooker, Ionides 2024);
        - `truncation`: a gradient forgets what is more than this many rows ago;
        - `paths`: how `fd.smooth` and `fd.sample_paths` look back: `BackwardSmoothing`, `BackwardChain`,
          `BackwardRejection`, `TwoFilter` or, for dynamics without a transition density, `FixedLag`.

        **Raises:** `ValueError` for numbers out of range and combinations that do not fit, `TypeError` for
        other kinds of objects.
        """
        self.size = check_count(_NAME, "size", size)
        if not isinstance(resampling, AbstractResampling):
            raise TypeError(
                f"{_NAME}: `resampling` is {resampling!r}; expected one such as fd.Systematic()"
            )
        self.resampling = resampling
        self.ess_threshold = check_fraction(_NAME, "ess_threshold", ess_threshold)
        self.proposal = as_proposal(_NAME, proposal)
        self.auxiliary = _as_auxiliary(auxiliary)
        self.gradient = _check_gradient(gradient, resampling)
        self.discount = check_fraction(_NAME, "discount", discount)
        if self.discount != 1 and self.gradient != "score":
            raise ValueError(f"{_NAME}: `discount` belongs to gradient='score', not {gradient!r}")
        if not isinstance(paths, AbstractPathMethod):
            raise TypeError(f"{_NAME}: `paths` is {paths!r}; expected one such as fd.FixedLag(20)")
        self.paths = paths
        self.truncation = (
            None if truncation is None else check_count(_NAME, "truncation", truncation)
        )

    def check(self, model: StateSpaceModel) -> None:
        if isinstance(model.initial, Diffuse):
            raise TypeError(
                f"{_NAME}: `initial` is Diffuse, which cannot be sampled; give the model a proper "
                "distribution, or use KalmanFilter"
            )
        if isinstance(self.resampling, AbstractTransport):
            self.resampling.check(_NAME, model.dx)
        if self.gradient == "sorted" and model.dx != 1:
            raise ValueError(
                f"{_NAME}: gradient='sorted' is for one state, the model has {model.dx}; use 'affine'"
            )
        self.proposal.check(model)
        if isinstance(self.auxiliary, AbstractFilter):
            self.auxiliary.check(model)

    def init(self, model: StateSpaceModel, dtype: jnp.dtype, key: Array) -> Particles:
        positions = model.initial.sample(key, (self.size,)).astype(dtype)
        log_weights = jnp.full(self.size, -math.log(self.size), dtype)
        score = self.gradient == "score" and not isinstance(bare(model.initial), dist.Delta)
        if score or not model.initial.has_rsample:
            positions = stop_gradient(positions)
            density = jax.vmap(model.initial.log_prob)(positions).astype(dtype)
            log_weights = log_weights + finite_derivative(density)
        return Particles(positions, log_weights)

    def advance(
        self, model: StateSpaceModel, belief: Particles, interval: Interval, key: Array
    ) -> tuple[Particles, Int[Array, ""]]:
        positions = propagate(model, belief.positions, interval, key)
        return Particles(positions, belief.log_weights), jnp.int32(Status.OK)

    def step(
        self,
        model: StateSpaceModel,
        belief: Particles,
        interval: Interval,
        measurement: Measurement,
        key: Array,
    ) -> SamplingStep:
        return self.step_and_ancestors(model, belief, interval, measurement, key)[0]

    def step_and_ancestors(
        self,
        model: StateSpaceModel,
        belief: Particles,
        interval: Interval,
        measurement: Measurement,
        key: Array,
    ) -> tuple[SamplingStep, Int[Array, " N"]]:
        """`step`, and whom in the belief before it each particle descends from."""
        key_resample, key_move = jax.random.split(key)
        mode = self._mode(model, belief, interval, measurement)
        x, log_weights, resampled, ancestors = self._resample(
            model, belief, interval, measurement, key_resample, mode
        )
        score = mode == "score"
        drawn = self.proposal.draw(model, x, interval, measurement, key_move, score)
        # A particle that has left the real line stays where it was, with weight zero.
        finite = jnp.isfinite(drawn.positions).all(1)
        x = jnp.where(finite[:, None], drawn.positions, x)
        prior = jnp.where(finite, log_weights + drawn.log_ratio, -jnp.inf)
        seen, status = measurement_log_weights(model, x, measurement)
        new = normalize(prior + seen, log_weights)
        after = Particles(x, new.log_weights)
        innovation, cov, standardized = innovation_of(model, x, prior, measurement)
        step = SamplingStep(
            Particles(x, prior),
            after,
            innovation,
            cov,
            standardized,
            new.log_sum,
            first_failure(status, new.status),
            {
                "effective_sample_size": effective_sample_size(new.log_weights),
                "resampled": resampled,
            },
        )
        return step, ancestors

    def _mode(
        self,
        model: StateSpaceModel,
        belief: Particles,
        interval: Interval,
        measurement: Measurement,
    ) -> str:
        """The gradient mode for this model."""
        smooth = self.proposal.is_reparameterized(model, belief.positions[0], interval, measurement)
        if self.gradient is None:
            return "affine" if smooth else "score"
        copies = isinstance(self.resampling, AbstractCopying)
        if copies and not smooth and self.gradient not in ("score", "none"):
            raise ValueError(
                f"{_NAME}: gradient={self.gradient!r} differentiates particles, but draws of the next state "
                "are not differentiable (NumPyro has no reparameterisation of their distribution); "
                "use gradient='score'"
            )
        return self.gradient

    def _resample(
        self,
        model: StateSpaceModel,
        belief: Particles,
        interval: Interval,
        measurement: Measurement,
        key: Array,
        mode: str,
    ) -> tuple[Float[Array, "N dx"], Float[Array, " N"], Array, Int[Array, " N"]]:
        """Positions and log-weights before a move, whether they were resampled, and the ancestors. The
        sum of the weights is one but for an auxiliary filter, where it is one on average."""
        x, log_weights = belief.positions, belief.log_weights
        nobody = jnp.arange(self.size, dtype=jnp.int32)
        moving = interval.gap > 0
        if self.ess_threshold == 0:
            return x, log_weights, jnp.array(False), nobody
        potential = self._potential(model, interval, measurement)
        first = log_weights if potential is None else log_weights + potential(x)

        def yes() -> tuple[Array, Array, Array]:
            positions, weights, ancestors = self._resampled(x, first, key, mode)
            if potential is not None:
                alive = stop_gradient(first).max() > -jnp.inf
                total = jax.nn.logsumexp(jnp.where(alive, first, 0.0))
                weights = weights + total - potential(positions)
            return positions, weights, ancestors

        def no() -> tuple[Array, Array, Array]:
            return x, log_weights, nobody

        if self.ess_threshold == 1:
            needed = moving
            chosen = jax.tree.map(lambda a, b: jnp.where(needed, a, b), yes(), no())
        else:
            few = effective_sample_size(first) < self.ess_threshold * self.size
            needed = moving & few
            chosen = only_if(needed, yes, no())
        positions, weights, ancestors = chosen
        return positions, weights, needed, ancestors

    def _resampled(
        self, x: Float[Array, "N dx"], log_weights: Float[Array, " N"], key: Array, mode: str
    ) -> tuple[Array, Array, Array]:
        """Positions, log-weights of sum one, ancestors."""
        nobody = jnp.arange(self.size, dtype=jnp.int32)
        equal = jnp.full(self.size, -math.log(self.size), x.dtype)
        if isinstance(self.resampling, AbstractTransport):
            return self.resampling.transport(x, log_weights), equal, nobody
        assert isinstance(self.resampling, AbstractCopying)
        drawn_by = softened(log_weights) if mode == "soft" else log_weights
        ancestors = self.resampling.ancestors(key, drawn_by)
        positions, weights = COPIERS[mode](x, log_weights, ancestors)
        if mode == "score":
            fixed = stop_gradient(weights)
            weights = fixed + self.discount * (weights - fixed)
        return positions, weights, ancestors

    def _potential(
        self, model: StateSpaceModel, interval: Interval, measurement: Measurement
    ) -> Any:
        """The auxiliary filter's estimate of log p(y | x) for many states, or `None`."""
        if self.auxiliary is None:
            return None

        def one(x: Array, _: None, interval: Interval) -> tuple[Array, Array]:
            if isinstance(self.auxiliary, AbstractFilter):
                found = look_ahead(self.auxiliary, model, x, interval, measurement)[1]
            else:
                assert self.auxiliary is not None
                y = measurement.value
                found = jnp.asarray(self.auxiliary(interval.time, x, interval.input, y), x.dtype)
            return found, interval.gap > 0

        seen = ~jnp.isnan(measurement.value).all()

        def potential(x: Float[Array, "N dx"]) -> Float[Array, " N"]:
            found, moving = each(one, x, None, interval)
            return jnp.where(moving & seen & ~jnp.isnan(found), found, 0.0)

        return potential


def _as_auxiliary(auxiliary: Any) -> AbstractFilter | Held | None:
    if auxiliary is None or isinstance(auxiliary, Held):
        return auxiliary
    if isinstance(auxiliary, AbstractFilter):
        check_gaussian(_NAME, "auxiliary", auxiliary)
        return auxiliary
    if isinstance(auxiliary, type) or not callable(auxiliary):
        raise TypeError(
            f"{_NAME}: `auxiliary` is {auxiliary!r}; expected a Gaussian filter such as "
            "fd.ExtendedKalmanFilter(), or a function (t, x, u, y) that returns an estimate of "
            "log p(y | x)"
        )
    return hold_function(_NAME, "auxiliary", auxiliary)


def _check_gradient(gradient: str | None, resampling: AbstractResampling) -> str | None:
    own = _OF_TRANSPORT.get(type(resampling))
    if gradient is None:
        return own
    if gradient not in GRADIENTS:
        raise ValueError(
            f"{_NAME}: `gradient` is {gradient!r}; expected one of {', '.join(GRADIENTS)}"
        )
    if own is not None and gradient != own:
        raise ValueError(
            f"{_NAME}: `gradient` is {gradient!r}, but {type(resampling).__name__} moves particles "
            f"itself, which is gradient={own!r}; other modes go with a scheme that copies"
        )
    return gradient
