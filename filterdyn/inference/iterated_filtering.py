"""Iterated filtering: the maximum of a likelihood that is only estimated."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, Float, Int

from filterdyn._checks import check_between, check_count, check_key
from filterdyn.dynamics import Interval
from filterdyn.filters.particle_weights import measurement_log_weights, normalize
from filterdyn.filters.sampling import Measurement
from filterdyn.filters.scan import first_failure
from filterdyn.inference.one_series import OneSeries, one_series
from filterdyn.inference.particle_likelihood import estimate
from filterdyn.inference.unconstrained import Call, Point, constrained, start_point, unconstrained
from filterdyn.resampling import Systematic
from filterdyn.resampling.base import equal_log_weights
from filterdyn.status import Status

_NAME = "iterated_filtering"
#: Iterations over which `cooling` is stated, as is usual.
_STATED = 50


class IteratedFiltering(eqx.Module):
    """What `iterated_filtering` returns.

    - `parameters`: by name, the estimate (the mean of the last swarm in the unconstrained space), inside
      its limits; `log_likelihood`: there, from particle filters without perturbations, with
      `log_likelihood_se`;
    - `swarm`: by name, (N, ...), the last draws, whose spread is that of the perturbations and no
      uncertainty;
    - `path`: by name, (iterations + 1, ...), the mean of the swarm at the start and after every pass;
    - `log_likelihoods` (iterations,): of the perturbed model, an estimate in every pass, on its way to that
      of the model itself as steps shrink (from below, where the data want parameters that stay);
    - `status`: an integer of `Status`, the first failure of any pass.
    """

    parameters: dict[str, Array]
    log_likelihood: Float[Array, ""]
    log_likelihood_se: Float[Array, ""]
    swarm: dict[str, Array]
    path: dict[str, Array]
    log_likelihoods: Float[Array, " iterations"]
    status: Int[Array, ""]


class _Carry(NamedTuple):
    z: dict[str, Array]
    x: Float[Array, "N dx"]
    status: Int[Array, ""]


def iterated_filtering(
    model: Callable[..., Any],
    *args: Any,
    key: Array,
    size: int = 1000,
    iterations: int = 50,
    perturbation: float | Mapping[str, float] = 0.02,
    cooling: float = 0.5,
    start: Mapping[str, Any] | None = None,
    replicates: int = 20,
    **kwargs: Any,
) -> IteratedFiltering:
    """The parameters of highest likelihood, by iterated filtering (IF2; Ionides, Nguyen, Atchadé, Stoev,
    King 2015), for models that can only be simulated.

    Every particle has parameters of its own, which take a small random step in every row and are
    resampled with the state: those that explain the data survive. The swarm goes through the series
    again and again, and steps shrink, so that it settles near the maximum. No derivative and no
    transition density is needed. The prior takes no part, except that it says between which limits a
    parameter lies and, without `start`, where the swarm begins.

        found = fd.inference.iterated_filtering(model, times, y, key=jax.random.key(0))

    **Arguments:**

    - `model`, `*args`, `**kwargs`: a NumPyro model as for `ParticleMetropolis`, whose only observed site
      is one `fd.ObservedSeries`, with the data; its filter evaluates the likelihood at the end;
    - `key`: a JAX random key; `size`: N, how many particles of parameters and state;
    - `iterations`: passes through the series;
    - `perturbation`: the standard deviation of the step of a row in the first pass, in the unconstrained
      space (0.02 is 2 % of a scale), one for all or by name; 0 keeps a parameter where it starts;
    - `cooling`: what is left of the steps after 50 passes;
    - `start`: parameters by name to begin from, by default draws of the prior;
    - `replicates`: runs of the model's own filter for the likelihood at the estimate.

    **Returns:** an `IteratedFiltering`. One swarm may settle on a local maximum: compare several keys.

    **Raises:** what `ParticleMetropolis` raises; `ValueError` for a model that observes anything else and
    for numbers out of range, `KeyError` for an unknown name.
    """
    size, iterations = (
        check_count(_NAME, "size", size),
        check_count(_NAME, "iterations", iterations),
    )
    replicates = check_count(_NAME, "replicates", replicates)
    cooling = check_between(_NAME, "cooling", cooling, 0, 1)
    check_key(_NAME, key)
    call = Call(model, args, kwargs)
    prior = lambda key: start_point(_NAME, call, key, lambda site: None)
    first = prior(jax.random.key(0))
    problem, rows, _ = one_series(_NAME, call, first)
    steps = _steps(perturbation, list(first))
    key_start, key_passes, key_end = jax.random.split(key, 3)
    if start is None:
        z = jax.jit(jax.vmap(prior))(jax.random.split(key_start, size))
    else:
        point = unconstrained(_NAME, call, start)
        z = jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), point)

    def one(carry: tuple[Any, Array], m: Array) -> tuple[Any, Any]:
        z, status = carry
        passed = jax.random.fold_in(key_passes, m)
        z, log_likelihood, new = _pass(problem, z, steps, m, rows, cooling, passed)
        return (z, first_failure(status, new)), (_middle(z), log_likelihood)

    @jax.jit
    def run(z: dict[str, Array]) -> Any:
        begin = (z, jnp.int32(Status.OK))
        (z, status), (path, each) = jax.lax.scan(one, begin, jnp.arange(iterations))
        return z, status, path, each

    @jax.jit
    def evaluate(z: Point, keys: Array) -> Array:
        at = lambda key: estimate(call, z, key, with_paths=False).log_likelihood
        return jax.lax.map(at, keys)

    begin = _middle(z)
    z, status, path, each = run(z)
    path = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begin, path)
    point = jax.tree.map(lambda x: x[-1], path)
    runs = evaluate(point, jax.random.split(key_end, replicates))
    relative = jnp.exp(runs - runs.max())
    inside = jax.jit(jax.vmap(lambda z: constrained(call, z)))
    path = inside(path)
    return IteratedFiltering(
        jax.tree.map(lambda x: x[-1], path),
        logsumexp(runs) - math.log(replicates),
        relative.std(ddof=1) / relative.mean() / math.sqrt(replicates),
        inside(z),
        path,
        each,
        status,
    )


def _steps(perturbation: Any, names: list[str]) -> dict[str, float]:
    """Standard deviations by name."""
    if not isinstance(perturbation, Mapping):
        perturbation = dict.fromkeys(names, perturbation)
    unknown = sorted(set(perturbation) - set(names))
    if unknown or set(names) - set(perturbation):
        raise KeyError(
            f"{_NAME}: `perturbation` has {sorted(perturbation)}; expected one number for each of {names}"
        )
    for name, sd in perturbation.items():
        if not 0 <= float(sd) < np.inf:
            raise ValueError(
                f"{_NAME}: `perturbation` of {name!r} is {sd!r}; expected a number >= 0"
            )
    return {name: float(sd) for name, sd in perturbation.items()}


def _middle(z: Point) -> dict[str, Array]:
    return {name: x.mean(0) for name, x in z.items()}


def _perturbed(z: Point, steps: Mapping[str, float], scale: Array, key: Array) -> dict[str, Array]:
    keys = dict(zip(z, jax.random.split(key, len(z)), strict=True))
    noise = lambda n, x: steps[n] * scale * jax.random.normal(keys[n], x.shape, x.dtype)
    return {name: x + noise(name, x) for name, x in z.items()}


def _pass(
    problem: OneSeries,
    z: dict[str, Array],
    steps: Mapping[str, float],
    m: Array,
    rows: int,
    cooling: float,
    key: Array,
) -> tuple[dict[str, Array], Float[Array, ""], Int[Array, ""]]:
    """Pass `m` through the series: the swarm at its end, the likelihood of the perturbed model, and a
    status."""
    size = len(next(iter(z.values())))
    key_walk, key_start, key = jax.random.split(key, 3)
    scale = lambda row: cooling ** ((m + row / rows) / _STATED)
    each = lambda k: jax.random.split(k, size)
    z = _perturbed(z, steps, scale(0), key_walk)

    def begin(z: Point, key: Array) -> Array:
        scene = problem.at(z)
        return scene.model.initial.sample(key).astype(scene.rows.observation.dtype)

    def move(z: Point, x: Array, k: Array, key: Array) -> tuple[Array, Array, Array]:
        scene = problem.at(z)
        row = jax.tree.map(lambda x: x[k], scene.rows)
        table = scene.model.dynamics.tabulate(scene.plan)
        interval = Interval(row.time_from, row.gap, row.input_from, row.plan, table)
        moved = scene.model.dynamics.sample(key, x, interval).astype(x.dtype)
        x = jnp.where(row.gap > 0, moved, x)
        measurement = Measurement(row.time, row.input, row.observation)
        seen, status = measurement_log_weights(scene.model, x[None], measurement)
        finite = jnp.isfinite(x).all()
        return x, jnp.where(finite, seen[0], -jnp.inf), first_failure(row.status, status)

    def one(carry: _Carry, k: Array) -> tuple[_Carry, Array]:
        key_walk, key_move, key_resample = jax.random.split(jax.random.fold_in(key, k), 3)
        z = _perturbed(carry.z, steps, scale(k), key_walk)
        x, seen, statuses = jax.vmap(move, in_axes=(0, 0, None, 0))(z, carry.x, k, each(key_move))
        # A measurement that is impossible for some is only so for all where all weights are zero.
        new = normalize(equal_log_weights(x) + seen, equal_log_weights(x))
        impossible = statuses == Status.OBSERVATION_OUT_OF_SUPPORT
        other = jnp.where(impossible, Status.OK, statuses).max()
        status = first_failure(carry.status, other.astype(jnp.int32), new.status)
        index = Systematic().ancestors(key_resample, new.log_weights)
        z, x = jax.tree.map(lambda a: a[index], (z, x))
        return _Carry(z, x, status), new.log_sum

    x = jax.vmap(begin)(z, each(key_start))
    end, terms = jax.lax.scan(one, _Carry(z, x, jnp.int32(Status.OK)), jnp.arange(rows))
    return end.z, terms.sum(), end.status
