"""A measurement of any distribution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float

from filterdyn._callables import Function, Held, hold_function
from filterdyn._checks import batch_hint
from filterdyn.beliefs import Gaussian
from filterdyn.linearization import AbstractLinearization, Taylor
from filterdyn.moments import Moments, bare, conditional_moments
from filterdyn.observations.additive import with_error
from filterdyn.observations.base import AbstractObservation, LinearizedObservation
from filterdyn.status import Status
from filterdyn.transforms import gaussian_view


class Observation(AbstractObservation):
    """y ~ fn(t, x, u), any NumPyro distribution of event shape (dy,).

    A Gaussian, and a bijective transform of one (`LogNormal`, logit-normal), enters a Gaussian filter
    exactly, in the space where it is Gaussian and with its log-Jacobian. Every other family enters by
    its conditional mean and covariance (`conditional_moments`), and results say so
    (`moments_matched`). Where the state is known exactly the filter evaluates `log_prob` itself.
    """

    fn: Held

    def __init__(self, fn: Function):
        """**Arguments:** `fn(t, x, u)`, a function that returns a NumPyro distribution with event
        shape (dy,) and no batch shape: independent entries are declared with `.to_event(1)`."""
        self.fn = hold_function("Observation", "fn", fn)

    def distribution(self, t: Any, x: Float[Array, " dx"], u: Any) -> dist.Distribution:
        d = self.fn(t, x, u)
        if not isinstance(d, dist.Distribution):
            raise TypeError(
                f"Observation: `fn(t, x, u)` returned {type(d).__name__}; expected a NumPyro "
                "distribution (for a mean with Gaussian noise use GaussianObservation)"
            )
        if d.batch_shape != () or len(d.event_shape) != 1:
            raise ValueError(
                f"Observation: `fn(t, x, u)` returned {type(d).__name__} with batch shape "
                f"{d.batch_shape} and event shape {d.event_shape}; expected batch shape () and event "
                "shape (dy,), as `.to_event(1)` gives"
                f"{batch_hint(bool(d.batch_shape and d.event_shape))}"
            )
        return d

    def linearize(
        self, rule: AbstractLinearization, at: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> LinearizedObservation:
        # So that moments which are infinite whatever the state are refused when the model is traced.
        with jax.ensure_compile_time_eval():
            here = self.distribution(t, at.mean, u)
        view = gaussian_view(here)
        if view is None:
            return self._matched(rule, at, t, u, y, here)

        def mean(x: Array) -> Array:
            found = gaussian_view(self.distribution(t, x, u))
            assert found is not None
            return found.loc

        def noise(x: Array) -> Array:
            found = gaussian_view(self.distribution(t, x, u))
            assert found is not None
            return found.noise

        found = rule(mean, at)
        noise_at = view.noise if isinstance(rule, Taylor) else rule.average(noise, at)
        z, log_jacobian, observed, status = view.pull_back(y)
        return LinearizedObservation(
            z,
            observed,
            found.value,
            found.slope,
            with_error(noise_at, found),
            log_jacobian,
            None,
            status,
        )

    def _matched(
        self,
        rule: AbstractLinearization,
        at: Gaussian,
        t: Any,
        u: Any,
        y: Array,
        here: dist.Distribution,
    ) -> LinearizedObservation:
        moments = lambda x: conditional_moments(self.distribution(t, x, u))
        mean = rule(lambda x: moments(x).mean, at)
        joint = conditional_is_joint(here)

        def noise_of(found: Moments) -> Array:
            cov = found.cov.matrix
            return cov if joint else (cov * jnp.eye(len(cov), dtype=cov.dtype)).sum(1)

        if isinstance(rule, Taylor):
            noise = noise_of(conditional_moments(here))
        else:
            noise = rule.average(lambda x: noise_of(moments(x)), at)
        observed = ~jnp.isnan(y)
        finite = jnp.isfinite(mean.value).all() & jnp.isfinite(noise).all()
        status = jnp.where(finite, Status.OK, Status.MOMENTS_NOT_FINITE).astype(jnp.int32)
        log_prob, support = masked_log_prob(here, y, observed)
        status = jnp.where(status == Status.OK, support, status)
        return LinearizedObservation(
            jnp.where(observed, y, 0.0),
            observed,
            mean.value,
            mean.slope,
            with_error(noise, mean),
            jnp.zeros((), mean.value.dtype),
            log_prob,
            status,
        )

    def check(self, owner: str, t: Any, x: Any, u: Any, dy: int | None) -> None:
        d = jax.eval_shape(self.distribution, t, x, u)
        if dy is not None and d.event_shape != (dy,):
            raise ValueError(
                f"{owner}: `fn(t, x, u)` returned a distribution of event shape {d.event_shape}; "
                f"expected ({dy},), the series has that many columns"
            )


def conditional_is_joint(d: dist.Distribution) -> bool:
    """Are the entries of one draw dependent?"""
    return bool(bare(d).event_shape)


def masked_log_prob(
    d: dist.Distribution, y: Float[Array, " dy"], observed: Bool[Array, " dy"]
) -> tuple[Float[Array, ""], Array]:
    """log p of the observed entries, and a status: in the support, and is that marginal known?"""
    joint = conditional_is_joint(d)
    entries = d
    while not joint and isinstance(entries, dist.Independent):
        entries = entries.base_dist
    whole = observed.all()
    use = whole if joint else observed
    possible = entries.support.feasible_like(y)
    inside = jnp.where(use, entries.support(jnp.where(use, y, possible)), True)
    safe = jnp.where(use & inside, y, possible)
    log_prob = jnp.where(use, entries.log_prob(safe), 0.0).sum()
    status = jnp.where(inside.all(), Status.OK, Status.OBSERVATION_OUT_OF_SUPPORT)
    if joint:
        status = jnp.where(whole | ~observed.any(), status, Status.MARGINAL_NOT_AVAILABLE)
    return log_prob, status.astype(jnp.int32)
