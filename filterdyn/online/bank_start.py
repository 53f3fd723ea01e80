"""How the keys of a bank begin."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.filters.stepping import start
from filterdyn.online.bank_schedule import width_for
from filterdyn.online.online_filter import OnlineFilter
from filterdyn.online.packing import Layout


class Starts:
    """The packed states of keys before any event."""

    def __init__(self, online: OnlineFilter):
        self.online = online
        self._drawn = jax.jit(self._draw)

    def of(self, keys: list[Any], root: Array | None) -> list[np.ndarray]:
        """One row per key."""
        if not isinstance(self.online.filter, AbstractSamplingFilter):
            one = self.online.init(0.0).vectors
            return [np.broadcast_to(np.asarray(v), (len(keys), len(v))) for v in one]
        words = np.zeros((width_for(len(keys)), 2), np.uint32)
        words[: len(keys)] = [_words(key) for key in keys]
        return [np.asarray(v)[: len(keys)] for v in self._drawn(root, words)]

    def _draw(self, root: Array, words: Any) -> Any:
        model, dtype = self.online.model, self.online.model.dtype()
        zero = jnp.zeros((), dtype)

        def one(words: Any) -> Any:
            key = jax.random.fold_in(jax.random.fold_in(root, words[0]), words[1])
            begin = (start(self.online.filter, model, dtype, key), zero, zero)
            return Layout.of(begin).pack(begin)

        return jax.vmap(one)(words)


def _words(key: Any) -> np.ndarray:
    """A key as two numbers of 32 bits, the same ones in every process."""
    name = f"s{key}" if isinstance(key, str) else f"i{int(key)}"
    return np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u4")
