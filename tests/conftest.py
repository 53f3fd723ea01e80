"""Settings that every test shares."""

import gc
import os
import sys
from pathlib import Path

import jax
import pytest

sys.path.insert(
    0, str(Path(__file__).parent)
)  # `from oracles import dense` under every import mode

# A thousand compilations leave millions of objects, which Python would look through again and again.
gc.set_threshold(200_000, 20, 100)

# JAX_ENABLE_X64=0 runs the same tests as a user without float64 would.
jax.config.update(
    "jax_enable_x64", os.environ.get("JAX_ENABLE_X64", "1").lower() not in ("0", "false")
)

#: A process may hold 65,530 mappings on Linux, and a compiled function takes several. Where there are so
#: many, what was compiled is dropped.
MOST_MAPPINGS = 25_000
_finished = 0


@pytest.fixture(autouse=True)
def few_mappings():
    yield
    global _finished
    _finished += 1
    if _finished % 4:  # a look costs some milliseconds
        return
    try:
        count = Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return
    if count > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()
