"""Which row of a call holds which event."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

#: Beyond every table.
NOWHERE = np.iinfo(np.int32).max


class Blocks(NamedTuple):
    """A call in B blocks of a few keys each on each of D devices."""

    #: The slots of a block, on its device.
    slots: Int[np.ndarray, "D B lanes"]
    #: The events that a block takes.
    source: Int[np.ndarray, "D B lanes"]
    #: Where an event is, counted from the first lane of the first block.
    at: Int[np.ndarray, " n"]
    #: How many blocks there are on each device.
    counts: Int[np.ndarray, " D"]


def in_blocks(
    slots: Int[np.ndarray, " n"], rank: Int[np.ndarray, " n"], devices: int, lanes: int
) -> Blocks:
    """Blocks of `lanes` different keys: first the first events of all keys, then the second, and so on
    (`rank`: how many events of its key come before one). Where keys are too few for the last
    block, one of its own is there several times."""
    device = slots % devices
    order = np.lexsort((rank, device)) if devices > 1 or rank.any() else np.arange(len(slots))
    group = (device * (rank.max() + 1) + rank)[order]
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    sizes = np.diff(np.append(starts, len(slots)))
    needed = -(-sizes // lanes)
    owner = device[order[starts]]
    counts = np.bincount(owner, needed, devices).astype(np.int32)
    width = width_for(int(counts.max()))
    # The block with which a group begins, on its device.
    before = np.cumsum(needed) - needed
    before -= (np.cumsum(counts) - counts)[owner]
    begin = (owner * width + before) * lanes
    at = np.empty(len(slots), np.int64)
    at[order] = np.repeat(begin - starts, sizes) + np.arange(len(slots))
    source = np.zeros(devices * width * lanes, np.int64)
    for first, size, some, start in zip(begin, sizes, needed, starts, strict=True):
        if size % lanes:
            source[first + size : first + some * lanes] = order[start + (some - 1) * lanes]
    source[at] = np.arange(len(slots))
    blocks = source.reshape(devices, width, lanes)
    return Blocks((slots[blocks] // devices).astype(np.int32), blocks, at, counts)


def spread(
    slots: Int[np.ndarray, " n"], devices: int
) -> tuple[Int[np.ndarray, "D W"], Int[np.ndarray, " n"]]:
    """Rows of slots (D, W), of which a padding one is beyond the table, and where in them each of
    these is."""
    device = slots % devices
    counts = np.bincount(device, minlength=devices)
    width = width_for(int(counts.max(initial=1)))
    order = np.argsort(device, kind="stable")
    within = np.empty(len(slots), np.int64)
    within[order] = np.arange(len(slots)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = device * width + within
    placed = np.full(devices * width, NOWHERE, np.int32)
    placed[at] = slots // devices
    return placed.reshape(devices, width), at


def width_for(count: int) -> int:
    """The next power of two."""
    return 1 << max(count - 1, 0).bit_length()
