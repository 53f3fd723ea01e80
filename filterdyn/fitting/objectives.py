"""What a fit makes small."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from filterdyn.dynamics import Plan
from filterdyn.dynamics.gaussian import log_density_of
from filterdyn.filters.rows import Row
from filterdyn.filters.stepping import AnyFilter
from filterdyn.fitting.passes import follow, free_path
from filterdyn.fitting.records import Part
from filterdyn.model import StateSpaceModel
from filterdyn.predictions import predict_rows


class Score(NamedTuple):
    """What is small for a good model, and over how many numbers it is a sum."""

    total: Float[Array, ""]
    number: Float[Array, ""]


class Setting(NamedTuple):
    """How a record is gone through: rows that are not scored, rows ahead, rows a gradient reaches back."""

    burn_in: int
    ahead: int
    truncation: int | None


Objective = Callable[
    [StateSpaceModel, Part, Plan, AnyFilter, Array | None, Setting],
    Score,
]


def _squares(errors: Float[Array, "T n"], burn_in: int, fine: Any) -> Score:
    errors = errors[burn_in:]
    missing = jnp.isnan(errors)
    # (Twice, so that no derivative of what is missing is NaN.)
    total = jnp.sum(jnp.where(missing, 0.0, jnp.where(missing, 0.0, errors) ** 2))
    return Score(jnp.where(fine, total, jnp.inf), jnp.sum(~missing).astype(errors.dtype))


def _likelihood(
    model: StateSpaceModel,
    part: Part,
    plan: Plan,
    filter: AnyFilter,
    key: Array | None,
    setting: Setting,
) -> Score:
    """-log p(y after the burn-in | the burn-in)."""
    keep = (lambda r: r.log_likelihood) if setting.burn_in else (lambda r: None)
    found = follow(model, part.rows, plan, filter, key, setting.truncation, keep)
    total = found[1][setting.burn_in :].sum() if setting.burn_in else found[0]
    count = jnp.sum(~jnp.isnan(part.rows.observation[setting.burn_in :]))
    return Score(-total, count.astype(total.dtype))


def _prediction(
    model: StateSpaceModel,
    part: Part,
    plan: Plan,
    filter: AnyFilter,
    key: Array | None,
    setting: Setting,
) -> Score:
    """Squared errors of predictions one or more rows ahead."""
    y = part.rows.observation
    if setting.ahead > 1:
        mean, _, statuses = predict_rows(model, part.rows, plan, filter, key, setting.ahead)
        errors = jnp.where(jnp.isnan(y), jnp.nan, y - mean)
        return _squares(errors, max(setting.burn_in, setting.ahead), (statuses == 0).all())
    keep = lambda r: (r.innovation, r.status)
    found = follow(model, part.rows, plan, filter, key, setting.truncation, keep)[1]
    errors = jnp.where(jnp.isnan(y), jnp.nan, found[0])
    return _squares(errors, setting.burn_in, (found[1] == 0).all())


def observed_mean(
    model: StateSpaceModel, rows: Row, states: Float[Array, "T dx"]
) -> Float[Array, "T dy"]:
    """What the sensors would show in the mean, state by state."""
    in_axes = (0, 0, None if rows.input is None else 0)
    show = lambda t, x, u: model.observation.distribution(t, x, u).mean
    return jax.vmap(show, in_axes)(rows.time, states, rows.input)


def _simulation(
    model: StateSpaceModel,
    part: Part,
    plan: Plan,
    filter: AnyFilter,
    key: Array | None,
    setting: Setting,
) -> Score:
    """Squared errors of a run that sees the measurements of the burn-in only."""
    rows, y = part.rows, part.rows.observation
    mean, fine = free_path(model, rows, plan, filter, key, setting.burn_in, setting.truncation)
    errors = jnp.where(jnp.isnan(y), jnp.nan, y - observed_mean(model, rows, mean))
    return _squares(errors, setting.burn_in, fine)


def _states(
    model: StateSpaceModel,
    part: Part,
    plan: Plan,
    filter: AnyFilter,
    key: Array | None,
    setting: Setting,
) -> Score:
    """Squared errors of the filtered mean, where the state is known."""
    assert part.states is not None
    keep = lambda r: (r.filtered.mean, r.status)
    mean, statuses = follow(model, part.rows, plan, filter, key, setting.truncation, keep)[1]
    errors = jnp.where(jnp.isnan(part.states), jnp.nan, part.states - mean)
    return _squares(errors, setting.burn_in, (statuses == 0).all())


def _state_likelihood(
    model: StateSpaceModel,
    part: Part,
    plan: Plan,
    filter: AnyFilter,
    key: Array | None,
    setting: Setting,
) -> Score:
    """-log density of the states under the filtered beliefs, in the rows where all of them are known."""
    assert part.states is not None
    keep = lambda r: (r.filtered.mean, r.filtered.spread, r.status)
    found = follow(model, part.rows, plan, filter, key, setting.truncation, keep)[1]
    errors = part.states - found[0]
    known = ~jnp.isnan(part.states).any(-1) & (jnp.arange(len(errors)) >= setting.burn_in)
    terms = jax.vmap(log_density_of)(jnp.where(known[:, None], errors, 0.0), found[1])
    total = -jnp.sum(jnp.where(known, terms, 0.0))
    fine = (found[2] == 0).all()
    return Score(jnp.where(fine, total, jnp.inf), known.sum().astype(total.dtype) * errors.shape[1])


OBJECTIVES: dict[str, Objective] = {
    "likelihood": _likelihood,
    "prediction": _prediction,
    "simulation": _simulation,
    "states": _states,
    "state_likelihood": _state_likelihood,
}


def over_all(
    objective: Objective,
    model: StateSpaceModel,
    parts: Part,
    plan: Plan,
    filter: AnyFilter,
    key: Array | None,
    setting: Setting,
) -> Score:
    """The sum over parts (B, T, ...)."""
    count = parts.rows.time.shape[0]
    if count == 1:
        one = jax.tree.map(lambda x: x[0], parts)
        draw = None if key is None else jax.random.fold_in(key, 0)
        return objective(model, one, plan, filter, draw, setting)
    # (What has been made shorter, or was drawn, may miss anything.)
    plan = Plan(plan.rows, plan.gaps, plan.most)
    draws = None
    if key is not None:
        draws = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    each = lambda part, draw: objective(model, part, plan, filter, draw, setting)
    found = jax.vmap(each, (0, None if draws is None else 0))(parts, draws)
    return Score(found.total.sum(), found.number.sum())
