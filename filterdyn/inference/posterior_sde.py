"""A posterior over paths that is itself a stochastic differential equation."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from filterdyn._callables import Function, Held, hold_function
from filterdyn._checks import check_key, float_array
from filterdyn.dynamics import SDE, Interval, Plan
from filterdyn.dynamics.discrete import reparameterized
from filterdyn.filters.rows import Row
from filterdyn.inference.path_encoder import PathEncoder, SeriesContext
from filterdyn.inference.path_observations import measured
from filterdyn.inference.path_posterior import (
    AbstractPathPosterior,
    PathTerms,
    after_first,
    first_of,
    interval_of,
)
from filterdyn.linalg.gate import gated
from filterdyn.model import StateSpaceModel
from filterdyn.moments import bare

_NAME = "PosteriorSDE"


class PosteriorSDE(AbstractPathPosterior):
    """The prior's SDE with a drift that knows the data (Tzen, Raginsky 2019; Li et al. 2020):

        dx = (drift + diffusion c) dt + diffusion dW,    c = control(t, x, context) in R^dw,

    whose divergence from the prior is, by Girsanov's theorem, E of 1/2 times the integral of |c|^2. The
    first state is what `initial` makes of numbers z ~ N(m, S S^T) where the prior has z ~ N(0, I).

    The control is held over a solver step and added to the Brownian increment, for whatever
    `path_solver` the prior has. So the divergence of the paths that are simulated is exact, and the
    bound is one on the likelihood of the model as its path solver, with its steps, discretises it.

    Of that model, which has one normal number a step and noise, the posterior may also have a covariance
    of its own: a control that returns (c, S) makes the increment N(c h, S S^T h) over a step h, where the
    prior has N(0, h I). Measurements that are finer than the noise of one step need this, or a step so
    short that the noise in it is finer than they are; as h goes to 0 any S but I has an infinite divergence.
    """

    control: Held
    encoder: Held
    start: Held

    def __init__(self, control: Function, encoder: Function, start: Function):
        """**Arguments:** (`amortized` and `per_series` make all three)

        - `control(t, x, context) -> (dw,)`, in 1 / sqrt(time), or that and S (dw, dw), lower triangular
          with a positive diagonal. Between two rows `context` is the encoder's at the later row, and after
          it, as last entry, the time that is left until then;
        - `encoder(gaps, observations, inputs, index) -> (T, size)`, what is known at each row: `gaps` (T,)
          since the row before, `observations` (T, dy) with NaN for missing, `inputs` (T, du) or `None`,
          and the number of the series;
        - `start(context) -> (m, S)`, (dx,) and (dx, dx), S lower triangular with a positive diagonal, from
          the encoder's first row.

        **Raises:** `TypeError` for what is no function.
        """
        self.control = hold_function(_NAME, "control", control)
        self.encoder = hold_function(_NAME, "encoder", encoder)
        self.start = hold_function(_NAME, "start", start)

    @classmethod
    def amortized(
        cls,
        model: StateSpaceModel,
        encoder: PathEncoder,
        *,
        key: Array,
        width: int = 32,
        spread: bool = False,
    ) -> "PosteriorSDE":
        """Networks for `control` and `start` behind an encoder that serves all series, also new ones.

        They begin at the prior. The control is a perceptron of time left, state and context with two
        hidden layers of `width`, and a linear function of the same; it sees states as they are, which
        should be of order one. With `spread` it gives S too.

        **Raises:** `TypeError` for a model without an SDE.
        """
        du = 0 if encoder.input is None else len(encoder.input.center)
        return _networks(cls, model, encoder, du, key, width, spread)

    @classmethod
    def per_series(
        cls,
        model: StateSpaceModel,
        *,
        rows: int,
        key: Array,
        number: int = 1,
        size: int = 8,
        width: int = 32,
        du: int = 0,
        spread: bool = False,
    ) -> "PosteriorSDE":
        """The same networks behind `size` numbers at each row of each of `number` series of so many
        `rows`: not amortised, so nothing is lost to an encoder, and nothing is known of a new series. `du`
        is the number of inputs."""
        return _networks(cls, model, SeriesContext(number, rows, size), du, key, width, spread)

    @property
    def is_random(self) -> bool:
        """True: the bound is an average over paths."""
        return True

    def check_prior(self, model: StateSpaceModel) -> None:
        if not isinstance(model.dynamics, SDE):
            raise TypeError(
                f"{_NAME}: `dynamics` is {type(model.dynamics).__name__}; expected an SDE, whose drift a "
                "posterior can change"
            )
        if reparameterized(model.initial, jnp.zeros(model.dx)) is None:
            raise TypeError(
                f"{_NAME}: `initial` is {type(bare(model.initial)).__name__}, which is not known as a "
                "function of standard normal numbers (Gaussians, transforms of them and Delta are)"
            )

    def terms(
        self,
        model: StateSpaceModel,
        rows: Row,
        plan: Plan,
        key: Array | None,
        index: Int[Array, ""],
    ) -> tuple[PathTerms, Bool[Array, ""]]:
        self.check_prior(model)
        assert key is not None
        draw = lambda key: self._one(model, rows, plan, key, index)
        found: tuple[PathTerms, Array] = gated(draw, lambda out: out[1], key)(key)
        return found

    def _one(
        self, model: StateSpaceModel, rows: Row, plan: Plan, key: Array, index: Array
    ) -> tuple[PathTerms, Bool[Array, ""]]:
        dtype, dx = rows.time.dtype, model.dx
        dynamics = model.dynamics
        assert isinstance(dynamics, SDE)
        table = dynamics.tabulate(plan)
        contexts = float_array(
            _NAME, "encoder", self.encoder(rows.gap, rows.observation, rows.input, index)
        )
        if contexts.ndim != 2 or len(contexts) != len(rows.time):
            raise ValueError(
                f"{_NAME}: `encoder` returned shape {contexts.shape}; expected ({len(rows.time)}, size)"
            )
        key_start, key_moves = jax.random.split(key)
        m, s = (jnp.asarray(a, dtype) for a in self.start(contexts[0]))
        if m.shape != (dx,) or s.shape != (dx, dx):
            raise ValueError(
                f"{_NAME}: `start` returned shapes {m.shape} and {s.shape}; expected ({dx},) and "
                f"({dx}, {dx})"
            )
        xi = jax.random.normal(key_start, (dx,), dtype)
        z = m + s @ xi
        x = reparameterized(model.initial, z)
        assert x is not None
        x = x.astype(dtype)
        log_scale = jnp.log(jnp.diagonal(s))
        kl_start = 0.5 * (m * m + (s * s).sum(1) - 1) - log_scale
        weight_start = 0.5 * (xi @ xi - z @ z) + log_scale.sum()

        after = after_first(rows)
        # A gap of 0 moves nothing; what is computed in its place must be finite.
        shortest = jnp.min(jnp.where(after.gap > 0, after.gap, jnp.inf), initial=jnp.inf)
        stand_in = jnp.where(jnp.isfinite(shortest), shortest, 1.0)
        shape = dynamics.normals(x, interval_of(first_of(rows), table))
        normals = jax.random.normal(key_moves, (len(rows.time) - 1, *shape), dtype)

        def move(x: Array, at: tuple[Row, Array, Array]) -> tuple[Array, Any]:
            row, context, normals = at
            moves = row.gap > 0
            gap = jnp.where(moves, row.gap, stand_in)
            interval = interval_of(row._replace(gap=gap), table)

            def control(s: Array, x: Array) -> tuple[Array, Array | None]:
                found = self.control(row.time_from + s, x, jnp.append(context, gap - s))
                return _checked(found, shape[-1], dtype)

            moved, sums = dynamics.controlled(x, normals, interval, control)
            still = lambda new: jnp.where(moves, new, jnp.zeros_like(new))
            kept = sums.divergence, sums.shift / jnp.sqrt(gap), sums.martingale.sum()
            x = jnp.where(moves, moved, x)
            return x, (x, jax.tree.map(still, kept))

        _, (path, (kl, shift, martingale)) = jax.lax.scan(move, x, (after, contexts[1:], normals))
        path = jnp.concatenate([x[None], path])
        log_likelihoods = jax.vmap(lambda row, x: measured(model, row, x))(rows, path)
        log_weight = weight_start + log_likelihoods.sum() - kl.sum() - martingale.sum()
        found = PathTerms(
            log_likelihoods,
            kl_start,
            kl,
            m,
            shift,
            path,
            jnp.zeros_like(path),
            log_weight,
            jnp.array(True),
        )
        return found, jnp.isfinite(found.value) & jnp.isfinite(log_weight)


def _checked(found: Any, dw: int, dtype: Any) -> tuple[Array, Array | None]:
    """What a control returned, as c and S.

    **Raises:** `ValueError` for another shape."""
    c, spread = found if isinstance(found, tuple) else (found, None)
    c = float_array(_NAME, "control", c)
    if c.shape != (dw,):
        raise ValueError(
            f"{_NAME}: `control(t, x, context)` returned shape {c.shape}; expected {(dw,)}, one number for "
            "every noise"
        )
    if spread is None:
        return c.astype(dtype), None
    spread = float_array(_NAME, "control", spread)
    if spread.shape != (dw, dw):
        raise ValueError(
            f"{_NAME}: `control(t, x, context)` returned S of shape {spread.shape}; expected {(dw, dw)}"
        )
    return c.astype(dtype), spread.astype(dtype)


def _zero(linear: eqx.nn.Linear) -> eqx.nn.Linear:
    both = lambda layer: (layer.weight, layer.bias)
    return eqx.tree_at(both, linear, jax.tree.map(jnp.zeros_like, both(linear)))


def mean_and_factor(numbers: Float[Array, " _"], n: int) -> tuple[Array, Array]:
    """A vector of n and a triangular factor from n + n (n + 1) / 2 numbers; zeros make 0 and I."""
    m, scale, below = jnp.split(numbers, [n, 2 * n])
    return m, jnp.diag(jnp.exp(scale)).at[jnp.tril_indices(n, -1)].set(below)


class _Control(eqx.Module):
    """A perceptron of the state and the context beside a linear function of them, which start at zero."""

    network: Held
    linear: eqx.nn.Linear
    dw: int = eqx.field(static=True)
    spread: bool = eqx.field(static=True)

    def __init__(self, dx: int, size: int, dw: int, width: int, key: Array, spread: bool):
        n = dx + size + 1
        out = dw + dw * (dw + 1) // 2 if spread else dw
        network = eqx.nn.MLP(n, out, width, 2, jax.nn.softplus, key=key)
        last = lambda net: net.layers[-1]
        self.network = Held(eqx.tree_at(last, network, _zero(last(network))))
        self.linear = _zero(eqx.nn.Linear(n, out, use_bias=True, key=key))
        self.dw, self.spread = dw, spread

    def __call__(self, t: Any, x: Float[Array, " dx"], context: Float[Array, " _"]) -> Any:
        seen = jnp.concatenate([x, context])
        numbers = self.network(seen) + self.linear(seen)
        return mean_and_factor(numbers, self.dw) if self.spread else numbers


class _Start(eqx.Module):
    """Mean and triangular factor as affine functions of the context, which start at 0 and I."""

    last: eqx.nn.Linear
    dx: int = eqx.field(static=True)

    def __init__(self, dx: int, size: int, key: Array):
        self.last = _zero(eqx.nn.Linear(size, dx + dx * (dx + 1) // 2, key=key))
        self.dx = dx

    def __call__(self, context: Float[Array, " size"]) -> tuple[Array, Array]:
        return mean_and_factor(self.last(context), self.dx)


def _networks(
    cls: type[PosteriorSDE],
    model: StateSpaceModel,
    encoder: PathEncoder | SeriesContext,
    du: int,
    key: Array,
    width: int,
    spread: bool,
) -> PosteriorSDE:
    check_key(_NAME, key)
    dynamics = model.dynamics
    if not isinstance(dynamics, SDE):
        raise TypeError(
            f"{_NAME}: `dynamics` is {type(dynamics).__name__}; expected an SDE, whose drift a posterior "
            "can change"
        )
    dtype = model.dtype()
    t, x = jnp.zeros((), dtype), jnp.zeros(model.dx, dtype)
    u = jnp.zeros(du, dtype) if du else None
    dw = dynamics.normals(x, Interval(t, t + 1, u, jnp.int32(1), 1))[-1]
    of_control, of_start = jax.random.split(key)
    control = _Control(model.dx, encoder.size, dw, width, of_control, spread)
    return cls(control, encoder, _Start(model.dx, encoder.size, of_start))
