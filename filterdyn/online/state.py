"""Where an online filter stands, and what a measurement said: packed, and unpacked when asked."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from filterdyn.filters.results import PARAMETERS, parameters_of
from filterdyn.filters.sampling_scan import SamplingState
from filterdyn.filters.scan import State
from filterdyn.online.packing import Layout, on_host
from filterdyn.status import Status


class OnlineState:
    """Where an online filter stands: a value, and a pytree.

    - `time`: of the last row, float64 on the host (or traced);
    - `input` (du,): the last input, held until the next row, or `None`;
    - `belief`: the state given everything so far; `mean` (dx,) and `cov` (dx, dx) are its own;
    - `log_likelihood`: log p of everything so far, `-inf` after a failure;
    - `status`: an integer of `Status`, `OK` or the first failure;
    - `parameters`, of a filter that learns: a `ParameterEstimate`, else `None`.

    Its leaves are the time, the input and one vector per data type.
    """

    __slots__ = ("input", "layout", "time", "vectors")

    def __init__(self, time: Any, input: Any, vectors: tuple[Any, ...], layout: Layout):
        self.time = time
        self.input = input
        self.vectors = vectors
        self.layout = layout

    def _parts(self) -> tuple[State | SamplingState, Any, Any]:
        return self.layout.unpack(on_host(self.vectors))

    @property
    def filter_state(self) -> State | SamplingState:
        """What the filter carries from row to row."""
        return jax.tree.map(jnp.asarray, self._parts()[0])

    @property
    def belief(self) -> Any:
        return self.filter_state.belief

    @property
    def mean(self) -> Float[Any, " dx"]:
        return self._parts()[0].belief.mean

    @property
    def cov(self) -> Float[Any, "dx dx"]:
        return self._parts()[0].belief.cov

    @property
    def status(self) -> Int[Any, ""]:
        return self._parts()[0].status

    @property
    def parameters(self) -> Any:
        return parameters_of(self._parts()[0].belief)

    @property
    def log_likelihood(self) -> Float[Any, ""]:
        state, total, lost = self._parts()
        xp = jnp if isinstance(total, jax.core.Tracer) else np
        return xp.where(state.status == Status.OK, total + lost, -jnp.inf).astype(total.dtype)

    def __repr__(self) -> str:
        return f"OnlineState(time={self.time}, status={self.status})"


def by_name(parameters: Any) -> Any:
    """What an exported filter has learnt, as attributes; an estimate as it is."""
    return SimpleNamespace(**parameters) if isinstance(parameters, dict) else parameters


class StepResult:
    """What one measurement said (or, of `step_many`, each of T: with a leading axis).

    - `mean` (dx,), `cov` (dx, dx): the state given everything so far;
    - `innovation` (dy,), NaN where the entry is missing, and `innovation_cov` (dy, dy): the
      measurement less its prediction (of a transformed Gaussian, in the space where it is Gaussian);
    - `log_likelihood`: log p(y_t | y_1:t-1), exactly 0 if all is missing;
    - `nis`: normalised innovation squared, chi-square with as many degrees of freedom as there are
      observed entries if the model is right; NaN if all is missing;
    - `status`: an integer of `Status`. After a failure everything else is NaN, the log-likelihood
      `-inf`, and the state stays at its last good belief;
    - `outlier_weights` (dy,), of a filter with an outlier rule or a gate: how much of each entry was
      believed, 1 as if its noise were Gaussian, 0 not at all, NaN where it is missing; else `None`;
    - `parameters`, of a filter that learns: a `ParameterEstimate` (of one that samples by its first two
      moments; of an `ExportedFilter` only `mean` and `sd`), else `None`;
    - `alarm`, of a `WatchedFilter`: an `Alarm`, else `None`;
    - `diagnostics`: of an ensemble or particle filter, by name (`effective_sample_size`, ...).

    An ensemble or particle filter of more than 64 states gives `None` as `cov`, of more than 64
    measurements as `innovation_cov`. The parts are NumPy arrays that cannot be written to.
    """

    __slots__ = ("_host", "layout", "vectors")

    def __init__(self, vectors: tuple[Any, ...], layout: Layout):
        self.vectors = vectors
        self.layout = layout
        self._host: Any = None

    def _part(self, name: str) -> Any:
        if self._host is None:
            self._host = on_host(self.vectors)
        place = self.layout.named.get(name)
        if place is not None:
            return self.layout.leaf(self._host, place)
        return self.layout.unpack(self._host).get(name)

    @property
    def mean(self) -> Float[Any, " dx"]:
        return self._part("mean")

    @property
    def cov(self) -> Float[Any, "dx dx"] | None:
        return self._part("cov")

    @property
    def innovation(self) -> Float[Any, " dy"]:
        return self._part("innovation")

    @property
    def innovation_cov(self) -> Float[Any, "dy dy"] | None:
        return self._part("innovation_cov")

    @property
    def log_likelihood(self) -> Float[Any, ""]:
        return self._part("log_likelihood")

    @property
    def nis(self) -> Float[Any, ""]:
        return self._part("nis")

    @property
    def status(self) -> Int[Any, ""]:
        return self._part("status")

    @property
    def outlier_weights(self) -> Float[Any, " dy"] | None:
        return self._part("outlier_weights")

    @property
    def diagnostics(self) -> dict[str, Array] | None:
        found = self._part("diagnostics")
        return None if found is None else {k: v for k, v in found.items() if k != PARAMETERS}

    @property
    def parameters(self) -> Any:
        found = (self._part("diagnostics") or {}).get(PARAMETERS)
        return by_name(self._part(PARAMETERS)) if found is None else found

    @property
    def alarm(self) -> Any:
        return by_name(self._part("alarm"))

    def __repr__(self) -> str:
        return f"StepResult(log_likelihood={self.log_likelihood}, status={self.status})"


jax.tree_util.register_pytree_node(
    OnlineState,
    lambda s: ((s.time, s.input, s.vectors), s.layout),
    lambda layout, parts: OnlineState(*parts, layout),
)
jax.tree_util.register_pytree_node(
    StepResult,
    lambda r: ((r.vectors,), r.layout),
    lambda layout, parts: StepResult(*parts, layout),
)
