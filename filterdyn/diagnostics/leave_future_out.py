"""How well a model predicts each row from the rows before it, its parameters included."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import handlers

from filterdyn._checks import check_count, check_key
from filterdyn._groups import in_groups
from filterdyn.diagnostics.nuts_draws import nuts_draws
from filterdyn.diagnostics.predictive_density import RELIABLE, PredictiveDensity, estimate
from filterdyn.inference.draws import series_at, series_in
from filterdyn.inference.observed_series import ObservedSeries

_OWNER = "leave_future_out"


def leave_future_out(
    model: Callable[..., Any],
    *args: Any,
    start: int,
    key: Array,
    site: str = "y",
    ahead: int = 1,
    exact: bool = False,
    sampler: Callable[..., Mapping[str, Any]] | None = None,
    num_warmup: int = 300,
    num_draws: int = 500,
    num_chains: int = 4,
    kernel_settings: Mapping[str, Any] | None = None,
    threshold: float = RELIABLE,
    batch_size: int = 64,
    compiled: bool = True,
    **kwargs: Any,
) -> PredictiveDensity:
    """The sum of log p(y_t | y_1:t-1) over the rows after `start`, parameters integrated out under the
    posterior of the rows before t only.

    Rows to come are missing rows to the likelihood, so a fit to the beginning of a series is the same
    compiled program as one to all of it. By default parameters are inferred from the first `start` rows,
    and the draws are reweighted by every further row (Pareto-smoothed importance sampling), until the
    weights get a tail with k above `threshold`: then they are inferred anew. With `exact` they are
    inferred for every row. From `start=0` the sum is the log evidence of the model.

    **Arguments:**

    - `model`, `*args`, `**kwargs`: the NumPyro model as it is run, the data included; its site is an
      `ObservedSeries` of one series;
    - `start`: how many rows are known before the first is predicted; `ahead`: predict so many rows
      together, from each row on;
    - `key`: a JAX random key;
    - `exact`: infer the parameters for every row;
    - `sampler`: a function `(key, model, *args, **kwargs)` that returns draws by name, (S, ...), of the
      model it is given, whose data are in place. By default NUTS, `num_chains` chains of `num_draws` with
      `kernel_settings` after `num_warmup` steps;
    - `threshold`: of Pareto k; `batch_size`: so many draws are run through the model side by side;
    - `compiled`: `False` for a `sampler` that JAX cannot trace.

    **Returns** a `PredictiveDensity`. Rows without data are left out.

    **Raises:** `KeyError` if the model has no such site, `TypeError` if it is no observed `ObservedSeries`,
    `ValueError` for a batch of series and counts out of range.

    Reference: Bürkner, Gabry, Vehtari 2020, "Approximate leave-future-out cross-validation for Bayesian
    time series models".
    """
    check_key(_OWNER, key)
    ahead = check_count(_OWNER, "ahead", ahead)
    batch_size = check_count(_OWNER, "batch_size", batch_size)
    trace = handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(*args, **kwargs)
    distribution, y = series_in(_OWNER, trace, site)
    if not isinstance(distribution, ObservedSeries):
        raise TypeError(
            f"{_OWNER}: site {site!r} is {type(distribution).__name__}; expected an ObservedSeries, whose "
            "filter predicts rows from those before"
        )
    if y.ndim != 2:
        raise ValueError(f"{_OWNER}: the data have shape {y.shape}; expected one series (T, dy)")
    rows = len(y)
    is_count = isinstance(start, (int, np.integer)) and not isinstance(start, bool)
    if not is_count or not 0 <= start <= rows - ahead:
        raise ValueError(
            f"{_OWNER}: `start` is {start!r}; expected a whole number from 0 to {rows - ahead}, so that "
            f"{ahead} of {rows} rows are left to predict"
        )
    sample = _sampler(sampler, num_warmup, num_draws, num_chains, dict(kernel_settings or {}))

    def fit(key: Array, known: Any) -> Any:
        past = jnp.where(jnp.arange(rows)[:, None] < known, y, jnp.nan)
        return sample(key, handlers.condition(model, data={site: past}), *args, **kwargs)

    def one(draw: Any) -> Array:
        found, value = series_at(_OWNER, model, args, kwargs, site, draw)
        return found.log_likelihoods(value)

    fit = jax.jit(fit) if compiled else fit
    of_draws = jax.jit(lambda draws: in_groups(one, draws, batch_size))

    def densities(known: int) -> np.ndarray:
        """log p(y_t | y_1:t-1, theta) (draw, T), theta from the first `known` rows."""
        draws = {n: jnp.asarray(x) for n, x in fit(jax.random.fold_in(key, known), known).items()}
        found = np.asarray(of_draws(draws), np.float64)
        return np.where(np.isnan(found), -np.inf, found)

    fitted, refits = int(start), 1
    each = densities(fitted)
    seen = ~np.isnan(np.asarray(y)).all(1)
    kept, values, tails = [], [], []
    for t in range(fitted, rows - ahead + 1):
        if not seen[t : t + ahead].any():
            continue
        weights, k = _smoothed(each[:, fitted:t].sum(1))
        if t > fitted and (exact or not k <= threshold) and seen[fitted:t].any():
            each, fitted, refits = densities(t), t, refits + 1
            weights, k = np.zeros(len(each)), 0.0
        values.append(_log_mean(weights, each[:, t : t + ahead].sum(1)))
        kept.append(t)
        tails.append(k)
    times = np.asarray(distribution.series.times)[kept]
    return estimate("leave future out", np.array(values), times, np.array(tails), refits, ahead)


def _sampler(
    sampler: Any, num_warmup: int, num_draws: int, num_chains: int, settings: dict[str, Any]
) -> Callable[..., Mapping[str, Any]]:
    if sampler is not None:
        return sampler
    num_warmup = check_count(_OWNER, "num_warmup", num_warmup)
    num_draws = check_count(_OWNER, "num_draws", num_draws)
    num_chains = check_count(_OWNER, "num_chains", num_chains)
    chain = nuts_draws(num_warmup, num_draws, 1, settings)

    def sample(key: Array, model: Any, *args: Any, **kwargs: Any) -> dict[str, Array]:
        each = lambda key: chain(key, model, *args, **kwargs)[0]
        draws = jax.vmap(each)(jax.random.split(key, num_chains))
        return {name: x.reshape(-1, *x.shape[2:]) for name, x in draws.items()}

    return sample


def _smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Log-weights with their tail smoothed, and its Pareto k; equal ones have none."""
    from arviz_stats.base import array_stats  # ArviZ takes as long to import as all the rest

    if not np.isfinite(log_weights).any():
        return log_weights, np.inf
    spread = np.ptp(log_weights[np.isfinite(log_weights)])
    if np.isfinite(log_weights).all() and spread < 1e-8 * (1 + np.abs(log_weights).max()):
        return np.zeros_like(log_weights), 0.0
    # (ArviZ takes the negative logarithms: in its leave-one-out they are the log-likelihoods.)
    smoothed, k = array_stats.psislw(log_weights.max() - log_weights)
    return np.asarray(smoothed), float(k)


def _log_mean(log_weights: np.ndarray, values: np.ndarray) -> float:
    """log of the mean of exp(values) under the weights."""
    return float(np.logaddexp.reduce(log_weights + values) - np.logaddexp.reduce(log_weights))
