"""A multilayer perceptron as a vector field."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn._checks import check_count, check_key
from filterdyn.fields.base import Normalization
from filterdyn.linalg import mv


class MLP(eqx.Module):
    """f(t, x, u): a multilayer perceptron of state, input and (if asked for) time.

    What goes in is normalised and what comes out scaled by numbers that the field carries, so that a
    trained field is complete in itself. Weights start as in Glorot, Bengio 2010.
    """

    weights: tuple[Float[Array, "m n"], ...]
    biases: tuple[Float[Array, " m"], ...]
    state: Normalization
    input: Normalization | None
    time: Normalization | None
    output: Normalization
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        dx: int,
        du: int = 0,
        *,
        key: Array,
        out: int | None = None,
        width: int = 32,
        depth: int = 2,
        time: bool = False,
        activation: Callable[[Array], Array] = jnp.tanh,
        zero: bool = False,
        state_center: Any = 0.0,
        state_scale: Any = 1.0,
        input_center: Any = 0.0,
        input_scale: Any = 1.0,
        time_center: Any = 0.0,
        time_scale: Any = 1.0,
        output_scale: Any = 1.0,
    ):
        """**Arguments:**

        - `dx`, `du`: number of states and inputs; with `du=0` inputs are not looked at;
        - `key`: a JAX random key for the weights;
        - `out`: number of outputs (default `dx`); `width`, `depth`: of the hidden layers;
        - `time`: does the field depend on time?
        - `activation`: smooth, because filters differentiate the field;
        - `zero`: start with a last layer of zeros, as a residual that does nothing yet;
        - `*_center`, `*_scale`: numbers or vectors that normalise state, input and time, and the size of
          the output.

        **Raises:** `ValueError` for counts that are not whole numbers and scales that are not positive.
        """
        owner = "fields.MLP"
        check_count(owner, "dx", dx)
        check_count(owner, "width", width)
        check_count(owner, "depth", depth)
        check_key(owner, key)
        if du:
            check_count(owner, "du", du)
        out = dx if out is None else check_count(owner, "out", out)
        sizes = [dx + du + bool(time), *[width] * depth, out]
        weights = []
        for i, key_layer in enumerate(jax.random.split(key, depth + 1)):
            bound = (6.0 / (sizes[i] + sizes[i + 1])) ** 0.5
            shape = (sizes[i + 1], sizes[i])
            dtype = jnp.result_type(float)
            weights.append(jax.random.uniform(key_layer, shape, dtype, -bound, bound))
        if zero:
            weights[-1] = jnp.zeros_like(weights[-1])
        self.weights = tuple(weights)
        self.biases = tuple(jnp.zeros(len(w), w.dtype) for w in weights)
        self.state = Normalization(owner, "state", dx, state_center, state_scale)
        self.input = Normalization(owner, "input", du, input_center, input_scale) if du else None
        self.time = Normalization(owner, "time", 1, time_center, time_scale) if time else None
        self.output = Normalization(owner, "output", out, 0.0, output_scale)
        self.activation = activation

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " out"]:
        parts = [self.state(x)]
        if self.input is not None:
            if u is None:
                raise ValueError(
                    f"fields.MLP: `u` is None; expected an input of shape {self.input.center.shape}"
                )
            parts.append(self.input(jnp.asarray(u, x.dtype)))
        if self.time is not None:
            parts.append(self.time(jnp.asarray(t, x.dtype).reshape(1)))
        z = jnp.concatenate(parts)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            z = self.activation(mv(weight.astype(x.dtype), z) + bias.astype(x.dtype))
        z = mv(self.weights[-1].astype(x.dtype), z) + self.biases[-1].astype(x.dtype)
        return self.output.inverse(z)
