"""Models in which a measurement is linear in the parameters, given inputs and what was measured before."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from filterdyn._callables import Held
from filterdyn._checks import float_array
from filterdyn.beliefs import Gaussian
from filterdyn.dynamics import Interval, LinearTransition
from filterdyn.dynamics.base import AbstractDynamics
from filterdyn.learning.evolution import AbstractEvolution
from filterdyn.learning.model import ParametricModel
from filterdyn.learning.parameters import ParameterSpace
from filterdyn.linalg import PSD, mv
from filterdyn.linearization import AbstractLinearization, Affine
from filterdyn.model import StateSpaceModel
from filterdyn.observations import GaussianObservation, LinearObservation
from filterdyn.status import Status


class Regression(ParametricModel):
    """y_t = Phi(t, u_t) theta + e_t, e_t ~ N(0, R): a linear regression whose rows come one by one.

    theta (k,) is all parameters of the prior one after the other, each with its last axis fastest. There is
    no state: `mean` and `cov` of beliefs are those of a state of one number that is 0. Every learner takes
    it; `RecursiveLeastSquares` is exact.
    """

    features: Held

    def __init__(
        self,
        features: Callable[[Any, Any], Any],
        R: Any,
        prior: Mapping[str, dist.Distribution],
        *,
        evolution: AbstractEvolution | None = None,
    ):
        """**Arguments:**

        - `features(t, u) -> (dy, k)`, or (k,) where one quantity is measured: the regressors, from time and
          input (du,);
        - `R`: the covariance of e, as for `GaussianObservation`;
        - `prior`: by name, distributions of real numbers, such as `dist.Normal(0.0, 10.0)`, or with a
          shape `dist.Normal(0.0, 10.0).expand([3]).to_event(1)`;
        - `evolution`: as for `ParametricModel`.

        **Raises:** `TypeError` and `ValueError` for anything else, and in use for features of another shape.
        """
        if not callable(features):
            raise TypeError(
                f"Regression: `features` is {type(features).__name__}; expected a function of (t, u)"
            )
        space = _linear_space("Regression", prior)
        held = Held(features)

        def make(parameters: dict[str, Array]) -> StateSpaceModel:
            line = _Line(held, space.vector(parameters))
            initial = dist.Delta(jnp.zeros(1), event_dim=1)
            return StateSpaceModel(initial, _Nothing(), GaussianObservation(line, R))

        super().__init__(make, prior, evolution=evolution)
        self.features = held


class Autoregression(ParametricModel):
    """y_{t+1} = A_1 y_t + ... + A_n y_{t-n+1} + B_1 u_t + ... + B_m u_{t-m+1} + c + e, e ~ N(0, R): an
    autoregression with inputs (ARX), one transition per row.

    Its state is what it depends on, (y_t, ..., y_{t-n+1}, u_{t-1}, ..., u_{t-m+1}), and a measurement shows
    y_t without noise: so a missing one is filled in by what is expected, with the uncertainty that this has.
    Every learner takes it; `RecursiveLeastSquares` is exact where nothing is missing.
    """

    def __init__(
        self,
        prior: Mapping[str, dist.Distribution],
        R: Any,
        *,
        start_sd: Any = 10.0,
        evolution: AbstractEvolution | None = None,
    ):
        """**Arguments:**

        - `prior`: distributions of real numbers, whose shapes say how far back the model looks:
          `"outputs"`, the A, (n,) or (n, dy, dy); `"inputs"`, the B, (m,) or (m, dy, du), if there are
          inputs; `"intercept"`, c, () or (dy,), if there is one;
        - `R`: the covariance of e, (), (dy,) or (dy, dy);
        - `start_sd` >= 0, (), (n,) or (n, dy): how uncertain, in units of y, the first measurement is, and
          those before it, which are not in the record and are centred at 0 (inputs before it are 0);
        - `evolution`: as for `ParametricModel`.

        **Raises:** `TypeError` and `ValueError` for anything else.
        """
        owner = "Autoregression"
        space = _linear_space(owner, prior)
        shapes = dict(zip(space.names, space.shapes, strict=True))
        unknown = sorted(set(shapes) - {"outputs", "inputs", "intercept"})
        if unknown or "outputs" not in shapes:
            raise ValueError(
                f"{owner}: `prior` has {list(shapes)}; expected 'outputs', and if there are any 'inputs' and "
                "'intercept'"
            )
        order, dy, _ = _as_blocks(owner, "outputs", shapes["outputs"], 1)
        if shapes["outputs"] not in ((order,), (order, dy, dy)):
            raise ValueError(
                f"{owner}: `prior['outputs']` has shape {shapes['outputs']}; expected (n,) or (n, dy, dy)"
            )
        delays, rows, du = _as_blocks(owner, "inputs", shapes.get("inputs", (0, dy, 0)), dy)
        if rows != dy or shapes.get("intercept", (dy,)) not in ((), (dy,)):
            raise ValueError(
                f"{owner}: `prior` has shapes {shapes}; expected {dy} rows of 'inputs' and entries of "
                "'intercept', as of 'outputs'"
            )
        noise = float_array(owner, "R", R)
        noise = noise * jnp.eye(dy) if noise.ndim < 2 else noise
        held = max(delays - 1, 0) * du
        past = order * dy
        dx = past + held
        eye = jnp.eye(dx)
        spreads = jnp.concatenate([_start_sd(owner, start_sd, order, dy), jnp.zeros(held)])
        initial = dist.Normal(jnp.zeros(dx), spreads, validate_args=False).to_event(1)
        q = jnp.zeros((dx, dx)).at[:dy, :dy].set(noise)
        # Rows of zeros for what is new; what is old moves back by one block.
        back_y = eye[: past - dy]
        new_u = jnp.zeros((min(held, du), dx))
        back_u = eye[past : past + max(held - du, 0)]
        shift = jnp.concatenate([back_y, new_u, back_u])

        def make(parameters: dict[str, Array]) -> StateSpaceModel:
            a = jnp.reshape(parameters["outputs"], (order, dy, dy))
            first = [block for block in a]
            enters = None
            if delays:
                b = jnp.reshape(parameters["inputs"], (delays, dy, du))
                first += [block for block in b[1:]]
                rest = jnp.zeros((dx - dy, du), b.dtype)
                if held:
                    rest = rest.at[past - dy : past - dy + du].set(jnp.eye(du, dtype=b.dtype))
                enters = jnp.concatenate([b[0], rest])
            level = None
            if "intercept" in parameters:
                c = jnp.broadcast_to(parameters["intercept"], (dy,))
                level = jnp.concatenate([c, jnp.zeros(dx - dy, c.dtype)])
            f = jnp.concatenate([jnp.concatenate(first, axis=1), shift.astype(a.dtype)])
            return StateSpaceModel(
                initial, LinearTransition(f, q, enters, level), LinearObservation(eye[:dy], 0.0)
            )

        super().__init__(make, prior, evolution=evolution)


def _linear_space(owner: str, prior: Any) -> ParameterSpace:
    """**Raises:** `ValueError` for a parameter with limits, which a measurement is not linear in."""
    space = ParameterSpace.of(owner, prior)
    for name, shape, free in zip(space.names, space.shapes, space.free_shapes, strict=True):
        if shape != free or (space.transform(name)(probe := jnp.full(free, 0.7)) != probe).any():
            raise ValueError(
                f"{owner}: `prior[{name!r}]` has limits ({type(prior[name]).__name__}); expected a "
                "distribution of real numbers, such as dist.Normal"
            )
    return space


def _as_blocks(owner: str, name: str, shape: tuple[int, ...], rows: int) -> tuple[int, int, int]:
    if len(shape) == 1 and shape[0] and rows == 1:
        return shape[0], 1, 1
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    raise ValueError(
        f"{owner}: `prior[{name!r}]` has shape {shape}; expected one block for each row back, (n,) or "
        "(n, dy, ...)"
    )


def _start_sd(owner: str, value: Any, order: int, dy: int) -> Float[Array, " n"]:
    sd = float_array(owner, "start_sd", value)
    if sd.shape not in ((), (order,), (order, dy)) or not (sd >= 0).all():
        raise ValueError(
            f"{owner}: `start_sd` is {value!r}; expected numbers >= 0, (), ({order},) or ({order}, {dy})"
        )
    sd = sd[:, None] if sd.ndim == 1 else sd
    return jnp.ravel(jnp.broadcast_to(sd, (order, dy)))


class _Line(eqx.Module):
    """Phi(t, u) theta."""

    features: Held
    theta: Float[Array, " k"]

    def __call__(self, t: Any, x: Any, u: Any) -> Float[Array, " dy"]:
        phi = jnp.atleast_2d(jnp.asarray(self.features(t, u), self.theta.dtype))
        if phi.ndim != 2 or phi.shape[1] != len(self.theta):
            raise ValueError(
                f"Regression: `features(t, u)` returned shape {phi.shape}; expected (dy, {len(self.theta)}), "
                "a column for each parameter"
            )
        return mv(phi, self.theta)


class _Nothing(AbstractDynamics):
    """Nothing moves."""

    is_linear: ClassVar[bool] = True

    def moments(
        self, rule: AbstractLinearization, belief: Gaussian, interval: Interval
    ) -> tuple[Affine, Int[Array, ""]]:
        n, dtype = len(belief.mean), belief.mean.dtype
        move = Affine(belief.mean, jnp.eye(n, dtype=dtype), PSD.zeros(n, dtype))
        return move, jnp.int32(Status.OK)

    def sample(self, key: Array, x: Float[Array, " dx"], interval: Interval) -> Float[Array, " dx"]:
        return x

    def check(self, owner: str, t: Any, x: Any, u: Any) -> None:
        """Whatever the state, it stays."""
