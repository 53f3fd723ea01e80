"""The one compiler flag that small filters need on a CPU: it makes a scan over rows one kernel.

XLA compiles a loop to a single function only below a size that is too small for a filter's step.
With the limit raised, filters of a few states are several times faster. Results are the same to
rounding, and nothing depends on it but speed.
"""

import os
import re
import warnings
from enum import Enum

from jax._src import xla_bridge

_OPTION = "xla_cpu_small_while_loop_byte_threshold"
_EXTRA = re.compile(r"--xla_backend_extra_options=(\S*)")
#: Largest body of a loop that becomes one function, in bytes of intermediate results.
_BYTES = 262144


class FusedLoops(Enum):
    """Do small filters run as one compiled kernel on a CPU?"""

    #: Yes: importing filterdyn raised XLA's limit.
    ACTIVE = "active"
    #: XLA_FLAGS already held the option, which was left as it was.
    SET_BY_USER = "set by the user"
    #: No, because the environment variable FILTERDYN_FUSED_LOOPS is 0.
    OPTED_OUT = "opted out"
    #: No, because JAX had already started a back end when filterdyn was imported.
    TOO_LATE = "too late"


def _raise_limit() -> FusedLoops:
    flags = os.environ.get("XLA_FLAGS", "")
    if os.environ.get("FILTERDYN_FUSED_LOOPS", "1") == "0":
        return FusedLoops.OPTED_OUT
    if _OPTION in flags:
        return FusedLoops.SET_BY_USER
    if xla_bridge.backends_are_initialized():
        warnings.warn(
            "filterdyn was imported after JAX had made its first array, too late to raise XLA's limit "
            "on fused loops: results are the same, but small filters run several times slower on a "
            "CPU. Import filterdyn first, or set FILTERDYN_FUSED_LOOPS=0 to be without this warning.",
            stacklevel=4,
        )
        return FusedLoops.TOO_LATE
    option = f"{_OPTION}={_BYTES}"
    if _EXTRA.search(flags):
        flags = _EXTRA.sub(lambda found: f"{found.group(0)},{option}", flags)
    else:
        flags = f"{flags} --xla_backend_extra_options={option}".strip()
    os.environ["XLA_FLAGS"] = flags
    return FusedLoops.ACTIVE


_STATUS = _raise_limit()


def fused_loops() -> FusedLoops:
    """Whether importing filterdyn made small filters run as one compiled kernel on a CPU.

    `FusedLoops.ACTIVE` is what one wants. `TOO_LATE` means that JAX had started before filterdyn was
    imported; `OPTED_OUT` that the environment variable `FILTERDYN_FUSED_LOOPS` is `0`; `SET_BY_USER`
    that `XLA_FLAGS` named the option already.
    """
    return _STATUS
