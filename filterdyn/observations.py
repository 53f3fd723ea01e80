"""How a state is seen: observation models and what a Gaussian filter needs of them."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float

from filterdyn._callables import Function, Held, hold_function
from filterdyn._checks import (
    batch_hint,
    check_covariance,
    check_finite,
    check_shape,
    float_array,
    returned,
)
from filterdyn.beliefs import Gaussian
from filterdyn.linalg import factor_of, mm, mv
from filterdyn.linearization import AbstractLinearization, Linearized, Taylor
from filterdyn.moments import bare, conditional_moments
from filterdyn.status import Status
from filterdyn.transforms import GaussianView, gaussian_view


class LinearizedObservation(NamedTuple):
    """z = value + slope (x - m) + N(0, noise), with z the measurement `y` in the space where it is
    Gaussian and `log_jacobian` the log-density correction of getting there."""

    z: Float[Array, " dy"]
    observed: Bool[Array, " dy"]
    value: Float[Array, " dy"]
    slope: Float[Array, "dy dx"]
    noise: Float[Array, " dy"] | Float[Array, "dy dy"]
    log_jacobian: Float[Array, ""]
    #: log p(y | m) for a family that is matched by moments, else None.
    exact_log_prob: Float[Array, ""] | None
    status: Array


class AbstractObservation(eqx.Module):
    """The distribution of a measurement given the state."""

    #: Is the measurement a linear function of the state plus Gaussian noise?
    is_linear: ClassVar[bool] = False

    @abc.abstractmethod
    def distribution(self, t: Any, x: Float[Array, " dx"], u: Any) -> dist.Distribution:
        """The NumPyro distribution of y (event shape (dy,)) at time `t`, state `x`, input `u`."""

    @abc.abstractmethod
    def linearize(
        self, rule: AbstractLinearization, at: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> LinearizedObservation:
        """The affine stand-in around the belief `at`, with the measurement `y` (NaN = missing)."""

    @abc.abstractmethod
    def check(self, owner: str, t: Any, x: Any, u: Any, dy: int | None) -> None:
        """Raise if the model does not give `dy` quantities for a state like `x` (shapes only)."""

    def view(self, t: Any, x: Any, u: Any) -> GaussianView | None:
        """The measurement as a transformed Gaussian, or `None` if it is matched by moments."""
        return gaussian_view(self.distribution(t, x, u))


def _noise(owner: str, name: str, value: Any) -> Held | Array:
    if callable(value):
        return hold_function(owner, name, value)
    array = float_array(owner, name, value)
    if array.ndim > 2 or (array.ndim == 2 and array.shape[0] != array.shape[1]):
        raise ValueError(
            f"{owner}: `{name}` has shape {array.shape}; expected a variance (), variances (n,) or a "
            "covariance (n, n)"
        )
    check_covariance(owner, name, array)
    return array


def _at(value: Any, t: Any) -> Any:
    """A matrix given as an array, or as a function of time."""
    if value is None or not isinstance(value, Held):
        return value
    return jnp.asarray(value(t))


def _noise_at(owner: str, value: Any, t: Any, dy: int) -> Array:
    """R as variances (dy,) or a covariance (dy, dy)."""
    r = _at(value, t)
    if r.ndim == 0:
        return jnp.broadcast_to(r, (dy,))
    if r.shape not in ((dy,), (dy, dy)):
        raise ValueError(
            f"{owner}: `R` has shape {r.shape}; expected (), ({dy},) or ({dy}, {dy}) "
            f"for {dy} observed quantities"
        )
    return r


def _gaussian(mean: Array, r: Array) -> dist.Distribution:
    if r.ndim == 1:
        # A scale of 0 is meant: R = 0 is a measurement without noise.
        return dist.Normal(mean, jnp.sqrt(r), validate_args=False).to_event(1)
    return dist.MultivariateNormal(mean, scale_tril=factor_of(0.5 * (r + r.T)), validate_args=False)


def _with_error(noise: Array, mean: Linearized) -> Float[Array, " dy"] | Float[Array, "dy dy"]:
    """Variances (dy,) or a covariance (dy, dy), plus that of the error of the linearisation."""
    if mean.error is None:
        return noise
    dy = len(mean.value)
    if dy == 1:
        return noise + (mean.error * mean.error).sum(1).reshape(noise.shape)
    full = noise * jnp.eye(dy, dtype=noise.dtype) if noise.ndim == 1 else noise
    return full + mm(mean.error, mean.error.T)


def _additive(
    value: Array, slope: Array, r: Array, y: Float[Array, " dy"]
) -> LinearizedObservation:
    observed = ~jnp.isnan(y)
    zero = jnp.zeros((), value.dtype)
    z = jnp.where(observed, y, 0.0)
    ok = jnp.int32(Status.OK)
    return LinearizedObservation(z, observed, value, slope, r, zero, None, ok)


class GaussianObservation(AbstractObservation):
    """y = h(t, x, u) + v, v ~ N(0, R)."""

    h: Held
    R: Held | Array

    def __init__(self, h: Function, R: Any):
        """**Arguments:**

        - `h(t, x, u) -> (dy,)`: the noise-free measurement, in the units of y;
        - `R`: covariance (dy, dy), variances (dy,), one variance () for all entries, or a function
          of `t` that returns one of these. In squared units of y; 0 means exact.

        **Raises:** `ValueError` for an `R` that is not symmetric positive semi-definite.
        """
        self.h = hold_function("GaussianObservation", "h", h)
        self.R = _noise("GaussianObservation", "R", R)

    def _mean(self, t: Any, x: Any, u: Any) -> Array:
        value = returned("GaussianObservation", "h(t, x, u)", self.h(t, x, u))
        if value.ndim != 1:
            raise ValueError(
                f"GaussianObservation: `h(t, x, u)` returned shape {value.shape}; expected (dy,)"
                f"{batch_hint(value.ndim > 1)}"
            )
        return value

    def distribution(self, t: Any, x: Float[Array, " dx"], u: Any) -> dist.Distribution:
        mean = self._mean(t, x, u)
        return _gaussian(mean, _noise_at("GaussianObservation", self.R, t, mean.shape[0]))

    def linearize(
        self, rule: AbstractLinearization, at: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> LinearizedObservation:
        mean = rule(lambda x: self._mean(t, x, u), at)
        r = _noise_at("GaussianObservation", self.R, t, len(mean.value))
        return _additive(mean.value, mean.slope, _with_error(r, mean), y)

    def check(self, owner: str, t: Any, x: Any, u: Any, dy: int | None) -> None:
        value = jax.eval_shape(self._mean, t, x, u)
        if dy is not None:
            check_shape(owner, "h(t, x, u)", value, (dy,), "the series has that many columns")
        jax.eval_shape(lambda t: _noise_at(owner, self.R, t, value.shape[0]), t)


class LinearObservation(AbstractObservation):
    """y = H x + D u + d + v, v ~ N(0, R)."""

    H: Held | Array
    R: Held | Array
    D: Held | Array | None
    d: Held | Array | None

    is_linear: ClassVar[bool] = True

    def __init__(self, H: Any, R: Any, D: Any = None, d: Any = None):
        """**Arguments:** `H` (dy, dx), `R` (dy, dy), (dy,) or (), `D` (dy, du), `d` (dy,); each an
        array or a function of `t` that returns one.

        **Raises:** `ValueError` for shapes that disagree and for an `R` that is not symmetric
        positive semi-definite.
        """
        owner = "LinearObservation"
        self.H = matrix(owner, "H", H, 2)
        self.R = _noise(owner, "R", R)
        self.D = matrix(owner, "D", D, 2)
        self.d = matrix(owner, "d", d, 1)
        if not isinstance(self.H, Held):
            dy = self.H.shape[0]
            if not isinstance(self.R, Held):
                _noise_at(owner, self.R, None, dy)
            for name in ("D", "d"):
                value = getattr(self, name)
                if value is not None and not isinstance(value, Held) and value.shape[0] != dy:
                    raise ValueError(
                        f"{owner}: `{name}` has shape {value.shape} but `H` has shape "
                        f"{self.H.shape}; the first axes must agree"
                    )

    def _parts(self, t: Any, u: Any) -> tuple[Array, Array]:
        h = _at(self.H, t)
        return h, affine_offset("LinearObservation", h, _at(self.D, t), _at(self.d, t), u, "D")

    def distribution(self, t: Any, x: Float[Array, " dx"], u: Any) -> dist.Distribution:
        h, offset = self._parts(t, u)
        mean = mv(h, x) + offset
        return _gaussian(mean, _noise_at("LinearObservation", self.R, t, h.shape[0]))

    def linearize(
        self, rule: AbstractLinearization, at: Gaussian, t: Any, u: Any, y: Float[Array, " dy"]
    ) -> LinearizedObservation:
        h, offset = self._parts(t, u)
        r = _noise_at("LinearObservation", self.R, t, h.shape[0])
        return _additive(mv(h, at.mean) + offset, h, r, y)

    def check(self, owner: str, t: Any, x: Any, u: Any, dy: int | None) -> None:
        h, _ = jax.eval_shape(self._parts, t, u)
        want = (h.shape[0] if dy is None else dy, x.shape[0])
        check_shape(owner, "H", h, want, "rows: columns of the series, columns: states")
        jax.eval_shape(lambda t: _noise_at(owner, self.R, t, h.shape[0]), t)


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
            _with_error(noise_at, found),
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
        if isinstance(rule, Taylor):
            cov = conditional_moments(here).cov.matrix
        else:
            cov = rule.average(lambda x: moments(x).cov.matrix, at)
        observed = ~jnp.isnan(y)
        finite = jnp.isfinite(mean.value).all() & jnp.isfinite(cov).all()
        status = jnp.where(finite, Status.OK, Status.MOMENTS_NOT_FINITE).astype(jnp.int32)
        log_prob, support = masked_log_prob(here, y, observed)
        status = jnp.where(status == Status.OK, support, status)
        dy, dtype = len(mean.value), mean.value.dtype
        noise = cov if conditional_is_joint(here) else (cov * jnp.eye(dy, dtype=dtype)).sum(1)
        return LinearizedObservation(
            jnp.where(observed, y, 0.0),
            observed,
            mean.value,
            mean.slope,
            _with_error(noise, mean),
            jnp.zeros((), dtype),
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


def matrix(owner: str, name: str, value: Any, ndim: int) -> Any:
    """A user's matrix: `None`, an array of `ndim` axes, or a function of `t`."""
    if value is None:
        return None
    if callable(value):
        return hold_function(owner, name, value)
    array = float_array(owner, name, value)
    if array.ndim != ndim:
        raise ValueError(
            f"{owner}: `{name}` has shape {array.shape}; expected {ndim} "
            f"{'axes' if ndim > 1 else 'axis'}{batch_hint(array.ndim > ndim)}"
        )
    check_finite(owner, name, array)
    return array


def affine_offset(owner: str, slope: Array, b: Any, offset: Any, u: Any, name: str) -> Array:
    """B u + b, with no input counting as zero."""
    total = jnp.zeros(slope.shape[0], slope.dtype)
    if offset is not None:
        total = total + offset
    if b is not None and u is not None:
        if b.shape != (slope.shape[0], u.shape[0]):
            raise ValueError(
                f"{owner}: `{name}` has shape {b.shape}; expected ({slope.shape[0]}, {u.shape[0]}) "
                f"for {u.shape[0]} inputs"
            )
        total = total + mv(b, u)
    return total
