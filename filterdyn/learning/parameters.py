"""Named parameters as one vector without limits, and what is known of them."""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import IdentityTransform, IndependentTransform

from filterdyn._checks import is_traced
from filterdyn.linalg import factor_of
from filterdyn.transforms import GaussianView


class _Limits:
    """A support that can be compared: by its kind and its numbers."""

    def __init__(self, support: Any):
        self.support = support
        leaves, structure = jax.tree.flatten(support)
        numbers = tuple(tuple(np.ravel(np.asarray(leaf, float)).tolist()) for leaf in leaves)
        self._identity = (str(structure), numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Limits) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"{self._identity}"


class ParameterSpace(eqx.Module):
    """Which parameters there are, and how they lie in a vector (k,) without limits: each is the image of
    its part under NumPyro's bijection to its support (the logarithm of what is positive, the logit of
    what lies in an interval)."""

    names: tuple[str, ...] = eqx.field(static=True)
    #: Of each parameter.
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    #: Of each parameter's part of the vector.
    free_shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    limits: tuple[_Limits, ...] = eqx.field(static=True)

    @staticmethod
    def of(owner: str, prior: Mapping[str, dist.Distribution]) -> "ParameterSpace":
        """**Raises:** `TypeError` and `ValueError` for anything but continuous NumPyro distributions by
        name, without a batch shape."""
        if not isinstance(prior, Mapping) or not prior:
            raise TypeError(
                f"{owner}: `prior` is {type(prior).__name__}; expected NumPyro distributions by name, "
                "one or more"
            )
        shapes, free, limits = [], [], []
        for name, d in prior.items():
            if not isinstance(d, dist.Distribution):
                raise TypeError(
                    f"{owner}: `prior[{name!r}]` is {type(d).__name__}; expected a NumPyro distribution"
                )
            if d.batch_shape != ():
                raise ValueError(
                    f"{owner}: `prior[{name!r}]` has batch shape {d.batch_shape}; expected (), as "
                    "`.to_event()` gives"
                )
            if d.support.is_discrete:
                raise ValueError(
                    f"{owner}: `prior[{name!r}]` is discrete ({type(d).__name__}); expected a parameter "
                    "that is a real number"
                )
            if is_traced(d.support):
                raise TypeError(
                    f"{owner}: the limits of `prior[{name!r}]` are traced; expected numbers"
                )
            shapes.append(tuple(d.event_shape))
            free.append(tuple(biject_to(d.support).inverse_shape(d.event_shape)))
            limits.append(_Limits(d.support))
        return ParameterSpace(tuple(prior), tuple(shapes), tuple(free), tuple(limits))

    @property
    def size(self) -> int:
        """k, the length of the vector."""
        return sum(math.prod(shape) for shape in self.free_shapes)

    @property
    def parts(self) -> dict[str, slice]:
        """Where each parameter lies in the vector."""
        found, start = {}, 0
        for name, shape in zip(self.names, self.free_shapes, strict=True):
            found[name] = slice(start, start + math.prod(shape))
            start += math.prod(shape)
        return found

    def transform(self, name: str) -> Any:
        """From a parameter's part of the vector to the parameter."""
        return biject_to(self.limits[self.names.index(name)].support)

    def entrywise(self, name: str) -> tuple[Any, ...] | None:
        """The transforms that make each entry of a parameter of one entry of its part of the vector;
        `None` if they mix entries, as for a point of a simplex."""
        found = self.transform(name)
        while isinstance(found, IndependentTransform):
            found = found.base_transform
        if isinstance(found, IdentityTransform):
            return ()
        return (found,) if found.domain.event_dim == 0 else None

    def named(self, vector: Float[Array, " k"]) -> dict[str, Array]:
        """The parameters at a point."""
        found = {}
        for name, free in zip(self.names, self.free_shapes, strict=True):
            value = self.transform(name)(vector[self.parts[name]].reshape(free))
            found[name] = jnp.asarray(value, vector.dtype)
        return found

    def vector(self, parameters: Mapping[str, Any]) -> Float[Array, " k"]:
        """The point of parameters that lie within their limits.

        **Raises:** `KeyError` if one is missing, `ValueError` for one of another shape or outside."""
        found = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in parameters:
                raise KeyError(f"there is no {name!r} among {sorted(parameters)}")
            value = jnp.asarray(parameters[name], jnp.result_type(float))
            if value.shape != shape:
                raise ValueError(f"{name!r} has shape {value.shape}; expected {shape}")
            free = jnp.ravel(self.transform(name).inv(value))
            if not is_traced(free) and not jnp.isfinite(free).all():
                raise ValueError(
                    f"{name!r} is {parameters[name]!r}; expected a value within its limits"
                )
            found.append(free)
        return jnp.concatenate(found)


class ParameterEstimate(eqx.Module):
    """What is known of the parameters: a Gaussian in the space without limits, or weighted draws.

    - `mean`, `sd`: by name, in the parameters' own units; `interval(probability)`: lower and upper ends;
    - `unconstrained_mean` (k,), `unconstrained_cov` (k, k): in the space without limits;
    - `unidentified()`: directions of which the data have said next to nothing.

    An estimator that claims no posterior has `unconstrained_cov` `None`, and then `mean` is the estimate
    itself, while `sd`, `interval` and `unidentified` raise. Of many rows everything has a leading axis T.
    """

    unconstrained_mean: Float[Array, "*T k"]
    unconstrained_cov: Float[Array, "*T k k"] | None
    #: What the covariance would be if nothing had been measured.
    unmeasured_cov: Float[Array, "*T k k"] | None
    #: Draws (N, k) and their weights (N,), which sum to 1, of an estimator that has them.
    draws: Float[Array, "N k"] | None
    weights: Float[Array, " N"] | None
    space: ParameterSpace

    def __init__(
        self,
        space: ParameterSpace,
        unconstrained_mean: Float[Array, "*T k"],
        unconstrained_cov: Float[Array, "*T k k"] | None = None,
        *,
        unmeasured_cov: Float[Array, "*T k k"] | None = None,
        draws: Float[Array, "N k"] | None = None,
        weights: Float[Array, " N"] | None = None,
    ):
        self.space = space
        self.unconstrained_mean = unconstrained_mean
        self.unconstrained_cov = unconstrained_cov
        self.unmeasured_cov = unmeasured_cov
        self.draws = draws
        self.weights = weights

    @staticmethod
    def of_draws(
        space: ParameterSpace,
        draws: Float[Array, "N k"],
        weights: Float[Array, " N"],
        unmeasured_cov: Float[Array, "k k"] | None = None,
    ) -> "ParameterEstimate":
        """Of weighted points of the space without limits."""
        mean = weights @ draws
        a = draws - mean
        cov = (weights[:, None] * a).T @ a
        return ParameterEstimate(
            space, mean, cov, unmeasured_cov=unmeasured_cov, draws=draws, weights=weights
        )

    @property
    def names(self) -> tuple[str, ...]:
        return self.space.names

    def without_draws(self) -> "ParameterEstimate":
        """Its first two moments, which is what is kept of every row."""
        return ParameterEstimate(
            self.space,
            self.unconstrained_mean,
            self.unconstrained_cov,
            unmeasured_cov=self.unmeasured_cov,
        )

    def _each(self, function: Any) -> Any:
        for _ in range(jnp.ndim(self.unconstrained_mean) - 1):
            function = jax.vmap(function)
        return function(self)

    def _moments(self) -> dict[str, tuple[Array, Array]]:
        """Mean and standard deviation by name."""
        self._needs_cov("sd")
        space = self.space

        def of_draws(one: ParameterEstimate) -> dict[str, tuple[Array, Array]]:
            found = {}
            assert one.draws is not None and one.weights is not None
            values = jax.vmap(space.named)(one.draws)
            for name, value in values.items():
                mean = jnp.tensordot(one.weights, value, 1)
                variance = jnp.tensordot(one.weights, (value - mean) ** 2, 1)
                found[name] = (mean, jnp.sqrt(variance))
            return found

        def of_gaussian(one: ParameterEstimate) -> dict[str, tuple[Array, Array]]:
            assert one.unconstrained_cov is not None
            found = {}
            for name, shape, free in zip(space.names, space.shapes, space.free_shapes, strict=True):
                part, transform = space.parts[name], space.transform(name)
                loc, cov = one.unconstrained_mean[part], one.unconstrained_cov[part, part]
                entrywise = space.entrywise(name)
                if entrywise is not None:
                    mean, cov = GaussianView(loc, cov, entrywise).moments(loc, cov)
                    sd = jnp.sqrt(jnp.maximum(jnp.diagonal(cov), 0.0))
                else:
                    arms = math.sqrt(len(loc)) * factor_of(cov).T
                    points = loc + jnp.concatenate([arms, -arms])
                    y = transform(points.reshape(-1, *free))
                    mean, sd = y.mean(0), y.std(0)
                found[name] = (mean.reshape(shape), sd.reshape(shape))
            return found

        return self._each(of_gaussian if self.draws is None else of_draws)

    @property
    def mean(self) -> dict[str, Array]:
        """The expectation of each parameter, in its own units."""
        if self.unconstrained_cov is None:
            return self._each(lambda one: self.space.named(one.unconstrained_mean))
        return {name: mean for name, (mean, _) in self._moments().items()}

    @property
    def median(self) -> dict[str, Array]:
        """The image of `unconstrained_mean`: the median of a parameter that is a number."""
        return self._each(lambda one: self.space.named(one.unconstrained_mean))

    @property
    def sd(self) -> dict[str, Array]:
        """The standard deviation of each parameter, in its own units.

        **Raises:** `ValueError` of an estimator that claims no posterior."""
        return {name: sd for name, (_, sd) in self._moments().items()}

    def interval(self, probability: float = 0.9) -> dict[str, tuple[Array, Array]]:
        """Lower and upper end of the central interval of each parameter, in its own units: quantiles.

        **Raises:** `ValueError` unless 0 < `probability` < 1, of an estimator that claims no posterior,
        and for a parameter that has no order (a point of a simplex)."""
        if not 0 < probability < 1:
            raise ValueError(f"interval: `probability` is {probability}; expected 0 < p < 1")
        self._needs_cov("interval")
        space = self.space
        for name in space.names:
            if space.entrywise(name) is None:
                raise ValueError(f"interval: {name!r} is no number but a vector under a constraint")
        tail = 0.5 - 0.5 * float(probability)
        reach = NormalDist().inv_cdf(1 - tail)

        def one(estimate: ParameterEstimate) -> tuple[dict[str, Array], dict[str, Array]]:
            if estimate.draws is not None:
                ends = [_quantile(estimate.draws, estimate.weights, p) for p in (tail, 1 - tail)]
            else:
                assert estimate.unconstrained_cov is not None
                sd = jnp.sqrt(jnp.maximum(jnp.diagonal(estimate.unconstrained_cov), 0.0))
                ends = [estimate.unconstrained_mean + sign * reach * sd for sign in (-1, 1)]
            low, high = (space.named(end) for end in ends)
            # (A bijection may turn the order round.)
            return (
                {name: jnp.minimum(low[name], high[name]) for name in low},
                {name: jnp.maximum(low[name], high[name]) for name in low},
            )

        low, high = self._each(one)
        return {name: (low[name], high[name]) for name in space.names}

    def unidentified(self, share: float = 0.9) -> list[dict[str, np.ndarray]]:
        """Directions, in the space without limits, in which the variance is still more than `share` of
        what it would be without any measurement: of these the data have said next to nothing, and what
        an estimate says of them is the prior. Each direction has length 1 in units of that standard
        deviation; the least identified comes first. Of one row only.

        **Raises:** `ValueError` of an estimator that claims no posterior."""
        self._needs_cov("unidentified")
        if self.unmeasured_cov is None or np.ndim(self.unconstrained_mean) != 1:
            raise ValueError("unidentified: expected the estimate of one row, with its prior")
        known = np.asarray(self.unconstrained_cov, float)
        sd = np.sqrt(np.diagonal(np.asarray(self.unmeasured_cov, float)))
        scale = np.where(sd > 0, sd, 1.0)
        prior = np.asarray(self.unmeasured_cov, float) / scale[:, None] / scale[None, :]
        posterior = known / scale[:, None] / scale[None, :]
        # (What the prior already knows in every digit is not up to the data.)
        values, vectors = np.linalg.eigh(prior)
        open_ = values > 1e-12 * values.max(initial=0.0)
        root = vectors[:, open_] / np.sqrt(values[open_])
        left, directions = np.linalg.eigh(root.T @ posterior @ root)
        found = []
        for remaining, direction in sorted(
            zip(left, (root @ directions).T, strict=True), key=lambda pair: -pair[0]
        ):
            if remaining > share:
                direction = prior @ direction
                direction = direction / np.linalg.norm(direction)
                found.append({n: direction[part] for n, part in self.space.parts.items()})
        return found

    def _needs_cov(self, name: str) -> None:
        if self.unconstrained_cov is None:
            raise ValueError(
                f"{name}: this estimator claims no posterior, only an estimate (`mean`)"
            )

    def __repr__(self) -> str:
        return f"ParameterEstimate({', '.join(self.space.names)})"


def _quantile(draws: Array, weights: Any, probability: float) -> Array:
    """Of weighted draws, entry by entry."""

    def one(x: Array) -> Array:
        order = jnp.argsort(x)
        # A draw stands in the middle of its weight.
        below = jnp.cumsum(weights[order]) - 0.5 * weights[order]
        return jnp.interp(probability, below, x[order])

    return jax.vmap(one, in_axes=1)(draws)
