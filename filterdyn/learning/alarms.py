"""What a filter that is watched says of changes."""

from enum import IntEnum
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float


class ChangeKind(IntEnum):
    """What an alarm was about."""

    #: Nothing was decided in this row.
    NONE = 0
    #: A sensor has more noise than before, or less.
    SENSOR_NOISE = 1
    #: The parameters have moved, or the dynamics are no longer those of the model.
    DYNAMICS = 2
    #: One row alone did not fit.
    OUTLIER = 3


class Alarm(eqx.Module):
    """What one row said of changes; of many rows with a leading axis T (`FilterResult.alarms`).

    - `raised`: 1 in a row in which the evidence for a change has passed the threshold, else 0;
    - `kind`: of `ChangeKind`, in the row in which it was decided what had changed, up to `patience` rows
      after `raised`; else `NONE`;
    - `sensor`: whose noise has changed, -1 where the alarm is about something else;
    - `noise_factor`: how many times as large the standard deviation of its noise now is, else 1;
    - `rows`: how many observed rows the change goes back, as far as one can tell; 0 without a decision;
    - `evidence` (J,), in nats: what each explanation has gained over "nothing has changed". The first
      are of sensor noise (sensor by sensor, for each of the factors), then come dynamics and outlier;
    - `noise_scales` (dy,): how many times as large as the model says the noise of each sensor is taken
      to be, after all the alarms so far.

    All are numbers of the filter's precision, NaN after it has failed.
    """

    raised: Float[Array, "*T"]
    kind: Float[Array, "*T"]
    sensor: Float[Array, "*T"]
    noise_factor: Float[Array, "*T"]
    rows: Float[Array, "*T"]
    evidence: Float[Array, "*T J"]
    noise_scales: Float[Array, "*T dy"]

    @property
    def in_words(self) -> str:
        """Of one row, in which something was decided: what; empty in any other row."""
        kind = float(self.kind)
        if kind == ChangeKind.SENSOR_NOISE:
            times = float(self.noise_factor)
            return f"noise of sensor {int(self.sensor)}: {times:.3g} times as large"
        if kind == ChangeKind.DYNAMICS:
            return "parameters or dynamics have changed"
        return "outlier" if kind == ChangeKind.OUTLIER else ""


class Watch(eqx.Module):
    """The memory of a watched filter: its own belief, those under other explanations, and the evidence."""

    #: Of the filter that is watched.
    own: Any
    #: Under each explanation, with a leading axis J.
    others: Any
    #: log of the factor on the standard deviation of each sensor's noise.
    noise_logs: Float[Array, " dy"]
    #: For each explanation its gain in nats, the highest so far, and how many rows ago it began and was
    #: highest.
    evidence: Float[Array, " J"]
    highest: Float[Array, " J"]
    since: Float[Array, " J"]
    since_highest: Float[Array, " J"]
    #: Rows since an alarm about which nothing is decided yet, else -1.
    waiting: Float[Array, ""]
    alarm: Alarm

    @property
    def parameters(self) -> Any:
        found = getattr(self.own, "parameters", None)
        return getattr(getattr(self.own, "memory", None), "parameters", None) or found
