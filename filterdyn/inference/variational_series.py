"""A state-space model as a NumPyro distribution whose log-density is a variational lower bound."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from filterdyn._checks import check_count
from filterdyn._compile import compiled
from filterdyn.dynamics import Plan
from filterdyn.filters.rows import Row
from filterdyn.filters.verbs import check_is_model
from filterdyn.inference.batch import check_batch, series_value
from filterdyn.inference.path_bound import bound_terms, check_posterior, series_index
from filterdyn.inference.path_posterior import AbstractPathPosterior
from filterdyn.inference.series_distribution import SeriesDistribution
from filterdyn.model import StateSpaceModel
from filterdyn.series import blank
from filterdyn.status import Status

_NAME = "VariationalSeries"


class VariationalSeries(SeriesDistribution):
    """`ObservedSeries` with a lower bound in place of the likelihood, event shape (T, dy).

    `log_prob` is E_q[log p(y | path)] - KL(q || p) for a `PosteriorSDE`, by paths drawn from it, or for a
    `GaussianPath`, without sampling. In a NumPyro model under `SVI(model, guide, optimizer, Trace_ELBO())`
    what is maximised is then one bound on the evidence, with priors and a guide for the parameters, and with
    the posterior over paths as a module with parameters of its own:

        posterior = numpyro.contrib.module.eqx_module("posterior", posterior)
        series = fd.inference.VariationalSeries(
            model, times, posterior=posterior, key=numpyro.prng_key()
        )
        numpyro.sample("y", series, obs=y)

    Several series of one model, of times of their own, batches of models and plates are as for
    `ObservedSeries`. `sample` simulates the model; the posterior takes no part in it.
    """

    pytree_data_fields = ("posterior", "key", "index")
    pytree_aux_fields = ("num_samples",)
    owner = _NAME

    def __init__(
        self,
        model: StateSpaceModel,
        times: Any,
        inputs: Any = None,
        *,
        posterior: AbstractPathPosterior,
        key: Array | None = None,
        num_samples: int = 1,
        index: Any = None,
        batch_shape: tuple[int, ...] = (),
        validate_args: bool | None = None,
    ):
        """**Arguments:**

        - `model`: one model, or a batch of shape (S,);
        - `times` (T,), or (S, T); `inputs` (T, du) or (S, T, du), as in a `Series`;
        - `posterior`: a `PosteriorSDE` or a `GaussianPath`;
        - `key`: for a posterior that is sampled; a new one at every step of `SVI`, from
          `numpyro.prng_key()`; `num_samples`: paths a series;
        - `index`: integers of the shape of `log_prob`: which numbers of a `SeriesContext` belong to
          each series, by default 0, 1, ... in order;
        - `batch_shape`: `()` for one model on one timeline, `(S,)` for a batch; never inferred.

        **Raises:** `ValueError` for shapes that disagree and a missing key, `TypeError` for a model whose
        paths the posterior cannot follow.
        """
        check_is_model(_NAME, model)
        check_posterior(_NAME, posterior, key)
        batch_shape = tuple(int(n) for n in batch_shape)
        check_batch(_NAME, model, times, batch_shape)
        many = np.ndim(times) > 1
        self.model = model
        self.series = blank(_NAME, times, inputs, model.dtype(), batch_shape if many else ())
        self.t0 = None
        self.u0 = None
        self.posterior = posterior
        self.key = key
        self.index = index
        self.num_samples = check_count(_NAME, "num_samples", num_samples)
        if not posterior.is_random:
            self.num_samples = 1
        dy = self._dy(posterior.check_prior)
        super().__init__(
            batch_shape, (self.series.times.shape[-1], dy), validate_args=validate_args
        )

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        """The lower bound for one or more series, from which missing (NaN) entries are left out."""
        value = series_value(_NAME, value, self.batch_shape, self.event_shape)
        lead = value.shape[:-2]
        rows, plan = self._rows(value)
        index = series_index(_NAME, self.index, lead)
        number = self.num_samples
        keys = None
        if self.posterior.is_random:
            assert self.key is not None
            keys = jax.random.split(self.key, (number, *lead))
        own = lead[len(lead) - len(self.batch_shape) :]
        flat = lambda x, tail: jnp.broadcast_to(x, (number, *x.shape)).reshape(-1, *own, *tail)
        each = (
            flat(value, value.shape[-2:]),
            None if keys is None else keys.reshape(-1, *own, *keys.shape[1 + len(lead) :]),
            flat(index, ()),
        )
        args = self.model, self.posterior, rows, plan, self.batch_shape, each
        return _compiled_log_density(*args).reshape(number, *lead).mean(0)


def _log_density(
    model: StateSpaceModel,
    posterior: AbstractPathPosterior,
    rows: Row,
    plan: Plan,
    batch_shape: tuple[int, ...],
    each: Any,
) -> Array:
    terms, status = bound_terms(_NAME, model, posterior, rows, plan, batch_shape, each)
    return jnp.where(status == Status.OK, terms.value, -jnp.inf)


_compiled_log_density = compiled("VariationalSeries.log_prob", _log_density)
