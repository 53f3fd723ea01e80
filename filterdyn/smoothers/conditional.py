"""The conditional particle filter with ancestor sampling: a Markov kernel on paths."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.random import categorical, fold_in
from jaxtyping import Array, Float

from filterdyn._checks import check_key, check_shape, float_array
from filterdyn._compile import compiled
from filterdyn.dynamics import Interval, Plan
from filterdyn.filters.particle import ParticleFilter
from filterdyn.filters.particle_weights import measurement_log_weights, normalize
from filterdyn.filters.proposals import FromDynamics
from filterdyn.filters.rows import Row
from filterdyn.filters.sampling import Measurement, propagate
from filterdyn.filters.scan import first_failure
from filterdyn.filters.verbs import prepare
from filterdyn.model import StateSpaceModel
from filterdyn.resampling.base import equal_log_weights
from filterdyn.series import Series
from filterdyn.smoothers.genealogy import Forward
from filterdyn.smoothers.particle import lineages
from filterdyn.status import Status


def _conditional_path(
    filter: ParticleFilter,
    model: StateSpaceModel,
    rows: Row,
    plan: Plan,
    path: Float[Array, "T dx"],
    key: Array,
) -> Float[Array, "T dx"]:
    table = model.dynamics.tabulate(plan)
    size, dtype = filter.size, path.dtype
    key_start, key_end, key = jax.random.split(key, 3)
    start = filter.init(model, dtype, key_start)
    nobody = jnp.arange(size, dtype=jnp.int32)
    is_kept = nobody == size - 1

    def one(carry: Any, at: Any) -> tuple[Any, Any]:
        x, log_w = carry
        row, kept, k = at
        key_draw, key_old, key_move = jax.random.split(fold_in(key, k), 3)
        moves = row.gap > 0
        interval = Interval(row.time_from, row.gap, row.input_from, row.plan, table)
        # Whom the old path descends from is drawn anew: w_i p(x' | x_i).
        ahead = interval._replace(gap=jnp.where(moves, row.gap, 1))
        to_kept = jax.vmap(lambda a: model.dynamics.log_density(kept, a, ahead))(x)
        to_kept = jnp.where(jnp.isnan(to_kept), -jnp.inf, to_kept)
        drawn = categorical(key_draw, log_w, shape=(size,))
        old = categorical(key_old, log_w + to_kept)
        ancestors = jnp.where(is_kept, old, drawn).astype(jnp.int32)
        ancestors = jnp.where(moves, ancestors, nobody)
        log_w = jnp.where(moves, equal_log_weights(x), log_w)
        x = propagate(model, x[ancestors], interval, key_move)
        x = jnp.where(is_kept[:, None], kept, x)
        measurement = Measurement(row.time, row.input, row.observation)
        seen, status = measurement_log_weights(model, x, measurement)
        new = normalize(log_w + seen, log_w)
        status = first_failure(row.status, status, new.status)
        return (x, new.log_weights), (x, new.log_weights, ancestors, status)

    carry = (start.positions, start.log_weights)
    _, kept = jax.lax.scan(one, carry, (rows, path, jnp.arange(len(path))))
    positions, log_weights, ancestors, statuses = kept
    found = Forward(positions, log_weights, ancestors, statuses, jnp.zeros((), dtype))
    return jnp.where((statuses == Status.OK).all(), lineages(found, key_end, 1)[0], jnp.nan)


_compiled = compiled("conditional_path", _conditional_path)


def conditional_path(
    model: StateSpaceModel,
    series: Series,
    filter: ParticleFilter,
    path: Float[Array, "T dx"],
    *,
    key: Array,
) -> Float[Array, "T dx"]:
    """A new path given the series and an old one, by the conditional particle filter with ancestor
    sampling (Lindsten, Jordan, Schön 2014).

    One particle follows `path`, and in each row draws its ancestor anew; a path of the final particles
    comes out. If `path` is from the posterior given the series so is the new one, for any number of
    particles >= 2, and 10 to 50 are mostly enough for it to depend little on the old one. Alternated
    with draws of parameters given the path it is particle Gibbs.

    **Arguments:**

    - `model`, with a transition density; `series`; the prior holds at the first row;
    - `filter`: its `size` counts. Particles come from the dynamics and are resampled in every row by
      independent draws, as the scheme needs; a `proposal` or `auxiliary` is refused;
    - `path` (T, dx); the same state at repeated times.

    **Returns:** a path (T, dx), NaN after a failure.
    """
    owner = "conditional_path"
    if not isinstance(filter, ParticleFilter):
        raise TypeError(f"{owner}: `filter` is {type(filter).__name__}; expected fd.ParticleFilter")
    if not isinstance(filter.proposal, FromDynamics) or filter.auxiliary is not None:
        raise ValueError(
            f"{owner}: `filter` has a proposal or an auxiliary filter; expected a bootstrap filter such "
            "as fd.ParticleFilter(30)"
        )
    if filter.size < 2:
        raise ValueError(
            f"{owner}: `filter` has one particle, which is the old path; expected >= 2"
        )
    check_key(owner, key)
    rows, plan = prepare(owner, model, series, filter, None, None)
    path = float_array(owner, "path", path).astype(rows.observation.dtype)
    check_shape(owner, "path", path, (len(series), model.dx), "a state for each row")
    return _compiled(filter, model, rows, plan, path, key)
