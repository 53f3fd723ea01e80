"""The Rao-Blackwellised particle filter: draws of one part of the state, a Kalman filter for the other."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from filterdyn._checks import check_count, check_fraction
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval
from filterdyn.dynamics.conditionally_linear import ConditionallyLinear
from filterdyn.dynamics.gaussian import log_density_of
from filterdyn.filters import gaussian
from filterdyn.filters.particle_weights import effective_sample_size, normalize
from filterdyn.filters.proposals import finite_derivative
from filterdyn.filters.sampling import (
    AbstractSamplingFilter,
    Measurement,
    SamplingStep,
    standardize,
)
from filterdyn.filters.scan import first_failure
from filterdyn.initial import Diffuse
from filterdyn.linalg import PSD, mm, mv
from filterdyn.linalg.gate import gated, only_if
from filterdyn.linearization import Taylor
from filterdyn.model import StateSpaceModel
from filterdyn.moments import conditional_moments
from filterdyn.resampling import AbstractCopying, Systematic, check_copying
from filterdyn.resampling.score_function import stop_gradient_weights
from filterdyn.status import Status

_NAME = "RaoBlackwellizedParticleFilter"


class GaussianMixture(eqx.Module):
    """N weighted Gaussians N(means_i, covs_i): particles, each of which is uncertain itself."""

    means: Float[Array, "*T N dx"]
    covs: Float[Array, "*T N dx dx"]
    log_weights: Float[Array, "*T N"]

    @property
    def size(self) -> int:
        return self.means.shape[-2]

    @property
    def weights(self) -> Float[Array, "*T N"]:
        return jax.nn.softmax(self.log_weights, axis=-1)

    @property
    def mean(self) -> Float[Array, "*T dx"]:
        return (self.weights[..., None] * self.means).sum(-2)

    @property
    def cov(self) -> Float[Array, "*T dx dx"]:
        a = self.means - self.mean[..., None, :]
        w = self.weights
        between = jnp.einsum("...n,...ni,...nj->...ij", w, a, a, precision="highest")
        return between + (w[..., None, None] * self.covs).sum(-3)

    @property
    def variances(self) -> Float[Array, "*T dx"]:
        return jnp.diagonal(self.cov, axis1=-2, axis2=-1)

    @property
    def effective_sample_size(self) -> Float[Array, "*T"]:
        return 1.0 / (self.weights**2).sum(-1)

    @property
    def is_finite(self) -> Bool[Array, ""]:
        finite = jnp.isfinite(self.means).all() & jnp.isfinite(self.covs).all()
        return finite & jnp.isfinite(self.log_weights.max())

    def sample(self, key: Array) -> Float[Array, " dx"]:
        """One draw (of a belief without a leading axis)."""
        key_which, key_where = jax.random.split(key)
        i = jax.random.categorical(key_which, self.log_weights)
        return Gaussian(self.means[i], spread=PSD.from_matrix(self.covs[i])).sample(key_where)


class RaoBlackwellizedParticleFilter(AbstractSamplingFilter):
    """For `ConditionallyLinear` dynamics: particles for the one part of the state, and for each of them a
    Kalman filter of the other (Doucet, de Freitas, Murphy, Russell 2000). Never more variance than a
    `ParticleFilter` of the same size has, and often as much as one of many times that size saves.

    The observation must be linear in the linear part, given the other, with Gaussian noise that does not
    depend on it; what is not is linearised at the conditional mean. The start of the linear part is
    conditioned on if `initial` is Gaussian, else drawn. Beliefs are mixtures of Gaussians. The
    gradient is exact in the linear part and by Fisher's identity in the other, which may be discrete.
    """

    size: int = eqx.field(static=True)
    resampling: AbstractCopying
    ess_threshold: float = eqx.field(static=True)
    truncation: int | None = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        resampling: AbstractCopying = Systematic(),
        ess_threshold: float = 0.5,
        *,
        truncation: int | None = None,
    ):
        """**Arguments:** as for `ParticleFilter`; `resampling` must copy.

        **Raises:** `ValueError` for numbers out of range, `TypeError` for a transport.
        """
        self.size = check_count(_NAME, "size", size)
        self.resampling = check_copying(_NAME, resampling)
        self.ess_threshold = check_fraction(_NAME, "ess_threshold", ess_threshold)
        self.truncation = (
            None if truncation is None else check_count(_NAME, "truncation", truncation)
        )

    def check(self, model: StateSpaceModel) -> None:
        if not isinstance(model.dynamics, ConditionallyLinear):
            raise TypeError(
                f"{_NAME}: `dynamics` is {type(model.dynamics).__name__}; expected ConditionallyLinear "
                "(for others use fd.ParticleFilter)"
            )
        if isinstance(model.initial, Diffuse):
            raise TypeError(
                f"{_NAME}: `initial` is Diffuse, which cannot be sampled; give the model a proper "
                "distribution"
            )

    def init(self, model: StateSpaceModel, dtype: jnp.dtype, key: Array) -> GaussianMixture:
        dynamics = _dynamics(model)
        log_weights = jnp.full(self.size, -math.log(self.size), dtype)
        x = model.initial.sample(key, (self.size,)).astype(dtype)
        covs = jnp.zeros((self.size, model.dx, model.dx), dtype)
        try:
            exact = conditional_moments(model.initial).exact
        except (TypeError, ValueError):
            exact = False
        if not exact:
            return GaussianMixture(stop_gradient(x), covs, log_weights)
        # The linear part given the other: regression of a Gaussian.
        start, k = model.start(dtype), dynamics.dn
        p = start.spread.matrix
        gain = p[k:, :k] @ jnp.linalg.pinv(p[:k, :k], hermitian=True)
        n = stop_gradient(x[:, :k])
        rest = start.mean[k:] + (n - start.mean[:k]) @ gain.T
        cov = jnp.zeros_like(p).at[k:, k:].set(p[k:, k:] - gain @ p[:k, k:])
        marginal = PSD.from_matrix(p[:k, :k])
        density = jax.vmap(lambda n: log_density_of(n - start.mean[:k], marginal))(n)
        means = jnp.concatenate([n, rest], axis=1)
        covs = jnp.broadcast_to(0.5 * (cov + cov.T), covs.shape)
        return GaussianMixture(means, covs, log_weights + finite_derivative(density))

    def advance(
        self, model: StateSpaceModel, belief: GaussianMixture, interval: Interval, key: Array
    ) -> tuple[GaussianMixture, Int[Array, ""]]:
        return self._moved(model, belief, interval, key), jnp.int32(Status.OK)

    def moments(self, belief: GaussianMixture) -> tuple[Float[Array, "N dx"], Float[Array, " N"]]:
        """Draws, one of each Gaussian at its mean: a forecast of measurements lacks their spread."""
        return belief.means, belief.weights

    def step(
        self,
        model: StateSpaceModel,
        belief: GaussianMixture,
        interval: Interval,
        measurement: Measurement,
        key: Array,
    ) -> SamplingStep:
        key_resample, key_move = jax.random.split(key)
        belief, resampled = self._resampled(belief, interval, key_resample)
        prior = self._moved(model, belief, interval, key_move)
        t, u, y = measurement.time, measurement.input, measurement.value

        def one(mean: Array, cov: Array) -> Any:
            at = Gaussian(mean, spread=PSD.from_matrix(cov).without_factor())
            new = gaussian.update(model, at, t, u, y, Taylor())
            return (
                new.belief.mean,
                new.belief.spread.matrix,
                new.log_likelihood,
                new.status,
                new.innovation,
                new.innovation_cov,
            )

        means, covs, seen, statuses, innovations, innovation_covs = jax.vmap(one)(
            prior.means, prior.covs
        )
        fine = (statuses == Status.OK) & jnp.isfinite(means).all(1) & ~jnp.isnan(seen)
        means = jnp.where(fine[:, None], means, prior.means)
        covs = jnp.where(fine[:, None, None], covs, prior.covs)
        new = normalize(prior.log_weights + jnp.where(fine, seen, -jnp.inf), belief.log_weights)
        status = jnp.where(fine.any(), Status.OK, statuses.max()).astype(jnp.int32)
        after = GaussianMixture(means, covs, new.log_weights)
        w = prior.weights
        innovation = (w[:, None] * innovations).sum(0)
        a = jnp.where(jnp.isnan(y), 0.0, innovations - innovation)
        spread = (w[:, None, None] * innovation_covs).sum(0) + (w[:, None] * a).T @ a
        return SamplingStep(
            prior,
            after,
            innovation,
            spread,
            standardize(stop_gradient(innovation), stop_gradient(spread)),
            new.log_sum,
            first_failure(status, new.status),
            {
                "effective_sample_size": effective_sample_size(new.log_weights),
                "resampled": resampled,
            },
        )

    def _resampled(
        self, belief: GaussianMixture, interval: Interval, key: Array
    ) -> tuple[GaussianMixture, Bool[Array, ""]]:
        log_weights = belief.log_weights
        few = effective_sample_size(log_weights) < self.ess_threshold * self.size
        needed = (interval.gap > 0) & (few | (self.ess_threshold == 1))

        def yes() -> tuple[Array, Array, Array]:
            ancestors = self.resampling.ancestors(key, log_weights)
            means, weights = stop_gradient_weights(belief.means, log_weights, ancestors)
            return means, belief.covs[ancestors], weights

        def no() -> tuple[Array, Array, Array]:
            return belief.means, belief.covs, log_weights

        return GaussianMixture(*only_if(needed, yes, no())), needed

    def _moved(
        self, model: StateSpaceModel, belief: GaussianMixture, interval: Interval, key: Array
    ) -> GaussianMixture:
        dynamics = _dynamics(model)
        k, keys = dynamics.dn, jax.random.split(key, self.size)

        def one(key: Array, mean: Array, cov: Array, interval: Interval) -> Any:
            n = mean[:k]
            driven = dynamics.driven(n, interval)
            to = stop_gradient(jnp.asarray(driven.sample(key), mean.dtype))
            density = jnp.asarray(driven.log_prob(to), mean.dtype)
            f, b, q = dynamics.move(n, to, interval)
            rest = mm(mm(f, cov[k:, k:]), f.T) + q
            cov = jnp.zeros_like(cov).at[k:, k:].set(0.5 * (rest + rest.T))
            return jnp.concatenate([to, mv(f, mean[k:]) + b]), cov, density

        def move(means: Array, covs: Array, interval: Interval) -> Any:
            moved = jax.vmap(lambda key, m, p: one(key, m, p, interval))(keys, means, covs)
            return moved, interval.gap > 0

        table, plain = interval.table, interval._replace(table=None)
        guarded = gated(
            lambda m, p, i: move(m, p, i._replace(table=table)),
            lambda out: out[1],
            belief.means,
            belief.covs,
            plain,
        )
        (means, covs, density), used = guarded(belief.means, belief.covs, plain)
        return GaussianMixture(
            jnp.where(used, means, belief.means),
            jnp.where(used, covs, belief.covs),
            belief.log_weights + jnp.where(used, finite_derivative(density), 0.0),
        )


def _dynamics(model: StateSpaceModel) -> ConditionallyLinear:
    assert isinstance(model.dynamics, ConditionallyLinear)
    return model.dynamics
