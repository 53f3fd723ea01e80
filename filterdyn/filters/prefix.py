"""All prefixes of a product at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

#: So many elements in a row are multiplied one after the other, in all such stretches at once.
_STRETCH = 8


def prefix_products(
    combine: Callable[[Any, Any], Any], elements: Any, reverse: bool = False
) -> Any:
    """x_1, x_1 * x_2, x_1 * x_2 * x_3, .. for an associative `combine(x, y)` = x * y of single
    elements, stacked; with `reverse` from the last one on (x_T * x_{T-1} is `combine(x_T, x_{T-1})`).

    `jax.lax.associative_scan` writes the product out about 2 log2 T times, which takes a compiler 10 to
    20 seconds for the elements of a Kalman filter. Here it stands in three loops, whatever T is:
    prefixes within stretches of 8, then of whole stretches in rounds of doubling length (Hillis, Steele
    1986), then the two together. That is 8 + log2(T / 8) + 1 rounds, and some 3 T products in all.
    """
    if reverse:
        turned = jax.tree.map(lambda x: x[::-1], elements)
        return jax.tree.map(lambda x: x[::-1], prefix_products(combine, turned))
    count = len(jax.tree.leaves(elements)[0])
    if count == 1:
        return elements
    product = jax.vmap(combine)
    stretches = -(-count // _STRETCH)
    length = min(count, _STRETCH)

    def fold(x: Array) -> Array:
        """(length, stretches, ...); what is padded comes after everything that is returned."""
        pad = jnp.repeat(x[-1:], stretches * length - count, axis=0)
        folded = jnp.concatenate([x, pad]).reshape(stretches, length, *x.shape[1:])
        return jnp.moveaxis(folded, 1, 0)

    folded = jax.tree.map(fold, elements)
    first = jax.tree.map(lambda x: x[0], folded)
    rest = jax.tree.map(lambda x: x[1:], folded)

    def along(before: Any, element: Any) -> tuple[Any, Any]:
        together = product(before, element)
        return together, together

    whole, later = jax.lax.scan(along, first, rest)
    inner = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, later)
    if stretches > 1:
        before = jax.tree.map(lambda x: x[:-1], _doubling(product, whole))
        tail = jax.tree.map(lambda x: x[:, 1:], inner)
        tail = jax.vmap(product, in_axes=(None, 0))(before, tail)
        inner = jax.tree.map(lambda x, y: jnp.concatenate([x[:, :1], y], axis=1), inner, tail)
    unfold = lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])[:count]
    return jax.tree.map(unfold, inner)


def _doubling(product: Callable[[Any, Any], Any], elements: Any) -> Any:
    """The same in rounds: after k of them each element holds the product of the last 2^k."""
    count = len(jax.tree.leaves(elements)[0])
    index = jnp.arange(count)

    def one(x: Any, distance: Array) -> tuple[Any, None]:
        there = index >= distance
        back = jnp.where(there, index - distance, 0)
        together = product(jax.tree.map(lambda v: v[back], x), x)

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(there.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        return jax.tree.map(choose, together, x), None

    rounds = (count - 1).bit_length()
    return jax.lax.scan(one, elements, 2 ** jnp.arange(rounds))[0]
