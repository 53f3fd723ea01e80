"""`fit`: maximum likelihood or MAP of what a model holds, with an Optax optimiser."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.filters.verbs import check_model
from filterdyn.fitting.leaves import Members, Pick, Trained
from filterdyn.fitting.objectives import OBJECTIVES, Setting, over_all
from filterdyn.fitting.progress import Progress
from filterdyn.fitting.records import (
    Part,
    experiments_of,
    lay_out,
    stacked,
    states_of,
    windows_of,
)
from filterdyn.fitting.results import FitResult, FitState
from filterdyn.fitting.settings import OF_STATES, check_settings
from filterdyn.fitting.shooting import segments_of, shooting_loss
from filterdyn.fitting.steps import begin, stepper
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series


def fit(
    model: StateSpaceModel,
    series: Series | Sequence[Series],
    filter: Any,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: Array | None = None,
    trainable: Pick | None = None,
    positive: Pick | None = None,
    log_prior: Callable[[StateSpaceModel], Array] | None = None,
    objective: Literal[
        "likelihood", "prediction", "simulation", "states", "state_likelihood"
    ] = "likelihood",
    ahead: int = 1,
    states: Any = None,
    burn_in: int = 0,
    window: int | None = None,
    batch: int = 16,
    truncation: int | None = None,
    shooting: int | None = None,
    continuity: float = 1.0,
    clip: float | None = None,
    validation: Series | Sequence[Series] | None = None,
    validation_states: Any = None,
    chunk: int = 50,
    patience: int | None = None,
    resume: FitResult | None = None,
    progress: bool = False,
) -> FitResult:
    """Train what the model holds on one series, or on several.

    **Arguments:**

    - `model`, `series`, `filter`: what, on which records (a list may hold several experiments, of
      different lengths), and through which filter. A batch of models, `equinox.filter_vmap(make)(keys)`, is
      trained side by side, each from where it starts;
    - `optimizer`: of Optax, `optax.lbfgs()` too; `steps`: how many;
    - `key`: a JAX random key, for filters that sample and for windows; every step draws anew;
    - `trainable`: a function of the model that picks leaves, such as
      `lambda m: (m.dynamics.drift.value, m.observation.R)`. By default all numbers inside the functions of
      the dynamics and of the observation, but for `fields.Normalization`; others stay to the bit. The
      network of a learned filter is trained with them (and alone, where `trainable` picks nothing);
    - `positive`: picks leaves that are trained too, by their logarithms;
    - `log_prior(model)`: added to the log-likelihood, for a maximum a posteriori;
    - `objective`: the `"likelihood"` of the filter, or squared errors: of `"prediction"`, `ahead` rows
      ahead, of a free `"simulation"` that sees the rows of the burn-in only, or of the filtered `"states"`
      where `states` (T, dx), one array a series, are known (NaN where not); or `"state_likelihood"`, the
      density of these states under the filtered Gaussian beliefs (in rows where all are known);
    - `burn_in`: rows at the start of each series (or window) that inform the state and are not scored;
    - `window`: each step looks at `batch` windows of so many rows after a burn-in, drawn at random. The
      model's `initial` is then what is known of the state at the start of any window;
    - `truncation`: a gradient forgets what is more than so many rows ago (filters that sample have a
      `truncation` of their own);
    - `shooting`: `"simulation"` by multiple shooting: segments of so many rows start from states that are
      trained with the model, and gaps between them cost `continuity` times their square;
    - `clip`: the largest norm of a gradient;
    - `validation`: series of which the objective is looked at after every `chunk` steps (the steps of a
      chunk are one compiled scan); with `patience`, training stops after so many looks without progress;
    - `resume`: a `FitResult` of the same model and settings to go on from;
    - `progress`: say on standard error how far it is.

    Where the loss or its gradient is not finite nothing is learnt: the parameters go half way back to the
    last ones that were fine, and the step is counted in `FitResult.skipped` and warned of.

    **Returns:** a `FitResult`.

    **Raises:** `ValueError` if the loss is not finite at the start, and for settings out of range;
    `TypeError` for arguments of another kind.
    """
    check_settings(
        model=model,
        filter=filter,
        optimizer=optimizer,
        steps=steps,
        key=key,
        objective=objective,
        ahead=ahead,
        states=states,
        burn_in=burn_in,
        window=window,
        batch=batch,
        truncation=truncation,
        shooting=shooting,
        continuity=continuity,
        clip=clip,
        validation=validation,
        validation_states=validation_states,
        chunk=chunk,
        patience=patience,
        resume=resume,
    )
    if clip is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(clip), optimizer)
    rule = optax.with_extra_args_support(optimizer)
    many = model.batch_shape != ()
    members = Members(model, filter, trainable, positive) if many else None
    trained = members.trained if members else Trained(model, filter, trainable, positive)
    first = members.first if members else model
    score, setting = OBJECTIVES[objective], Setting(burn_in, ahead, truncation)

    def laid_out(name: str, series: Any, states: Any, known_as: str) -> tuple[list[Part], Any]:
        least = max(burn_in, ahead if objective == "prediction" and ahead > 1 else 0)
        experiments = experiments_of(name, series, least)
        if objective in OF_STATES:
            states = states_of(known_as, states, experiments, first.dx)
        parts, plan = lay_out(first, experiments, states)
        check_model("fit", first, parts[0].rows)
        return parts, plan

    parts, plan = laid_out("series", series, states, "states")
    length = None if window is None else burn_in + window
    size = sum(_numbers(part, burn_in) for part in parts)
    free: list[Array] = []  # what is trained and is no part of the model
    data: Any
    if shooting is not None:
        starts = (
            [first]
            if members is None
            else [members.member(members.start(), i)[0] for i in range(members.count)]
        )
        found = [segments_of(one, parts, plan, filter, shooting) for one in starts]
        data, free = found[0][0], [x[1] for x in found]
        free = [free[0] if members is None else jnp.stack(free)]
    elif length is not None:
        data = windows_of(parts, length)
    else:
        data = stacked(parts)

    def loss(parameters: list[Array], known: Any, draw: Array) -> Array:
        own, (data, plan) = known
        candidate, through = trained.parts(parameters[: len(trained.indices)], own)
        if shooting is not None:
            value = shooting_loss(candidate, data, parameters[-1], plan, through, continuity)
        else:
            some, noise = data, None if key is None else draw
            if length is not None:
                drawn, noise = jax.random.split(draw)
                some = data.draw(drawn, batch, length)
            total, count = over_all(score, candidate, some, plan, through, noise, setting)
            value = total / count
        return value if log_prior is None else value - log_prior(candidate) / size

    # (What is drawn anew in every step is low by luck, not for the better.)
    drawn = length is not None or isinstance(filter, AbstractSamplingFilter)
    keeps_best = validation is None and not drawn
    advance = stepper(loss, rule, keeps_best, many, min(chunk, steps))
    look = None
    if validation is not None:
        held_out = laid_out("validation", validation, validation_states, "validation_states")
        shown = (stacked(held_out[0]), held_out[1])

        @eqx.filter_jit
        def look(parameters: list[Array], own: Any) -> Array:
            def one(parameters: list[Array], own: Any) -> Array:
                candidate, through = trained.parts(parameters[: len(trained.indices)], own)
                draw = None if key is None else jax.random.fold_in(key, 0)
                found = over_all(score, candidate, shown[0], shown[1], through, draw, setting)
                return found.total / found.number

            return jax.vmap(one)(parameters, own) if many else one(parameters, own)

    own = members.leaves if members else None
    if resume is not None:
        state = resume.state
    else:
        start = [*(members.start() if members else trained.start()), *free]
        seed = jax.random.key(0) if key is None else key
        dtype = first.dtype(parts[0].rows.observation)
        if members is None:
            state = begin(start, rule, seed, dtype)
        else:
            seeds = jax.vmap(lambda i: jax.random.fold_in(seed, i))(jnp.arange(members.count))
            state = jax.vmap(lambda start, seed: begin(start, rule, seed, dtype))(start, seeds)
    state = jax.tree.map(_strong, state)
    state, losses, (looks, looked), stopped, done = _run(
        advance, look, state, own, (data, plan), steps, chunk, patience, resume, progress
    )
    before = 0 if resume is None else resume.skipped
    skipped = int(np.sum(np.asarray(state.skipped)))
    if skipped > before:
        warnings.warn(
            f"fit: {skipped - before} of {done} steps were skipped because the loss or its gradient was "
            "not finite; a smaller step size or `clip` may help",
            stacklevel=2,
        )
    keeps = state.best if validation is not None or keeps_best else state.parameters
    keeps = keeps[: len(trained.indices)]
    if members is None:
        fitted, through = trained.parts(keeps)
        return FitResult(
            fitted, through, losses, looks, skipped, stopped, state, validation_steps=looked
        )
    final = np.asarray(state.best_loss)
    if not np.isfinite(final).any():
        final = losses[:, -max(1, losses.shape[1] // 10) :].mean(axis=1)
    best = int(np.nanargmin(final))
    fitted, through = members.member(keeps, best)
    models = members.parts(keeps)[0]
    return FitResult(fitted, through, losses, looks, skipped, stopped, state, models, best, looked)


def _strong(x: Array) -> Array:
    """Of a dtype that no step changes: `jnp.asarray(0.5)` has one that gives way, and the second chunk would
    be compiled anew."""
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.asarray(x, x.dtype)


def _numbers(part: Part, burn_in: int) -> int:
    """How many numbers of a record are scored."""
    known = part.rows.observation if part.states is None else part.states
    return int((~np.isnan(np.asarray(known)[burn_in:])).sum())


def _run(
    advance: Callable[..., tuple[FitState, Array]],
    look: Any,
    state: FitState,
    own: Any,
    shared: Any,
    steps: int,
    chunk: int,
    patience: int | None,
    resume: FitResult | None,
    progress: bool,
) -> tuple[FitState, np.ndarray, tuple[Any, Any], bool, int]:
    """Chunks of steps until all are done, or the validation loss has not fallen for long enough: the state,
    all losses, those of the validation and after how many steps, was it stopped, and steps done now."""
    losses = [] if resume is None else [resume.losses]
    earlier = 0 if resume is None else resume.losses.shape[-1]
    looks: list[np.ndarray] = []
    looked: list[int] = []
    if resume is not None and resume.validation_losses is not None:
        looks = list(np.moveaxis(resume.validation_losses, -1, 0))
    if resume is not None and resume.validation_steps is not None:
        looked = resume.validation_steps.tolist()
    bar, done, stopped = Progress(steps, progress), 0, False
    while done < steps and not stopped:
        length = min(chunk, steps - done)
        state, found = advance(state, own, shared, length)
        losses.append(np.asarray(found))
        done += length
        if resume is None and done == length and np.isnan(losses[0][..., 0]).all():
            raise ValueError(
                "fit: the loss, or its gradient, is not finite at the start; expected a `model` under "
                "which fd.log_likelihood of every series is finite"
            )
        if look is not None:
            value = look(state.parameters, own)
            looks.append(np.asarray(value))
            looked.append(earlier + done)
            state = _keep(state, value)
            if patience is not None:
                past = np.where(np.isnan(looks), np.inf, looks)
                stopped = bool((len(looks) - 1 - past.argmin(axis=0) >= patience).all())
        said = None if look is None else float(np.nanmin(looks[-1]))
        bar.tell(done if not stopped else steps, float(np.min(losses[-1][..., -1])), said)
    joined = np.concatenate(losses, axis=-1)
    seen = (None, None) if look is None else (np.stack(looks, axis=-1), np.array(looked))
    return state, joined, seen, stopped, done


def _keep(state: FitState, value: Array) -> FitState:
    """The parameters as the best ones, where the validation loss is lower than ever."""
    better = value < state.best_loss

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(*better.shape, *[1] * (new.ndim - better.ndim)), new, old)

    best = [choose(a, b) for a, b in zip(state.parameters, state.best, strict=True)]
    return eqx.tree_at(
        lambda s: (s.best, s.best_loss), state, (best, choose(value, state.best_loss))
    )
