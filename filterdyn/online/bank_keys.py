"""Where the keys of a batch are in the tables."""

from collections.abc import Hashable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int


class Lookup:
    """The keys of a batch as a list, their slots in `table` (-1 of one that is not there), and whether
    each comes once. Fleets send the same keys again and again, so that the last lookup often serves."""

    def __init__(self, owner: str, keys: Any, table: Mapping[Hashable, int]):
        self._array = keys.copy() if isinstance(keys, np.ndarray) else None
        #: (A table is never changed: a state with other keys has another one.)
        self._table = table
        self.keys = keys.tolist() if isinstance(keys, np.ndarray | jax.Array) else list(keys)
        get = table.get
        try:
            self.slots: Int[np.ndarray, " E"] = np.array(
                [get(key, -1) for key in self.keys], np.int64
            )
        except TypeError as error:
            raise TypeError(f"{owner}: `keys` has one that is no key ({error})") from None
        self.apart = len(set(self.keys)) == len(self.keys)

    def serves(self, keys: Any, table: Mapping[Hashable, int]) -> bool:
        return (
            table is self._table
            and self._array is not None
            and isinstance(keys, np.ndarray)
            and keys.dtype == self._array.dtype
            and np.array_equal(keys, self._array)
        )
