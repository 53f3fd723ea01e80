"""A step of one system as a step of a few systems side by side, for a CPU's vector instructions.

`jax.vmap` puts systems on whatever axis suits the operation, and the first axis suits most: then a loop
over the entries of a small matrix is the inner one, too short for vector instructions, and the loop over
the systems is the outer one. Here they are the last axis of every array, always.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from filterdyn.online.known import bind, is_known, known, literal, now, platform

#: Operations on corresponding entries.
_ENTRYWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type cos
    cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log
    log1p logistic lt max min mul ne neg nextafter not or pow reduce_precision rem round rsqrt select_n
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh
    xor""".split()
)
#: Operations along axes that they name, which are the same with one more axis at the end.
_ALONG = frozenset(
    """argmax argmin concatenate cumlogsumexp cummax cummin cumprod cumsum reduce_and reduce_max reduce_min
    reduce_or reduce_prod reduce_sum rev split stack""".split()
)
#: What hands its first operand on (a derivative needs the rest).
_FIRST = frozenset({"copy", "copy_p", "name", "stop_gradient", "with_derivative_of"})
#: Calls that are no more than their bodies, and where they keep them.
_CALLS = {
    "checkpoint": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr", "jit": "jaxpr", "pjit": "jaxpr",
}  # fmt: skip


class NotInLanes(Exception):
    """An operation that is not treated here: random numbers, factorisations by LAPACK, loops whose
    length depends on the data."""


def in_lanes(function: Callable[..., Any], lanes: int) -> Callable[..., Any]:
    """`function` of small arrays, of `lanes` systems at once: every argument and every result has one
    more axis, the last, of that size. It is not to be differentiated, and is for a CPU.

    **Raises:** `NotInLanes` when it is traced."""

    def call(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        one = [jax.ShapeDtypeStruct(x.shape[:-1], x.dtype) for x in leaves]
        flat = lambda *values: function(*jax.tree.unflatten(tree, values))
        closed, shape = jax.make_jaxpr(flat, return_shape=True)(*one)
        run = _Run(lanes)
        found = run.jaxpr(closed.jaxpr, closed.consts, leaves)
        return jax.tree.unflatten(jax.tree.structure(shape), [run.full(x) for x in found])

    return call


class _Shared(NamedTuple):
    """A traced array that is the same for all systems, as the counter of a loop is."""

    value: Any


class _Run:
    """Goes through a program. A value is an array of NumPy, which is the same for all systems and
    computed now, a `_Shared` one, or an array of JAX with an axis for the systems."""

    def __init__(self, lanes: int):
        self.lanes = lanes

    def jaxpr(self, jaxpr: Any, consts: Any, values: Any) -> list[Any]:
        env = dict(zip(jaxpr.constvars, map(known, consts), strict=True))
        env.update(zip(jaxpr.invars, values, strict=True))
        read = lambda v: literal(v) if isinstance(v, Literal) else env[v]
        for equation in jaxpr.eqns:
            found = self.equation(equation, [read(v) for v in equation.invars])
            env.update(zip(equation.outvars, found, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def full(self, value: Any) -> Any:
        """With an axis for the systems."""
        if isinstance(value, jax.Array):
            return value
        value = jnp.asarray(_plain(value))
        return jnp.broadcast_to(value[..., None], (*value.shape, self.lanes))

    def equation(self, equation: Any, values: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        if name in _FIRST:
            return values[:1]
        if name in _CALLS:
            body = params[_CALLS[name]]
            return self.jaxpr(getattr(body, "jaxpr", body), getattr(body, "consts", ()), values)
        if name == "platform_index":
            return [platform(equation)]
        if name == "cond":
            return self._cond(params["branches"], *values)
        if name == "scan":
            return self._scan(params, values)
        if all(map(is_known, values)):
            return now(equation, values)
        if not any(isinstance(v, jax.Array) for v in values):
            return list(map(_Shared, bind(equation, *map(_plain, values))))
        if name in _ENTRYWISE:
            shape = (*equation.outvars[0].aval.shape, self.lanes)
            return bind(equation, *(self._spread(v, shape) for v in values))
        if name in _ALONG:
            return bind(equation, *map(self.full, values))
        move = getattr(self, f"_{name}", None)
        if move is None or equation.primitive.multiple_results:
            raise NotInLanes(name)
        return [move(equation, params, *values)]

    def _spread(self, value: Any, shape: tuple[int, ...]) -> Any:
        value = self.full(value)
        return value if value.shape == shape else jnp.broadcast_to(value, shape)

    def _cond(self, branches: Any, index: Any, *values: Any) -> list[Any]:
        """Systems take different branches, so that all of them are computed."""
        index = self.full(index) if isinstance(index, _Shared) else index
        if is_known(index):
            chosen = branches[int(np.clip(index, 0, len(branches) - 1))]
            return self.jaxpr(chosen.jaxpr, chosen.consts, values)
        found = [self.jaxpr(branch.jaxpr, branch.consts, values) for branch in branches]
        if index.dtype != bool:
            index = jnp.clip(index, 0, len(branches) - 1)
            index = index.astype(bool) if len(branches) == 2 else index.astype(jnp.int32)
        outputs = []
        for several in zip(*found, strict=True):
            if all(one is several[0] for one in several):
                outputs.append(several[0])
                continue
            full = [self.full(one) for one in several]
            outputs.append(lax.select_n(jnp.broadcast_to(index, full[0].shape), *full))
        return outputs

    def _scan(self, params: Any, values: list[Any]) -> list[Any]:
        body, ahead = params["jaxpr"], params["num_consts"]
        consts, rest = values[:ahead], values[ahead:]
        count = params["num_carry"]
        begin, sequences = rest[:count], rest[count:]
        # (What is shared has no axis for the systems here; of the carry, only what stays so.)
        apart = [isinstance(x, jax.Array) for x in sequences]
        moving = [isinstance(x, jax.Array) for x in begin]

        def wrapped(values: Any, apart: Any) -> Any:
            return [v if a else _Shared(v) for v, a in zip(values, apart, strict=True)]

        def step(carry: Any, entries: Any) -> Any:
            mine = [*consts, *wrapped(carry, moving), *wrapped(entries, apart)]
            found = self.jaxpr(body.jaxpr, body.consts, mine)
            now = [isinstance(x, jax.Array) for x in found[:count]]
            still = [a or b for a, b in zip(moving, now, strict=True)]
            if still != moving:
                raise _Moves(still)
            new = [self.full(x) if m else _plain(x) for x, m in zip(found, moving, strict=False)]
            return new, [self.full(x) for x in found[count:]]

        plain = [_plain(x) for x in sequences]
        static = {k: params[k] for k in ("length", "reverse", "unroll")}
        while True:
            start = [self.full(x) if m else _plain(x) for x, m in zip(begin, moving, strict=True)]
            try:
                carry, outputs = lax.scan(step, start, plain, **static)
            except _Moves as error:
                moving = error.moving
            else:
                return [*wrapped(carry, moving), *outputs]

    # What moves entries, with one more axis at the end that stays where it is.

    def _broadcast_in_dim(self, equation: Any, params: Any, value: Any, *_: Any) -> Any:
        shape, axes = params["shape"], params["broadcast_dimensions"]
        return lax.broadcast_in_dim(value, (*shape, self.lanes), (*axes, len(shape)))

    def _reshape(self, equation: Any, params: Any, value: Any, *_: Any) -> Any:
        return lax.reshape(value, (*equation.outvars[0].aval.shape, self.lanes))

    _squeeze = _expand_dims = _reshape

    def _transpose(self, equation: Any, params: Any, value: Any) -> Any:
        return lax.transpose(value, (*params["permutation"], value.ndim - 1))

    def _slice(self, equation: Any, params: Any, value: Any) -> Any:
        strides = params["strides"]
        begin, end = (*params["start_indices"], 0), (*params["limit_indices"], self.lanes)
        return lax.slice(value, begin, end, None if strides is None else (*strides, 1))

    def _pad(self, equation: Any, params: Any, value: Any, filling: Any) -> Any:
        if not is_known(filling):
            raise NotInLanes("pad")
        padding = (*params["padding_config"], (0, 0, 0))
        return lax.pad(self.full(value), jnp.asarray(filling), padding)

    def _gather(self, equation: Any, params: Any, value: Any, *index: Any) -> Any:
        """Entries of which one knows now where they are: slices of the flat array."""
        if not isinstance(value, jax.Array) or not all(map(is_known, index)):
            raise NotInLanes(equation.primitive.name)
        shape = value.shape[:-1]
        labels = np.arange(value.size // self.lanes, dtype=np.int32).reshape(shape)
        (found,) = now(equation, [labels, *index])
        if found.size and not (0 <= found.min() and found.max() < labels.size):
            raise NotInLanes(equation.primitive.name)
        flat = value.reshape(labels.size, self.lanes)
        parts = [flat[i] for i in found.reshape(-1)] or [flat[:0]]
        return jnp.stack(parts).reshape(*found.shape, self.lanes)

    def _dynamic_slice(self, equation: Any, params: Any, value: Any, *index: Any) -> Any:
        if any(isinstance(i, jax.Array) for i in index):
            raise NotInLanes("dynamic_slice")
        start = (*map(_plain, index), np.zeros((), _plain(index[0]).dtype))
        return lax.dynamic_slice(self.full(value), start, (*params["slice_sizes"], self.lanes))

    def _dot_general(self, equation: Any, params: Any, left: Any, right: Any) -> Any:
        (along, also), (batch, _) = params["dimension_numbers"]
        if batch:
            raise NotInLanes("dot_general of batches")
        left, right = self._sides(left, along), self._sides(right, also)
        total = (left[:, None] * right[None]).sum(2)
        return total.reshape(*equation.outvars[0].aval.shape, self.lanes)

    def _sides(self, value: Any, along: Any) -> Any:
        """(the other axes, the axes that are summed over, lanes)"""
        value = self.full(value)
        rest = [i for i in range(value.ndim - 1) if i not in along]
        count = int(np.prod([value.shape[i] for i in along], dtype=int))
        ordered = value.transpose(*rest, *along, value.ndim - 1)
        others = int(np.prod([value.shape[i] for i in rest], dtype=int))
        return ordered.reshape(others, count, self.lanes)


class _Moves(Exception):
    """Which carried values of a loop do not stay shared."""

    def __init__(self, moving: list[bool]):
        self.moving = moving


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, _Shared) else value
