"""Is the gradient of a particle filter's log-likelihood worth following? Replicates say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from filterdyn._checks import check_count, check_key
from filterdyn.diagnostics.parameters import Parameters, flatten
from filterdyn.filters import KalmanFilter, ParticleFilter, log_likelihood
from filterdyn.filters.proposals import FromDynamics
from filterdyn.model import StateSpaceModel
from filterdyn.resampling import GRADIENTS, AbstractTransport
from filterdyn.series import Series

#: Modes whose expectation is not the gradient, however many particles there are.
_BIASED = ("soft", "none")


@dataclass(frozen=True)
class GradientOfMode:
    """Gradients of one mode over replicate keys.

    - `mean`, `sd` (P,): over keys, of one gradient;
    - `signal_to_noise`: the length of the mean over the root of the summed variances: that of one
      gradient. Below 1 its direction is mostly noise;
    - `bias`: how far the mean is from the exact gradient, relative to its length; `None` where there is
      no exact answer; `bias_error`: what of it chance alone would leave;
    - `error`: the root mean square error of one gradient, relative to the exact one's length.
    """

    mean: np.ndarray
    sd: np.ndarray
    signal_to_noise: float
    bias: float | None
    bias_error: float | None
    error: float | None
    finite: bool


@dataclass(frozen=True)
class GradientCheck:
    """What `gradient_check` found.

    - `modes`: a `GradientOfMode` for each mode that was tried;
    - `names` (P,) of the parameters, `exact` (P,): the gradient of the Kalman filter, or `None`;
    - `recommended`: the mode to use; `advice`: why, and what else to try, in words.
    """

    modes: dict[str, GradientOfMode]
    names: tuple[str, ...]
    exact: np.ndarray | None
    replicates: int
    size: int
    recommended: str
    advice: str

    def __str__(self) -> str:
        known = self.exact is not None
        head = f"{'gradient':<10}{'signal to noise':>16}" + (
            f"{'bias':>18}{'error':>8}" if known else ""
        )
        lines = [f"{self.replicates} replicates of {self.size} particles", head]
        for name, m in self.modes.items():
            line = f"{name:<10}{m.signal_to_noise:>16.2f}"
            if known:
                line += f"{f'{m.bias:.2f} +- {m.bias_error:.2f}':>18}{m.error:>8.2f}"
            lines.append(line if m.finite else f"{name:<10}{'not finite':>16}")
        return "\n".join([*lines, self.advice])


def gradient_check(
    model: StateSpaceModel | Callable[[Any], StateSpaceModel],
    series: Series,
    filter: ParticleFilter,
    key: Array,
    replicates: int = 32,
    *,
    parameters: Any = None,
    modes: Sequence[str] | None = None,
    t0: Any = None,
    u0: Any = None,
) -> GradientCheck:
    """Compare gradient modes of a particle filter by replicates with independent keys.

    **Arguments:**

    - `model`: a `StateSpaceModel`, all of whose arrays are parameters; or, with `parameters`, a function
      that makes one of them;
    - `series`, `filter`: along which record, and how; `key`: a random key;
    - `replicates`: how many gradients of each mode, at least 2;
    - `parameters`: a dict (or any tree) of numbers and arrays, the point that is judged;
    - `modes`: which to try; by default that of `filter` and those of "affine", "stop" and "score" that
      the filter and the model allow.

    Bias is measured where the Kalman filter is exact.

    **Returns:** a `GradientCheck`; print it.

    **Raises:** `TypeError` for another kind of filter, `ValueError` if there are no parameters or no mode
    gives a finite gradient.
    """
    owner = "gradient_check"
    if not isinstance(filter, ParticleFilter):
        raise TypeError(f"{owner}: `filter` is {type(filter).__name__}; expected fd.ParticleFilter")
    check_key(owner, key)
    if check_count(owner, "replicates", replicates) < 2:
        raise ValueError(f"{owner}: `replicates` is 1; expected an integer >= 2")
    flat, make = _flattened(owner, model, parameters)
    exact = _exact(make, flat, series, t0, u0)
    keys = jax.random.split(key, replicates)
    found = {}
    for mode in _modes(owner, modes, filter):
        one = _with_gradient(filter, mode)

        def value(v: Array, key: Array, one: ParticleFilter = one) -> Array:
            return log_likelihood(make(v), series, one, key=key, t0=t0, u0=u0)

        gradient = jax.jit(jax.grad(value))
        try:
            gradients = [gradient(flat.vector, k) for k in keys]
        except (TypeError, ValueError):
            # A score needs a transition density, the others draws that are differentiable; who asked for
            # a mode by name is told so.
            if modes is not None or mode == filter.gradient:
                raise
            continue
        found[mode] = _judged(np.asarray(gradients, float), exact)
    recommended, advice = _advice(owner, found, exact is not None, filter)
    return GradientCheck(found, flat.names, exact, replicates, filter.size, recommended, advice)


def _flattened(
    owner: str, model: Any, parameters: Any
) -> tuple[Parameters, Callable[[Array], StateSpaceModel]]:
    if parameters is not None:
        flat = flatten(owner, parameters)
        return flat, lambda v: model(flat.unravel(v))
    if not isinstance(model, StateSpaceModel):
        raise ValueError(
            f"{owner}: `model` is {type(model).__name__}, and `parameters` is missing; expected a "
            "StateSpaceModel, or a function with its `parameters`"
        )
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    # (A model carries one number that is no parameter.)
    rest = eqx.tree_at(lambda m: m._rank, rest, model._rank, is_leaf=lambda x: x is None)
    arrays = eqx.tree_at(lambda m: m._rank, arrays, None)
    if not jax.tree.leaves(arrays):
        raise ValueError(
            f"{owner}: `model` has no arrays to differentiate by; give a function that makes the model, "
            "and its `parameters`"
        )
    flat = flatten(owner, arrays)
    return flat, lambda v: eqx.combine(flat.unravel(v), rest)


def _exact(
    make: Callable[[Array], StateSpaceModel], flat: Parameters, series: Series, t0: Any, u0: Any
) -> np.ndarray | None:
    """The gradient of the Kalman filter where it is exact."""
    kalman = KalmanFilter()
    try:
        kalman.check(make(flat.vector))
    except TypeError:
        return None
    value = lambda v: log_likelihood(make(v), series, kalman, t0=t0, u0=u0)
    found = np.asarray(jax.jit(jax.grad(value))(flat.vector), float)
    return found if np.isfinite(found).all() else None


def _modes(owner: str, modes: Sequence[str] | None, filter: ParticleFilter) -> tuple[str, ...]:
    if modes is not None:
        unknown = [mode for mode in modes if mode not in GRADIENTS]
        if unknown or not modes:
            raise ValueError(
                f"{owner}: `modes` is {tuple(modes)!r}; expected some of {', '.join(GRADIENTS)}"
            )
        return tuple(modes)
    if isinstance(filter.resampling, AbstractTransport):
        return (str(filter.gradient),)
    own = () if filter.gradient is None else (filter.gradient,)
    return tuple(dict.fromkeys((*own, "affine", "stop", "score")))


def _with_gradient(filter: ParticleFilter, mode: str) -> ParticleFilter:
    discount = filter.discount if mode == "score" else 1.0
    fields = (filter.size, filter.resampling, filter.ess_threshold, filter.proposal, mode)
    return ParticleFilter(
        *fields,
        auxiliary=filter.auxiliary,
        discount=discount,
        truncation=filter.truncation,
        paths=filter.paths,
    )


def _judged(gradients: np.ndarray, exact: np.ndarray | None) -> GradientOfMode:
    finite = np.isfinite(gradients).all()
    mean, sd = gradients.mean(0), gradients.std(0, ddof=1)
    noise = float(np.sqrt((sd**2).sum()))
    signal = float(np.linalg.norm(mean)) / noise if noise > 0 else np.inf
    if exact is None:
        return GradientOfMode(mean, sd, signal, None, None, None, bool(finite))
    size = float(np.linalg.norm(exact)) or 1.0
    bias = float(np.linalg.norm(mean - exact)) / size
    left = noise / np.sqrt(len(gradients)) / size
    error = float(np.sqrt(((gradients - exact) ** 2).sum(1).mean())) / size
    return GradientOfMode(mean, sd, signal, bias, left, error, bool(finite))


def _advice(
    owner: str, found: dict[str, GradientOfMode], known: bool, filter: ParticleFilter
) -> tuple[str, str]:
    usable = {name: m for name, m in found.items() if m.finite}
    if not usable:
        raise ValueError(
            f"{owner}: no mode gave finite gradients ({', '.join(found)}): the filter fails at this "
            "point (see the status of fd.filter), or its derivatives overflow"
        )
    fair = {name: m for name, m in usable.items() if name not in _BIASED} or usable
    noise = {name: float(np.linalg.norm(m.sd)) for name, m in usable.items()}
    # Of modes that are right on average the least noise, not the best ratio: that of a gradient that
    # explodes is one over the root of the replicates, whatever it is worth.
    best = min(fair, key=lambda name: (fair[name].error or 0.0) if known else noise[name])
    m = fair[best]
    words = [f"Use gradient={best!r}"]
    if known:
        words[0] += f": off by {m.error:.0%} of the exact gradient"
    else:
        words[0] += f": its signal is {m.signal_to_noise:.1f} times its noise"
    if m.signal_to_noise < 1:
        words.append(
            f"one gradient of {filter.size} particles is mostly noise: more particles, a proposal that "
            "sees the measurement (proposal=fd.ExtendedKalmanFilter()), truncation=10, or "
            "gradient='score' with discount=0.9 may help, and near an optimum noise is all there is"
        )
    pathwise = [n for n in ("affine", "sorted", "entropic") if n in usable]
    lost = [name for name in pathwise if noise[name] > 30 * noise[best]]
    if lost:
        words.append(
            f"{' and '.join(lost)} differentiates through the dynamics, which seem to expand (chaos)"
        )
    if filter.gradient in _BIASED:
        words.append(f"gradient={filter.gradient!r} is biased whatever the number of particles")
    if not isinstance(filter.proposal, FromDynamics) and best == "score":
        words.append("with a proposal the score's noise is also that of the proposal's weights")
    return best, "; ".join(words) + "."
