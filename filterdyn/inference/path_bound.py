"""A lower bound on the log-likelihood from an approximate posterior over paths, and what it is made of."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from filterdyn._checks import check_count, check_key
from filterdyn._compile import compiled
from filterdyn.dynamics import Plan
from filterdyn.filters.rows import Row, rows_of
from filterdyn.filters.verbs import check_is_model, check_model
from filterdyn.inference.batch import over_batch
from filterdyn.inference.path_collapse import Activity, activity, warning_of
from filterdyn.inference.path_posterior import AbstractPathPosterior, PathTerms
from filterdyn.model import StateSpaceModel
from filterdyn.series import Series
from filterdyn.status import Status

_NAME = "path_elbo"


class PathBound(eqx.Module):
    """A lower bound on log p(y), term by term; of a batch of S series everything has that axis first.

    - `value`: the bound (ELBO), the mean over the sampled paths, and its `standard_error` (0 for a
      posterior without sampling, NaN with one path). It is the mean of log p(y, path) / q(path), which varies
      little where the posterior is good, and has the expectation of `log_likelihoods` less `kl`;
    - `weighted_value`: log of the mean of p(y, path) / q(path) over n sampled paths, a bound as well, that
      grows towards log p(y) with n (Burda, Grosse, Salakhutdinov 2016); `None` without sampling. Paths that
      failed count as 0, with which it is still a bound, and is `-inf` only if all failed;
    - `log_likelihoods` (T,): E log p(y_t | x_t), 0 where nothing is observed;
    - `kl_start` (dx,), `kl_moves` (T - 1, dw): divergence from the prior, of the start and of the move
      into each row after the first, split over the units (the independent standard normal numbers that
      drive the model; a Gaussian with correlations by the chain rule, in their order);
    - `shift_start`, `shift_moves`: posterior means of the units, and `shift_errors` (T - 1, dw), the
      variances with which those of the moves are estimated (NaN with one path; of a `GaussianPath` the
      units of a move are dx);
    - `mean`, `variance` (T, dx): of the states under the posterior;
    - `converged`: did a `GaussianPath` reach its maximum? (What it has is a bound in any case.)
    - `status`: of `fd.Status`, a failure if any path failed; `value` is `-inf` then.
    """

    value: Float[Array, "*S"]
    standard_error: Float[Array, "*S"]
    weighted_value: Float[Array, "*S"] | None
    log_likelihoods: Float[Array, "*S T"]
    kl_start: Float[Array, "*S dx"]
    kl_moves: Float[Array, "*S moves dw"]
    shift_start: Float[Array, "*S dx"]
    shift_moves: Float[Array, "*S moves dw"]
    shift_errors: Float[Array, "*S moves dw"]
    mean: Float[Array, "*S T dx"]
    variance: Float[Array, "*S T dx"]
    moved: Bool[Any, "*S moves"]
    converged: Bool[Array, "*S"]
    status: Int[Array, "*S"]

    @property
    def kl(self) -> Float[Array, "*S"]:
        """The whole divergence from the prior."""
        return self.kl_start.sum(-1) + self.kl_moves.sum((-2, -1))

    @property
    def noises(self) -> Activity:
        """Use that the posterior makes of each noise: over all series and rows, the variance of its
        posterior mean (prior variance 1), and its divergence per series."""
        return activity(self.shift_moves, self.shift_errors, self.kl_moves, self.moved)

    @property
    def warning(self) -> str | None:
        """What failed or has not converged, which noises are not used, or that this cannot be told;
        `None` if nothing is wrong."""
        failed = int((np.asarray(self.status) != Status.OK).sum())
        if failed:
            return f"{failed} of {np.size(self.status)} series have no finite bound (see `status`)"
        early = int((~np.asarray(self.converged)).sum())
        if early:
            return (
                f"{early} of {np.size(self.status)} posteriors did not converge (see `converged`); give "
                "GaussianPath more `iterations`"
            )
        if bool(jnp.isnan(self.shift_errors).any()):
            return (
                "which noises are used cannot be told from one path a series; give path_elbo `num_samples` "
                "of 2 or more"
            )
        return warning_of(self.noises)


def bound_terms(
    owner: str,
    model: StateSpaceModel,
    posterior: AbstractPathPosterior,
    rows: Row,
    plan: Plan,
    batch_shape: tuple[int, ...],
    each: Any,
) -> tuple[PathTerms, Array]:
    """Terms and statuses, (n, *batch_shape, ...), for `each` = (series, keys or `None`, numbers of
    the series), arrays with these leading axes."""

    def one(model: StateSpaceModel, rows: Row, each: Any) -> tuple[PathTerms, Array]:
        y, key, index = each
        rows = rows._replace(observation=y.astype(rows.time.dtype))
        check_model(owner, model, rows)
        terms, fine = posterior.terms(model, rows, plan, key, index)
        clock = rows.status.max()
        failure = jnp.where(fine, Status.OK, Status.MODEL_NOT_FINITE)
        return terms, jnp.where(clock == Status.OK, failure, clock).astype(jnp.int32)

    found: tuple[PathTerms, Array] = over_batch(one, model, rows, batch_shape, each)
    return found


def _bound(
    model: StateSpaceModel,
    posterior: AbstractPathPosterior,
    rows: Row,
    plan: Plan,
    keys: Array | None,
    number: int,
    index: Array,
) -> PathBound:
    batch_shape = rows.time.shape[:-1]
    repeated = lambda x: jnp.broadcast_to(x, (number, *x.shape))
    each = repeated(rows.observation), keys, repeated(index)
    terms, statuses = bound_terms(_NAME, model, posterior, rows, plan, batch_shape, each)
    values = terms.log_weight if posterior.is_random else terms.value
    status = statuses.max(0)
    fine = status == Status.OK
    value = jnp.where(fine, values.mean(0), -jnp.inf)
    # Of one path of several that could be drawn nobody knows how they vary.
    freedom = jnp.nan if posterior.is_random and number == 1 else max(number - 1, 1)
    spread = jnp.sqrt(values.var(0) / freedom)
    shift_errors = terms.shift_moves.var(0) / freedom
    weighted = None
    if posterior.is_random:
        # With weight 0 for a path that failed the mean is low, if anything, and its logarithm a bound.
        counted = jnp.where(statuses == Status.OK, terms.log_weight, -jnp.inf)
        weighted = jax.nn.logsumexp(counted, axis=0) - math.log(number)
    mean = jax.tree.map(lambda x: x.mean(0), terms._replace(converged=terms.log_weight))
    return PathBound(
        value,
        spread,
        weighted,
        mean.log_likelihoods,
        mean.kl_start,
        mean.kl_moves,
        mean.shift_start,
        mean.shift_moves,
        shift_errors,
        mean.mean,
        mean.variance + terms.mean.var(0),
        rows.gap[..., 1:] > 0,
        terms.converged.all(0),
        status,
    )


_compiled_bound = compiled(_NAME, _bound)


def path_elbo(
    model: StateSpaceModel,
    series: Series,
    posterior: AbstractPathPosterior,
    *,
    key: Array | None = None,
    num_samples: int = 1,
    index: Any = None,
) -> PathBound:
    """The evidence lower bound E_q[log p(y | path)] - KL(q || p) <= log p(y), in its parts.

    **Arguments:**

    - `model`; `series`: one, or a batch of them made by `stack`;
    - `posterior`: a `PosteriorSDE` or a `GaussianPath`;
    - `key`: a JAX random key, for a posterior that is sampled; `num_samples`: paths per series;
    - `index`: which numbers of a `SeriesContext` belong to the series, by default 0, 1, ... in order.

    **Raises:** `TypeError` for a model whose paths the posterior cannot follow, `ValueError` for a missing
    key.
    """
    check_is_model(_NAME, model)
    check_posterior(_NAME, posterior, key)
    posterior.check_prior(model)
    number = check_count(_NAME, "num_samples", num_samples) if posterior.is_random else 1
    if not isinstance(series, Series):
        raise TypeError(f"{_NAME}: `series` is {type(series).__name__}; expected a Series")
    batch_shape = series.times.shape[:-1]
    if len(batch_shape) > 1:
        raise ValueError(
            f"{_NAME}: `series` has times of shape {series.times.shape}; expected (S, T)"
        )
    rows, plan = rows_of(_NAME, model, series, None, None, model.dtype(series.observations))
    keys = None
    if posterior.is_random:
        assert key is not None
        keys = jax.random.split(key, (number, *batch_shape))
    index = series_index(_NAME, index, batch_shape)
    return _compiled_bound(model, posterior, rows, plan, keys, number, index)


def check_posterior(owner: str, posterior: Any, key: Any) -> None:
    """**Raises:** `TypeError` for what is no posterior or no key, `ValueError` for a missing key."""
    if not isinstance(posterior, AbstractPathPosterior):
        raise TypeError(
            f"{owner}: `posterior` is {type(posterior).__name__}; expected a PosteriorSDE or a GaussianPath"
        )
    if posterior.is_random and key is None:
        raise ValueError(
            f"{owner}: `key` is None; {type(posterior).__name__} draws paths and needs a key (inside a "
            "NumPyro model numpyro.prng_key(), new at every step)"
        )
    if posterior.is_random:
        check_key(owner, key)


def series_index(owner: str, index: Any, shape: tuple[int, ...]) -> Int[Array, "*S"]:
    """The numbers of the series, by default in order.

    **Raises:** `ValueError` for another shape."""
    if index is None:
        return jnp.arange(math.prod(shape)).reshape(shape)
    index = jnp.asarray(index)
    if index.shape != shape or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(
            f"{owner}: `index` has shape {index.shape} and dtype {index.dtype}; expected integers of shape "
            f"{shape}, one for every series"
        )
    return index
