"""Are the settings of a fit in range, and do they go together?"""

from typing import Any

import optax

from filterdyn._checks import check_count, check_key
from filterdyn.filters.sampling import AbstractSamplingFilter
from filterdyn.filters.sampling_verbs import require_key
from filterdyn.filters.verbs import check_is_filter, check_is_model
from filterdyn.fitting.objectives import OBJECTIVES
from filterdyn.fitting.results import FitResult

#: Objectives that need true states.
OF_STATES = ("states", "state_likelihood")


def check_settings(
    *,
    model: Any,
    filter: Any,
    optimizer: Any,
    steps: Any,
    key: Any,
    objective: Any,
    ahead: Any,
    states: Any,
    burn_in: Any,
    window: Any,
    batch: Any,
    truncation: Any,
    shooting: Any,
    continuity: Any,
    clip: Any,
    validation: Any,
    validation_states: Any,
    chunk: Any,
    patience: Any,
    resume: Any,
) -> None:
    """**Raises:** `TypeError` for arguments of another kind, `ValueError` for those out of range, and for
    those that exclude each other."""
    check_is_model("fit", model)
    check_is_filter("fit", filter)
    counts = {"steps": steps, "chunk": chunk, "ahead": ahead, "batch": batch}
    optional = {
        "window": window,
        "truncation": truncation,
        "shooting": shooting,
        "patience": patience,
    }
    for name, value in (counts | {k: v for k, v in optional.items() if v is not None}).items():
        check_count("fit", name, value)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"fit: `optimizer` is {type(optimizer).__name__}; expected one of Optax, such as "
            "optax.adam(1e-2)"
        )
    if objective not in OBJECTIVES:
        raise ValueError(f"fit: `objective` is {objective!r}; expected one of {list(OBJECTIVES)}")
    if key is not None:
        check_key("fit", key)
    require_key("fit", filter, key)
    if isinstance(burn_in, bool) or not isinstance(burn_in, int) or burn_in < 0:
        raise ValueError(f"fit: `burn_in` is {burn_in!r}; expected an integer >= 0")
    if clip is not None and not clip > 0:
        raise ValueError(f"fit: `clip` is {clip!r}; expected a positive number")
    if not continuity >= 0:
        raise ValueError(f"fit: `continuity` is {continuity!r}; expected a number >= 0")
    if len(model.batch_shape) > 1:
        raise ValueError(
            f"fit: `model` is a batch of shape {model.batch_shape}; expected one model, or (S,)"
        )
    if resume is not None and not isinstance(resume, FitResult):
        raise TypeError(f"fit: `resume` is {type(resume).__name__}; expected a FitResult")
    of_states = objective in OF_STATES
    _check_pairs(
        {
            "patience": (patience, "validation", validation is not None),
            "window": (window, "key", key is not None),
            "states": (states, 'objective="states" or "state_likelihood"', of_states),
            "shooting": (shooting, 'objective="simulation"', objective == "simulation"),
        }
    )
    if of_states and states is None:
        raise ValueError(f'fit: `states` is missing; objective="{objective}" needs the true ones')
    if of_states and (validation is None) != (validation_states is None):
        raise ValueError("fit: expected both `validation` and `validation_states`, or neither")
    if objective == "state_likelihood" and isinstance(filter, AbstractSamplingFilter):
        raise ValueError(
            f'fit: objective="state_likelihood" needs Gaussian beliefs, which {type(filter).__name__} has '
            'not; expected a Gaussian or a learned filter, or objective="states"'
        )
    if ahead > 1 and objective != "prediction":
        raise ValueError(f"fit: `ahead` is {ahead} with objective={objective!r}; expected 1")
    _check_exclusions(filter, ahead, burn_in, window, truncation, shooting)


def _check_pairs(pairs: dict[str, tuple[Any, str, bool]]) -> None:
    for name, (value, other, given) in pairs.items():
        if value is not None and not given:
            raise ValueError(f"fit: `{name}` is given without `{other}`; expected both")


def _check_exclusions(
    filter: Any, ahead: int, burn_in: int, window: Any, truncation: Any, shooting: Any
) -> None:
    samples = isinstance(filter, AbstractSamplingFilter)
    if truncation is not None and samples:
        raise ValueError(
            f"fit: `truncation` is {truncation}, but {type(filter).__name__} has a `truncation` of its "
            "own; give it there"
        )
    if truncation is not None and ahead > 1:
        raise ValueError("fit: `truncation` and `ahead` > 1 exclude each other; give one")
    if shooting is None:
        return
    if window is not None or truncation is not None or burn_in:
        raise ValueError(
            "fit: `shooting` excludes `window`, `truncation` and `burn_in`; its segments start from "
            "states of their own"
        )
    if samples:
        raise ValueError(
            f"fit: `shooting` needs a filter that follows a mean; expected one such as "
            f"fd.ExtendedKalmanFilter(), not {type(filter).__name__}"
        )
