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


class Run(NamedTuple):
    """A model, the part of a record that it is scored on, and what it is gone through with."""

    model: StateSpaceModel
    part: Part
    plan: Plan
    filter: AnyFilter
    key: Array | None
    setting: Setting

    def follow(self, keep: Callable[[Any], Any]) -> tuple[Float[Array, ""], Any]:
        """The log-likelihood, and what is kept of every row."""
        truncation = self.setting.truncation
        return follow(
            self.model, self.part.rows, self.plan, self.filter, self.key, truncation, keep
        )


Objective = Callable[[Run], Score]


def _squares(errors: Float[Array, "T n"], burn_in: int, fine: Any) -> Score:
    errors = errors[burn_in:]
    missing = jnp.isnan(errors)
    # (Twice, so that no derivative of what is missing is NaN.)
    total = jnp.sum(jnp.where(missing, 0.0, jnp.where(missing, 0.0, errors) ** 2))
    return Score(jnp.where(fine, total, jnp.inf), jnp.sum(~missing).astype(errors.dtype))


def _likelihood(run: Run) -> Score:
    """-log p(y after the burn-in | the burn-in)."""
    burn_in = run.setting.burn_in
    keep = (lambda r: r.log_likelihood) if burn_in else (lambda r: None)
    found = run.follow(keep)
    total = found[1][burn_in:].sum() if burn_in else found[0]
    count = jnp.sum(~jnp.isnan(run.part.rows.observation[burn_in:]))
    return Score(-total, count.astype(total.dtype))


def _prediction(run: Run) -> Score:
    """Squared errors of predictions one or more rows ahead."""
    y, (burn_in, ahead, _) = run.part.rows.observation, run.setting
    if ahead > 1:
        mean, _, statuses = predict_rows(
            run.model, run.part.rows, run.plan, run.filter, run.key, ahead
        )
        errors = jnp.where(jnp.isnan(y), jnp.nan, y - mean)
        return _squares(errors, max(burn_in, ahead), (statuses == 0).all())
    keep = lambda r: (r.innovation, r.status)
    found = run.follow(keep)[1]
    errors = jnp.where(jnp.isnan(y), jnp.nan, found[0])
    return _squares(errors, burn_in, (found[1] == 0).all())


def observed_mean(
    model: StateSpaceModel, rows: Row, states: Float[Array, "T dx"]
) -> Float[Array, "T dy"]:
    """What the sensors would show in the mean, state by state."""
    in_axes = (0, 0, None if rows.input is None else 0)
    show = lambda t, x, u: model.observation.distribution(t, x, u).mean
    return jax.vmap(show, in_axes)(rows.time, states, rows.input)


def _simulation(run: Run) -> Score:
    """Squared errors of a run that sees the measurements of the burn-in only."""
    model, rows, y = run.model, run.part.rows, run.part.rows.observation
    burn_in, _, truncation = run.setting
    mean, fine = free_path(model, rows, run.plan, run.filter, run.key, burn_in, truncation)
    errors = jnp.where(jnp.isnan(y), jnp.nan, y - observed_mean(model, rows, mean))
    return _squares(errors, burn_in, fine)


def _states(run: Run) -> Score:
    """Squared errors of the filtered mean, where the state is known."""
    states = run.part.states
    assert states is not None
    mean, statuses = run.follow(lambda r: (r.filtered.mean, r.status))[1]
    errors = jnp.where(jnp.isnan(states), jnp.nan, states - mean)
    return _squares(errors, run.setting.burn_in, (statuses == 0).all())


def _state_likelihood(run: Run) -> Score:
    """-log density of the states under the filtered beliefs, in the rows where all of them are known."""
    states = run.part.states
    assert states is not None
    found = run.follow(lambda r: (r.filtered.mean, r.filtered.spread, r.status))[1]
    errors = states - found[0]
    late = jnp.arange(len(errors)) >= run.setting.burn_in
    known = ~jnp.isnan(states).any(-1) & late
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
        return objective(Run(model, one, plan, filter, draw, setting))
    # (What has been made shorter, or was drawn, may miss anything.)
    plan = Plan(plan.rows, plan.gaps, plan.most)
    draws = None
    if key is not None:
        draws = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    each = lambda part, draw: objective(Run(model, part, plan, filter, draw, setting))
    found = jax.vmap(each, (0, None if draws is None else 0))(parts, draws)
    return Score(found.total.sum(), found.number.sum())
