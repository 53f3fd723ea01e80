"""Sparse Bayesian regression on a library of terms: the regularised horseshoe."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.diagnostics import gelman_rubin
from numpyro.infer import MCMC, NUTS

from filterdyn._checks import check_count, check_key
from filterdyn.inference.found_terms import FoundTerms
from filterdyn.inference.sparse_regression import (
    RIDGES,
    THRESHOLDS,
    check_level,
    check_regression,
    thresholded_least_squares,
)
from filterdyn.inference.term_regression import TermRegression
from filterdyn.inference.term_selection import Reduced, best, information, thresholded

_NAME = "inference.horseshoe_regression"


def horseshoe_regression(
    regression: TermRegression,
    *,
    key: Array,
    expected_terms: float = 2.0,
    slab_scale: float = 2.0,
    slab_freedom: float = 4.0,
    num_warmup: int = 500,
    num_samples: int = 500,
    num_chains: int = 2,
    level: float = 0.9,
    progress: bool = False,
) -> FoundTerms:
    """Terms by Bayesian regression under the regularised horseshoe (Piironen, Vehtari 2017), in NumPyro.

    The share beta_j of a term in the rate (as in `thresholded_least_squares`) has the prior

        beta_j ~ N(0, s_j^2), 1 / s_j^2 = 1 / c^2 + 1 / (tau lambda_j)^2,
        lambda_j ~ C+(0, 1), tau ~ C+(0, tau_0), c^2 ~ InvGamma(nu / 2, nu slab_scale^2 / 2),

    which pulls most terms to zero and leaves the others, but for the slab of scale c, as they are; tau_0 =
    p_0 / (p - p_0) sigma has p_0 = `expected_terms`. Given the scales beta is Gaussian: NUTS samples the
    scales with beta integrated out, and beta is then drawn exactly. So strong data, and terms that are nearly
    alike, do not make narrow valleys for it.

    **Arguments:**

    - `regression`: from `pointwise_regression` or `weak_regression`; where the covariance of its errors
      depends on the coefficients, it is that at the ones `thresholded_least_squares` finds;
    - `key`: a JAX random key; `expected_terms`: how many terms an equation may have;
    - `slab_scale`, `slab_freedom`: of the slab, in shares of the rate;
    - `num_warmup`, `num_samples`, `num_chains`: of NUTS; `level`: the probability of the intervals;
    - `progress`: show a bar.

    **Returns:** `FoundTerms`. `inclusion` is the posterior mean of 1 - kappa_j, where kappa_j = Var(beta_j |
    scales, data) / s_j^2: for orthogonal terms the shrinkage factor 1 / (1 + s_j^2 / sigma^2) of their
    equation 2.4, and near 1 for terms that the data cannot tell from others. Terms with more than 1/2 are
    found. Their coefficients and intervals are those of the posterior's fit projected on them alone, draw by
    draw; `samples` has the draws of all coefficients as they are. `settings` has the largest `r_hat` of the
    scales' logarithms and the number of `divergences`, of which more than a few are warned of.

    **Raises:** `ValueError` for settings out of range, `TypeError` for another kind of `regression`.
    """
    check_regression(_NAME, regression)
    check_key(_NAME, key)
    check_level(_NAME, level)
    sizes = {"num_warmup": num_warmup, "num_samples": num_samples, "num_chains": num_chains}
    for name, value in sizes.items():
        check_count(_NAME, name, value)
    for name, scale in {"slab_scale": slab_scale, "slab_freedom": slab_freedom}.items():
        if not 0.0 < scale < np.inf:
            raise ValueError(f"{_NAME}: `{name}` is {scale!r}; expected a positive number")
    p = len(regression.library)
    if not 0.0 < expected_terms < p:
        raise ValueError(
            f"{_NAME}: `expected_terms` is {expected_terms!r}; expected more than 0 and fewer than the "
            f"{p} terms of the library"
        )
    parts = _equations(regression)
    data = _stacked(parts)
    prior = (expected_terms / (p - expected_terms), slab_scale, slab_freedom)

    key_start, key_run, key_draw = jax.random.split(key, 3)
    start = _start(key_start, parts, data, prior, num_chains)
    kernel = NUTS(_scales, target_accept_prob=0.9)
    mcmc = MCMC(kernel, **sizes, progress_bar=progress, chain_method="vectorized")
    fields = ("diverging",)
    mcmc.run(key_run, data, prior, parts[0].unit, extra_fields=fields, init_params=start)
    scales = mcmc.get_samples()
    keys = jax.random.split(key_draw, num_samples * num_chains)
    draw = jax.jit(jax.vmap(lambda key, s: _given_scales(key, data, s)))
    shares, kappa = (np.asarray(x) for x in draw(keys, scales))

    size, norms = np.array([part.size for part in parts]), np.stack([part.scale for part in parts])
    samples = shares * size[:, None] / norms
    inclusion = 1.0 - kappa.mean(0)
    found = [
        tuple(j for j in part.usable if row[j] > 0.5)
        for part, row in zip(parts, inclusion, strict=True)
    ]
    projected = np.zeros(samples.shape)
    for i, (part, support) in enumerate(zip(parts, found, strict=True)):
        if support:
            fits = (shares[:, i] * size[i]) @ part.R.T
            onto = np.linalg.pinv(part.R[:, support], rcond=1e-13)
            projected[:, i, list(support)] = fits @ onto.T / norms[i, list(support)]
    tail = 0.5 * (1.0 - level)
    low, high = np.quantile(projected, [tail, 1.0 - tail], axis=0)
    settings = _diagnostics(mcmc)
    return FoundTerms(
        regression.library, projected.mean(0), low, high, inclusion, samples, level, settings
    )


def _equations(regression: TermRegression) -> list[Reduced]:
    count = regression.targets.shape[1]
    if regression.errors is None or not regression.errors.depends:
        return [Reduced(regression.equation(i)) for i in range(count)]
    pilot = thresholded_least_squares(regression).coefficients
    return [Reduced(regression.equation(i, pilot[i])) for i in range(count)]


def _stacked(parts: list[Reduced]) -> dict[str, Array]:
    """Every equation as R beta + e = b, with e, R and b in units of the size of the rate: `R` (dx, p, p) and
    `b` (dx, p) padded with rows of zeros, the `rest` of the squares that no term explains, `rows`, and the
    standard deviation `sigma` of e where it is known."""
    p = parts[0].terms
    dtype = jnp.result_type(float)
    pad = lambda x: np.concatenate([x, np.zeros((p - len(x), *x.shape[1:]))])
    size = np.array([max(part.size, 1e-300) for part in parts])
    return {
        "R": jnp.asarray(np.stack([pad(part.R) for part in parts]), dtype),
        "b": jnp.asarray(np.stack([pad(part.b) for part in parts]) / size[:, None], dtype),
        "rest": jnp.asarray(
            [part.rest / part.size**2 if part.size else 0.0 for part in parts], dtype
        ),
        "rows": jnp.asarray([part.rows for part in parts], dtype),
        "sigma": jnp.asarray(1.0 / size, dtype),
    }


def _start(
    key: Array,
    parts: list[Reduced],
    data: dict[str, Array],
    prior: tuple[float, float, float],
    chains: int,
) -> dict[str, Array]:
    """Logarithms of the scales, where least squares with the terms of the least criterion says that they
    are, and a factor of about 2 around it: from anywhere a chain may need long to let go of terms."""
    dx, p = data["b"].shape
    ratio, slab_scale, _ = prior
    sigma, local = np.asarray(data["sigma"]).copy(), np.full((dx, p), 0.3)
    for i, part in enumerate(parts):
        score = information(part, extended=True)
        support = best((thresholded(part, t, r) for t in THRESHOLDS for r in RIDGES), score)
        if not part.unit:
            squares = part.squares(support) / max(part.rows - len(support), 1)
            sigma[i] = max(np.sqrt(squares) / max(part.size, 1e-300), 1e-6)
        if support:
            shares = np.abs(part.normalised(support)) / max(part.size, 1e-300)
            local[i, list(support)] = np.maximum(shares / (ratio * sigma[i]), 1.0)
    values = {"tau": np.ones(dx), "slab": np.full(dx, slab_scale**2), "lambda": local}
    if not parts[0].unit:
        values["relative_sigma"] = sigma * np.sqrt(np.asarray(data["rows"]))
    keys = jax.random.split(key, len(values))
    found = {}
    for one, (name, value) in zip(keys, values.items(), strict=True):
        shape = (chains, *value.shape) if chains > 1 else value.shape
        log = jnp.log(jnp.asarray(value, data["b"].dtype))
        found[name] = log + 0.7 * jax.random.normal(one, shape, log.dtype)
    return found


def _scales(data: dict[str, Array], prior: tuple[float, float, float], unit: bool) -> None:
    """The NumPyro model of the scales, from which the shares are integrated out."""
    ratio, slab_scale, freedom = prior
    dx, p = data["b"].shape
    with numpyro.plate("equation", dx):
        if unit:
            sigma = numpyro.deterministic("sigma", data["sigma"])
        else:
            relative = numpyro.sample("relative_sigma", dist.HalfNormal(1.0))
            sigma = numpyro.deterministic("sigma", relative / jnp.sqrt(data["rows"]))
        tau = numpyro.sample("tau", dist.HalfCauchy(1.0)) * ratio * sigma
        slab = numpyro.sample(
            "slab", dist.InverseGamma(0.5 * freedom, 0.5 * freedom * slab_scale**2)
        )
        local = numpyro.sample("lambda", dist.HalfCauchy(jnp.ones(p)).to_event(1))
        square = (tau[:, None] * local) ** 2
        scale = jnp.sqrt(slab[:, None] * square / (slab[:, None] + square))
        scale = numpyro.deterministic("scale", scale)
        numpyro.factor("rate", jax.vmap(_log_density)(data, scale, sigma))


def _posterior(
    data: dict[str, Array], scale: Float[Array, " p"], sigma: Float[Array, ""]
) -> tuple[Array, Array]:
    """z in beta = scale z, given the scales: its mean, and the Cholesky factor of its precision."""
    X = data["R"] * (scale / sigma)
    factor = jnp.linalg.cholesky(jnp.eye(len(scale), dtype=X.dtype) + X.T @ X)
    mean = jax.scipy.linalg.cho_solve((factor, True), X.T @ (data["b"] / sigma))
    return mean, factor


def _log_density(
    data: dict[str, Array], scale: Float[Array, " p"], sigma: Float[Array, ""]
) -> Float[Array, ""]:
    """log p(b | scales), up to a constant."""
    mean, factor = _posterior(data, scale, sigma)
    residual = data["b"] - data["R"] @ (scale * mean)
    squares = (residual @ residual + data["rest"]) / sigma**2 + mean @ mean
    return -0.5 * squares - jnp.log(jnp.diag(factor)).sum() - data["rows"] * jnp.log(sigma)


def _given_scales(
    key: Array, data: dict[str, Array], scales: dict[str, Array]
) -> tuple[Float[Array, "dx p"], Float[Array, "dx p"]]:
    """A draw of the shares, and kappa."""
    scale, sigma = scales["scale"], scales["sigma"]

    def one(key: Array, data: dict[str, Array], scale: Array, sigma: Array) -> tuple[Array, Array]:
        mean, factor = _posterior(data, scale, sigma)
        eye = jnp.eye(len(mean), dtype=mean.dtype)
        root = jax.scipy.linalg.solve_triangular(factor, eye, lower=True)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return scale * (mean + root.T @ noise), (root**2).sum(0)

    return jax.vmap(one)(jax.random.split(key, len(sigma)), data, scale, sigma)


def _diagnostics(mcmc: MCMC) -> dict[str, Any]:
    divergences = int(np.asarray(mcmc.get_extra_fields()["diverging"]).sum())
    grouped = mcmc.get_samples(group_by_chain=True)
    logs = {name: np.log(np.asarray(grouped[name])) for name in ("tau", "scale")}
    chains, draws = logs["tau"].shape[:2]
    r_hat = np.nan
    if chains > 1 and draws > 3:
        r_hat = max(float(np.nanmax(gelman_rubin(x))) for x in logs.values())
    if r_hat > 1.1 or divergences > 0.01 * chains * draws:
        warnings.warn(
            f"{_NAME}: NUTS has {divergences} divergences of {chains * draws} draws and a largest R-hat of "
            f"{r_hat:.2f}; more `num_warmup` and `num_samples` may help, or fewer terms that are nearly "
            "alike",
            stacklevel=3,
        )
    return {"r_hat": r_hat, "divergences": divergences}
