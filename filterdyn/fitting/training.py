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

from filterdyn._checks import check_count, check_key
from filterdyn.filters.verbs import check_is_filter, check_is_model
from filterdyn.fitting.leaves import Pick, Trained
from filterdyn.fitting.objectives import OBJECTIVES
from filterdyn.fitting.results import FitResult, FitState
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series


def _experiments(name: str, series: Any, burn_in: int) -> list[Series]:
    found = [series] if isinstance(series, Series) else list(series)
    if not found:
        raise ValueError(f"fit: `{name}` is empty; expected at least one fd.Series")
    for one in found:
        if not isinstance(one, Series) or one.times.ndim != 1:
            what = "a batch" if isinstance(one, Series) else type(one).__name__
            raise TypeError(f"fit: `{name}` holds {what}; expected fd.Series, or a list of them")
        if len(one) <= burn_in:
            raise ValueError(
                f"fit: `burn_in` is {burn_in} but a series in `{name}` has {len(one)} rows; expected "
                "fewer"
            )
        if np.isnan(np.asarray(one.observations[burn_in:])).all():
            raise ValueError(f"fit: a series in `{name}` has no measurement after the burn-in")
    return found


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
    objective: Literal["likelihood", "prediction", "simulation"] = "likelihood",
    burn_in: int = 0,
    clip: float | None = None,
    validation: Series | Sequence[Series] | None = None,
    chunk: int = 50,
    patience: int | None = None,
    resume: FitResult | None = None,
) -> FitResult:
    """Train what the model holds on one series, or on several.

    **Arguments:**

    - `model`, `series`, `filter`: what, on which records (a list may hold several experiments, of
      different lengths; windows of one record are `series[i:j]`), and through which filter;
    - `optimizer`: of Optax, `optax.lbfgs()` too; `steps`: how many;
    - `key`: a JAX random key, for filters that sample; every step draws anew;
    - `trainable`: a function of the model that picks leaves, such as
      `lambda m: (m.dynamics.drift.value, m.observation.R)`. By default all numbers inside the functions of
      the dynamics and of the observation, but for `fields.Normalization`; others stay to the bit. The
      network of a learned filter is trained with them (and alone, where `trainable` picks nothing);
    - `positive`: picks leaves that are trained too, by their logarithms;
    - `log_prior(model)`: added to the log-likelihood, for a maximum a posteriori;
    - `objective`: `"likelihood"` of the filter, or squared errors of one-step `"prediction"`, or of a free
      `"simulation"` that sees the rows of the burn-in only;
    - `burn_in`: rows at the start of each series that inform the state and are not scored;
    - `clip`: the largest norm of a gradient;
    - `validation`: series of which the objective is looked at after every `chunk` steps (the steps of a
      chunk are one compiled scan); with `patience`, training stops after so many looks without progress;
    - `resume`: a `FitResult` of the same model and settings to go on from.

    Where the loss or its gradient is not finite nothing is learnt: the parameters go half way back to the
    last ones that were fine, and the step is counted in `FitResult.skipped` and warned of.

    **Returns:** a `FitResult`.

    **Raises:** `ValueError` if the loss is not finite at the start, and for settings out of range;
    `TypeError` for arguments of another kind.
    """
    check_is_model("fit", model)
    check_is_filter("fit", filter)
    steps, chunk = check_count("fit", "steps", steps), check_count("fit", "chunk", chunk)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"fit: `optimizer` is {type(optimizer).__name__}; expected one of Optax, such as "
            "optax.adam(1e-2)"
        )
    if objective not in OBJECTIVES:
        raise ValueError(f"fit: `objective` is {objective!r}; expected one of {list(OBJECTIVES)}")
    if key is not None:
        check_key("fit", key)
    if isinstance(burn_in, bool) or not isinstance(burn_in, int) or burn_in < 0:
        raise ValueError(f"fit: `burn_in` is {burn_in!r}; expected an integer >= 0")
    if clip is not None:
        if not clip > 0:
            raise ValueError(f"fit: `clip` is {clip!r}; expected a positive number")
        optimizer = optax.chain(optax.clip_by_global_norm(clip), optimizer)
    if patience is not None:
        check_count("fit", "patience", patience)
        if validation is None:
            raise ValueError("fit: `patience` is given without `validation`; expected both")
    experiments = _experiments("series", series, burn_in)
    held_out = None if validation is None else _experiments("validation", validation, burn_in)
    trained, rule = (
        Trained(model, filter, trainable, positive),
        optax.with_extra_args_support(optimizer),
    )

    def mean_loss(parameters: list[Array], records: list[Series], key: Array | None) -> Array:
        candidate, through = trained.parts(parameters)
        losses = [
            OBJECTIVES[objective](
                candidate,
                one,
                through,
                None if key is None else jax.random.fold_in(key, i),
                burn_in,
            )
            for i, one in enumerate(records)
        ]
        total = jnp.stack(losses).sum()
        if log_prior is not None and records is experiments:
            total = total - log_prior(candidate)
        return total / sum(
            int((~np.isnan(np.asarray(r.observations)[burn_in:])).sum()) for r in records
        )

    def one_step(state: FitState, _: None) -> tuple[FitState, Array]:
        draw = None if key is None else jax.random.fold_in(state.key, state.step)
        loss_of = lambda p: mean_loss(p, experiments, draw)
        value, slope = jax.value_and_grad(loss_of)(state.parameters)
        fine = jnp.isfinite(value)
        for leaf in slope:
            fine &= jnp.isfinite(leaf).all()
        update, optimizer_state = rule.update(
            slope, state.optimizer, state.parameters, value=value, grad=slope, value_fn=loss_of
        )
        moved = optax.apply_updates(state.parameters, update)
        choose = lambda new, old: jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
        back = [a + 0.5 * (b - a) for a, b in zip(state.fine, state.parameters, strict=True)]
        # What is halfway between a fine number and NaN is fine again.
        back = [jnp.where(jnp.isfinite(b), b, a) for a, b in zip(state.fine, back, strict=True)]
        better = fine & (value < state.best_loss) if held_out is None else jnp.array(False)
        best = [jnp.where(better, a, b) for a, b in zip(state.parameters, state.best, strict=True)]
        new = FitState(
            choose(moved, back),
            choose(state.parameters, state.fine),
            best,
            jnp.where(better, value, state.best_loss),
            choose(optimizer_state, state.optimizer),
            state.key,
            state.step + 1,
            state.skipped + ~fine,
        )
        return new, jnp.where(fine, value, jnp.nan)

    @eqx.filter_jit
    def advance(state: FitState, length: int) -> tuple[FitState, Array]:
        return jax.lax.scan(one_step, state, None, length=length)

    @eqx.filter_jit
    def look(parameters: list[Array]) -> Array:
        assert held_out is not None
        draw = None if key is None else jax.random.fold_in(key, 0)
        return mean_loss(parameters, held_out, draw)

    if resume is None:
        start = trained.start()
        nothing = jax.random.key(0) if key is None else key
        infinite = jnp.asarray(jnp.inf, model.dtype(experiments[0].observations))
        zero = jnp.int32(0)
        state = FitState(start, start, start, infinite, rule.init(start), nothing, zero, zero)
    else:
        if not isinstance(resume, FitResult):
            raise TypeError(f"fit: `resume` is {type(resume).__name__}; expected a FitResult")
        state = resume.state
    losses: list[np.ndarray] = [] if resume is None else [resume.losses]
    looks = (
        [] if resume is None or resume.validation_losses is None else [*resume.validation_losses]
    )
    before, done, stopped = int(state.skipped), 0, False
    while done < steps and not stopped:
        length = min(chunk, steps - done)
        state, found = advance(state, length)
        losses.append(np.asarray(found))
        done += length
        if resume is None and done == length and np.isnan(losses[0][0]):
            raise ValueError(
                "fit: the loss, or its gradient, is not finite at the start; expected a `model` under "
                "which fd.log_likelihood of every series is finite"
            )
        if held_out is not None:
            value = look(state.parameters)
            looks.append(float(value))
            if bool(value < state.best_loss):
                state = eqx.tree_at(
                    lambda s: (s.best, s.best_loss), state, (state.parameters, value)
                )
            elif patience is not None:
                stopped = len(looks) - 1 - int(np.nanargmin(looks)) >= patience
    skipped = int(state.skipped)
    if skipped > before:
        warnings.warn(
            f"fit: {skipped - before} of {done} steps were skipped because the loss or its gradient was "
            "not finite; a smaller step size or `clip` may help",
            stacklevel=2,
        )
    fitted, through = trained.parts(state.best)
    return FitResult(
        fitted,
        through,
        np.concatenate(losses),
        None if held_out is None else np.asarray(looks),
        skipped,
        stopped,
        state,
    )
