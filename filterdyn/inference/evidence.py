"""The evidence of a model: how probable the data are, with its parameters integrated out."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from numpyro import handlers
from numpyro.infer import MCMC
from numpyro.infer.util import potential_energy, unconstrain_fn

from filterdyn._checks import check_count, check_key
from filterdyn._groups import in_groups
from filterdyn.inference.draws import flattened, samples_of

_OWNER = "log_evidence"
#: Of the Student distribution that is drawn from: its tails are heavier than those of most posteriors.
_DOF = 5.0
#: Above this the weights have a tail of which the draws have not seen enough.
_RELIABLE = 0.7


@dataclass(frozen=True)
class LogEvidence:
    """The logarithm of the evidence.

    - `value`, and `standard_error`, its Monte Carlo error;
    - `effective_draws` of `draws`: (sum of weights)^2 / sum of their squares;
    - `pareto_k`: shape of the tail of the weights; `reliable` if it is at most 0.7 and the value is
      finite. Otherwise neither value nor error is to be believed.
    """

    value: float
    standard_error: float
    effective_draws: float
    draws: int
    pareto_k: float

    @property
    def reliable(self) -> bool:
        return math.isfinite(self.value) and self.pareto_k <= _RELIABLE

    def __str__(self) -> str:
        text = (
            f"log evidence {self.value:.3f} +- {self.standard_error:.3f} ({self.effective_draws:.0f} "
            f"effective of {self.draws} draws)"
        )
        if not self.reliable:
            text += (
                f"; not reliable: the weights have a tail of Pareto shape {self.pareto_k:.2f}, expected "
                f"at most {_RELIABLE}: the posterior is far from a Gaussian, or its draws are few"
            )
        return text


def log_evidence(
    mcmc_or_samples: MCMC | Mapping[str, Any],
    model: Callable[..., Any],
    *args: Any,
    key: Array | None = None,
    num_samples: int = 4000,
    batch_size: int = 250,
    **kwargs: Any,
) -> LogEvidence:
    """log p(data), the integral of likelihood times prior, of a NumPyro model.

    Importance sampling: the posterior draws, taken to the space where parameters have no limits, say where
    to draw from, a Student distribution (5 degrees of freedom) with their mean and covariance, and the
    evidence is the mean of the joint density over that of the draw. It is unbiased whatever the posterior
    draws are worth, and its error is that of independent draws. For models of up to some ten parameters
    whose posterior has one mode; `pareto_k` says where that is not so.

    **Arguments:**

    - `mcmc_or_samples`: an `MCMC` after its run, or a dictionary of samples with one leading axis, of all
      parameters;
    - `model`, `*args`, `**kwargs`: the NumPyro model as it was run, the data included. Improper priors
      have no evidence, and a likelihood that leaves out a constant an evidence that lacks it;
    - `key`: a random key (default `jax.random.key(0)`); `num_samples`: how many draws;
    - `batch_size`: so many are run side by side.

    **Returns** a `LogEvidence`.

    **Raises:** `KeyError` for a parameter without samples, `ValueError` for discrete parameters, for
    fewer samples than the covariance needs, and for draws that are all the same.

    Reference: Geweke 1989, "Bayesian inference in econometric models using Monte Carlo integration";
    Vehtari, Simpson, Gelman, Yao, Gabry 2024, "Pareto smoothed importance sampling".
    """
    from arviz_stats.base import array_stats  # ArviZ takes as long to import as all the rest

    key = jax.random.key(0) if key is None else key
    check_key(_OWNER, key)
    num_samples = check_count(_OWNER, "num_samples", num_samples)
    batch_size = min(check_count(_OWNER, "batch_size", batch_size), num_samples)
    samples = flattened(samples_of(_OWNER, mcmc_or_samples)[0])
    draws = {name: jnp.asarray(samples[name]) for name in _parameters(model, args, kwargs, samples)}
    free = lambda sample: unconstrain_fn(model, args, kwargs, sample)
    _, back = ravel_pytree(free({name: x[0] for name, x in draws.items()}))
    z = jax.jit(jax.vmap(lambda sample: ravel_pytree(free(sample))[0]))(draws)
    z = np.asarray(z, np.float64)
    z = z[np.isfinite(z).all(1)]
    dim = z.shape[1]
    if len(z) < 10 * dim:
        raise ValueError(
            f"{_OWNER}: `mcmc_or_samples` has {len(z)} finite draws of {dim} numbers; expected "
            f"{10 * dim} or more"
        )
    mean = z.mean(0)
    try:
        root = np.linalg.cholesky(np.atleast_2d(np.cov(z.T)) + 1e-12 * np.diag(z.var(0)))
    except np.linalg.LinAlgError:
        raise ValueError(
            f"{_OWNER}: the covariance of the draws of `mcmc_or_samples` is not positive; expected draws "
            f"that differ in each of {dim} numbers (was the sampler stuck?)"
        ) from None
    key_normal, key_chi = jax.random.split(key)
    normal = np.asarray(jax.random.normal(key_normal, (num_samples, dim)), np.float64)
    chi = 2 * np.asarray(jax.random.gamma(key_chi, _DOF / 2, (num_samples,)), np.float64)
    scaled = normal * np.sqrt(_DOF / chi)[:, None]
    log_q = (
        math.lgamma((_DOF + dim) / 2)
        - math.lgamma(_DOF / 2)
        - dim / 2 * math.log(_DOF * math.pi)
        - np.log(np.diag(root)).sum()
        - (_DOF + dim) / 2 * np.log1p((scaled**2).sum(1) / _DOF)
    )
    joint = lambda at: -potential_energy(model, args, kwargs, back(at))
    run = jax.jit(lambda at: in_groups(joint, at, batch_size))
    log_p = run(jnp.asarray(mean + scaled @ root.T, jnp.result_type(float)))
    log_weights = np.asarray(log_p, np.float64) - log_q
    top = log_weights.max()
    if not np.isfinite(top):
        return LogEvidence(float(top), math.nan, 0.0, num_samples, math.inf)
    weights = np.exp(log_weights - top)
    average = weights.mean()
    # (ArviZ takes the negative logarithms: in its leave-one-out they are the log-likelihoods.)
    pareto_k = float(array_stats.psislw(top - log_weights)[1])
    return LogEvidence(
        float(top + np.log(average)),
        float(weights.std(ddof=1) / average / math.sqrt(num_samples)),
        float(weights.sum() ** 2 / (weights**2).sum()),
        num_samples,
        pareto_k,
    )


def _parameters(
    model: Callable[..., Any], args: Any, kwargs: Any, samples: Mapping[str, Any]
) -> list[str]:
    """Names of the latent sites.

    **Raises:** `KeyError` for one without samples, `ValueError` for a discrete one and for none.
    """
    seeded = handlers.seed(model, jax.random.key(0))
    trace = handlers.trace(seeded).get_trace(*args, **kwargs)
    latent = {n: s for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
    if not latent:
        raise ValueError(f"{_OWNER}: the model has no parameters; expected one or more")
    for name, site in latent.items():
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"{_OWNER}: the parameter {name!r} is discrete ({type(site['fn']).__name__}); expected "
                "parameters that are real numbers"
            )
        if name not in samples:
            raise KeyError(
                f"{_OWNER}: `mcmc_or_samples` has no samples of the site {name!r} of the model; it has "
                f"{sorted(samples)}"
            )
    return list(latent)
